"""UperNet on backbones of several sizes, and with several values of any field.

Run:    python sweeps/segment.py --data ADEChallengeData2016 --init tiny.pth small.pth base.pth
        python sweeps/segment.py --data ADEChallengeData2016 --variants tiny --init tiny.pth \
            --grid peak_lr=6e-5,1e-4 drop_path=0.2,0.3
        python sweeps/segment.py --data shapes      (two small networks, about an hour on 2 cores)
        python sweeps/segment.py --smoke            (the whole path in about a minute)
        Any of them with --plan prints the cost and starts nothing. --steps, --peak-lr and every
        other field of a segmentation's recipe is an option.
Costs:  160,000 steps of 16 crops of 512 px on ADE20K; --plan says what that is here
Writes: runs/segment-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from mambaout.launch.dense_cli import main
from mambaout.launch.dense_sweeps import SEGMENT_SWEEP
from mambaout.segment_recipe import segment_shape
from mambaout.study.dense_start import DenseStart
from mambaout.study.study import Study
from mambaout.variants import VARIANTS, ModelConfig

PAPER = ("tiny", "small", "base")  # the paper's Table 3
SMALL = {  # for the generated shapes: one is half as wide as the other
    "w24-d5": ModelConfig(depths=(1, 1, 2, 1), dims=(24, 48, 72, 96)),
    "w12-d5": ModelConfig(depths=(1, 1, 2, 1), dims=(12, 24, 36, 48)),
}


def segment(
    start: DenseStart,
    *,
    grid: Annotated[
        Sequence[str] | None,
        "values to compare at each network: FIELD=A,B,C, like peak_lr=6e-5,1e-4 drop_path=0.2,0.3",
    ] = None,
) -> Study:
    """How does mIoU grow with the backbone's MACs?"""
    names = tuple(SMALL) if start.is_small else PAPER
    own = SMALL | {name: segment_shape(name) for name in VARIANTS}  # with the author's drop path
    return Study(
        name="segment",
        question=str(segment.__doc__),
        recipes=start.crossed(start.shapes(names, own), grid),
    )


if __name__ == "__main__":
    sys.exit(main(SEGMENT_SWEEP, segment))
