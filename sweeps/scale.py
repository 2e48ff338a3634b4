"""The depth and width scaling study, with the paper's recipe scaled to the data beside it.

Run:    python sweeps/scale.py --data fashion-mnist      (or a folder of images; again to resume)
        python sweeps/scale.py --smoke                   (5,000 digits, under 2 minutes on 2 cores)
        python sweeps/scale.py --data fashion-mnist --plan
Writes: runs/scale-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys
from dataclasses import replace

from mambaout.launch.cli import main
from mambaout.recipe import BASELINE, Recipe, scaled_to, tuned
from mambaout.study.study import Study
from mambaout.variants import VARIANTS, ModelConfig, deepen, widen

# -- the numbers of the study, all of them ---------------------------------------------------------

# Images up to this side, in px, get the small stem and the small shapes and keep their size, but
# for ones below the smallest; larger ones get the published shapes at 224.
SMALL_SIDE, SMALLEST_SIDE = 64, 28

# One block a stage at D, 2D, 4D, 6D channels, as in Femto; the axes go out from here.
REFERENCE = ModelConfig(
    depths=(1, 1, 1, 1), dims=(16, 32, 64, 96), stem_stride=2, hidden_multiple=8
)
WIDTHS = {"w8": 0.5, "w16": 1.0, "w24": 1.5, "w32": 2.0}  # factors of the reference's widths
BLOCKS = {"d4": 0, "d6": 2, "d10": 6}  # blocks added in stage 3
LEFT_OUT = {"w24-d10", "w32-d10"}  # on 2 cores they alone would take half an hour
SEEDS = {"w8-d4": (0, 1), "w16-d6": (0, 1), "w24-d4": (0, 1)}  # (0,) for the others

# What every point of the grid is trained with: short, so little is augmented away.
POINT = dict(
    global_batch=64,
    peak_lr=2e-3,
    epochs=4,
    warmup_epochs=0.5,
    minival_fraction=0.1,
    crop_scale_min=0.6,
    hflip=0.0,
    randaugment=0.0,
    mixup=0.0,
    cutmix=0.0,
    erasing=0.0,
)

BASELINE_MODEL = deepen(REFERENCE, 2)

SMOKE_WIDTHS = {"w8": 0.5, "w16": 1.0}
SMOKE_BLOCKS = {"d4": 0, "d6": 2}
SMOKE_POINT = POINT | dict(epochs=3, image_size=SMALLEST_SIDE)

# --------------------------------------------------------------------------------------------------


def scale(num_train: int, image_side: int, smoke: bool = False) -> Study:
    """How does top-1 grow with depth, with width and with both, and what does each MAC buy?"""
    name, question = "scale-smoke" if smoke else "scale", str(scale.__doc__)
    if image_side > SMALL_SIDE and not smoke:
        recipes = {label: replace(BASELINE, model=shape) for label, shape in VARIANTS.items()}
        return Study(name=name, question=question, recipes=recipes)
    widths, blocks = (SMOKE_WIDTHS, SMOKE_BLOCKS) if smoke else (WIDTHS, BLOCKS)
    point = dict(image_size=max(image_side, SMALLEST_SIDE)) | (SMOKE_POINT if smoke else POINT)
    shapes = {
        f"{wide}-{deep}": deepen(widen(REFERENCE, factor), added)
        for wide, factor in widths.items()
        for deep, added in blocks.items()
        if f"{wide}-{deep}" not in LEFT_OUT
    }
    base = tuned(BASELINE, **point)
    recipes = {label: replace(base, model=shape) for label, shape in shapes.items()}
    recipes["baseline"] = _baseline(num_train, point)
    seeds = {label: (0,) if smoke else SEEDS.get(label, (0,)) for label in recipes}
    return Study(name=name, question=question, recipes=recipes, seeds=seeds)


def _baseline(num_train: int, point: dict) -> Recipe:
    """The paper's recipe at the data's size: batch and learning rate by the linear rule, the
    warm-up the same share of the epochs, the augmentation as it is."""
    schedule = BASELINE.schedule
    return tuned(
        replace(scaled_to(BASELINE, num_train), model=BASELINE_MODEL),
        image_size=point["image_size"],
        minival_fraction=point["minival_fraction"],
        epochs=point["epochs"],
        warmup_epochs=schedule.warmup_epochs / schedule.epochs * point["epochs"],
    )


if __name__ == "__main__":
    sys.exit(main(scale))
