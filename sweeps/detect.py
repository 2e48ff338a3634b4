"""Mask R-CNN on backbones of several sizes, and with several values of any field.

Run:    python sweeps/detect.py --data coco --init tiny.pth small.pth base.pth
        python sweeps/detect.py --data coco --variants tiny --init tiny.pth \
            --grid peak_lr=5e-5,1e-4,2e-4 drop_path=0.1,0.2
        python sweeps/detect.py --data shapes       (two small networks, minutes on 2 cores)
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

from mambaout.launch.dense_cli import main
from mambaout.launch.dense_sweeps import DETECT_SWEEP
from mambaout.study.dense_start import DenseStart
from mambaout.study.study import Study
from mambaout.variants import ModelConfig

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
) -> Study:
    """How do box AP and mask AP grow with the backbone's MACs?"""
    names = tuple(SMALL) if start.is_small else PAPER
    return Study(
        name="detect",
        question=str(detect.__doc__),
        recipes=start.crossed(start.shapes(names, SMALL), grid),
    )


if __name__ == "__main__":
    sys.exit(main(DETECT_SWEEP, detect))
