"""The two splits that a detection trains and evaluates on: a set in COCO format, or generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mambaout.dense.coco import CocoData, read_coco
from mambaout.dense.detect import require_one_set
from mambaout.dense.shapes import ShapesSize, shapes_folder
from mambaout.detect_rules import SHAPES, SMOKE_IMAGES, SMOKE_SHAPES


@dataclass(frozen=True)
class DetectSets:
    """The training and the validation images."""

    train: CocoData
    val: CocoData

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint}-{self.val.fingerprint}"

    @property
    def reports(self) -> Sequence[str]:
        return self.train.report, self.val.report

    @property
    def num_train(self) -> int:
        return len(self.train.images)

    @property
    def num_val(self) -> int:
        return len(self.val.images)

    @property
    def num_classes(self) -> int:
        return self.train.num_classes

    @property
    def has_masks(self) -> bool:
        return self.train.has_masks


def detect_sets(data: str) -> DetectSets:
    """The set `data`: a folder or a bucket in COCO format, `shapes` or `shapes-smoke`.

    Raises DataError if the set cannot be read, and WrongRequest if its splits do not fit together.
    """
    sizes = {SHAPES: ShapesSize(), SMOKE_SHAPES: ShapesSize(**SMOKE_IMAGES)}
    root = str(shapes_folder(sizes[data])) if data in sizes else data
    found = DetectSets(read_coco(root, "train"), read_coco(root, "val"))
    require_one_set(found.train, found.val)
    return found
