"""The paper's recipe: batch 4096, learning rate 0.004, 300 epochs (arXiv 2405.07992, Table 5).

Run:    python sweeps/baseline.py --data IMAGENET        (a Parquet or an image folder)
        python sweeps/baseline.py --data fashion-mnist   (the batch and rate scaled to the data)
        python sweeps/baseline.py --smoke
Writes: runs/baseline-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys
from dataclasses import replace

from mambaout.launch.cli import main
from mambaout.recipe import BASELINE, scaled_to, tuned
from mambaout.study.study import Study
from mambaout.variants import ModelConfig, variant

# -- the numbers of the study, all of them ---------------------------------------------------------

VARIANT_NAMES = ("femto",)  # kobe, tiny, small and base are as good: one more trial each

# Images up to this side, in px, get a stem and a network of their size, and keep it but for ones
# below the smallest.
SMALL_SIDE, SMALLEST_SIDE = 64, 28
SMALL_MODEL = ModelConfig(
    depths=(1, 1, 3, 1), dims=(16, 32, 64, 96), stem_stride=2, hidden_multiple=8
)
MINIVAL_FRACTION = 0.1  # of a small set; the recipe's 2 % of few images is too few to choose on
SMOKE = dict(epochs=3, warmup_epochs=0.2)  # the paper's 20 of 300

# --------------------------------------------------------------------------------------------------


def baseline(num_train: int, image_side: int, smoke: bool = False) -> Study:
    """What does the paper's recipe, unchanged but for the size of the data, give here?"""
    recipe = scaled_to(BASELINE, num_train)
    shapes = {name: variant(name) for name in VARIANT_NAMES}
    if smoke or image_side <= SMALL_SIDE:
        shapes = {"baseline": SMALL_MODEL}
        side = SMALLEST_SIDE if smoke else max(image_side, SMALLEST_SIDE)
        recipe = tuned(recipe, image_size=side, minival_fraction=MINIVAL_FRACTION)
    if smoke:
        recipe = tuned(recipe, **SMOKE)
    return Study(
        name="baseline-smoke" if smoke else "baseline",
        question=str(baseline.__doc__),
        recipes={label: replace(recipe, model=shape) for label, shape in shapes.items()},
    )


if __name__ == "__main__":
    sys.exit(main(baseline))
