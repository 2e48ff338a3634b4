"""The facts about a data set's images: their number, their classes, their size."""

from __future__ import annotations

import contextlib
import statistics

import numpy as np

from mambaout.data.images.decode import Images, UndecodableImage
from mambaout.data.packing.named_sets import NAMED
from mambaout.data.shards.data_set import DataSet
from mambaout.data.shards.files import DataError
from mambaout.rules import DataFacts

# A row group is read whole, which is megabytes from a bucket. So few groups give many images each.
NUM_PLACES, IMAGES_A_PLACE = 8, 25


def facts_of(data: DataSet, images: Images) -> DataFacts:
    """The facts that the rules for a recipe use; `images` are those of the train split."""
    return DataFacts(
        num_train=len(data.labels["train"]) - int(np.count_nonzero(data.held_out)),
        num_classes=data.num_classes,
        image_side=image_side(images, len(data.labels["train"])),
        is_arrangement=data.name in NAMED and NAMED[data.name].is_arrangement,
    )


def image_side(images: Images, num_images: int) -> int:
    """The median short side in px, of 200 images from eight places in the shards."""
    firsts = np.linspace(0, max(num_images - IMAGES_A_PLACE, 0), NUM_PLACES).astype(int)
    places = [range(first, min(first + IMAGES_A_PLACE, num_images)) for first in firsts]
    rows = sorted({int(row) for place in places for row in place})
    sides: list[int] = []
    for row in rows:
        with contextlib.suppress(UndecodableImage):  # the loader handles it when a batch needs it
            sides.append(min(images[row].size))
    if not sides:
        raise DataError(f"none of {len(rows)} training images can be decoded, row {rows[0]} first")
    return int(statistics.median_low(sides))
