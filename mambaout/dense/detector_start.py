"""The weights that a detector starts from: a classifier's, or those of an earlier detection.

    print(load_start(detector, read_weights("runs/boxes/last.ckpt"), ("cat", "dog")))

From a classifier it is the backbone. From a detection it is every layer that fits. The layers that
know the classes fit only if both have the same classes, by their names and in one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mambaout.dense.backbone import load_backbone, require_shape
from mambaout.dense.mask_rcnn import MaskRCNN
from mambaout.dense.trained import class_names_in
from mambaout.detect_recipe import detect_recipe_from_json
from mambaout.fields import flat_fields
from mambaout.model.initial import InitialWeights
from mambaout.model.weights import Weights

DETECT = "detect"  # the task of a detection's checkpoint
# The layers whose outputs are classes. The names are those of the modules.
OF_CLASSES = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
# Parts of a detector without its backbone, by how their tensors' names begin.
PARTS = {
    "backbone.fpn.": "the pyramid",
    "rpn.": "the proposal network",
    "roi_heads.box_head.": "the box head",
    "roi_heads.box_predictor.": "its scores and boxes of the classes",
    "roi_heads.mask_predictor.mask_fcn_logits.": "the masks of the classes",
    "roi_heads.mask_": "the mask head",
}
# What a new detector takes from the recipe of the one that it starts from, so that the heads fit.
FOLLOWING = ("head_channels", "box_features", "smallest_anchor")


def fields_of_start(initial: InitialWeights) -> dict[str, Any]:
    """The fields of a recipe with which these weights fit: the network's shape, and the heads'."""
    fields, weights = dict(flat_fields(initial.model)), initial.weights
    if weights.task == DETECT:
        recipe = detect_recipe_from_json(str(weights.checkpoint.get("recipe")), str(weights.path))
        fields |= {name: getattr(recipe, name) for name in FOLLOWING}
    return fields


def load_start(detector: MaskRCNN, weights: Weights, class_names: Sequence[str]) -> str:
    """Load what fits into `detector`, in place; returns a sentence on what is loaded and what new.

    Raises WrongRequest, and loads nothing, if the backbone does not fit.
    """
    require_shape(detector.backbone.body, weights)
    said = load_backbone(detector.backbone.body, weights)
    if weights.task != DETECT:
        return said
    of_classes = class_names_in(weights.checkpoint) == tuple(class_names)
    fitting, fresh = _fitting(detector, weights.checkpoint["model"], of_classes)
    detector.load_state_dict(fitting, strict=False)
    parts = dict.fromkeys(_part(name) for name in fresh)
    return f"{weights.path}: " + (
        f"all of the detector but {' and '.join(parts)}, which are new"
        if parts
        else "all of the detector"
    )


def _fitting(
    detector: nn.Module, found: Mapping[str, Tensor], of_classes: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of layers that fit as a whole, and the names of all others in the detector."""
    wanted = detector.state_dict()
    lost = {
        name.rpartition(".")[0]
        for name, tensor in wanted.items()
        if name not in found
        or found[name].shape != tensor.shape
        or (name.startswith(OF_CLASSES) and not of_classes)
    }
    fresh = [name for name in wanted if name.rpartition(".")[0] in lost]
    return {name: found[name] for name in wanted if name not in fresh}, fresh


def _part(name: str) -> str:
    return next((text for start, text in PARTS.items() if name.startswith(start)), name)
