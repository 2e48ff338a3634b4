"""The recipe search: first the paper's values, then better ones for this data.

Run:    python sweeps/recipe.py --data fashion-mnist     (or a folder of images; again to resume)
        python sweeps/recipe.py --smoke                  (1,600 digits, under 2 minutes on 2 cores)
        python sweeps/recipe.py --data fashion-mnist --plan
Writes: runs/recipe-DATA/: a run directory a trial, optuna.db, report.html; MLflow in runs/
"""

from __future__ import annotations

import sys
from typing import Any

from mambaout.errors import WrongRequest
from mambaout.launch.cli import main
from mambaout.recipe import Recipe
from mambaout.study.axes import Axis, Choice, LinearRange, LogRange, Search, WholeRange
from mambaout.study.start import Start
from mambaout.study.study import Study
from mambaout.train.metrics import MACS, MINIVAL_TOP1

# -- all numbers of the study ----------------------------------------------------------------------

SMALL_EPOCHS = 3 / 4  # share of the epochs that the rules choose for small data
LARGE_EPOCHS = 30  # a tenth of the paper's: a trial is a tenth of a training
SMOKE_IMAGES = 1600

# The first search stops recipes early. The second one needs its whole front.
NUM_RECIPES, SEEDS, NUM_CONFIRMED = 30, (0, 1, 2), 2
NUM_SHAPES = 24
SMOKE_RECIPES, SMOKE_SHAPES = 4, 3

WARMUP_SHARE = 0.2  # largest share of the epochs; the paper has 20 of 300
SMALL_BLOCKS, LARGE_BLOCKS = (-2, 6), (-4, 6)  # added to stage 3, which has 3 or 9

# --------------------------------------------------------------------------------------------------


def recipe(start: Start) -> Study:
    """Which of the paper's training values should change on this data, and what shape is then
    worth its MACs?"""
    base = _base(start)
    training = Search(
        label="recipe",
        base=base,
        axes=_training(base),
        num_trials=SMOKE_RECIPES if start.smoke else NUM_RECIPES,
        early_stop=True,
        seeds=SEEDS[:1] if start.smoke else SEEDS,
        num_confirmed=NUM_CONFIRMED,
    )
    # Trained weights (--init) start one shape only, so there is no search for a shape with them.
    # Its recipes have the best values of the first search, except for its own axes.
    shape = Search(
        label="shape",
        base=base,
        axes=_shape(base, SMALL_BLOCKS if start.small else LARGE_BLOCKS),
        num_trials=SMOKE_SHAPES if start.smoke else NUM_SHAPES,
        goals=((MINIVAL_TOP1, "max"), (MACS, "min")),
        follows=training.label,
    )
    return Study(
        name="recipe",
        question=str(recipe.__doc__),
        recipes={},
        searches=(training,) if start.weights else (training, shape),
    )


def _base(start: Start) -> Recipe:
    """The paper's recipe at the size of the data, in a shorter training; with --init the rules'
    recipe for fine-tuning."""
    label = "weights" if start.weights else "small" if start.small else "femto"
    shapes = start.shapes({label: start.fitting})
    if len(shapes) > 1:
        raise WrongRequest(f"--variants {','.join(shapes)}: this study searches around one network")
    (model,) = shapes.values()
    if start.weights:
        return start.recipe(model)
    wanted: dict[str, Any] = {"epochs": LARGE_EPOCHS}
    if start.small:
        share = 1 if start.smoke else SMALL_EPOCHS
        wanted = {
            "epochs": max(1, round(share * start.epochs)),
            "train_images": start.train_images,
        }
        if start.smoke and start.facts.num_train >= 2 * SMOKE_IMAGES:
            wanted["train_images"] = SMOKE_IMAGES
    return start.paper(model, **wanted)


def _training(base: Recipe) -> tuple[Axis, ...]:
    """The axes of the training."""
    rate = base.optim.peak_lr
    return (
        LogRange("peak_lr", rate / 2, max(4 * rate, 4e-3)),
        LinearRange("weight_decay", 0.0, 0.2),
        LinearRange("drop_path", 0.0, max(0.3, 1.5 * base.model.drop_path)),
        LinearRange("warmup_epochs", 0.0, WARMUP_SHARE * base.schedule.epochs),
        LinearRange("randaugment", 0.0, 10.0),
        LinearRange("mixup", 0.0, 1.0),
        LinearRange("cutmix", 0.0, 1.5),
        LinearRange("erasing", 0.0, 0.5),
    )


def _shape(base: Recipe, blocks: tuple[int, int]) -> tuple[Axis, ...]:
    """The axes of the network, and the two values that depend on its size."""
    rate, drop_path = _training(base)[0], _training(base)[2]
    return (
        LogRange("width", 0.5, 1.5),
        WholeRange("blocks", *blocks),
        Choice("kernel_size", (3, 5, 7, 9)),
        Choice("expansion", (2.0, 8 / 3, 4.0)),
        Choice("conv_ratio", (0.5, 1.0, 2.0)),
        rate,
        drop_path,
    )


if __name__ == "__main__":
    sys.exit(main(recipe))
