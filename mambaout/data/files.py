"""Where shards lie and what is kept beside them: local paths, gs:// and s3:// URIs, .npy arrays."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq


class DataError(ValueError):
    """The data cannot be used as it is; the message names the file and the remedy."""


def filesystem(location: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a path or URI, and the path inside it."""
    if "://" not in location:
        return _local(), str(Path(location).absolute())
    return _remote(location.split("://")[0]), location.split("://", 1)[1].rstrip("/")


@functools.cache
def _local() -> pyarrow.fs.FileSystem:
    return pyarrow.fs.LocalFileSystem()


@functools.cache
def _remote(scheme: str) -> pyarrow.fs.FileSystem:
    if scheme in ("gs", "gcs"):
        return pyarrow.fs.GcsFileSystem(retry_time_limit=timedelta(seconds=60))
    if scheme == "s3":
        return pyarrow.fs.S3FileSystem()
    if scheme == "file":
        return _local()
    raise DataError(f"{scheme}:// is not read; use a path, gs:// or s3://")


def open_parquet(location: str) -> pq.ParquetFile:
    """The file's reader, the last 64 kept open; DataError if it is none."""
    files, path = filesystem(location)
    stamp = None
    if files is _local():  # a path may come to hold another file
        facts = os.stat(path)
        stamp = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    return _opened(location, stamp)


@functools.lru_cache(maxsize=64)
def _opened(location: str, stamp: object) -> pq.ParquetFile:
    files, path = filesystem(location)
    try:
        return pq.ParquetFile(files.open_input_file(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{location} cannot be read as a Parquet file: {error}") from error


def read_columns(location: str, columns: list[str], row_group: int | None = None) -> pa.Table:
    """Columns of a Parquet file, or of one row group; DataError, naming both, if it is damaged."""
    file = open_parquet(location)
    try:
        if row_group is None:
            return file.read(columns=columns, use_threads=False)
        return file.read_row_group(row_group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        part = "" if row_group is None else f"row group {row_group} of "
        raise DataError(f"{part}{location} is damaged: {error}; get it again") from error


def stored_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in the .npy file at `path`, memory mapped; made and written first where missing.

    Processes that make it at once write the same, each aside, and the last rename stands.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}")
        try:
            with open(aside, "wb") as file:
                np.save(file, make())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return np.asarray(np.load(path, mmap_mode="r"))  # a plain view: memmap's indexing is slow
