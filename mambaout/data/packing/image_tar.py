"""The tree of files in an uncompressed tar. Images are read from the tar without unpacking it.

Hard and symbolic links stand for their targets. Because nothing is unpacked, names like /data/x.jpg
and ../x.jpg are harmless: they are read as data/x.jpg and x.jpg.
"""

from __future__ import annotations

import posixpath
import shlex
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mambaout.data.packing.walk import Entry, Parts, Tree, shown, walk
from mambaout.data.shards.files import DataError

REPLACED = (
    "file that a later one of its name replaces",
    "files that later ones of their names replace",
)

MOST_LINKS = 40  # links in a chain that are followed, as many as Linux follows

# The first bytes of the usual kinds of archives, and the command that unpacks each kind.
UNPACK = {
    b"\x1f\x8b": "tar -xf {file} -C {folder}",
    b"BZh": "tar -xf {file} -C {folder}",
    b"\xfd7zXZ\x00": "tar -xf {file} -C {folder}",
    b"\x28\xb5\x2f\xfd": "tar --zstd -xf {file} -C {folder}",
    b"PK\x03\x04": "{python} -m zipfile -e {file} {folder}",
    b"Rar!": "unrar x {file} {folder}/",
    b"7z\xbc\xaf": "7z x {file} -o{folder}",
}
ARCHIVE_ENDINGS = (".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip")


class _Slice(NamedTuple):
    """A file's bytes in the tar."""

    start: int
    size: int


class _Link(NamedTuple):
    folder: _Folder  # the folder that holds the link
    target: str


class _Special(NamedTuple):
    """A device, a pipe, or a file with holes."""

    name: str


@dataclass(slots=True)
class _Folder:
    above: _Folder | None = None
    entries: dict[str, _Node] = field(default_factory=dict)


_Node = _Slice | _Link | _Special | _Folder


def walk_tar(archive: Path) -> Tree:
    """The tree in the tar; DataError, with the remedy, if the tar is compressed or damaged."""
    top, replaced = _read_members(archive)
    tree = walk(archive, Entry("", "folder", id(top), top), _entries, _read)
    for name in replaced:
        tree.left_out.add(REPLACED, name)
    return tree


def refuse_compressed(archive: Path) -> None:
    """Raise DataError for an archive that can only be read from its beginning to its end."""
    try:
        with open(archive, "rb") as file:
            begin = file.read(8)
    except OSError as error:
        raise DataError(
            f"{shown(archive)} cannot be read ({error.strerror}); make it readable"
        ) from error
    for mark, command in UNPACK.items():
        if begin.startswith(mark):
            folder = archive.absolute().with_name(archive.name.split(".")[0] + "-unpacked")
            places = {
                "file": shlex.quote(str(archive)),
                "folder": shlex.quote(str(folder)),
                "python": shlex.quote(sys.executable),
            }
            raise DataError(
                f"{shown(archive)} is not an uncompressed tar, and its images cannot be read one "
                f"by one; unpack it (`mkdir {places['folder']} && {command.format(**places)}`) "
                f"and give the folder {shown(folder)}"
            )


def _read_members(archive: Path) -> tuple[_Folder, list[str]]:
    """The top folder, and the names of files that a later file of the same name replaces."""
    refuse_compressed(archive)
    top = _Folder()
    replaced: list[str] = []
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                parts = _parts(member.name)
                if member.isdir():
                    _folder(archive, top, parts)
                elif parts:
                    folder = _folder(archive, top, parts[:-1])
                    node = _node(archive, top, folder, member)
                    match folder.entries.get(parts[-1]):
                        case None:
                            pass
                        case _Folder():
                            raise _both(archive, parts)
                        case _:
                            replaced.append("/".join(parts))
                    folder.entries[parts[-1]] = node
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(
            f"{shown(archive)} is no whole tar ({error}); get or make it again"
        ) from error
    _check_end(archive, end)
    return top, replaced


def _check_end(archive: Path, end: int) -> None:
    """Raise DataError if the tar does not end with blocks of zeros. The check is needed because
    tarfile takes a damaged header for the end."""
    with open(archive, "rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE or any(block):
            raise DataError(
                f"{shown(archive)} is no whole tar (its end mark is not at byte {end:,}, where "
                "the files that can be read end); get or make it again"
            )
        while block:
            block = file.read(1 << 20)
            if block.strip(b"\0"):
                raise DataError(
                    f"{shown(archive)} goes on behind its end mark at byte {end:,}, as tars that "
                    "were put together do; unpack it with `tar --ignore-zeros -xf` and give the "
                    "folder"
                )


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in posixpath.normpath("/" + name).split("/") if part)


def _folder(archive: Path, top: _Folder, parts: tuple[str, ...]) -> _Folder:
    """The folder of that name; it is made if the tar has not named it before."""
    at = top
    for part in parts:
        node = at.entries.get(part)
        if isinstance(node, _Link):
            node = _followed(node)
        if node is None:
            node = at.entries[part] = _Folder(at)
        if not isinstance(node, _Folder):
            raise _both(archive, parts)
        at = node
    return at


def _both(archive: Path, parts: tuple[str, ...]) -> DataError:
    return DataError(
        f"{shown(archive)} holds {shown('/'.join(parts))} as a file and as a folder; unpack it and "
        "give the folder"
    )


def _node(archive: Path, top: _Folder, folder: _Folder, member: tarfile.TarInfo) -> _Node:
    if member.issym():
        return _Link(folder, member.linkname)
    if member.islnk():
        node: _Node | None = top
        for part in _parts(member.linkname):
            node = node.entries.get(part) if isinstance(node, _Folder) else None
        if node is None or isinstance(node, _Folder):
            raise DataError(
                f"{shown(archive / member.name)} is a hard link to {shown(member.linkname)}, which "
                "the tar does not hold before it; make the tar again with `tar --hard-dereference`"
            )
        return node
    if member.isfile() and not member.issparse():
        return _Slice(member.offset_data, member.size)
    return _Special(member.name)


def _followed(link: _Link, links_left: int = MOST_LINKS) -> _Node | None:
    """The target of the link; None if it is not in the tar."""
    if link.target.startswith("/") or not links_left:
        return None
    node: _Node | None = link.folder
    for part in link.target.split("/"):
        if not isinstance(node, _Folder):
            return None
        if part == "..":
            node = node.above
        elif part not in ("", "."):
            node = node.entries.get(part)
            if isinstance(node, _Link):
                node = _followed(node, links_left - 1)
    return node


def _entries(folder: _Folder) -> Iterator[Entry]:
    for name, node in folder.entries.items():
        found = _followed(node) if isinstance(node, _Link) else node
        match found:
            case _Folder():
                yield Entry(name, "folder", id(found), found)
            case _Slice(start, size):
                yield Entry(name, "file", start, found, size)
            case _Special():
                yield Entry(name, "special")
            case _:
                assert isinstance(node, _Link)
                yield Entry(
                    name,
                    "unreadable",
                    trouble=f"is a link to {shown(node.target)}, which the tar does not hold; make "
                    "the tar again with `tar --dereference`, which stores what a link points at",
                )


def _read(archive: Path, _: Parts, place: _Slice) -> bytes:
    with open(archive, "rb") as file:
        file.seek(place.start)
        return file.read(place.size)
