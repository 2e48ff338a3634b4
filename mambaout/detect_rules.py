"""How the recipe of a detection follows the data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mambaout.dense_rules import SHAPES, SMOKE_SHAPES, chosen_fields, shorter_warmup
from mambaout.detect_recipe import DETECT_BASELINE, DetectRecipe, tuned_detect
from mambaout.numbers import counted
from mambaout.options import option
from mambaout.recipe import power_of_two_in
from mambaout.variants import ModelConfig

MICRO_BATCH = 2  # images in memory at once, as in mmdetection's 8 x 2
# What the generated shapes train if it is not said otherwise: minutes on a CPU, not a photograph's
# size.
SHAPES_FIELDS: Mapping[str, Any] = {
    **{"depths": (1, 1, 2, 1), "dims": (24, 48, 72, 96), "drop_path": 0.0},
    **{"head_channels": 64, "box_features": 256, "smallest_anchor": 24, "sampled_boxes": 128},
    **{"shorter_side": 96, "longer_side": 96, "global_batch": 6, "peak_lr": 1e-3},
}
SMOKE_FIELDS: Mapping[str, Any] = {
    **SHAPES_FIELDS,
    **{"dims": (8, 16, 24, 32), "head_channels": 16, "box_features": 64, "epochs": 1},
}
SMALL_DETECT = {SHAPES: SHAPES_FIELDS, SMOKE_SHAPES: SMOKE_FIELDS}  # by the value of --data
NOTHING: Mapping[str, Any] = MappingProxyType({})


def fitted_detect(
    num_images: int,
    shape: ModelConfig | None,
    given: Mapping[str, Any],
    small: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] = NOTHING,
) -> tuple[DetectRecipe, list[str]]:
    """The recipe for so many training images, and a line for each field that follows.

    The other arguments are those of `chosen_fields`.
    """
    base = DETECT_BASELINE
    fields, lines = chosen_fields(base, shape, given, small, start)
    lines += _smaller_batch(fields, num_images)
    epochs = fields.get("epochs", base.epochs)
    if epochs != base.epochs:
        for name in ("first_drop_epoch", "second_drop_epoch"):
            if name not in given:
                fields[name] = max(1, round(getattr(base, name) * epochs / base.epochs))
                lines.append(f"{option(name)} {fields[name]}: the same share of the epochs")
    steps = num_images // fields.get("global_batch", base.global_batch) * epochs
    lines += shorter_warmup(fields, steps, base.warmup_steps)
    return tuned_detect(base, fields), lines


def _smaller_batch(fields: dict[str, Any], num_images: int) -> list[str]:
    """Set global_batch in `fields` if it is not there and there are fewer images; says so.

    The learning rate belongs to a batch, so it follows linearly unless it is there.
    """
    base = DETECT_BASELINE
    if "global_batch" in fields or not 0 < num_images < base.global_batch:
        return []
    fields["global_batch"] = batch = power_of_two_in(num_images)
    lines = [f"{option('global_batch')} {batch}: there are {counted(num_images, 'training image')}"]
    if "peak_lr" not in fields:
        fields["peak_lr"] = base.peak_lr * batch / base.global_batch
        lines.append(f"{option('peak_lr')} {fields['peak_lr']:g}: it follows the batch linearly")
    return lines
