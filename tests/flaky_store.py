"""A remote store that fails as told: files of a local folder by the URI flaky://PATH."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest
from fsspec.implementations.local import LocalFileSystem

from mambaout.data.shards import files


class Store(pyarrow.fs.FSSpecHandler):
    """`reads` has the (path, start, length) of every read that was tried."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())
        self.reads: list[tuple[str, int, int]] = []
        self.slept: list[float] = []
        self.opened = 0
        self.errors: list[Exception] = []  # raised one after another, each by one read
        self.listing_errors: list[Exception] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.on_read: Callable[[str], None] = lambda path: None

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.opened += 1
        return pa.PythonFile(_File(self, Path(path)), mode="r")

    def get_file_info_selector(
        self, selector: pyarrow.fs.FileSelector
    ) -> list[pyarrow.fs.FileInfo]:
        if self.listing_errors:
            raise self.listing_errors.pop(0)
        return super().get_file_info_selector(selector)


class _File:
    """A file that is of no use any more once a read of it has failed."""

    def __init__(self, store: Store, path: Path) -> None:
        self.store, self.path, self.broken, self.closed = store, path, False, False
        self.file = io.BytesIO(path.read_bytes())
        self.seek, self.tell = self.file.seek, self.file.tell

    def read(self, length: int) -> bytes:
        self.store.reads.append((self.path.name, self.tell(), length))
        self.store.go_on.wait(60)
        self.store.on_read(self.path.name)
        assert not self.broken, "read again through the same handle"
        if self.store.errors:
            self.broken = True
            raise self.store.errors.pop(0)
        return self.file.read(length)

    def close(self) -> None:
        self.file.close()
        self.closed = True


def open_store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store behind flaky://, in a test that does not sleep."""
    store = Store()
    wrapped = pyarrow.fs.PyFileSystem(store)
    monkeypatch.setattr(files, "_remote", {"flaky": wrapped}.__getitem__)
    monkeypatch.setattr(files.time, "sleep", store.slept.append)
    files._kept_open.cache_clear()
    return store
