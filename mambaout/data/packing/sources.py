"""Opens the data set of a name, a folder or an archive.

`open_data` takes a value of `--data`. `pack` is the command `mambaout pack SOURCE OUT`. A Parquet
folder is read where it lies. Anything else is packed into the cache once, and later read from
there.
"""

from __future__ import annotations

import difflib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Unpack

import numpy as np

from mambaout.cache import CACHE_VARIABLE, default_cache, locked
from mambaout.data.images.jpeg import has_jpegtran
from mambaout.data.packing.damage import refuse_damaged
from mambaout.data.packing.idx import find_idx_files, read_idx_folder
from mambaout.data.packing.image_tar import refuse_compressed
from mambaout.data.packing.image_tree import ClassOrder, checked, read_image_folder, read_image_tar
from mambaout.data.packing.named_sets import NAMED
from mambaout.data.packing.pack import PackReport, Source, write_shards
from mambaout.data.packing.storing import LossyEncoding, Sample
from mambaout.data.shards.column_options import GivenColumns
from mambaout.data.shards.data_set import DataSet, Split, read_data_set
from mambaout.data.shards.encoded import EncodedImages, place, read_paths
from mambaout.data.shards.files import DataError
from mambaout.data.shards.shard_files import holds_parquet
from mambaout.durable import leftovers, remove, write_whole

log = logging.getLogger(__name__)

REMARK = "remark.txt"  # a file beside the shards in the cache: the remark from packing them


class UnpackedSource(NamedTuple):
    """A source, before it is packed."""

    read: Callable[[], Source]
    key: str  # of the content
    remark: str | None = ""  # None: only known after reading, which may take long
    is_tree: bool = False  # its splits and classes are folders (image_tree.py)


def open_data(
    name_or_path: str,
    cache: Path | None = None,
    **columns: Unpack[GivenColumns],
) -> DataSet:
    """The data set with that name, or in that folder, archive or bucket.

    `name_or_path` is a name of NAMED; a folder of Parquet shards, of idx files or of images by
    class (train/CLASS/* with val/CLASS/*, or CLASS/*); a .tar of such a folder; one Parquet file;
    or gs:// or s3:// shards. Packed and decoded data go to `cache` (None: $MAMBAOUT_CACHE, else
    ~/.cache/mambaout). `columns` name the columns of Parquet shards, if their names are unusual.
    Raises DataError, with the remedy, for anything else.
    """
    cache = _usable(cache or default_cache())
    if holds_parquet(name_or_path):
        return read_data_set(_name_of(name_or_path), name_or_path, cache, **columns)
    _check_no_columns(name_or_path, columns)
    found = _find_source(name_or_path, cache)
    name = name_or_path if name_or_path in NAMED else Path(name_or_path).absolute().stem
    packed = cache / "packed" / f"{name}-{found.key}"
    _pack_once(found, packed)
    return read_data_set(name, str(packed), cache)


def _pack_once(found: UnpackedSource, packed: Path) -> None:
    """Pack the source unless the cache has it already. Its remark is logged in both cases."""
    remark = packed / REMARK

    def is_there() -> bool:
        return remark.exists() if found.is_tree else packed.exists()

    source: Source | None = None
    if not is_there():
        packed.parent.mkdir(parents=True, exist_ok=True)
        with locked(packed.with_name(f".{packed.name}.lock")):
            if not is_there():  # another process may have packed it while this one waited
                for left in leftovers(packed):
                    remove(left)  # from a process that was killed while it packed
                source = found.read()
                _say(source.remark)
                if found.is_tree:
                    refuse_damaged(source)
                # A version with other rules for folders has packed it, and wrote no remark.
                if packed.exists() and not _holds(packed, source):
                    shutil.rmtree(packed)
                if not packed.exists():
                    _pack_into_cache(source, packed)
                write_whole(remark, source.remark)
    if source is None:
        _say(remark.read_text(encoding="utf-8") if found.remark is None else found.remark)


def _say(remark: str) -> None:
    if remark:
        log.warning("%s", remark)


def _holds(packed: Path, source: Source) -> bool:
    data = read_data_set(packed.name, str(packed), packed.parent.parent)
    counts = {split: len(labels) for split, labels in data.labels.items()}
    wanted = {"train": len(source.train), "val": len(source.val)}
    return (data.class_names, counts) == (source.class_names, wanted)


def _pack_into_cache(source: Source, packed: Path) -> None:
    if not has_jpegtran():
        log.warning(
            "jpegtran is not there (`apt install libjpeg-turbo-progs`): the JPEGs of %s go into %s "
            "as they are, and each crop decodes a whole file",
            *(source.name, packed),
        )
    write_shards(source, packed, as_is=not has_jpegtran())


def pack(
    source: str,
    out: Path,
    *,
    progress: bool = True,
    as_is: bool = False,
    lossy: LossyEncoding | None = None,
    class_order: ClassOrder = "text",
    **columns: Unpack[GivenColumns],
) -> PackReport:
    """Write the images of a named set, a folder, a .tar or Parquet shards into the folder `out`.

    JPEGs are re-cut without loss. With `as_is` no JPEG is re-cut. With `lossy` every image is
    re-encoded. `class_order` is the order of the labels for an image folder or a tar
    (image_tree.py). Raises DataError, with the remedy, if something cannot be read or jpegtran is
    missing.
    """
    if holds_parquet(source):
        found = UnpackedSource(partial(_read_parquet, source, columns), "")
    else:
        _check_no_columns(source, columns)
        found = _find_source(source, default_cache(), class_order)
    if class_order != "text" and not found.is_tree:
        raise DataError(
            f"--class-order {class_order} is for image folders and tars; the labels of {source} "
            "are numbers already: leave it out"
        )
    images = found.read()
    _say(images.remark)
    return write_shards(images, Path(out), progress=progress, as_is=as_is, lossy=lossy)


def _usable(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{cache} cannot be made ({error}); set {CACHE_VARIABLE}") from error
    if not os.access(cache, os.W_OK):
        raise DataError(f"{cache} cannot be written; set {CACHE_VARIABLE} to a folder that can")
    return cache


def _name_of(location: str) -> str:
    """The name of the shards at a path or a URI: their folder, or the file without its ending."""
    path = PurePosixPath(location) if "://" in location else Path(location).absolute()
    return path.name.removesuffix(".parquet")


def _check_no_columns(source: str, columns: GivenColumns) -> None:
    for name, value in columns.items():
        option = f"--{name.replace('_', '-')} {value}"
        raise DataError(f"{option}: {source} is no set of Parquet shards; leave the option out")


def _find_source(
    name_or_path: str, cache: Path, class_order: ClassOrder = "text"
) -> UnpackedSource:
    path = Path(name_or_path)
    # os.path's functions return False for a name that is too long or invalid; Path's would raise.
    is_folder, is_there = os.path.isdir(path), os.path.exists(path)
    if name_or_path in NAMED:
        if is_there:
            log.warning(
                "%s is the named set; for the %s that lies here, give ./%s",
                *(name_or_path, "folder" if is_folder else "file", name_or_path),
            )
        named = NAMED[name_or_path]
        return UnpackedSource(partial(named.read, cache / "downloads"), named.key())
    if is_folder:
        if (files := find_idx_files(path)) is not None:
            named = [file for pair in files.values() for file in pair]
            return UnpackedSource(partial(read_idx_folder, path, None), _key(named))
        tree, key = read_image_folder(path, class_order)
        return UnpackedSource(tree.source, key, tree.remark, is_tree=True)
    if os.path.isfile(path):
        if path.suffix.lower() == ".tar":
            read = partial(read_image_tar, path, class_order)
            return UnpackedSource(read, _key([path]), remark=None, is_tree=True)
        refuse_compressed(path)
    there = "is not a folder or a .tar" if is_there else "is not there"
    near = difflib.get_close_matches(name_or_path.replace("_", "-").lower(), NAMED, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise DataError(f"{name_or_path} {there}, nor is it one of the sets {', '.join(NAMED)}{hint}")


def _key(files: list[Path]) -> str:
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(repr(facts).encode()).hexdigest()[:12]


# -- Parquet shards -------------------------------------------------------------------------------


class _ShardSamples:
    """The rows of a split in the order of its shards, with only a row group or two in memory."""

    def __init__(self, data: DataSet, split: Split) -> None:
        source = data.source(split)
        self.shards, self.labels = data.shards[source], data.labels[source]
        of_source = data.held_out if source == "train" else np.ones(len(self.labels), bool)
        self.is_in = of_source if split == "val" else ~of_source

    def __len__(self) -> int:
        return int(np.count_nonzero(self.is_in))

    def __iter__(self) -> Iterator[Sample]:
        images = EncodedImages(self.shards, keep_bytes=0)
        for number, (shard, group) in enumerate(images.group_of):
            first = int(images.starts[number])
            paths = read_paths(shard, [group])
            rows = [first + i for i in range(len(paths)) if self.is_in[first + i]]
            encoded = [images[row].image for row in rows]
            images.prefetch(range(number + 1, min(number + 2, len(images.group_of))))
            for row, image in zip(rows, encoded, strict=True):
                read = partial(checked, place(self.shards, row), partial(bytes, image))
                yield Sample(paths[row - first], int(self.labels[row]), read)
        images.close()


def _read_parquet(location: str, columns: GivenColumns) -> Source:
    data = read_data_set(_name_of(location), location, default_cache(), **columns)
    num_bytes = sum(shard.num_bytes for shards in data.shards.values() for shard in shards)
    train, val = _ShardSamples(data, "train"), _ShardSamples(data, "val")
    return Source(
        *(data.name, data.class_names, train, val, num_bytes), is_stream=True, lossy=data.lossy
    )
