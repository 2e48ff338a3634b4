"""The recipe of a detection training: mmdetection's `1x` schedule with the paper's AdamW.

Pure values. The paper (section 4.3) states Mask R-CNN, AdamW at 1e-4, batch 16, 12 epochs and
800 x 1333 px. The rest is what the Swin configuration of mmdetection has, from which the paper's
code was derived: weight decay 0.05, warm-up over 1,000 steps from a thousandth of the rate, and a
tenth of the rate after 8 and after 11 epochs (mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from mambaout.accounting import Cost, cost_of
from mambaout.dense_layers import SAMPLED_BOXES, WIDTHS, HeadWidths, detector_layers
from mambaout.errors import WrongRequest
from mambaout.fields import (
    MOST_CHANNELS,
    MOST_COUNT,
    Bound,
    Rule,
    WrongValues,
    check,
    faults,
    flat_fields,
    hints,
    knob,
    knobs,
)
from mambaout.fields import typed as typed_value
from mambaout.stored_format import require_task
from mambaout.variants import TINY, ModelConfig

PAPER = "paper, section 4.3"
MMDETECTION = "mmdetection's configuration of Swin"
NOT_ON_XLA = (
    "Mask R-CNN does not run on XLA: its shapes are dynamic (each image has another number of "
    "boxes), so every step would be compiled anew"
)
MULTIPLE = 32  # px that sides are padded to: the stride of the last stage


def _drops_in_order(first_drop_epoch: int, second_drop_epoch: int) -> str | None:
    if first_drop_epoch > second_drop_epoch:
        return (
            f"first_drop_epoch={first_drop_epoch} is after second_drop_epoch={second_drop_epoch}; "
            "give the earlier one first"
        )
    return None


def _sides_in_order(shorter_side: int, longer_side: int) -> str | None:
    if shorter_side > longer_side:
        return (
            f"shorter_side={shorter_side} is more than longer_side={longer_side}; give a "
            f"longer_side like {round(shorter_side * 5 / 3)}"
        )
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectRecipe:
    """Everything that decides a detection run's result, except the seed and the data."""

    model: ModelConfig = TINY
    peak_lr: float = knob(
        1e-4,
        "learning rate after warm-up; it belongs to a global batch",
        unit=None,
        source=PAPER,
        bound=Bound(above=0, below=10),
    )
    weight_decay: float = knob(
        0.05,
        "AdamW's decay; it leaves out parameters of norms, and keeps biases, as in mmdetection",
        unit=None,
        source=MMDETECTION,
        bound=Bound(least=0, below=10),
    )
    beta1: float = knob(
        0.9,
        "AdamW's decay of the mean gradient",
        unit="share kept a step",
        source=MMDETECTION,
        bound=Bound(least=0, below=1),
    )
    beta2: float = knob(
        0.999,
        "AdamW's decay of the mean squared gradient",
        unit="share kept a step",
        source=MMDETECTION,
        bound=Bound(least=0, below=1),
    )
    global_batch: int = knob(
        16,
        "images an optimizer step, over all micro-batches",
        unit="images",
        source=PAPER,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    epochs: int = knob(
        12,
        "length of the training",
        unit="epochs",
        source=PAPER,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    first_drop_epoch: int = knob(
        8,
        "epochs after which the learning rate falls to a tenth",
        unit="epochs",
        source=MMDETECTION,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    second_drop_epoch: int = knob(
        11,
        "epochs after which it falls to a hundredth",
        unit="epochs",
        source=MMDETECTION,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    warmup_steps: int = knob(
        1000,
        "steps in which the learning rate rises linearly from a thousandth",
        unit="steps",
        source=MMDETECTION,
        bound=Bound(least=0, most=MOST_COUNT),
    )
    shorter_side: int = knob(
        800,
        "an image's shorter side after it is resized, if its longer side allows it",
        unit="px",
        source=PAPER,
        bound=Bound(least=MULTIPLE, most=4096),
    )
    longer_side: int = knob(
        1333,
        "the longest that its longer side may be",
        unit="px",
        source=PAPER,
        bound=Bound(least=MULTIPLE, most=8192),
    )
    hflip: float = knob(
        0.5,
        "how often a training image is mirrored, left to right",
        unit="probability",
        source=MMDETECTION,
        bound=Bound(least=0, most=1),
    )
    eval_every_epochs: int = knob(
        1,
        "epochs between evaluations",
        unit="epochs",
        source=MMDETECTION,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    head_channels: int = knob(
        WIDTHS.channels,
        "channels of the feature pyramid, of the proposals and of the mask head",
        unit="channels",
        source=MMDETECTION,
        bound=Bound(least=1, most=MOST_CHANNELS),
    )
    box_features: int = knob(
        WIDTHS.box_features,
        "width of the two linear layers of the box head",
        unit="channels",
        source=MMDETECTION,
        bound=Bound(least=1, most=MOST_CHANNELS),
    )
    smallest_anchor: int = knob(
        32,
        "side of the square anchors on the finest of five maps; it doubles from map to map",
        unit="px",
        source=MMDETECTION,
        bound=Bound(least=1, most=4096),
    )
    sampled_boxes: int = knob(
        SAMPLED_BOXES,
        "proposals of an image that the box head learns from; up to a quarter of them are objects",
        unit="boxes",
        source=MMDETECTION,
        bound=Bound(least=1, most=100_000),
    )
    precision: Literal["fp32", "tf32", "bf16"] = knob(
        "fp32",
        "number format of the backbone and the heads; scores, boxes and losses stay fp32",
        unit=None,
        source="bf16 where the device has units for it",
    )
    init: str | None = knob(
        None,
        "digest of the weights that the backbone starts from; none: random weights",
        unit=None,
        source="paper, which starts from ImageNet's",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (_drops_in_order, _sides_in_order)

    def __post_init__(self) -> None:
        check(self)

    @property
    def widths(self) -> HeadWidths:
        return HeadWidths(self.head_channels, self.box_features)

    @property
    def anchor_sizes(self) -> tuple[int, ...]:
        return tuple(self.smallest_anchor * 2**level for level in range(5))

    @property
    def counted_size(self) -> tuple[int, int]:
        """The (height, width) of the image whose MACs are said. With the paper's sides it is the
        paper's, 800 x 1280."""
        is_paper = (self.shorter_side, self.longer_side) == (800, 1333)
        return (800, 1280) if is_paper else (self.shorter_side, self.longer_side)

    def cost(self, num_classes: int, *, with_masks: bool) -> Cost:
        """The cost of one image of `counted_size`, as the paper's table counts it."""
        parts = detector_layers(self.model, self.counted_size, num_classes, self.widths)
        costs = (
            cost_of(part.layers.values()).times(part.times)
            for part in parts
            if with_masks or not part.name.startswith("roi_heads.mask")
        )
        return sum(costs, Cost())

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        epoch = step // steps_per_epoch
        drops = (epoch >= self.first_drop_epoch) + (epoch >= self.second_drop_epoch)
        warm = 1.0
        if step < self.warmup_steps:
            warm = WARMUP_START + (1 - WARMUP_START) * step / self.warmup_steps
        return self.peak_lr * warm * 0.1**drops


WARMUP_START = 1e-3  # of the rate, at step 0
DETECT_BASELINE = DetectRecipe()


def detect_steps_per_epoch(recipe: DetectRecipe, num_images: int) -> int:
    """Optimizer steps in an epoch. Images that do not fill a last batch wait for another epoch.

    Raises WrongRequest if there are fewer images than one global batch, or if the training would
    end before its warm-up.
    """
    if num_images < recipe.global_batch:
        raise WrongRequest(
            f"global_batch={recipe.global_batch} is more than the {num_images} training images; "
            f"try global_batch={max(num_images, 1)}"
        )
    steps = num_images // recipe.global_batch
    if recipe.warmup_steps >= steps * recipe.epochs:
        raise WrongRequest(
            f"warmup_steps={recipe.warmup_steps} is not below the {steps * recipe.epochs} steps of "
            f"the training; try warmup_steps={steps * recipe.epochs // 20}"
        )
    return steps


def detect_field_types() -> dict[str, Any]:
    """The type of every field by its name, those of the network included."""
    owners = (ModelConfig, DetectRecipe)
    return {name: hints(owner)[name] for owner in owners for name in knobs(owner)}


def tuned_detect(recipe: DetectRecipe, values: Mapping[str, Any]) -> DetectRecipe:
    """`recipe` with fields replaced by their names; WrongValues has a line for each fault."""
    known = detect_field_types()
    if unknown := sorted(values.keys() - known.keys()):
        raise WrongRequest(
            f"a detection recipe has no field {unknown[0]!r}; fields are {', '.join(known)}"
        )
    flat, wrong = flat_fields(recipe), []
    for name, value in values.items():
        try:
            flat[name] = typed_value(name, value, known[name])
        except WrongRequest as error:
            wrong.append(str(error))
    wrong += [fault for owner in (ModelConfig, DetectRecipe) for fault in faults(owner, flat)]
    if wrong:
        raise WrongValues(*wrong)
    model = ModelConfig(**{name: flat[name] for name in knobs(ModelConfig)})
    return replace(recipe, model=model, **{name: flat[name] for name in knobs(DetectRecipe)})


def detect_recipe_from_json(text: str, where: str) -> DetectRecipe:
    """The recipe in the text of a recipe.json; a WrongRequest names `where` if it is none."""
    try:
        body = json.loads(text)
        require_task(body, "detect", where)
        flat = {**body.pop("model"), **body}
    except WrongRequest:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WrongRequest(f"{where} is no recipe of a detection run ({error})") from None
    try:
        return tuned_detect(DETECT_BASELINE, flat)
    except WrongRequest as error:
        raise WrongRequest(f"{where}: {error}") from None
