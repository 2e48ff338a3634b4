"""The recipe search: the paper's values first, then whatever does better on this data.

Run:    python sweeps/recipe.py --data fashion-mnist     (or a folder of images; again to resume)
        python sweeps/recipe.py --smoke                  (1,600 digits, under 2 minutes on 2 cores)
        python sweeps/recipe.py --data fashion-mnist --plan
Writes: runs/recipe-DATA/: a run directory a trial, optuna.db, report.html; MLflow in runs/
"""

from __future__ import annotations

import sys
from dataclasses import replace

from mambaout.launch.cli import main
from mambaout.recipe import BASELINE, Recipe, scaled_to, tuned, with_global_batch
from mambaout.study.axes import Axis, Choice, Linear, Log, Search, Whole
from mambaout.study.study import Study
from mambaout.train.metrics import MACS, MINIVAL_TOP1
from mambaout.variants import FEMTO, ModelConfig

# -- the numbers of the study, all of them ---------------------------------------------------------

# Images up to this side, in px, get a stem and a network of their size, and keep it but for ones
# below the smallest; larger ones get Femto at 224.
SMALL_SIDE, SMALLEST_SIDE = 64, 28
SMALL_MODEL = ModelConfig(
    depths=(1, 1, 3, 1), dims=(16, 32, 64, 96), stem_stride=2, hidden_multiple=8
)
SMALL_IMAGES = 6000  # of the training images
SMALL = dict(epochs=9, train_images=SMALL_IMAGES, minival_fraction=0.1)
LARGE = dict(epochs=30)  # a tenth of the paper's: a trial is a tenth of a training
SMOKE = dict(epochs=3, train_images=1600, minival_fraction=0.1)
SMOKE_BATCH = 64

# Recipes are stopped early in the first search; the second one wants its whole front.
NUM_RECIPES, SEEDS, NUM_CONFIRMED = 30, (0, 1, 2), 2
NUM_SHAPES = 24
SMOKE_RECIPES, SMOKE_SHAPES = 4, 3

WARMUP_SHARE = 0.2  # of the epochs, at most; the paper's is 20 of 300
SMALL_BLOCKS, LARGE_BLOCKS = (-2, 6), (-4, 6)  # added to stage 3, which has 3 or 9

# --------------------------------------------------------------------------------------------------


def recipe(num_train: int, image_side: int, smoke: bool = False) -> Study:
    """Which of the paper's training values should change on this data, and what shape is then
    worth its MACs?"""
    small = smoke or image_side <= SMALL_SIDE
    base = _base(num_train, image_side, small, smoke)
    training = Search(
        label="recipe",
        base=base,
        axes=_training(base),
        num_trials=SMOKE_RECIPES if smoke else NUM_RECIPES,
        early_stop=True,
        seeds=SEEDS[:1] if smoke else SEEDS,
        num_confirmed=NUM_CONFIRMED,
    )
    # Its recipes have the values that the first search came to, but for the axes it has itself.
    shape = Search(
        label="shape",
        base=base,
        axes=_shape(base, SMALL_BLOCKS if small else LARGE_BLOCKS),
        num_trials=SMOKE_SHAPES if smoke else NUM_SHAPES,
        goals=((MINIVAL_TOP1, "max"), (MACS, "min")),
        follows=training.label,
    )
    return Study(
        name="recipe-smoke" if smoke else "recipe",
        question=" ".join(str(recipe.__doc__).split()),
        recipes={},
        searches=(training, shape),
    )


def _base(num_train: int, image_side: int, small: bool, smoke: bool) -> Recipe:
    """The paper's values, its batch and rates scaled to the data, its warm-up to the epochs."""
    scale = SMOKE if smoke else SMALL if small else LARGE
    if smoke:
        base = with_global_batch(BASELINE, SMOKE_BATCH)
    else:
        base = scaled_to(BASELINE, min(num_train, SMALL_IMAGES) if small else num_train)
    schedule, epochs = BASELINE.schedule, scale["epochs"]
    side = BASELINE.image_size
    if small:
        side = SMALLEST_SIDE if smoke else max(image_side, SMALLEST_SIDE)
    return tuned(
        replace(base, model=SMALL_MODEL if small else FEMTO),
        image_size=side,
        warmup_epochs=schedule.warmup_epochs / schedule.epochs * epochs,
        **scale,
    )


def _training(base: Recipe) -> tuple[Axis, ...]:
    """What a network is trained with. The linear rule takes the rate of a small batch far down,
    so there is more room above it than below."""
    rate = base.optim.peak_lr
    return (
        Log("peak_lr", rate / 2, max(4 * rate, 4e-3)),
        Linear("weight_decay", 0.0, 0.2),
        Linear("drop_path", 0.0, 0.3),
        Linear("warmup_epochs", 0.0, WARMUP_SHARE * base.schedule.epochs),
        Linear("randaugment", 0.0, 10.0),
        Linear("mixup", 0.0, 1.0),
        Linear("cutmix", 0.0, 1.5),
        Linear("erasing", 0.0, 0.5),
    )


def _shape(base: Recipe, blocks: tuple[int, int]) -> tuple[Axis, ...]:
    """What the network is, and the two values that hang on its size."""
    rate, drop_path = _training(base)[0], _training(base)[2]
    return (
        Log("width", 0.5, 1.5),
        Whole("blocks", *blocks),
        Choice("kernel_size", (3, 5, 7, 9)),
        Choice("expansion", (2.0, 8 / 3, 4.0)),
        Choice("conv_ratio", (0.5, 1.0, 2.0)),
        rate,
        drop_path,
    )


if __name__ == "__main__":
    sys.exit(main(recipe))
