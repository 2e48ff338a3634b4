"""Walks over a tree of files, on disk or in a tar, and reports everything that it does not read.

`walk` finds the images. Other files are counted in `LeftOutFiles`, with the reason. A file or
folder that cannot be read, like a folder without permission or a link that leads nowhere, is a
DataError with its path.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mambaout.data.shards.files import DataError
from mambaout.numbers import counted

ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".jfif"),
)
OTHER_IMAGES = (  # images that are not read; named separately, because users expect them to be
    *(".apng", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".hdr", ".heic", ".heif"),
    *(".ico", ".j2k", ".jp2", ".jpe", ".jpf", ".jpx", ".jxl", ".nef", ".pbm", ".pnm", ".psd"),
    *(".raw", ".svg", ".tga"),
)
# Folders that macOS, Synology, Windows and Linux create by themselves.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")

NAMES_SHOWN = 3  # names of files that were left out for the same reason
ENDINGS_SHOWN = 6

Parts = tuple[str, ...]  # of a path below the root


class Entry(NamedTuple):
    """The file or folder under one name in a folder; links are followed."""

    name: str
    kind: Literal["folder", "file", "special", "unreadable"]
    identity: int = 0  # the same for two names of one file or folder
    place: Any = None  # of a folder: the argument that lists it; of a file in a tar: its bytes
    size: int = 0  # bytes
    mtime_ns: int = 0
    trouble: str = ""  # why it is unreadable, and the remedy


Reason = tuple[str, str]  # the words for one file and for many

HIDDEN_FOLDER = ("hidden folder", "hidden folders")
HIDDEN_FILE = ("hidden file", "hidden files")
SYSTEM_FOLDER = ("system folder", "system folders")
SPECIAL_FILE = ("special file", "special files")
LINK_BACK = ("link to a folder that it lies in", "links to folders that they lie in")
NO_IMAGE = ("file that is no image", "files that are no images")
OTHER_IMAGE = ("image of a kind that is not read", "images of kinds that are not read")


@dataclass(slots=True)
class LeftOutFiles:
    """The files and folders that are not read, with the reasons."""

    parts: list[str] = field(default_factory=list)  # whole folders of images, with their reason
    names: dict[Reason, list[str]] = field(default_factory=dict)
    endings: dict[Reason, Counter[str]] = field(default_factory=dict)

    def add(self, reason: Reason, name: str) -> None:
        self.names.setdefault(reason, []).append(shown(name))

    def add_file(self, name: str) -> None:
        ending = os.path.splitext(name)[1].lower()
        reason = OTHER_IMAGE if ending in OTHER_IMAGES else NO_IMAGE
        self.endings.setdefault(reason, Counter())[shown(ending) or "no ending"] += 1

    def __str__(self) -> str:
        """One line of text; empty if nothing was left out."""
        texts = list(self.parts)
        for reason, names in sorted(self.names.items()):
            texts.append(f"{counted(len(names), *reason)} ({listed(dict.fromkeys(names))})")
        for reason, endings in sorted(self.endings.items()):
            each = [f"{ending} {number:,}" for ending, number in endings.most_common()]
            texts.append(f"{counted(endings.total(), *reason)} ({listed(each, ENDINGS_SHOWN)})")
        return ", ".join(texts)


@dataclass(slots=True)
class Tree:
    """The images under a root, in the order of the walk, and the folders that were walked."""

    root: Path
    read_file: Callable[[Path, Parts, Any], bytes]  # takes the root, the path, the entry's place
    files: dict[Parts, Entry] = field(default_factory=dict)
    folders: dict[Parts, int] = field(default_factory=dict)  # {folder: identity}
    left_out: LeftOutFiles = field(default_factory=LeftOutFiles)

    def at(self, path: Parts) -> str:
        return shown(self.root.joinpath(*path))

    def read(self, path: Parts) -> bytes:
        return self.read_file(self.root, path, self.files[path].place)


def walk(
    root: Path,
    top: Entry,
    entries: Callable[[Any], Iterable[Entry]],
    read_file: Callable[[Path, Parts, Any], bytes],
    above: frozenset[int] = frozenset(),
) -> Tree:
    """The tree below `top`. `above` are the identities of the folders that `top` lies in.

    Raises DataError for anything that cannot be read.
    """
    tree = Tree(root, read_file)
    troubles: list[str] = []
    waiting: list[tuple[Parts, Entry, frozenset[int]]] = [((), top, above)]
    while waiting:
        path, folder, above = waiting.pop()
        tree.folders[path] = folder.identity
        above |= {folder.identity}
        below = []
        for entry in sorted(entries(folder.place), key=lambda entry: entry.name):
            own = (*path, entry.name)
            is_folder = entry.kind == "folder"
            if entry.name in SYSTEM_FOLDERS:
                tree.left_out.add(SYSTEM_FOLDER, entry.name)
            elif entry.name.startswith("."):
                tree.left_out.add(HIDDEN_FOLDER if is_folder else HIDDEN_FILE, entry.name)
            elif entry.kind == "unreadable":
                troubles.append(f"{tree.at(own)} {entry.trouble}")
            elif is_folder and entry.identity in above:
                tree.left_out.add(LINK_BACK, "/".join(own))
            elif is_folder:
                below.append((own, entry, above))
            elif entry.kind == "special":
                tree.left_out.add(SPECIAL_FILE, "/".join(own))
            elif entry.name.lower().endswith(ENDINGS):
                tree.files[own] = entry
            else:
                tree.left_out.add_file(entry.name)
        waiting.extend(reversed(below))
    if troubles:
        more = f"; {len(troubles) - 1:,} more like it" if len(troubles) > 1 else ""
        raise DataError(troubles[0] + more)
    return tree


def walk_folder(root: Path) -> Tree:
    """The tree of a folder on disk."""
    top = Entry("", "folder", _identity(os.stat(root)), str(root))
    above = frozenset(_identity(os.stat(folder)) for folder in root.resolve().parents)
    return walk(root, top, _folder_entries, _read_file, above)


def _folder_entries(folder: str) -> list[Entry]:
    try:
        with os.scandir(folder) as found:
            return [_entry(entry) for entry in found]
    except OSError as error:
        raise DataError(
            f"{shown(folder)} cannot be listed ({error.strerror}); make it readable or take it out"
        ) from error


def _entry(found: os.DirEntry[str]) -> Entry:
    try:
        facts = found.stat()
    except OSError as error:
        trouble = f"cannot be read ({error.strerror}); make it readable or take it out"
        if found.is_symlink():
            target = shown(os.readlink(found.path))
            trouble = f"is a link to {target}, which cannot be reached ({error.strerror}); "
            trouble += "mend the link or remove it"
        return Entry(found.name, "unreadable", trouble=trouble)
    kind = "special"
    if stat.S_ISDIR(facts.st_mode):
        kind = "folder"
    elif stat.S_ISREG(facts.st_mode):
        kind = "file"
    place = found.path if kind == "folder" else None  # a million files' paths would fill memory
    return Entry(found.name, kind, _identity(facts), place, facts.st_size, facts.st_mtime_ns)


def _identity(facts: os.stat_result) -> int:
    return facts.st_dev << 64 | facts.st_ino


def _read_file(root: Path, path: Parts, _: None) -> bytes:
    return root.joinpath(*path).read_bytes()


# -- text -----------------------------------------------------------------------------------------


def text_of(name: str) -> str:
    """The name as valid UTF-8 text; other bytes become \\xe9 and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def shown(path: str | Path) -> str:
    """The path as one line of text, also if its names hold odd bytes or line breaks."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text_of(str(path))
    )


def listed(names: Iterable[str], most: int = NAMES_SHOWN) -> str:
    """The first names, and dots for the rest."""
    names = list(names)
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
