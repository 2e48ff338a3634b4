"""Images by class in folders, on disk or in a tar: train/CLASS/*, val/CLASS/*, or CLASS/* alone.

A class is a folder; the labels count the class folders of train in sorted order. Without a
validation folder, one image in five is held out by the hash of its path.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath

from PIL import Image

from mambaout.data.files import DataError
from mambaout.data.pack import Source, split_by_hash
from mambaout.data.shard_files import SPLIT_NAMES
from mambaout.data.storing import Sample

ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".jfif"),
)

Read = Callable[[], bytes]


def read_image_folder(root: Path) -> tuple[Callable[[], Source], str]:
    """The function that reads the folder, and a key that changes with any of its files."""
    files: dict[str, int] = {}
    folders: list[str] = []
    digest = sha256()
    for directory, below, names in os.walk(root, followlinks=True):
        below.sort()
        relative = Path(directory).relative_to(root)
        folders.append(relative.as_posix())
        for name in sorted(names):
            if name.lower().endswith(ENDINGS):
                path = (relative / name).as_posix()
                facts = os.stat(os.path.join(directory, name))
                files[path] = facts.st_size
                digest.update(f"{path} {facts.st_size} {facts.st_mtime_ns}\n".encode())

    def read() -> Source:
        reads = {path: partial(checked, root / path, (root / path).read_bytes) for path in files}
        return _source(root, reads, folders, sum(files.values()))

    return read, digest.hexdigest()[:12]


def read_image_tar(archive: Path) -> Source:
    """The images of an uncompressed tar, read from it where they lie."""
    try:
        with tarfile.open(archive, "r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        raise DataError(
            f"{archive} is not an uncompressed tar ({error}); unpack it, or gunzip it first"
        ) from error
    images = {
        str(PurePosixPath(member.name)): member
        for member in members
        if member.isfile() and member.name.lower().endswith(ENDINGS)
    }
    folders = [str(PurePosixPath(member.name)) for member in members if member.isdir()]
    reads: dict[str, Read] = {
        path: partial(
            checked, archive / path, partial(_slice, archive, member.offset_data, member.size)
        )
        for path, member in images.items()
    }
    return _source(archive, reads, folders, sum(member.size for member in images.values()))


def _slice(path: Path, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def checked(place: Path | str, read: Read) -> bytes:
    """The file's bytes; DataError if Pillow does not know its header."""
    data = read()
    try:
        Image.open(io.BytesIO(data)).close()
    except Exception as error:  # Pillow's plug-ins raise many kinds for damaged files
        raise DataError(
            f"{place} is not an image ({type(error).__name__}); replace it or take it out"
        ) from error
    return data


def _source(root: Path, reads: Mapping[str, Read], folders: list[str], num_bytes: int) -> Source:
    if not reads:
        raise DataError(
            f"{root} holds no images: wanted train/CLASS/* and val/CLASS/*, or CLASS/*, ending in "
            f"{' '.join(ENDINGS)}; or Parquet shards; or the four idx files of MNIST"
        )
    files = {tuple(path.split("/")): read for path, read in reads.items()}
    places = {tuple(folder.split("/")) for folder in folders}
    # An archive often has one folder around everything.
    while len({path[0] for path in files}) == 1 and min(map(len, files)) > 2:
        (outer,) = {path[0] for path in files}
        if outer in (name for names in SPLIT_NAMES.values() for name in names):
            break
        files = {path[1:]: read for path, read in files.items()}
        places = {folder[1:] for folder in places if folder[0] == outer}
    tops = {path[0] for path in files} | {folder[0] for folder in places if folder}
    train, val = (
        next((name for name in SPLIT_NAMES[split] if name in tops), None)
        for split in ("train", "val")
    )
    held_out: list[Sample] | None = None
    if train is None:
        if val is not None:
            raise DataError(f"{root} has {val}/ but no train/; rename it if {val} is a class")
        names = _classes(root, (), files, places)
        samples = _samples(root, (), files, names)
    else:
        names = _classes(root, (train,), files, places)
        samples = _samples(root, (train,), files, names)
        if val is not None:
            _classes(root, (val,), files, places)  # for its check
            held_out = _samples(root, (val,), files, names)
    if held_out is None:
        samples, held_out = split_by_hash(samples)
    return Source(root.stem, tuple(names), samples, held_out, num_bytes)


def _classes(root: Path, above: tuple[str, ...], files: Mapping, places: set) -> dict[str, int]:
    """The label of each class folder below `above`; DataError for one without an image."""
    depth = len(above)
    full = {path[depth] for path in files if path[:depth] == above and len(path) > depth + 1}
    there = {folder[depth] for folder in places if len(folder) > depth and folder[:depth] == above}
    empty = sorted(name for name in there - full - {"."} if not name.startswith("."))
    if empty:
        raise DataError(
            f"{root.joinpath(*above, empty[0])} holds no image ({len(empty)} of "
            f"{len(full | set(empty))} classes are empty); fill it or remove the folder"
        )
    return {name: label for label, name in enumerate(sorted(full))}


def _samples(
    root: Path, above: tuple[str, ...], files: Mapping[tuple[str, ...], Read], names: dict[str, int]
) -> list[Sample]:
    samples = []
    depth = len(above)
    for path, read in files.items():
        if path[:depth] != above:
            continue
        if len(path) < depth + 2:
            raise DataError(f"{root.joinpath(*path)} lies in no class folder")
        if path[depth] not in names:
            raise DataError(
                f"{root.joinpath(*path)} is of class {path[depth]!r}, which has no training image"
            )
        samples.append(Sample("/".join(path[depth:]), names[path[depth]], read))
    return samples
