"""COCO's figures of predictions: 12 of boxes and 12 of masks, by pycocotools.

faster-coco-eval computes the same figures in a fifth of the time (a test compares them to six
digits). pycocotools is the reference, so it makes the figures at a run's end.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, cast

import numpy as np
from pycocotools import mask as coco_masks

from mambaout.dense.coco import CocoData

Engine = Literal["pycocotools", "faster-coco-eval"]

# COCO's 12 figures in the order of `COCOeval.stats`. AP is the mean over IoU 0.50 to 0.95; S, M and
# L are objects under 32 x 32 px, up to 96 x 96 px, and above; AR is the recall with so many
# detections an image.
FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
KINDS = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True)
class Detections:
    """What a detector found on one image, best first, in pixels of the image file."""

    image_id: int
    boxes: np.ndarray  # float32 (N, 4): left, top, right, bottom
    labels: np.ndarray  # int64 (N,), 1 to the number of classes
    scores: np.ndarray  # float32 (N,), 0 to 1
    rles: Sequence[Mapping[str, Any]] | None  # a mask for each; None: a detector without masks

    def masks(self) -> np.ndarray:
        """The masks, bool (N, H, W)."""
        if not self.rles:
            return np.zeros((0, 1, 1), bool)
        return np.stack([coco_masks.decode(cast(Any, each)) for each in self.rles]).astype(bool)


def encoded_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """RLEs of masks (N, H, W)."""
    return [cast(Any, coco_masks.encode(np.asfortranarray(mask, np.uint8))) for mask in masks]


def fastest_engine() -> Engine:
    return "faster-coco-eval" if find_spec("faster_coco_eval") else "pycocotools"


def figures(
    data: CocoData, predictions: Sequence[Detections], engine: Engine = "pycocotools"
) -> dict[str, float]:
    """{"box_ap": percent, ..., "mask_ar_large": percent} over the images of `data`.

    A figure about objects that the data lacks (for instance small ones) is left out. The figures of
    masks are there if both the data and the predictions have masks.
    """
    kinds = ["box"]
    if data.has_masks and all(each.rles is not None for each in predictions):
        kinds.append("mask")
    found: dict[str, float] = {}
    for kind in kinds:
        results = [one for each in predictions for one in _results(data, each, kind)]
        stats = _stats(data, results, KINDS[kind], engine)
        for name, value in zip(FIGURES, stats, strict=True):
            if value >= 0:  # COCO's -1: there is nothing of this size
                found[f"{kind}_{name}"] = 100 * float(value)
    return found


def _results(data: CocoData, found: Detections, kind: str) -> list[dict[str, Any]]:
    """The predictions of an image as COCO's result format has them."""
    boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1)
    results: list[dict[str, Any]] = []
    for place, (box, label, score) in enumerate(
        zip(boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    ):
        one: dict[str, Any] = {
            "image_id": found.image_id,
            "category_id": data.labels_to_ids[label],
            "score": score,
        }
        if kind == "box":
            one["bbox"] = box
        elif found.rles is not None:
            one["segmentation"] = dict(found.rles[place])
        results.append(one)
    return results


def _stats(
    data: CocoData, results: list[dict[str, Any]], kind: str, engine: Engine
) -> Sequence[float]:
    """`COCOeval.stats`: 12 shares, or -1 where there is nothing to count."""
    if engine == "faster-coco-eval":
        from faster_coco_eval import COCO, COCOeval_faster

        dataset, evaluator = cast(Any, COCO), cast(Any, COCOeval_faster)
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        dataset, evaluator = cast(Any, COCO), cast(Any, COCOeval)
    with contextlib.redirect_stdout(io.StringIO()):  # both print tables
        truth, guess = dataset(), dataset()
        # Copies: an evaluation writes into the annotations.
        truth.dataset = dict(data.body) | {
            "annotations": [dict(each) for each in data.body["annotations"]]
        }
        truth.createIndex()
        if results:
            guess = truth.loadRes(results)
        else:  # loadRes cannot read an empty list
            guess.dataset = truth.dataset | {"annotations": []}
            guess.createIndex()
        evaluation = evaluator(truth, guess, kind)
        evaluation.params.imgIds = sorted(image.id for image in data.images)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[: len(FIGURES)]]
