"""Parquet shards in Hugging Face's image convention, and which of their rows are which split.

A shard has an image column (a struct of bytes and path, or plain bytes) and a label column (whole
numbers or words): columns.py finds them, shard_files.py the files. `pack` adds `segments: binary`,
where the restart segments of its JPEGs begin. `read_data_set` describes a folder of shards, local
or at a URI that pyarrow opens; `EncodedImages` gives any row's bytes.

minival is cut from the training rows by a hash of the sample's id, and so is a reduced training
set, and val where no split came for it: whether a sample is in depends on that sample alone, not
on its place or its neighbours.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mambaout.data.draws import draws, hash64, uniforms
from mambaout.data.shards.columns import (
    CONVENTION,
    UNLABELLED,
    Columns,
    check_columns,
    class_names,
    find_columns,
    read_labels,
)
from mambaout.data.shards.description import Description, Place
from mambaout.data.shards.encoded import EncodedImages, Shard, place, read_paths
from mambaout.data.shards.files import (
    DataError,
    Footer,
    Stamp,
    file_size,
    footer_bytes,
    read_ends,
    read_footer,
    stored_array,
)
from mambaout.data.shards.shard_files import SplitFiles, described_split, find_shards
from mambaout.recipe import Recipe

log = logging.getLogger(__name__)

Split = Literal["train", "minival", "val"]

VAL_FRACTION = 0.2  # of a data set without a validation split

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
    # Of "train", and of "val" unless that is held out of train.
    shards: dict[str, tuple[Shard, ...]] = field(repr=False)
    labels: dict[str, np.ndarray] = field(repr=False)  # int64 (rows,), of the same
    cache: Path = field(repr=False)  # where sample ids and small decoded images are kept
    lossy: str | None = None  # how `pack` re-encoded the images, where it changed their pixels

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def num_images(self, split: Split, recipe: Recipe) -> int:
        return len(self.rows(split, recipe))

    def source(self, split: Split) -> str:
        """Whose shards the rows of `split` lie in."""
        return "val" if split == "val" and "val" in self.shards else "train"

    def rows(self, split: Split, recipe: Recipe) -> np.ndarray:
        """The rows of `split`, ascending int64 places in the shards of its source.

        Raises DataError where the split is empty or train_images asks for more than there are.
        """
        if split == "val":
            if self.source("val") == "val":
                return np.arange(len(self.labels["val"]))
            return np.flatnonzero(self.held_out)
        ids = self.sample_ids
        is_minival = uniforms("minival", each=ids) < recipe.minival_fraction
        is_minival &= ~self.held_out
        if split == "minival":
            rows = np.flatnonzero(is_minival)
            if not len(rows):
                num_train = len(ids) - np.count_nonzero(self.held_out)
                raise DataError(
                    f"minival_fraction={recipe.minival_fraction} of the {num_train} training "
                    f"images of {self.name} leaves no image to choose on; raise it"
                )
            return rows
        rows = np.flatnonzero(~is_minival & ~self.held_out)
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
    def held_out(self) -> np.ndarray:
        """bool of every row of the training shards: is it val, since no split came for that?"""
        if "val" in self.shards:
            return np.zeros(len(self.labels["train"]), bool)
        held_out = uniforms("val", each=self.sample_ids) < VAL_FRACTION
        if held_out.all() or not held_out.any():
            raise DataError(
                f"{self.name} has no validation split, and its {len(held_out)} images are too few "
                "to hold one in five out; add validation-*.parquet beside them"
            )
        return held_out

    @functools.cached_property
    def sample_ids(self) -> np.ndarray:
        """uint64 of every row of the training shards: the hash of its path, or of its bytes.

        Of the paths if every row has one of its own; else of the encoded images, so that equal
        ones fall on the same side of every cut.
        """
        name = f"ids-2-{self.fingerprint}.npy"
        return stored_array(self.cache / name, lambda: _sample_ids(self.shards["train"]))


# -- describing a folder --------------------------------------------------------------------------


def read_data_set(
    name: str,
    location: str,
    cache: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataSet:
    """The data set in a folder of Parquet shards, local or at a URI, or in one Parquet file.

    Reads footers and labels, no images, and neither where the same shards were read before on this
    machine; logs what it leaves out. The columns are named where they cannot be told by names and
    types. Raises DataError for shards that are missing or of another schema, or a label out of
    range, naming shard and row.
    """
    files = find_shards(location)
    place = Place(cache, name, location, (image_column, label_column), files.stamps)
    found = place.read()
    if found is None:
        found = _described_set(name, location, files, image_column, label_column)
        place.write(found)
    if left_out := [*files.left_out, *found.left_out]:
        log.warning("%s: left out: %s", name, "; ".join(left_out))
    for remark in found.remarks:
        log.warning("%s", remark)
    return DataSet(
        name=name,
        fingerprint=found.fingerprint,
        class_names=found.class_names,
        shards=found.shards,
        labels=found.labels,
        cache=cache,
        lossy=found.lossy,
    )


def _described_set(
    name: str,
    location: str,
    files: SplitFiles,
    image_column: str | None,
    label_column: str | None,
) -> Description:
    """What the shards say, by opening each."""
    first = files.train[0]
    schema = read_footer(first, _known(files.stamps[first])).schema.to_arrow_schema()
    columns = find_columns(first, schema, image_column, label_column)
    left_out: list[str] = []
    remarks: list[str] = []
    known: dict[str, list[_DescribedShard]] = {}
    with ThreadPoolExecutor(DESCRIBE_THREADS) as pool:

        def describe(locations: Sequence[str], *, is_train: bool = False) -> list[_DescribedShard]:
            def each(shard: str) -> _DescribedShard:
                return _describe(shard, columns, is_train, files.stamps[shard])

            return list(pool.map(each, locations))

        known["train"] = describe(files.train, is_train=True)
        if not any(shard.is_labelled for shard in known["train"]):
            raise DataError(
                f"the training images of {location} have no labels: {columns.label} is empty or -1 "
                "in every row; if the labels are in another column, name it: --label-column NAME"
            )
        for split, locations in files.val.items():
            unlabelled = ""
            if "val" not in known:
                found = describe(locations)
                if any(shard.is_labelled for shard in found):
                    known["val"] = found
                    if "test" in split:
                        remarks.append(f"{name}: the val split is its {split} shards")
                    continue
                unlabelled = ", without labels"
            left_out.append(described_split(split, len(locations)) + unlabelled)
    if "val" not in known:
        remarks.append(f"{name}: no validation split: one in five training images is held out")
    return _description(location, columns, known, left_out, remarks)


class _DescribedShard(NamedTuple):
    shard: Shard
    identity: bytes  # stands for the content
    is_whole: bool  # and two shards with the same are copies
    class_names: tuple[str, ...] | None
    odd: str | None  # about its metadata
    lossy: str | None
    labels: np.ndarray  # int64, or an object array of str

    @property
    def is_labelled(self) -> bool:
        return self.labels.dtype == object or bool((self.labels != UNLABELLED).any())


def _describe(
    location: str, columns: Columns, is_train: bool, stamp: Stamp | None
) -> _DescribedShard:
    """What is known of a shard before an image is read."""
    known = _known(stamp)
    metadata = read_footer(location, known)
    schema = metadata.schema.to_arrow_schema()
    check_columns(location, schema, columns, with_label=is_train)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    shard = Shard(
        location,
        tuple(group.num_rows for group in groups),
        sum(group.total_byte_size for group in groups),
        columns.image,
        None if stamp is None else Footer(stamp, footer_bytes(location, known)),
    )
    written = metadata.metadata or {}
    # Whoever packs the same images again, with another pyarrow, has the same data. Of others'
    # shards the whole file, or the footer: the place, sizes and statistics of every column.
    identity = written.get(CONTENT) or read_ends(location, WHOLE_FILE_BYTES, known)
    names, odd = class_names(schema, columns.label)
    return _DescribedShard(
        shard,
        sha256(identity).digest(),
        CONTENT in written or file_size(location, known) <= WHOLE_FILE_BYTES,
        names,
        odd,
        written[LOSSY].decode() if LOSSY in written else None,
        read_labels(location, schema, columns.label, shard.num_rows, known),
    )


def _known(stamp: Stamp | None) -> Footer | None:
    return None if stamp is None else Footer(stamp)


def _description(
    location: str,
    columns: Columns,
    known: dict[str, list[_DescribedShard]],
    left_out: list[str],
    remarks: list[str],
) -> Description:
    digest = sha256()
    for split, described in known.items():
        _check_once(split, described)
        digest.update(f"{split} {len(described)}".encode())
        for shard in described:
            digest.update(shard.identity)
    if columns != CONVENTION:  # the same files with other labels are another data set
        digest.update(repr((columns.image.name, columns.label)).encode())
    every = [shard for described in known.values() for shard in described]
    lossy = {shard.lossy for shard in every}
    if len(lossy) > 1:
        raise DataError(
            f"the shards of {location} do not agree on how their images were re-encoded "
            f"({', '.join(sorted(str(way) for way in lossy))}); pack them together"
        )
    for shard in [shard for shard in every if shard.odd][:1]:
        remarks.append(f"{shard.shard.location}: {shard.odd}; its classes are named by number")
    shards = {split: tuple(d.shard for d in described) for split, described in known.items()}
    labels, names = _labels(shards, known, _class_names(every))
    _check_labels(shards, labels, names)
    if names is None:
        names = tuple(str(label) for label in range(int(labels["train"].max()) + 1))
    return Description(
        fingerprint=digest.hexdigest()[:12],
        class_names=names,
        shards=shards,
        labels=labels,
        lossy=lossy.pop(),
        left_out=left_out,
        remarks=remarks,
    )


def _check_once(split: str, described: Sequence[_DescribedShard]) -> None:
    """Raises DataError where two of the split's shards hold the same."""
    seen: dict[bytes, str] = {}
    for shard, identity, is_whole, *_ in described:
        other = seen.setdefault(identity, shard.location) if is_whole and shard.num_rows else None
        if other not in (None, shard.location):
            raise DataError(
                f"{other} and {shard.location} hold the same rows, both of {split}; remove one"
            )


def _class_names(every: Sequence[_DescribedShard]) -> tuple[str, ...] | None:
    """The names of the classes that the shards have, none of them or the same ones."""
    named = [shard for shard in every if shard.class_names]
    for other in named[1:]:
        if other.class_names != named[0].class_names:
            raise DataError(
                f"{named[0].shard.location} and {other.shard.location} do not agree on the names "
                "of the classes; take out the one that is not of this data set"
            )
    return named[0].class_names if named else None


def _labels(
    shards: dict[str, tuple[Shard, ...]],
    known: dict[str, list[_DescribedShard]],
    names: tuple[str, ...] | None,
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """int64 labels, and the names of the classes: words are classes in their sorted order."""
    labels = {
        split: np.concatenate([shard.labels for shard in described])
        for split, described in known.items()
    }
    for split, values in labels.items():
        if not len(values):
            raise DataError(f"the {split} shards, {shards[split][0].location} first, have no rows")
    in_words = [d.shard.location for of in known.values() for d in of if d.labels.dtype == object]
    if not in_words:
        return labels, names
    numbers = [d for of in known.values() for d in of if d.labels.dtype != object and len(d.labels)]
    for other in numbers:
        raise DataError(
            f"the labels of {in_words[0]} are words, and those of {other.shard.location} are "
            "numbers or missing; take out the one that is not of this data set"
        )
    names = names or tuple(sorted(set(labels["train"])))
    number = {word: label for label, word in enumerate(names)}
    for split, words in labels.items():
        unknown = np.array([word not in number for word in words])
        if unknown.any():
            row = int(np.flatnonzero(unknown)[0])
            raise DataError(
                f"{place(shards[split], row)} has the label {words[row]!r}, which no training "
                f"image has; {np.count_nonzero(unknown)} rows of {split} are like it"
            )
    return {
        split: np.array([number[word] for word in words], np.int64)
        for split, words in labels.items()
    }, names


def _check_labels(
    shards: dict[str, tuple[Shard, ...]],
    labels: dict[str, np.ndarray],
    names: Sequence[str] | None,
) -> None:
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
    paths = [path for shard in shards for path in read_paths(shard)]
    if all(paths) and len(set(paths)) == len(paths):
        return np.array([hash64(path.encode()) for path in paths if path], np.uint64)
    images = EncodedImages(shards, keep_bytes=0)
    return np.array([hash64(images[row].image) for row in range(len(paths))], np.uint64)
