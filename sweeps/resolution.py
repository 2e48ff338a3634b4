"""Token mixers at several image sizes: does what an SSM gives change with the sequence's length?

Run:    python sweeps/resolution.py --data next-patch        (again to resume)
        python sweeps/resolution.py --data next-patch --sizes 64 128 --seeds 10
        python sweeps/resolution.py --data next-patch --dims 32,64,128,192 \
            --mixers attention causal_attention
        python sweeps/resolution.py --smoke                  (digits, under 2 minutes on 2 cores)
        Any of them with --plan prints the cost, and which difference the study will find.
Writes: runs/resolution-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from mambaout.errors import WrongRequest
from mambaout.fields import fault_of
from mambaout.launch.cli import main
from mambaout.recipe import field_knobs, parse_field
from mambaout.study.mixer_rows import (
    MIXERS_HELP,
    REFERENCE,
    equal_recipes,
    mixer_pairing,
    mixer_rows,
    num_tokens,
)
from mambaout.study.pairing import PairedGroup
from mambaout.study.start import Start
from mambaout.study.study import Study

SEEDS, SMOKE_SEEDS = (0, 1, 2, 3, 4), (0, 1, 2)
SMALL_SIZES, SMOKE_SIZES, LARGE_SIZES = ("32", "64", "128"), ("16", "32"), ("128", "224", "384")


def resolution(
    start: Start,
    *,
    sizes: Annotated[
        Sequence[str] | None,
        "sides of the images, px (default 32 64 128; 128 224 384 for large data)",
    ] = None,
    mixers: Annotated[Sequence[str] | None, MIXERS_HELP] = None,
) -> Study:
    """Does the difference that an SSM makes in the same block, at the same MACs, change with the
    length of the sequence?"""
    if "image_size" in start.given:
        raise WrongRequest(
            f"--image-size {start.given['image_size']}: this study compares sizes; name them with "
            "--sizes"
        )
    sides = _sides(sizes or (SMOKE_SIZES if start.smoke else _usual(start)))
    rows = mixer_rows(mixers, start.given, is_small=start.small)
    recipes, groups = {}, []
    for side in sides:
        found = equal_recipes(start, rows, "macs", image_size=side)
        labels = {name: f"{name}-{side}px" for name in found}
        recipes |= {labels[name]: recipe for name, recipe in found.items()}
        tokens = num_tokens(found[REFERENCE])
        groups.append(PairedGroup(labels=labels, where=f"{side} px", tokens=tokens))
    return Study(
        name="resolution",
        question=str(resolution.__doc__),
        recipes=recipes,
        seeds=SMOKE_SEEDS if start.smoke else SEEDS,
        pairing=mixer_pairing(groups),
    )


def _usual(start: Start) -> Sequence[str]:
    return SMALL_SIZES if start.small else LARGE_SIZES


def _sides(texts: Sequence[str]) -> list[int]:
    """The sides in rising order."""
    said = field_knobs()["image_size"]
    try:
        sides = sorted({parse_field("image_size", text) for text in texts})
    except WrongRequest:
        sides = [0]
    if any(fault_of("image_size", side, said) for side in sides):
        raise WrongRequest(
            f"--sizes {' '.join(texts)!r}: give whole numbers, {said.bound}, with spaces between "
            "them, like 32 64"
        )
    if len(sides) < 2:
        raise WrongRequest(
            f"--sizes {' '.join(texts)}: give two sides or more; sweeps/mixer.py compares the "
            "mixers at one"
        )
    return sides


if __name__ == "__main__":
    sys.exit(main(resolution))
