"""Parquet shards in Hugging Face's image convention, and which of their rows are which split.

A shard has the columns `image: struct<bytes, path>` and `label` (any integer type); the class
names are read from Hugging Face's metadata where they are. `pack` adds `segments: binary`, where
the restart segments of its JPEGs begin. `read_data_set` describes a folder of shards, local or at
a URI that pyarrow opens; `EncodedImages` gives any row's bytes.

minival is cut from the training rows by a hash of the sample's id, and so is a reduced training
set: whether a sample is in depends on that sample alone, not on its place or its neighbours.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs

from mambaout.data.draws import draws, hash64, uniforms
from mambaout.data.encoded import EncodedImages, Shard, place
from mambaout.data.files import (
    DataError,
    filesystem,
    leaf_columns,
    read_columns,
    read_ends,
    read_footer,
    stored_array,
    tried_again,
)
from mambaout.recipe import Recipe

Split = Literal["train", "minival", "val"]

HUGGING_FACE = b"huggingface"  # the schema metadata that holds the class names
CONTENT = b"mambaout.content"  # what `pack` read, in hex: the same whoever encodes it again
LOSSY = b"mambaout.lossy"  # how `pack` was told to re-encode, where it changed pixels

DESCRIBE_THREADS = 16  # a remote shard's footer and labels are a round trip each

WHOLE_FILE_BYTES = 16 << 20  # of a shard that others wrote, hashed into the fingerprint


@dataclass(frozen=True, eq=False)
class DataSet:
    """The shards of a data set and what is known of them before an image is decoded."""

    name: str
    fingerprint: str  # twelve hex digits of the content, wherever the folder lies
    class_names: tuple[str, ...]
    shards: dict[str, tuple[Shard, ...]] = field(repr=False)  # of "train" and of "val"
    labels: dict[str, np.ndarray] = field(repr=False)  # int64 (rows,), of "train" and of "val"
    cache: Path = field(repr=False)  # where sample ids and small decoded images are kept
    lossy: str | None = None  # how `pack` re-encoded the images, where it changed their pixels

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def num_images(self, split: Split, recipe: Recipe) -> int:
        return len(self.rows(split, recipe))

    def rows(self, split: Split, recipe: Recipe) -> np.ndarray:
        """The rows of `split`, ascending int64 places in the shards of "train" or of "val".

        Raises DataError where the split is empty or train_images asks for more than there are.
        """
        if split == "val":
            return np.arange(len(self.labels["val"]))
        ids = self.sample_ids
        held_out = uniforms("minival", each=ids) < recipe.minival_fraction
        if split == "minival":
            rows = np.flatnonzero(held_out)
            if not len(rows):
                raise DataError(
                    f"minival_fraction={recipe.minival_fraction} of the {len(ids)} training "
                    f"images of {self.name} leaves no image to choose on; raise it"
                )
            return rows
        rows = np.flatnonzero(~held_out)
        wanted = recipe.train_images
        if wanted is None:
            return rows
        if wanted > len(rows):
            raise DataError(
                f"train_images={wanted} is more than the {len(rows)} training images of "
                f"{self.name} (minival taken out); lower it or leave it out"
            )
        rank = np.argsort(draws("train_images", each=ids[rows]), kind="stable")
        return np.sort(rows[rank[:wanted]])

    @functools.cached_property
    def sample_ids(self) -> np.ndarray:
        """uint64 of every training row: the hash of its path, or of its bytes.

        Of the paths if every row of the split has one of its own; else of the encoded images.
        """
        name = f"ids-1-{self.fingerprint}.npy"
        return stored_array(self.cache / name, lambda: _sample_ids(self.shards["train"]))


# -- describing a folder --------------------------------------------------------------------------

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "test"),  # the first of them that there is
}


def find_shards(folder: str) -> dict[str, list[str]]:
    """The Parquet files under `folder` by split: by file name, or by the name of their folder.

    Reads the file names that Hugging Face gives: train-00000-of-00010.parquet,
    data/validation-*.parquet, train/0000.parquet. Empty where there are no Parquet files.
    """
    files, root = filesystem(folder)
    everything = pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True)
    try:
        found = tried_again(f"listing {folder}", lambda: files.get_file_info(everything))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error}") from error
    by_name: dict[str, list[str]] = {}
    for info in sorted(found, key=lambda info: info.path):
        if info.type == pyarrow.fs.FileType.File and info.path.endswith(".parquet"):
            relative = PurePosixPath(info.path).relative_to(root)
            words = [re.split(r"[-_.]", relative.name)[0], *reversed(relative.parts[:-1])]
            known = [w for w in words if any(w in names for names in SPLIT_NAMES.values())]
            if known:
                by_name.setdefault(known[0], []).append(f"{folder.rstrip('/')}/{relative}")
    return {
        split: next(by_name[name] for name in names if name in by_name)
        for split, names in SPLIT_NAMES.items()
        if any(name in by_name for name in names)
    }


def read_data_set(name: str, folder: str, cache: Path) -> DataSet:
    """The data set in a folder of Parquet shards, local or at a URI.

    Reads footers and labels, no images. Raises DataError for a missing split, another schema, or
    a label out of range, naming shard and row.
    """
    files = find_shards(folder)
    for split, example in (("train", "train"), ("val", "validation")):
        if split not in files:
            raise DataError(
                f"{folder} has no {example} shards: wanted {example}-*.parquet there, in data/ or "
                f"in {example}/"
            )
    digest = sha256()
    names: tuple[str, ...] | None = None
    lossy: set[str | None] = set()
    shards: dict[str, tuple[Shard, ...]] = {}
    labels: dict[str, np.ndarray] = {}
    with ThreadPoolExecutor(DESCRIBE_THREADS) as pool:
        for split, locations in sorted(files.items()):
            described = list(pool.map(_describe, locations))
            shards[split] = tuple(known.shard for known in described)
            digest.update(f"{split} {len(locations)}".encode())
            for known in described:
                digest.update(known.identity)
                if names is not None and known.class_names not in (None, names):
                    raise DataError(
                        f"the shards of {folder} do not agree on the names of the classes"
                    )
                names = names or known.class_names
                lossy.add(known.lossy)
            labels[split] = np.concatenate([known.labels for known in described])
    if len(lossy) > 1:
        raise DataError(
            f"the shards of {folder} do not agree on how their images were re-encoded "
            f"({', '.join(sorted(str(way) for way in lossy))}); pack them together"
        )
    _check_labels(shards, labels, names)
    if names is None:
        names = tuple(str(label) for label in range(int(labels["train"].max()) + 1))
    return DataSet(
        name=name,
        fingerprint=digest.hexdigest()[:12],
        class_names=names,
        shards=shards,
        labels=labels,
        cache=cache,
        lossy=lossy.pop(),
    )


class _Described(NamedTuple):
    shard: Shard
    identity: bytes  # stands for the content
    class_names: tuple[str, ...] | None
    lossy: str | None
    labels: np.ndarray


def _describe(location: str) -> _Described:
    """What is known of a shard before an image is read."""
    metadata = read_footer(location)
    schema = metadata.schema.to_arrow_schema()
    image = schema.field("image").type if "image" in schema.names else None
    ok = image is not None and pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not ok or "label" not in schema.names or not pa.types.is_integer(schema.field("label").type):
        columns = ", ".join(f"{f.name}: {f.type}" for f in schema)
        raise DataError(
            f"{location} has the columns {columns}; wanted image: struct<bytes, path> and "
            "label: int64, as Hugging Face's Image and ClassLabel features are stored"
        )
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    shard = Shard(
        location,
        tuple(group.num_rows for group in groups),
        sum(group.total_byte_size for group in groups),
    )
    written = metadata.metadata or {}
    # Whoever packs the same images again, with another pyarrow, has the same data. Of others'
    # shards the whole file, or the footer: the place, sizes and statistics of every column.
    identity = written.get(CONTENT) or read_ends(location, WHOLE_FILE_BYTES)
    return _Described(
        shard,
        sha256(identity).digest(),
        _class_names(schema),
        written[LOSSY].decode() if LOSSY in written else None,
        _labels(location),
    )


def _class_names(schema: pa.Schema) -> tuple[str, ...] | None:
    metadata = (schema.metadata or {}).get(HUGGING_FACE)
    if metadata is None:
        return None
    label = json.loads(metadata).get("info", {}).get("features", {}).get("label", {})
    names = label.get("names") if label.get("_type") == "ClassLabel" else None
    return tuple(names) if names else None


def _labels(location: str) -> np.ndarray:
    column = read_columns(location, ["label"]).column("label")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{location} row {row} has no label")
    return column.to_numpy().astype(np.int64, copy=False)


def _check_labels(
    shards: dict[str, tuple[Shard, ...]],
    labels: dict[str, np.ndarray],
    names: Sequence[str] | None,
) -> None:
    for split, values in labels.items():
        if not len(values):
            raise DataError(f"the {split} shards, {shards[split][0].location} first, have no rows")
    train = labels["train"]
    num_classes = len(names) if names else int(train.max()) + 1
    for split, values in labels.items():
        wrong = np.flatnonzero((values < 0) | (values >= num_classes))
        if len(wrong):
            source = "the class names say" if names else "the training labels reach"
            raise DataError(
                f"{place(shards[split], int(wrong[0]))} has label {values[wrong[0]]}, outside 0 to "
                f"{num_classes - 1}, which {source}; {len(wrong)} rows of {split} are like it"
            )
    # With names, a part of a large data set may lack a class; without, a gap is a wrong labelling.
    empty = np.flatnonzero(np.bincount(train, minlength=num_classes) == 0)
    if len(empty) and names is None:
        raise DataError(
            f"no training image has label {empty[0]} ({len(empty)} of the {num_classes} classes "
            "are empty); labels must count from 0 without a gap"
        )


def _sample_ids(shards: Sequence[Shard]) -> np.ndarray:
    paths: list[str | None] = []
    for shard in shards:
        if "image.path" in leaf_columns(shard.location):
            for chunk in read_columns(shard.location, ["image.path"]).column("image").chunks:
                paths += chunk.field("path").to_pylist()
    num_rows = sum(shard.num_rows for shard in shards)
    if len(paths) == num_rows and None not in paths and len(set(paths)) == num_rows:
        return np.array([hash64(path.encode()) for path in paths if path], np.uint64)
    images = EncodedImages(shards, keep_bytes=0)
    return np.array([hash64(images[row].image) for row in range(num_rows)], np.uint64)
