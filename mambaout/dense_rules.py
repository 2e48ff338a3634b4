"""What the recipes of detection and segmentation share in following the data.

The fields of a recipe come, the last one first, from: the command line, the generated set's small
networks, the network that is named, the weights to start from, the published recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mambaout.fields import flat_fields
from mambaout.options import field_text, option
from mambaout.variants import ModelConfig

SHAPES, SMOKE_SHAPES = "shapes", "shapes-smoke"  # the generated sets, as --data names them
MANY_WARMUPS = 20  # a shorter training than so many warm-ups has a shorter warm-up


def chosen_fields(
    base: Any,
    shape: ModelConfig | None,
    given: Mapping[str, Any],
    small: Mapping[str, Any] | None,
    start: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """The fields that do not depend on the number of images, and a line for each rule that acted.

    `shape` is the network if it is named, `given` what the user gave. `small` are the fields of the
    generated set, None for other data. `start` are the fields of the weights to start from.
    """
    usual = flat_fields(base)
    fields = {**start, **({} if shape is None else flat_fields(shape))}
    lines = [
        f"{option(name)} {field_text(value)}: as in --init"
        for name, value in start.items()
        if name not in given and fields[name] == value != usual[name]
    ]
    own = {n: v for n, v in (small or {}).items() if n not in given and n not in fields}
    lines += [f"{option(n)} {field_text(v)}: for the small shapes" for n, v in own.items()]
    return {**fields, **own, **given}, lines


def shorter_warmup(fields: dict[str, Any], steps: int, usual: int) -> list[str]:
    """Set warmup_steps in `fields` if it is not there and the training is short; a line says so."""
    if "warmup_steps" in fields or not 0 < steps < MANY_WARMUPS * usual:
        return []
    fields["warmup_steps"] = steps // MANY_WARMUPS
    return [
        f"{option('warmup_steps')} {fields['warmup_steps']}: one step in {MANY_WARMUPS} of the "
        f"{steps}, because the usual {usual} would be too many"
    ]
