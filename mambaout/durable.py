"""Writes that survive a kill or a power loss: a file is replaced whole, or grows by whole lines.

    write_whole(path, text)           at every moment there is the old file or the new one
    with replacing(path) as aside:    the same, for a file or a folder that a library writes
    append_lines(path, lines)         add lines to a file; half a line at its end is dropped first
    read_lines(path, parse)           read those lines, without a last line that was cut off
    read_whole(path)                  read the text; None if a power loss has destroyed it

The whole package writes with these functions. A disk may store a rename before the bytes of the
file: after a power loss the new name may then hold an empty file. So the bytes are synced first.
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

PART = ".part"  # the ending of the names of files that are being written
_BLOCK = 1 << 16  # bytes read at a time, from a file's end backwards
# The errors of file systems that cannot sync a folder. Nothing more can be done there.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR}


class DamagedLine(WrongRequest):
    """A line in the middle of a file is damaged; the message names the file and the line."""


# -- whole ----------------------------------------------------------------------------------------


def write_whole(path: Path, body: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write `path`; a kill or a power loss leaves the old file or the new one, never a part.

    `body` is the text (as UTF-8), the bytes, or a function that writes them.
    """
    with replacing(path) as aside, aside.open("wb") as file:
        if callable(body):
            body(file)
        else:
            file.write(body.encode() if isinstance(body, str) else body)


@contextlib.contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A new path beside `path`. Write a file or a folder there: it replaces `path` at the end.

    If the context ends with an error, the new file is removed and `path` stays. With `keep` the
    old file is renamed to `keep`.
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
    """The unfinished files beside `path`: of processes that were killed while they replaced it,
    and of processes that are replacing it now."""
    return [*path.parent.glob(f".{glob.escape(path.name)}.*{PART}")]


def remove(path: Path) -> None:
    """Remove the file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_whole(path: Path) -> str | None:
    """The text of a file that was written whole.

    None if there is no such file, or if it is empty or holds NULs. A power loss leaves such a file
    if it was renamed before its bytes were on the disk; earlier versions renamed so.
    """
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    return None if not text or "\0" in text else text


# -- by lines -------------------------------------------------------------------------------------


def append_lines(path: Path, lines: Iterable[str], *, sync: bool = False) -> None:
    """Add the lines to the end of the file; make the file if it is missing.

    A kill or a power loss may have left half a line at the end. It is dropped first. With `sync`
    the call returns after the lines are on the disk.
    """
    body = "".join(f"{line}\n" for line in lines).encode()
    if not body:
        return
    is_new = not path.exists()
    with path.open("ab+") as file:
        with contextlib.suppress(OSError):  # no locks here: only one writer at a time is safe
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
    """The result of `parse` for each line of the file; nothing if there is no file.

    A last line without a line end was cut off and is left out. Raises DamagedLine if `parse`
    raises ValueError, KeyError or TypeError for any other line.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield parsed(line, parse, path, number)


def parsed(line: bytes, parse: Callable[[str], T], path: Path, number: int | None = None) -> T:
    """The result of `parse` for a line of `path`. NULs around the line, from a power loss, are cut.

    Raises DamagedLine, as `read_lines` does.
    """
    try:
        return parse(line.strip(b"\0\n").decode())
    except (ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ValueError) else repr(error)
        where = "a line" if number is None else f"line {number}"
        raise DamagedLine(
            f"{path} cannot be read: {where} is damaged or of another version: {reason}"
        ) from error


def sync_lines(path: Path) -> None:
    """Return after all lines of `path` are on the disk. A missing file is no error."""
    if path.exists():
        _sync(path)
        _sync_folder(path.parent)


def _whole_size(file: BinaryIO, size: int) -> int:
    """The number of bytes up to the end of the last whole line."""
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
    """Sync the file to the disk, or the folder with all files in it."""
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
    """Sync the names in the folder to the disk, if its file system can do that."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
