"""What a data set's images are like: how many, of how many classes, of what size."""

from __future__ import annotations

import contextlib
import statistics

import numpy as np

from mambaout.data.images.decode import Images, UndecodableImage
from mambaout.data.shards.data_set import DataSet
from mambaout.data.shards.files import DataError
from mambaout.rules import DataFacts

# A row group is read whole, and from a bucket that is megabytes: many images of few groups.
NUM_PLACES, IMAGES_A_PLACE = 8, 25


def facts_of(data: DataSet, images: Images) -> DataFacts:
    """The facts that a recipe follows from; `images` are those of the train split."""
    return DataFacts(
        num_train=len(data.labels["train"]) - int(np.count_nonzero(data.held_out)),
        num_classes=data.num_classes,
        image_side=image_side(images, len(data.labels["train"])),
    )


def image_side(images: Images, num_images: int) -> int:
    """Short side in px that half of the images reach: the median of 200, from eight places."""
    firsts = np.linspace(0, max(num_images - IMAGES_A_PLACE, 0), NUM_PLACES).astype(int)
    places = [range(first, min(first + IMAGES_A_PLACE, num_images)) for first in firsts]
    rows = sorted({int(row) for place in places for row in place})
    sides: list[int] = []
    for row in rows:
        with contextlib.suppress(UndecodableImage):  # the loader deals with it when its turn comes
            sides.append(min(images[row].size))
    if not sides:
        raise DataError(f"none of {len(rows)} training images can be decoded, row {rows[0]} first")
    return int(statistics.median_low(sides))
