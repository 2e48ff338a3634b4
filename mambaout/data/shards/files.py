"""Reads any range of a shard's bytes, from local paths and from gs:// and s3:// URIs.

A read that fails for a moment is tried again. parquet.py reads the content of the bytes.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import resource
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs

from mambaout.durable import write_whole
from mambaout.errors import WrongRequest

log = logging.getLogger(__name__)

TRIES = 5
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 5.0  # between tries; doubled, then times 0.5 to 1
RETRY_SECONDS = 120.0  # after it there is no new try; within one try gs:// itself retries for 60 s
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

FOOTER_BYTES = 64 << 10  # read from the end of a file at once; most footers are smaller

# With a memory map a photograph takes 18 us to read instead of 43 us. It is used only on these file
# systems. On others a failed read of a map would be a bus error, which ends the process. Without a
# map it is an OSError, and the read is tried again.
MAPPED_FILE_SYSTEMS = {"ext4", "xfs", "tmpfs", "btrfs", "overlay"}

T = TypeVar("T")


class DataError(WrongRequest):
    """The data cannot be used as they are; the message names the file and the remedy."""


# -- file systems ---------------------------------------------------------------------------------


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


def _file_system_of(path: str) -> str | None:
    """The kind of the path's file system, like "ext4"; None if the machine does not tell."""
    device = os.stat(path).st_dev
    return _mounted().get(f"{os.major(device)}:{os.minor(device)}")


@functools.cache
def _mounted() -> dict[str, str]:
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return {}
    # 36 35 98:0 /root /mounted/here rw,noatime shared:1 - ext4 /dev/sda1 rw
    return {line.split()[2]: line.partition(" - ")[2].split()[0] for line in lines}


def tried_again(what: str, attempt: Callable[[], T]) -> T:
    """The result of `attempt`, which is called again after an error of the store that may pass.

    Raises the last OSError when the tries or their time are used up. An error that will not pass
    (LASTING) and any other error of `attempt` are raised at once.
    """
    started = time.monotonic()
    for number in range(1, TRIES + 1):
        try:
            return attempt()
        except LASTING:
            raise
        except OSError as error:
            if number == TRIES or time.monotonic() - started > RETRY_SECONDS:
                raise
            wait = min(FIRST_WAIT_SECONDS * 2 ** (number - 1), LONGEST_WAIT_SECONDS)
            wait *= random.uniform(0.5, 1)  # workers that failed together retry at different times
            log.warning(
                "%s failed (%s: %s); try %d of %d in %.1f s",
                what, type(error).__name__, error, number + 1, TRIES, wait,
            )  # fmt: skip
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


# -- open files -----------------------------------------------------------------------------------


class Stamp(NamedTuple):
    """Facts that differ between a file and a file that replaces it, known without opening it."""

    size: int
    time_ns: int  # of the last change
    inode: int = 0  # of a local file


def stamp_of(path: str | Path) -> Stamp:
    """The stamp of a local file."""
    facts = os.stat(path)
    return Stamp(facts.st_size, facts.st_mtime_ns, facts.st_ino)


class Footer(NamedTuple):
    """The stamp of a file, from a listing, and the file's end, if it has been read before."""

    stamp: Stamp
    tail: bytes = b""


class _Open:
    """A file that is opened at the first read, and opened again after an error."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.known: Footer | None = None
        self.file: pa.NativeFile | None = None

    def _opened(self) -> pa.NativeFile:
        file = self.file
        if file is None:
            files, path = filesystem(self.location)
            mapped = files is _local() and _file_system_of(path) in MAPPED_FILE_SYSTEMS
            file = pa.memory_map(path) if mapped else files.open_input_file(path)
            if self.known is not None and file.size() != self.known.stamp.size:
                raise DataError(
                    f"{self.location} was replaced while it was in use: it has {file.size():,} "
                    f"bytes and had {self.known.stamp.size:,}"
                )
            self.file = file
        return file

    @functools.cached_property
    def size(self) -> int:
        if self.known is not None:
            return self.known.stamp.size
        return tried_again(f"opening {self.location}", lambda: self._opened().size())

    def read(self, start: int, length: int, what: str) -> pa.Buffer:
        """`length` bytes from `start` on, in one ranged read; OSError if they cannot be read."""

        def attempt() -> pa.Buffer:
            try:
                # Each read has its own stream, because other threads read the same file.
                found = self._opened().get_stream(start, length).read_buffer(length)
                if found.size < length:
                    raise OSError(f"{found.size} of {length} bytes from {start} on came")
            except OSError:
                self.file = None  # a handle with a broken connection may never recover
                raise
            return found

        return tried_again(f"reading {what} of {self.location}", attempt)

    @functools.cached_property
    def tail(self) -> bytes:
        """The bytes of the footer at the end of the file."""
        if self.known is not None and self.known.tail:
            return self.known.tail
        length = min(self.size, FOOTER_BYTES)
        tail = self.read(self.size - length, length, "the footer")
        wanted = int.from_bytes(memoryview(tail)[-8:-4], "little") + 8
        if length < wanted <= self.size:
            tail = self.read(self.size - wanted, wanted, "the footer")
        return memoryview(tail)[-min(wanted, len(tail)) :].tobytes()


def open_file(location: str, known: Footer | None = None) -> _Open:
    """The file at `location`. The last files stay open, and a known footer is not read again."""
    files, path = filesystem(location)
    # Another file may replace the one at a location. A remote file is checked only when its folder
    # is listed.
    stamp = stamp_of(path) if files is _local() else known and known.stamp
    opened = _kept_open(location, stamp)
    if known is not None and known.stamp == stamp and not (opened.known and opened.known.tail):
        opened.known = known
    return opened


def _kept_open_most() -> int:
    """A quarter of the files that the process may open; the rest is for files other than shards."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if allowed == resource.RLIM_INFINITY else min(4096, max(64, allowed // 4))


KEPT_OPEN = _kept_open_most()


@functools.lru_cache(maxsize=KEPT_OPEN)
def _kept_open(location: str, stamp: Stamp | None) -> _Open:
    return _Open(location)


def names_below(location: str) -> set[str]:
    """The files at any depth below a folder, as paths relative to it, like "train2017/1.jpg".

    Raises DataError if there is no such folder or if it cannot be listed.
    """
    return set(sizes_below(location))


def sizes_below(location: str) -> dict[str, int]:
    """As `names_below`, with the bytes of each file.

    Raises DataError if there is no such folder or if it cannot be listed.
    """
    files, root = filesystem(location)
    everything = pyarrow.fs.FileSelector(root, recursive=True)
    try:
        found = tried_again(f"listing {location}", lambda: files.get_file_info(everything))
    except FileNotFoundError:
        raise DataError(f"{location} is not there; give a folder that is") from None
    except OSError as error:
        raise DataError(f"{location} cannot be listed: {in_words(error)}") from error
    start = len(root.rstrip("/")) + 1
    inside = (info for info in found if info.type == pyarrow.fs.FileType.File)
    return {info.path[start:]: info.size for info in inside}


def file_size(location: str, known: Footer | None = None) -> int:
    """The size of the file in bytes; DataError if it cannot be read."""
    try:
        return open_file(location, known).size
    except OSError as error:
        raise DataError(f"{location} cannot be read: {in_words(error)}") from error


def read_range(location: str, start: int, length: int, known: Footer | None = None) -> pa.Buffer:
    """`length` bytes from `start` on; DataError if they cannot be read."""
    try:
        return open_file(location, known).read(start, length, f"bytes {start} to {start + length}")
    except OSError as error:
        raise DataError(f"{location} cannot be read: {in_words(error)}") from error


def read_ends(location: str, whole_bytes: int, known: Footer | None = None) -> bytes:
    """All bytes of a file of at most `whole_bytes`. For a larger file: the footer, and its size in
    eight bytes.

    Raises DataError if they cannot be read.
    """
    size = file_size(location, known)
    if size <= whole_bytes:
        return read_range(location, 0, size, known).to_pybytes()
    length = int.from_bytes(memoryview(read_range(location, size - 8, 4, known)), "little")
    footer = read_range(location, size - 8 - length, length, known)
    return footer.to_pybytes() + size.to_bytes(8, "little")


def in_words(error: Exception) -> str:
    """The error in words: pyarrow's errors have a text, but a bare TimeoutError() has none."""
    return str(error) or type(error).__name__


# -- what is kept beside them ---------------------------------------------------------------------


def stored_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in the .npy file at `path`, memory mapped. If the file is missing, `make` makes it.

    Processes that make it at the same time write the same content, each under another name; the
    last rename stays.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        array = make()
        write_whole(path, lambda file: np.save(file, array))
    return np.asarray(np.load(path, mmap_mode="r"))  # a plain view: memmap's indexing is slow
