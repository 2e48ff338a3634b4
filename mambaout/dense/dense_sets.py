"""The training and the validation images of a detection or a segmentation, by the value of --data.

sets = detect_sets("coco")     # a folder or a bucket, or a generated set: shapes, shapes-smoke
sets.num_train, sets.num_classes, sets.fingerprint
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mambaout.data.packing.named_sets import NAMED
from mambaout.data.shards.files import DataError
from mambaout.dense.ade20k import read_ade20k
from mambaout.dense.coco import read_coco
from mambaout.dense.detect import require_one_set
from mambaout.dense.shapes import ShapesSize, shapes_folder
from mambaout.dense_rules import SHAPES, SMOKE_SHAPES

GENERATED = {SHAPES: ShapesSize(), SMOKE_SHAPES: ShapesSize(train=12, val=6)}


@dataclass(frozen=True)
class DenseSets:
    """Both splits: two of CocoData, or two of SegmentData."""

    train: Any
    val: Any

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint}-{self.val.fingerprint}"

    @property
    def reports(self) -> Sequence[str]:
        """A line on each split: how many images, and what is left out."""
        return self.train.report, self.val.report

    @property
    def num_train(self) -> int:
        return len(self.train)

    @property
    def num_val(self) -> int:
        return len(self.val)

    @property
    def num_classes(self) -> int:
        return self.train.num_classes


def detect_sets(data: str) -> DenseSets:
    """The set `data` in COCO's format.

    Raises DataError if it cannot be read, and WrongRequest if its splits have other classes.
    """
    root = set_root(data)
    found = DenseSets(read_coco(root, "train"), read_coco(root, "val"))
    require_one_set(found.train, found.val)
    return found


def segment_sets(data: str) -> DenseSets:
    """The set `data` in ADE20K's format. Raises DataError if it cannot be read."""
    return DenseSets(*read_ade20k(set_root(data)))


def set_root(data: str) -> str:
    """The folder or bucket of the set `data`. A generated set is made if it is not there.

    Raises DataError for a set of classified images, and for a name that is neither.
    """
    if data in GENERATED:
        return str(shapes_folder(GENERATED[data]))
    if "://" not in data and not os.path.exists(data):
        if data in NAMED:
            raise DataError(
                f"{data} is a set for classification, without boxes or maps; give a folder, or "
                f"{SHAPES}"
            )
        raise DataError(f"{data} is not there; give a folder that is, or {SHAPES}")
    return data
