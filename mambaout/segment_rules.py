"""How the recipe of a segmentation follows the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mambaout.dense_rules import SHAPES, SMOKE_SHAPES, chosen_fields, shorter_warmup
from mambaout.options import field_text, option
from mambaout.segment_recipe import (
    AUTHOR,
    DROP_PATHS,
    SEGMENT_BASELINE,
    SegmentRecipe,
    tuned_segment,
)
from mambaout.variants import VARIANTS, ModelConfig

# What the generated shapes train if it is not said otherwise: minutes on a CPU, not a photograph's
# size.
SHAPES_FIELDS: Mapping[str, Any] = {
    **{"depths": (1, 1, 2, 1), "dims": (24, 48, 72, 96), "drop_path": 0.0, "head_channels": 64},
    **{"crop_size": 96, "shorter_side": 96, "longer_side": 96, "global_batch": 8, "peak_lr": 2e-3},
    # With the full augmentation at 1e-3, mIoU was 32.3; with this one 43.3 (n=1, 1,500 steps, the
    # first version of the set).
    **{"scale_min": 0.75, "scale_max": 1.5, "max_class_share": 1.0},
    **{"photometric": 0.0, "dropout": 0.0, "steps": 1500, "eval_every_steps": 300},
}
SMOKE_FIELDS: Mapping[str, Any] = {
    **SHAPES_FIELDS,
    **{"dims": (8, 16, 24, 32), "head_channels": 16, "steps": 4, "eval_every_steps": 2},
    "global_batch": 4,
}
SMALL_SEGMENT = {SHAPES: SHAPES_FIELDS, SMOKE_SHAPES: SMOKE_FIELDS}  # by the value of --data
EVALUATIONS = 10  # of a training that is shorter than one evaluation's wait
NOTHING: Mapping[str, Any] = MappingProxyType({})


def fitted_segment(
    num_images: int,
    shape: ModelConfig | None,
    given: Mapping[str, Any],
    small: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] = NOTHING,
) -> tuple[SegmentRecipe, list[str]]:
    """The recipe, and a line for each field that follows. Its length is in steps, so the number of
    training images changes nothing.

    The other arguments are those of `chosen_fields`.
    """
    del num_images
    base = SEGMENT_BASELINE
    fields, lines = chosen_fields(base, shape, given, small, start)
    if small is None and "drop_path" not in given:
        model = replace(base.model, **{n: fields[n] for n in ("depths", "dims") if n in fields})
        named = next((n for n in DROP_PATHS if _is_shape_of(model, n)), None)
        if named is not None:
            fields["drop_path"] = DROP_PATHS[named]
            rate = field_text(fields["drop_path"])
            lines.append(f"{option('drop_path')} {rate}: {AUTHOR}, for {named}")
    steps = fields.get("steps", base.steps)
    lines += shorter_warmup(fields, steps, base.warmup_steps)
    if "eval_every_steps" not in fields and steps <= base.eval_every_steps:
        fields["eval_every_steps"] = max(1, steps // EVALUATIONS)
        lines.append(
            f"{option('eval_every_steps')} {fields['eval_every_steps']}: {EVALUATIONS} "
            f"evaluations in the {steps} steps"
        )
    return tuned_segment(base, fields), lines


def _is_shape_of(model: ModelConfig, name: str) -> bool:
    own = VARIANTS[name]
    return (model.depths, model.dims) == (own.depths, own.dims)
