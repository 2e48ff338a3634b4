"""From a recipe and the data's classes to the detector of a run and its first weights."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from torchvision.models.detection import MaskRCNN

from mambaout.dense.backbone import load_backbone
from mambaout.dense.coco import CocoData
from mambaout.dense.detect import DetectorPlan
from mambaout.dense.detect_recipe import DetectRecipe
from mambaout.dense.mask_rcnn import mask_rcnn
from mambaout.model.weights import read_weights


def detector_plan(
    recipe: DetectRecipe, data: CocoData, init: Path | None
) -> tuple[DetectorPlan, str]:
    """The plan, and a sentence about the first weights, which are those in `init` or random.

    Raises WrongRequest if the file does not fit the network. A set without masks gives a detector
    of boxes.
    """

    def build() -> MaskRCNN:
        detector = mask_rcnn(recipe.model, data.num_classes)
        if not data.has_masks:
            boxes_alone(detector)
        if weights is not None:
            load_backbone(detector.backbone.body, weights)
        return detector

    weights = None if init is None else read_weights(init)
    if init is None or weights is None:
        return DetectorPlan(build=build), "the first weights are random (--init FILE gives others)"
    said = load_backbone(mask_rcnn(recipe.model, data.num_classes).backbone.body, weights)
    key = blake2b(init.read_bytes(), digest_size=8).hexdigest()
    return DetectorPlan(build=build, first_weights=key), said


def boxes_alone(detector: MaskRCNN) -> None:
    """Take the mask branch out, in place: what it learns from is not there."""
    heads = detector.roi_heads
    heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
