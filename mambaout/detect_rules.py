"""How the recipe of a detection follows the data: smaller networks for the generated set, and a
schedule that fits few epochs and few images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mambaout.detect_recipe import DETECT_BASELINE, DetectRecipe, tuned_detect
from mambaout.fields import flat_fields
from mambaout.options import field_text, option
from mambaout.variants import ModelConfig

SHAPES, SMOKE_SHAPES = "shapes", "shapes-smoke"  # the generated sets, as --data names them
SMOKE_IMAGES = {"train": 12, "val": 6}
MICRO_BATCH = 2  # images in memory at once, as in mmdetection's 8 x 2
MANY_WARMUPS = 20  # a shorter training than so many warm-ups has a shorter warm-up
# What the generated shapes train if it is not said otherwise: minutes on a CPU, not a photograph's
# size.
SHAPES_FIELDS: Mapping[str, Any] = {
    **{"depths": (1, 1, 2, 1), "dims": (24, 48, 72, 96), "drop_path": 0.0},
    **{"head_channels": 64, "box_features": 256, "smallest_anchor": 12},
    **{"shorter_side": 96, "longer_side": 96, "global_batch": 6, "peak_lr": 1e-3},
}
SMOKE_FIELDS: Mapping[str, Any] = {
    **SHAPES_FIELDS,
    **{"dims": (8, 16, 24, 32), "head_channels": 16, "box_features": 64, "epochs": 1},
}


def fitted_detect(
    num_images: int,
    shape: ModelConfig | None,
    given: Mapping[str, Any],
    small: Mapping[str, Any] | None = None,
) -> tuple[DetectRecipe, list[str]]:
    """The recipe for so many training images, and a line for each field that follows.

    `shape` is the network if it is chosen. `given` are the fields that the user gave. `small` are
    the fields of the generated set, None for other data.
    """
    base, lines = DETECT_BASELINE, []
    fields: dict[str, Any] = {} if shape is None else flat_fields(shape)
    if small is not None:
        of_shape = flat_fields(base.model).keys() if shape is not None else ()
        own = {n: v for n, v in small.items() if n not in given and n not in of_shape}
        lines += [f"{option(n)} {field_text(v)}: for the small shapes" for n, v in own.items()]
        fields |= own
    fields |= given
    epochs = fields.get("epochs", base.epochs)
    if epochs != base.epochs:
        for name in ("first_drop_epoch", "second_drop_epoch"):
            if name not in given:
                fields[name] = max(1, round(getattr(base, name) * epochs / base.epochs))
                lines.append(f"{option(name)} {fields[name]}: the same share of the epochs")
    batch = fields.get("global_batch", base.global_batch)
    steps = num_images // batch * epochs
    if "warmup_steps" not in given and 0 < steps <= MANY_WARMUPS * base.warmup_steps:
        fields["warmup_steps"] = steps // MANY_WARMUPS
        lines.append(
            f"{option('warmup_steps')} {fields['warmup_steps']}: 1 of {MANY_WARMUPS} of the "
            f"{steps} steps, which is less than {base.warmup_steps}"
        )
    return tuned_detect(base, fields), lines
