"""Token mixers in the same block, with the same recipe and the same MACs: does an SSM help?

Run:    python sweeps/mixer.py --data next-patch         (again to resume)
        python sweeps/mixer.py --data fashion-mnist --mixers conv_ssm attention causal_attention
        python sweeps/mixer.py --data next-patch --match both --detect 1
        python sweeps/mixer.py --smoke                   (digits, under 2 minutes on 2 cores)
        Any of them with --plan prints the cost, and which difference the study will find.
Writes: runs/mixer-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from mambaout.errors import WrongRequest
from mambaout.launch.cli import main
from mambaout.study.matched import WAYS, Matched
from mambaout.study.mixer_rows import (
    MIXERS_HELP,
    equal_recipes,
    mixer_pairing,
    mixer_rows,
)
from mambaout.study.pairing import PairedGroup
from mambaout.study.start import Start
from mambaout.study.study import Study

SEEDS, SMOKE_SEEDS = (0, 1, 2, 3, 4), (0, 1, 2)
SIDE, SMOKE_SIDE = 64, 28  # px, on small data
BOTH = "both"


def mixer(
    start: Start,
    *,
    mixers: Annotated[Sequence[str] | None, MIXERS_HELP] = None,
    match: Annotated[
        str, f"what all mixers have equally many of: {', '.join(WAYS)} or {BOTH}, one after another"
    ] = "macs",
) -> Study:
    """Does an SSM in the same block, with the same recipe and the same MACs, help?"""
    ways: list[Matched] = [way for way in WAYS if match in (way, BOTH)]
    if not ways:
        raise WrongRequest(f"--match {match!r}: choose {', '.join(WAYS)} or {BOTH}")
    rows = mixer_rows(mixers, start.given, is_small=start.small)
    fields = {"image_size": SMOKE_SIDE if start.smoke else SIDE} if start.small else {}
    recipes, groups = {}, []
    for way in ways:
        labels = {}
        for name, recipe in equal_recipes(start, rows, way, **fields).items():
            # The convolution is one recipe, whatever the others are matched by.
            known = [label for label, other in recipes.items() if other == recipe]
            labels[name] = known[0] if known else name if way == ways[0] else f"{name}-{way}"
            recipes[labels[name]] = recipe
        where = f"equal {WAYS[way]}" if len(ways) > 1 else ""
        groups.append(PairedGroup(labels=labels, where=where))
    return Study(
        name="mixer",
        question=str(mixer.__doc__),
        recipes=recipes,
        seeds=SMOKE_SEEDS if start.smoke else SEEDS,
        pairing=mixer_pairing(groups),
    )


if __name__ == "__main__":
    sys.exit(main(mixer))
