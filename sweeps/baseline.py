"""The paper's recipe: batch 4096, learning rate 0.004, 300 epochs (arXiv 2405.07992, Table 5).

Run:    python sweeps/baseline.py --data IMAGENET        (a Parquet or an image folder)
        python sweeps/baseline.py --data fashion-mnist   (scaled to the data)
        python sweeps/baseline.py --smoke
Writes: runs/baseline-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys

from mambaout.launch.cli import main
from mambaout.study.start import Start
from mambaout.study.study import Study

BASELINE = "baseline"


def baseline(start: Start) -> Study:
    """What does the paper's recipe, unchanged but for the size of the data, give here?"""
    # --variants kobe,tiny,small,base trains these instead, one trial each.
    label = BASELINE if start.small or start.weights else "femto"
    shapes = start.shapes({label: start.fitting})
    return Study(
        name="baseline",
        question=str(baseline.__doc__),
        recipes={label: start.paper(shape) for label, shape in shapes.items()},
        baseline=BASELINE if BASELINE in shapes else None,
    )


if __name__ == "__main__":
    sys.exit(main(baseline))
