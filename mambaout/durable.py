"""Files that a kill or a power loss does not spoil: replaced whole, or grown by whole lines.

    write_whole(path, text)           the old file or the new one, at every moment
    with replacing(path) as aside:    the same, for what a library writes: a file or a folder
    append_lines(path, lines)         lines at the end of a file; half a line there is dropped
    read_lines(path, parse)           those lines, without one that was cut off
    read_whole(path)                  the text; None for what a power loss left of no use

Every writer of the package is one of these. A rename alone is kept by the disk before the bytes
are: after a power loss the new name may stand for an empty file. So bytes are synced first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

from mambaout.errors import WrongRequest

T = TypeVar("T")

PART = ".part"  # how the names end of what is being written
_BLOCK = 1 << 16  # read at a time, from a file's end backwards
# What file systems say that cannot sync a folder; they have no more to give.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR}


class DamagedLine(WrongRequest):
    """A line in the middle of a file is not what was written; the message names both."""


# -- whole ----------------------------------------------------------------------------------------


def write_whole(path: Path, body: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write `path` so that a kill or a power loss leaves the old file or the new one.

    `body` is the text (as UTF-8), the bytes, or a function that writes them.
    """
    with replacing(path) as aside, aside.open("wb") as file:
        if callable(body):
            body(file)
        else:
            file.write(body.encode() if isinstance(body, str) else body)


@contextlib.contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A new name beside `path`, for a file or a folder that takes its place when it is whole.

    It is removed where the context ends with an error. `keep` is the name that the file before
    gets.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}{PART}")
    try:
        yield aside
        _sync_all(aside)
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(aside, path)
        _sync_folder(path.parent)
    finally:
        remove(aside)


def leftovers(path: Path) -> list[Path]:
    """What processes that were killed while they replaced `path` have left beside it; of one that
    is still at it, too."""
    return [*path.parent.glob(f".{glob.escape(path.name)}.*{PART}")]


def remove(path: Path) -> None:
    """Remove the file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_whole(path: Path) -> str | None:
    """The text of a file that was written whole.

    None where there is none, and where it is empty or holds NULs: so a power loss leaves a file
    that was renamed before its bytes were on the disk, as earlier versions did.
    """
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    return None if not text or "\0" in text else text


# -- by lines -------------------------------------------------------------------------------------


def append_lines(path: Path, lines: Iterable[str], *, sync: bool = False) -> None:
    """Add the lines to the end of the file, which is made if missing.

    Half a line at the end, as a kill or a power loss leaves it, is dropped first. `sync` returns
    once the lines are on the disk.
    """
    body = "".join(f"{line}\n" for line in lines).encode()
    if not body:
        return
    is_new = not path.exists()
    with path.open("ab+") as file:
        with contextlib.suppress(OSError):  # a file system without locks has one writer at best
            fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file.fileno()).st_size
        whole = _whole_size(file, size)
        if whole < size:
            file.truncate(whole)
        file.write(body)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    if sync and is_new:
        _sync_folder(path.parent)


def read_lines(path: Path, parse: Callable[[str], T]) -> Iterator[T]:
    """What `parse` makes of each line; nothing where there is no file.

    A last line without its end is left out: it was cut off. Raises DamagedLine for any other that
    `parse` refuses with a ValueError, KeyError or TypeError.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield parsed(line, parse, path, number)


def parsed(line: bytes, parse: Callable[[str], T], path: Path, number: int | None = None) -> T:
    """What `parse` makes of a line of `path`, less NULs around it that a power loss has left."""
    try:
        return parse(line.strip(b"\0\n").decode())
    except (ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ValueError) else repr(error)
        where = "a line" if number is None else f"line {number}"
        raise DamagedLine(
            f"{path} cannot be read: {where} is damaged or of another version: {reason}"
        ) from error


def sync_lines(path: Path) -> None:
    """Return once all that was appended to `path` is on the disk; there may be no such file."""
    if path.exists():
        _sync(path)
        _sync_folder(path.parent)


def _whole_size(file: BinaryIO, size: int) -> int:
    """Bytes up to the end of the last whole line."""
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


# -- syncs ----------------------------------------------------------------------------------------


def _sync_all(path: Path) -> None:
    """Have the file on the disk, or the folder with all that is in it."""
    if not path.is_dir():
        _sync(path)
        return
    for inside in path.iterdir():
        _sync_all(inside)
    _sync_folder(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Have the names in the folder on the disk, where its file system can do that."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
