"""Finds the split of each Parquet file in a folder, and checks that no file is missing.

It reads the layouts that Hugging Face, Spark and people use:

    train-00000-of-00010.parquet, data/validation-*.parquet     written by `datasets` and `pack`
    train/0000.parquet, default/train/0000.parquet              converted by Hugging Face
    default/partial-train/0000.parquet                          the same, only a set's first part
    train.parquet, train/part-00000-*.snappy.parquet            one file, or files of Spark
    *.parquet                                                   no split: all are training images

The word for a split may have any letter case. It is looked for in the file's name first, then in
the name of the nearest folder.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow.fs

from mambaout.data.shards.files import DataError, Stamp, filesystem, stamp_of, tried_again
from mambaout.numbers import counted

SPLIT_WORDS = {  # in names of files and folders, in any letter case; image folders use them too
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
SPLIT_NAMES = {
    "train": SPLIT_WORDS["train"],
    # The first of these that exists and has labels is val.
    "val": (*SPLIT_WORDS["val"], *SPLIT_WORDS["test"]),
}
PARTIAL = "partial-"  # prefix of a split of which Hugging Face converted only the first part

METADATA = "metadata.parquet"

_ENDING = ".parquet"
_NUMBERED = re.compile(r"(?P<name>.*)-(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]{6,})?")
_COPY_MARK = re.compile(r"^copy of | ?\(\d+\)$| - copy$| copy( \d+)?$", re.IGNORECASE)
_SHOWN = 4  # items of a long list that a message shows


@dataclass(frozen=True)
class SplitFiles:
    """The locations of a data set's shards by split."""

    train: list[str]
    val: dict[str, list[str]]  # by name, in order of preference; may be empty
    left_out: list[str]  # files that were found but are not read, in words
    stamps: dict[str, Stamp | None]  # of train and val, by location; None if the store tells none


class _File(NamedTuple):
    path: PurePosixPath  # relative to the data set's folder
    split: str | None  # "train", "partial-train", "dev", ...
    place: PurePosixPath  # the folder of the file's configuration


def find_shards(location: str) -> SplitFiles:
    """The shards in a folder, local or at a URI, or the one Parquet file at `location`.

    Raises DataError if there are none, if they belong to more than one data set, or if a shard is
    missing or there twice.
    """
    if is_parquet_file(location):
        return SplitFiles([location], {}, [], {location: _stamp_of(location)})
    paths, left_out = [], []
    hidden: list[PurePosixPath] = []
    stamps = _listed(location, left_out)
    for path in stamps:
        (hidden if _is_hidden(path) else paths).append(path)
    if hidden:
        left_out.append(f"{counted(len(hidden), 'hidden or metadata file')} ({_some(hidden)})")
    if not paths:
        also = f" (left out: {'; '.join(left_out)})" if left_out else ""
        raise DataError(f"{location} has no train shards: it holds no Parquet file{also}")
    files = [_File(path, *_split_of(path)) for path in paths]
    if all(file.split is None for file in files):
        files = [file._replace(split="train") for file in files]
    by_split: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        by_split[file.split or ""].append(file)
    if unknown := by_split.pop("", None):
        left_out.append(
            f"{counted(len(unknown), 'file')} of no known split ({_some(f.path for f in unknown)})"
        )
    ranked = {
        source: [name for name in (*names, *(PARTIAL + name for name in names)) if name in by_split]
        for source, names in SPLIT_NAMES.items()
    }
    if not ranked["train"]:
        there = ", ".join(ranked["val"])
        raise DataError(
            f"{location} has no train shards, only {there}; give the folder that holds both, or "
            f"one Parquet file, of which one image in five is then held out"
        )
    for names in ranked.values():
        for name in names:
            _check_one_set(location, name, by_split[name])
    train, *others = ranked["train"]
    left_out += [described_split(name, len(by_split[name])) for name in others]
    found = {
        name: [f"{location.rstrip('/')}/{file.path}" for file in by_split[name]]
        for name in (train, *ranked["val"])
    }
    if train.startswith(PARTIAL):
        left_out.append(
            f"what {train} lacks of the split: Hugging Face converted only the first part"
        )
    of_location = {f"{location.rstrip('/')}/{path}": stamp for path, stamp in stamps.items()}
    read = {each: of_location[each] for locations in found.values() for each in locations}
    return SplitFiles(found.pop(train), found, left_out, read)


def described_split(split: str, num_shards: int) -> str:
    """The words for a split that is not read."""
    return f"{split} ({counted(num_shards, 'shard')})"


def holds_parquet(location: str) -> bool:
    """Whether `location` is a Parquet file, or a local folder that holds one at any depth."""
    if "://" in location or is_parquet_file(location):
        return True
    return any(not _is_hidden(path) for path in _walked(location, []))


def is_parquet_file(location: str) -> bool:
    """Whether `location` is a Parquet file. A folder may be called train.parquet too."""
    if not location.lower().endswith(_ENDING):
        return False
    files, path = filesystem(location)
    try:
        info = tried_again(f"looking for {location}", lambda: files.get_file_info(path))
    except OSError as error:
        raise DataError(f"{location} cannot be looked for: {error}") from error
    return info.type == pyarrow.fs.FileType.File


# -- listing --------------------------------------------------------------------------------------


def _listed(location: str, left_out: list[str]) -> dict[PurePosixPath, Stamp | None]:
    """The Parquet files below `location`, sorted. A folder that is found twice is added to
    `left_out`."""
    files, root = filesystem(location)
    if isinstance(files, pyarrow.fs.LocalFileSystem):
        paths = sorted(_walked(root, left_out), key=str)
        return {path: _local_stamp(os.path.join(root, path)) for path in paths}
    everything = pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True)
    try:
        found = tried_again(f"listing {location}", lambda: files.get_file_info(everything))
    except OSError as error:
        raise DataError(f"{location} cannot be listed: {error}") from error
    return {
        PurePosixPath(info.path).relative_to(root): _stamp(info)
        for info in sorted(found, key=lambda info: info.path)
        if info.type == pyarrow.fs.FileType.File and info.path.lower().endswith(_ENDING)
    }


def _stamp_of(location: str) -> Stamp | None:
    files, path = filesystem(location)
    if isinstance(files, pyarrow.fs.LocalFileSystem):
        return _local_stamp(path)
    try:
        return _stamp(tried_again(f"looking for {location}", lambda: files.get_file_info(path)))
    except OSError:
        return None


def _local_stamp(path: str) -> Stamp | None:
    try:
        return stamp_of(path)
    except OSError:  # a link to nothing: reading it gives the error
        return None


def _stamp(info: pyarrow.fs.FileInfo) -> Stamp | None:
    """The stamp of a file in any store, from its listing; None if the listing has no time."""
    if info.size is None or info.mtime_ns is None:
        return None
    return Stamp(info.size, info.mtime_ns)


def _walked(root: str, left_out: list[str]) -> Iterator[PurePosixPath]:
    """The Parquet files below a local folder. Each folder is read once, even if several links lead
    to it."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    if not os.path.isdir(root):
        return
    seen = {os.path.realpath(root): root}
    for directory, below, names in os.walk(root, followlinks=True, onerror=fail):
        relative = PurePosixPath(Path(directory).relative_to(root))
        # Real folders come before links to them.
        below.sort(key=lambda name: (os.path.islink(os.path.join(directory, name)), name))
        for name in [*below]:
            whole = os.path.join(directory, name)
            first = seen.setdefault(os.path.realpath(whole), whole)
            if first != whole:
                below.remove(name)
                left_out.append(f"{whole} (the same folder as {first})")
        for name in names:
            if name.lower().endswith(_ENDING):
                try:
                    name.encode()
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"{os.fsencode(os.path.join(directory, name))!r} has a name that is no "
                        "UTF-8; rename it"
                    ) from error
                yield relative / name


def _is_hidden(path: PurePosixPath) -> bool:
    """Whether the name of the file or of a folder says that it holds no images.

    Such names are .ipynb_checkpoints, _temporary, and metadata.parquet, which Hugging Face puts
    beside image files.
    """
    return path.name == METADATA or any(part.startswith((".", "_")) for part in path.parts)


def _split_of(path: PurePosixPath) -> tuple[str | None, PurePosixPath]:
    """The split in the names of the file and its folders, and the folder of its configuration."""
    known = {name for names in SPLIT_NAMES.values() for name in names}
    folders = [part.lower().removesuffix(_ENDING) for part in path.parts[:-1]]
    words = [word for word in re.split(r"[^a-z]+", path.stem.lower()) if word in known]
    split = words[0] if words else None
    for depth in reversed(range(len(folders))):
        word = folders[depth]
        if word.removeprefix(PARTIAL) in known and split in (None, word.removeprefix(PARTIAL)):
            return word, PurePosixPath(*path.parts[:depth])
    return split, path.parent


# -- whole, and once ------------------------------------------------------------------------------


def _check_one_set(location: str, split: str, files: Sequence[_File]) -> None:
    """Raise DataError unless the files are all the shards of one data set, each once."""
    places = sorted({file.place for file in files}, key=str)
    if len(places) > 1:
        named = [f"{location.rstrip('/')}/{place}" for place in places if place.parts]
        own = f", or move {'them' if len(named) > 1 else 'it'} out to read the rest"
        raise DataError(
            f"{location} holds {split} shards of {len(places)} data sets: "
            f"{_some([*named, *([location] if len(named) < len(places) else [])])}; give one, for "
            f"example --data {named[0]}{own if len(named) < len(places) else ''}"
        )
    by_folder: dict[PurePosixPath, dict[str, PurePosixPath]] = defaultdict(dict)
    for file in files:
        plain = _COPY_MARK.sub("", file.path.stem)
        other = by_folder[file.path.parent].setdefault(plain, file.path)
        if other != file.path:
            raise DataError(
                f"{location}: {other} and {file.path} look like two copies of one shard; remove "
                "one, or rename it if it holds other images"
            )
    for folder, shards in by_folder.items():
        _check_numbers(f"{location.rstrip('/')}/{folder}".removesuffix("/."), split, shards)


def _check_numbers(folder: str, split: str, shards: Mapping[str, PurePosixPath]) -> None:
    """Raise DataError if a number is missing in the names of a folder's shards."""
    sets: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for stem, path in shards.items():
        parts = _NUMBERED.fullmatch(stem)
        key = (parts["name"], parts["total"]) if parts else ("", "")
        number = int(parts["number"]) if parts else len(sets[key])
        other = sets[key].setdefault(number, path.name)
        if other != path.name:
            raise DataError(
                f"{folder} has shard {number} of {split} twice, {other} and {path.name}: two "
                "versions of it; keep the shards of one"
            )
    if len(sets) > 1:
        first, second = (next(iter(named.values())) for named in list(sets.values())[:2])
        raise DataError(
            f"{folder} holds {split} shards of more than one set, {first} and {second}; keep one, "
            "or give each a folder of its own"
        )
    ((name, total), numbered) = next(iter(sets.items()))
    if total:
        first = 1 if int(total) in numbered and 0 not in numbered else 0
        missing = sorted({*range(first, first + int(total))} - numbered.keys())
        width = len(total)
        names = [f"{name}-{number:0{width}d}-of-{total}{_ENDING}" for number in missing]
        of = f"{len(missing)} of {int(total)}"
    elif all(stem.isdecimal() for stem in shards) and 0 in map(int, shards):  # Hugging Face's
        there = {int(stem) for stem in shards}
        width = max(map(len, shards))
        names = [f"{n:0{width}d}{_ENDING}" for n in range(max(there)) if n not in there]
        of = str(len(names))
    else:
        return
    if names:
        raise DataError(
            f"{folder} lacks {of} {split} shards: {_some(names)}; get what is missing, or rename "
            "the others if they are all there is"
        )


def _some(items: Iterable[object]) -> str:
    named = [str(item) for item in items]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return ", ".join(named[:_SHOWN]) + more
