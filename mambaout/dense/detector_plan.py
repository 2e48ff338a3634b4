"""From a recipe and the data's classes to the detector of a run and its first weights."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from mambaout.dense.coco import CocoData
from mambaout.dense.detect import DetectorPlan
from mambaout.dense.detect_recipe import DetectRecipe
from mambaout.dense.detector_start import load_start
from mambaout.dense.mask_rcnn import MaskRCNN, mask_rcnn
from mambaout.model.weights import read_weights


def detector_plan(
    recipe: DetectRecipe, data: CocoData, init: Path | None
) -> tuple[DetectorPlan, str]:
    """The plan, and a sentence about the first weights: those in `init`, or random.

    A set without masks gets a detector of boxes. Raises WrongRequest if the file does not fit the
    network.
    """

    def build() -> MaskRCNN:
        detector = new_detector(recipe, data.num_classes, has_masks=data.has_masks)
        if weights is not None:
            said.append(load_start(detector, weights, data.class_names))
        return detector

    said: list[str] = []
    macs = recipe.macs(data.num_classes, with_masks=data.has_masks)
    weights = None if init is None else read_weights(init)
    if init is None:
        text = "the backbone's first weights are random; --init FILE gives others"
        return DetectorPlan(build=build, macs=macs), text
    build()  # whether the file fits is known before the run begins
    key = blake2b(init.read_bytes(), digest_size=8).hexdigest()
    return DetectorPlan(build=build, first_weights=key, macs=macs), said[0]


def new_detector(recipe: DetectRecipe, num_classes: int, *, has_masks: bool) -> MaskRCNN:
    """The recipe's detector with random weights. Without masks it finds boxes alone."""
    detector = mask_rcnn(
        recipe.model,
        num_classes,
        shorter_side=recipe.shorter_side,
        longer_side=recipe.longer_side,
        anchor_sizes=recipe.anchor_sizes,
        widths=recipe.widths,
        sampled_boxes=recipe.sampled_boxes,
    )
    if not has_masks:
        boxes_alone(detector)
    return detector


def boxes_alone(detector: MaskRCNN) -> None:
    """Take the mask branch out, in place: the data have nothing that it could learn from."""
    heads = detector.roi_heads
    heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
