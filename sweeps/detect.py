"""Mask R-CNN on backbones of several sizes, and with several values of any field.

Run:    python sweeps/detect.py --data coco --init tiny.pth small.pth base.pth
        python sweeps/detect.py --data coco --variants tiny --init tiny.pth \
            --grid peak_lr=5e-5,1e-4,2e-4 drop_path=0.1,0.2
        python sweeps/detect.py --data shapes       (two small networks, minutes on 2 cores)
        python sweeps/detect.py --data shapes --mixers conv_ssm --seeds 5
        python sweeps/detect.py --smoke             (the whole path in about a minute)
        Any of them with --plan prints the cost and starts nothing. --epochs, --peak-lr and every
        other field of a detection's recipe is an option.
Costs:  Tiny on COCO trains on 1.4 million images of 262 G MACs; --plan says what that is here
Writes: runs/detect-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from mambaout.errors import WrongRequest
from mambaout.launch.dense_cli import main
from mambaout.launch.dense_sweeps import DETECT_SWEEP
from mambaout.study.dense_start import DenseStart
from mambaout.study.mixer_rows import (
    MIXERS_HELP,
    PATCHIFY,
    REFERENCE,
    equal_in,
    mixer_pairing,
    mixer_rows,
)
from mambaout.study.pairing import PairedGroup
from mambaout.study.study import Study
from mambaout.variants import ModelConfig

SEEDS = (0, 1, 2)  # of --mixers, whose differences are within a seed
PAPER = ("tiny", "small", "base")  # the paper's Table 2
SMALL = {  # for the generated shapes: twice the width, or half the blocks
    "w24-d5": ModelConfig(depths=(1, 1, 2, 1), dims=(24, 48, 72, 96)),
    "w12-d5": ModelConfig(depths=(1, 1, 2, 1), dims=(12, 24, 36, 48)),
}


def detect(
    start: DenseStart,
    *,
    grid: Annotated[
        Sequence[str] | None,
        "values to compare at each network: FIELD=A,B,C, like peak_lr=5e-5,1e-4 drop_path=0.1,0.2",
    ] = None,
    mixers: Annotated[Sequence[str] | None, f"in one backbone: {MIXERS_HELP}"] = None,
) -> Study:
    """How do box AP and mask AP grow with the backbone's MACs?"""
    if mixers is not None:
        if grid:
            raise WrongRequest("--mixers and --grid are two studies; give one of them")
        return detect_mixers(start, mixers)
    names = tuple(SMALL) if start.is_small else PAPER
    return Study(
        name="detect",
        question=str(detect.__doc__),
        recipes=start.crossed(start.shapes(names, SMALL), grid),
    )


def detect_mixers(start: DenseStart, mixers: Sequence[str]) -> Study:
    """Does an SSM in the backbone's block, with the same recipe and the same MACs, help to find
    objects?"""
    given = [*start.given, *(["init"] if start.has_weights else [])]
    rows = mixer_rows(mixers, given, is_small=start.is_small)
    shapes = start.shapes(tuple(SMALL)[:1] if start.is_small else PAPER[:1], SMALL)
    if len(shapes) > 1:
        raise WrongRequest(
            f"--variants {','.join(shapes)}: --mixers compares mixers in one network; name one"
        )
    (shape,) = shapes.values()
    same = {"downsampling": PATCHIFY} if start.is_small else {}
    first = {}
    for name, own in rows.items():
        # A field that the user gave is in every recipe already.
        fields = {
            field: value for field, value in {**same, **own}.items() if field not in start.given
        }
        first[name] = start.recipe(shape, **fields)
    size = first[REFERENCE].counted_size
    recipes = equal_in("macs", first, image_size=size, num_classes=1)  # the heads are the same
    return Study(
        name="detect-mixers",
        question=str(detect_mixers.__doc__),
        recipes=recipes,
        seeds=SEEDS[:1] if start.smoke else SEEDS,
        pairing=mixer_pairing([PairedGroup(labels={name: name for name in recipes})]),
    )


if __name__ == "__main__":
    sys.exit(main(DETECT_SWEEP, detect))
