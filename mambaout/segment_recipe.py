"""The recipe of a segmentation training: mmsegmentation's 160k schedule with the paper's AdamW.

Pure values. The paper (section 4.4) states UperNet, AdamW at 1e-4, batch 16 and 160,000 steps; the
author says that the rate is the same for all sizes, and gives the drop path rates
(yuweihao/MambaOut, issue 251). The rest is what mmsegmentation has for Swin with UperNet, from
which the paper's code was derived (swin-tiny-patch4-window7_upernet_160k_ade20k-512x512). Swin
itself has a rate of 6e-5.

The learning rate rises linearly over the warm-up, from a millionth of the peak. From there it falls
to 0 at the last step: the peak times the share of the steps that are left, to the power
`poly_power`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from mambaout.accounting import Cost, cost_of
from mambaout.dense_layers import AUXILIARY, SEGMENTER_CHANNELS, segmenter_layers
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
from mambaout.variants import TINY, VARIANTS, ModelConfig

PAPER = "paper, section 4.4"
MMSEGMENTATION = "mmsegmentation's configuration of Swin with UperNet"
AUTHOR = "the author, in issue 251"
LEAST_MICRO_BATCH = 2  # a batch norm on a map of one place needs two images
# The author's rates in segmentation; those of small are 0.3 or 0.4. Others keep the variant's own.
DROP_PATHS: Mapping[str, float] = {"tiny": 0.3, "small": 0.3, "base": 0.6}
WARMUP_START = 1e-6  # of the rate, at step 0
SEGMENT_TINY = replace(TINY, drop_path=DROP_PATHS["tiny"])


def _sides_in_order(shorter_side: int, longer_side: int) -> str | None:
    if shorter_side > longer_side:
        return (
            f"shorter_side={shorter_side} is more than longer_side={longer_side}; give a "
            f"longer_side like {4 * shorter_side}"
        )
    return None


def _scales_in_order(scale_min: float, scale_max: float) -> str | None:
    if scale_min > scale_max:
        return f"scale_min={scale_min} is more than scale_max={scale_max}; give the smaller first"
    return None


def _warms_up_before_the_end(warmup_steps: int, steps: int) -> str | None:
    if warmup_steps >= steps:
        return f"warmup_steps={warmup_steps} is not below steps={steps}; try {steps // 20}"
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRecipe:
    """Everything that decides a segmentation run's result, except the seed, the data and the
    micro-batch, whose images the batch norms see at a time."""

    model: ModelConfig = SEGMENT_TINY
    peak_lr: float = knob(
        1e-4,
        "learning rate after warm-up; it belongs to a global batch",
        unit=None,
        source=PAPER,
        bound=Bound(above=0, below=10),
    )
    weight_decay: float = knob(
        0.01,
        "AdamW's decay; it leaves out parameters of norms, and keeps biases, as in mmsegmentation",
        unit=None,
        source=MMSEGMENTATION,
        bound=Bound(least=0, below=10),
    )
    beta1: float = knob(
        0.9,
        "AdamW's decay of the mean gradient",
        unit="share kept a step",
        source=MMSEGMENTATION,
        bound=Bound(least=0, below=1),
    )
    beta2: float = knob(
        0.999,
        "AdamW's decay of the mean squared gradient",
        unit="share kept a step",
        source=MMSEGMENTATION,
        bound=Bound(least=0, below=1),
    )
    global_batch: int = knob(
        16,
        "images an optimizer step, over all micro-batches",
        unit="images",
        source=PAPER,
        bound=Bound(least=LEAST_MICRO_BATCH, most=MOST_COUNT),
    )
    steps: int = knob(
        160_000,
        "length of the training",
        unit="steps",
        source=PAPER,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    warmup_steps: int = knob(
        1500,
        "steps in which the learning rate rises linearly from almost 0",
        unit="steps",
        source=MMSEGMENTATION,
        bound=Bound(least=0, most=MOST_COUNT),
    )
    poly_power: float = knob(
        1.0,
        "power of the share of steps that are left, by which the rate falls to 0 after warm-up",
        unit=None,
        source=MMSEGMENTATION,
        bound=Bound(least=0, most=10),
    )
    crop_size: int = knob(
        512,
        "side of the square that is cut from a training image",
        unit="px",
        source=MMSEGMENTATION,
        bound=Bound(least=32, most=4096),
    )
    shorter_side: int = knob(
        512,
        "an image's shorter side after it is resized, if its longer side allows it",
        unit="px",
        source=MMSEGMENTATION,
        bound=Bound(least=32, most=4096),
    )
    longer_side: int = knob(
        2048,
        "the longest that its longer side may be",
        unit="px",
        source=MMSEGMENTATION,
        bound=Bound(least=32, most=8192),
    )
    scale_min: float = knob(
        0.5,
        "least factor by which a training image's sides are drawn smaller",
        unit="times shorter_side and longer_side",
        source=MMSEGMENTATION,
        bound=Bound(above=0, most=10),
    )
    scale_max: float = knob(
        2.0,
        "largest factor by which they are drawn larger",
        unit="times shorter_side and longer_side",
        source=MMSEGMENTATION,
        bound=Bound(above=0, most=10),
    )
    max_class_share: float = knob(
        0.75,
        "share that no class of a crop may reach; after ten crops the next is taken as it is",
        unit="share of the evaluated pixels",
        source=MMSEGMENTATION,
        bound=Bound(above=0, most=1),
    )
    hflip: float = knob(
        0.5,
        "how often a training image is mirrored, left to right",
        unit="probability",
        source=MMSEGMENTATION,
        bound=Bound(least=0, most=1),
    )
    photometric: float = knob(
        0.5,
        "how often each of brightness, contrast, saturation and hue is changed",
        unit="probability",
        source=MMSEGMENTATION,
        bound=Bound(least=0, most=1),
    )
    auxiliary_weight: float = knob(
        0.4,
        "weight of the auxiliary head's loss",
        unit=None,
        source=MMSEGMENTATION,
        bound=Bound(least=0, most=10),
    )
    dropout: float = knob(
        0.1,
        "share of the channels before the classes that are dropped",
        unit="probability",
        source=MMSEGMENTATION,
        bound=Bound(least=0, below=1),
    )
    head_channels: int = knob(
        SEGMENTER_CHANNELS,
        "channels of the decoder",
        unit="channels",
        source=MMSEGMENTATION,
        bound=Bound(least=1, most=MOST_CHANNELS),
    )
    eval_every_steps: int = knob(
        16_000,
        "steps between evaluations",
        unit="steps",
        source=MMSEGMENTATION,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    precision: Literal["fp32", "tf32", "bf16"] = knob(
        "fp32",
        "number format of the backbone and the decoder; logits and losses stay fp32",
        unit=None,
        source="bf16 where the device has units for it; the paper had fp16",
    )

    init: str | None = knob(
        None,
        "digest of the weights that the backbone starts from; none: random weights",
        unit=None,
        source="paper, which starts from ImageNet's",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        _sides_in_order,
        _scales_in_order,
        _warms_up_before_the_end,
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def counted_size(self) -> tuple[int, int]:
        """The (height, width) of the image whose MACs are said; the paper's is 512 x 2048."""
        return self.shorter_side, self.longer_side

    def cost(self, num_classes: int) -> Cost:
        """The cost of one image of `counted_size`, as the paper's table counts it.

        The auxiliary head is for training alone: its parameters count, its MACs do not.
        """
        parts = segmenter_layers(self.model, self.counted_size, num_classes, self.head_channels)
        costs = [(part.name, cost_of(part.layers.values()).times(part.times)) for part in parts]
        return sum(
            (Cost(cost.params) if name == AUXILIARY else cost for name, cost in costs), Cost()
        )

    def learning_rate(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            share = WARMUP_START + (1 - WARMUP_START) * step / self.warmup_steps
            return self.peak_lr * share
        left = 1 - (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.peak_lr * left**self.poly_power


SEGMENT_BASELINE = SegmentRecipe()


def segment_shape(name: str) -> ModelConfig:
    """The shape of a variant, with its drop path rate in segmentation."""
    shape = VARIANTS[name]
    return replace(shape, drop_path=DROP_PATHS.get(name, shape.drop_path))


def segment_micro_batches(global_batch: int, num_devices: int = 1) -> list[int]:
    """The micro-batches that a global batch splits into, the largest first.

    Each has at least LEAST_MICRO_BATCH images. All are equal, so that the batch norms always see as
    many images.
    """
    return [
        size
        for size in range(global_batch, LEAST_MICRO_BATCH - 1, -1)
        if global_batch % size == 0 and size % num_devices == 0
    ]


def segment_field_types() -> dict[str, Any]:
    """The type of every field by its name, those of the network included."""
    owners = (ModelConfig, SegmentRecipe)
    return {name: hints(owner)[name] for owner in owners for name in knobs(owner)}


def tuned_segment(recipe: SegmentRecipe, values: Mapping[str, Any]) -> SegmentRecipe:
    """`recipe` with fields replaced by their names; WrongValues has a line for each fault."""
    known = segment_field_types()
    if unknown := sorted(values.keys() - known.keys()):
        raise WrongRequest(
            f"a segmentation recipe has no field {unknown[0]!r}; fields are {', '.join(known)}"
        )
    flat, wrong = flat_fields(recipe), []
    for name, value in values.items():
        try:
            flat[name] = typed_value(name, value, known[name])
        except WrongRequest as error:
            wrong.append(str(error))
    wrong += [fault for owner in (ModelConfig, SegmentRecipe) for fault in faults(owner, flat)]
    if wrong:
        raise WrongValues(*wrong)
    model = ModelConfig(**{name: flat[name] for name in knobs(ModelConfig)})
    return replace(recipe, model=model, **{name: flat[name] for name in knobs(SegmentRecipe)})


def segment_recipe_from_json(text: str, where: str) -> SegmentRecipe:
    """The recipe in the text of a recipe.json; a WrongRequest names `where` if it is none."""
    try:
        body = json.loads(text)
        require_task(body, "segment", where)
        flat = {**body.pop("model"), **body}
    except WrongRequest:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WrongRequest(f"{where} is no recipe of a segmentation run ({error})") from None
    try:
        return tuned_segment(SEGMENT_BASELINE, flat)
    except WrongRequest as error:
        raise WrongRequest(f"{where}: {error}") from None
