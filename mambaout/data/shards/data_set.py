"""A data set of Parquet shards in Hugging Face's image convention, and the rows of each split.

A shard has an image column (a struct of bytes and path, or plain bytes) and a label column (whole
numbers or words). columns.py finds the columns, shard_files.py the files. `pack` adds the column
`segments: binary`, with the restart segments of its JPEGs. `read_data_set` describes a folder of
shards, local or at a URI that pyarrow opens. `EncodedImages` gives any row's bytes.

A hash of the sample's id decides whether a training row is in minival. The same holds for a reduced
training set, and for val if it has no shards of its own. So the split of a sample depends only on
that sample, not on its place or its neighbours. If each seed draws its own reduced training set,
the seed is hashed too.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mambaout.data.draws import draws, hash64, uniforms
from mambaout.data.shards.described_set import described_set
from mambaout.data.shards.description import Place
from mambaout.data.shards.encoded import EncodedImages, Shard, read_paths
from mambaout.data.shards.files import DataError, stored_array
from mambaout.data.shards.shard_files import find_shards
from mambaout.recipe import Recipe

log = logging.getLogger(__name__)

Split = Literal["train", "minival", "val"]

VAL_FRACTION = 0.2  # of the training rows, if there is no validation split


@dataclass(frozen=True, eq=False)
class DataSet:
    """The shards of a data set, and the facts that are known before an image is decoded."""

    name: str
    fingerprint: str  # twelve hex digits of the content, the same for any copy of the folder
    class_names: tuple[str, ...]
    # The keys are "train", and "val" unless val is held out of train.
    shards: dict[str, tuple[Shard, ...]] = field(repr=False)
    labels: dict[str, np.ndarray] = field(repr=False)  # int64 (rows,), of the same
    cache: Path = field(repr=False)  # where sample ids and small decoded images are kept
    lossy: str | None = None  # how `pack` re-encoded the images, if it changed their pixels

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def num_images(self, split: Split, recipe: Recipe) -> int:
        """How many images the split has; it is the same for every seed."""
        return len(self.rows(split, recipe, seed=0))

    def source(self, split: Split) -> str:
        """The split whose shards hold the rows of `split`: "train" or "val"."""
        return "val" if split == "val" and "val" in self.shards else "train"

    def rows(self, split: Split, recipe: Recipe, *, seed: int | None = None) -> np.ndarray:
        """The rows of `split`: ascending int64 row numbers in the shards of its source.

        `seed` is that of the run. Only the training images of a recipe with subset="seed" depend
        on it: minival and val are the same for all seeds. The array is shared and cannot be
        written. Raises DataError if the split is empty or train_images asks for more images than
        it has, and ValueError if the seed is needed and not given.
        """
        drawn_by = None
        if split == "train" and recipe.subset == "seed":
            if seed is None:
                raise ValueError("the training images of a recipe with subset=seed need the seed")
            drawn_by = seed
        rows = _rows(self, split, recipe.minival_fraction, recipe.train_images, drawn_by)
        rows.setflags(write=False)
        return rows

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """bool for every row of the training shards: whether it is in val, if val has no shards."""
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
        """uint64 for every row of the training shards: the hash of its path or of its bytes.

        Paths are hashed if every row has a path of its own. Otherwise the encoded images are
        hashed, so that equal images are always in the same split.
        """
        name = f"ids-2-{self.fingerprint}.npy"
        return stored_array(self.cache / name, lambda: _sample_ids(self.shards["train"]))


# A training asks for its splits about ten times, and 60,000 rows take 4 ms each time.
@functools.lru_cache(maxsize=4)
def _rows(
    data: DataSet,
    split: Split,
    minival_fraction: float,
    train_images: int | None,
    drawn_by: int | None,
) -> np.ndarray:
    """The rows of `split`; `drawn_by` is the seed that draws the training images, if one does."""
    if split == "val":
        if data.source("val") == "val":
            return np.arange(len(data.labels["val"]))
        return np.flatnonzero(data.held_out)
    ids = data.sample_ids
    is_minival = uniforms("minival", each=ids) < minival_fraction
    is_minival &= ~data.held_out
    if split == "minival":
        rows = np.flatnonzero(is_minival)
        if not len(rows):
            num_train = len(ids) - np.count_nonzero(data.held_out)
            raise DataError(
                f"minival_fraction={minival_fraction} of the {num_train} training "
                f"images of {data.name} leaves no image to choose on; raise it"
            )
        return rows
    rows = np.flatnonzero(~is_minival & ~data.held_out)
    if train_images is None:
        return rows
    if train_images > len(rows):
        raise DataError(
            f"train_images={train_images} is more than the {len(rows)} training images of "
            f"{data.name} (minival taken out); lower it or leave it out"
        )
    keys = () if drawn_by is None else (drawn_by,)
    rank = np.argsort(draws("train_images", *keys, each=ids[rows]), kind="stable")
    return np.sort(rows[rank[:train_images]])


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

    It reads footers and labels but no images. If the same shards were read before on this machine,
    it reads a stored description instead. It logs what it leaves out. Give the columns if their
    names and types do not identify them. Raises DataError, which names shard and row, if shards are
    missing or have another schema, or if a label is out of range.
    """
    files = find_shards(location)
    place = Place(cache, name, location, (image_column, label_column), files.stamps)
    found = place.read()
    if found is None:
        found = described_set(name, location, files, image_column, label_column)
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


def _sample_ids(shards: Sequence[Shard]) -> np.ndarray:
    paths = [path for shard in shards for path in read_paths(shard)]
    if all(paths) and len(set(paths)) == len(paths):
        return np.array([hash64(path.encode()) for path in paths if path], np.uint64)
    images = EncodedImages(shards, keep_bytes=0)
    return np.array([hash64(images[row].image) for row in range(len(paths))], np.uint64)
