"""The depth and width scaling study, with the paper's recipe scaled to the data beside it.

Run:    python sweeps/scale.py --data fashion-mnist      (or a folder of images; again to resume)
        python sweeps/scale.py --smoke                   (5,000 digits, under 2 minutes on 2 cores)
        python sweeps/scale.py --data fashion-mnist --plan
Writes: runs/scale-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys
from typing import Annotated

from mambaout.accounting import cost
from mambaout.errors import WrongRequest
from mambaout.launch.cli import main
from mambaout.recipe import Recipe, tuned
from mambaout.study.axes import LinearRange, LogRange
from mambaout.study.search.ladder import PAPER_LADDER, iso
from mambaout.study.search.space import tuning
from mambaout.study.start import Start
from mambaout.study.study import Study
from mambaout.variants import FEMTO, VARIANTS, ModelConfig, deepen, widen

# -- the numbers of the study, all of them ---------------------------------------------------------

# Few or small images get the small shapes (mambaout/rules.py says what is small). Other data get
# the published shapes, and of Femto's MACs also shapes with fewer and more blocks than its 18.
ISO_DEPTHS = (12, 24, 36)

# One block a stage at D, 2D, 4D, 6D channels, as in Femto; the axes go out from here.
REFERENCE = ModelConfig(
    depths=(1, 1, 1, 1), dims=(16, 32, 64, 96), stem_stride=2, hidden_multiple=8
)
WIDTHS = {"w8": 0.5, "w16": 1.0, "w24": 1.5, "w32": 2.0}  # factors of the reference's widths
BLOCKS = {"d4": 0, "d10": 6, "d22": 18}  # blocks added in stage 3
GRID = {
    f"{wide}-{deep}": deepen(widen(REFERENCE, factor), blocks)
    for wide, factor in WIDTHS.items()
    for deep, blocks in BLOCKS.items()
}
# Deep against wide at equal MACs, counted at 28 px: 6.7M is w16-d10 and w24-d4; 11.6M to 14.1M is
# w16-d22, w24-d10 and w32-d4.
SHAPES = ("w8-d4", "w8-d10", "w16-d4", "w24-d4", "w16-d10", "w32-d4", "w16-d22", "w24-d10")
PREDICTED_SHAPE, PREDICTED_VARIANT = "w32-d10", "base"  # the first has twice the MACs of the rest
# Each shape trains for a third, one and three times the epochs that the rules choose: 4, 12 and 36
# of 6,000 images. Short trainings are noisier and cost less, so they get more seeds.
SEEDS_OF_LENGTH = {1 / 3: (0, 1, 2), 1: (0, 1), 3: (0,)}

# With --tune-per-size: what is searched at each of these sizes, and the seeds of each one's best.
TUNED_SHAPES, TUNED_SEEDS = ("w8-d4", "w16-d4", "w24-d4", "w16-d10"), (0, 1, 2)
SMALL_TUNED_AXES = (LogRange("peak_lr", 2.5e-4, 4e-3),)
TUNED_AXES = (LogRange("peak_lr", 5e-4, 8e-3), LinearRange("drop_path", 0.0, 0.6))

# With --transfer: the rate that the search above found for the thinnest, 0.0022, for all of them
# and carried by muP's rule; large images take the paper's, as if it had been found on Femto.
TRANSFER_SHAPES, TRANSFER_LR = ("w8-d4", "w16-d4", "w32-d4"), 2.2e-3
TRANSFER_VARIANTS = ("femto", "tiny")

# The paper's recipe on small data: its augmentation, at the middle length.
BASELINE, BASELINE_SHAPE = "baseline", deepen(REFERENCE, 2)

SMOKE_SHAPES = ("w8-d4", "w8-d10", "w16-d4", "w16-d10")

# --------------------------------------------------------------------------------------------------


def scale(
    start: Start,
    *,
    predict: Annotated[bool, "predict the largest size, then train it"] = False,
    tune_per_size: Annotated[
        int | None,
        "search each size's recipe with N trials; the best is tried first at the next size",
    ] = None,
    transfer: Annotated[
        bool, "compare one learning rate for all widths with muP's transfer of it"
    ] = False,
) -> Study:
    """How should a Gated CNN grow, deeper or wider, and does the answer change with the length of
    training?"""
    if sum((predict, tune_per_size is not None, transfer)) > 1:
        raise WrongRequest(
            "--predict, --tune-per-size and --transfer are three studies; give one of them"
        )
    if tune_per_size is not None:
        return _tuned(start, tune_per_size)
    if transfer:
        return _transfer(start)
    return _small(start, predict) if start.small else _published(start, predict)


def _question() -> str:
    return " ".join(str(scale.__doc__).split())


def _name(start: Start, more: str = "") -> str:
    return f"scale{'-smoke' if start.smoke else ''}{more}"


def _small(start: Start, predict: bool) -> Study:
    """The grid of small shapes, each at three lengths."""
    epochs = start.epochs
    lengths = {max(1, round(part * epochs)): seeds for part, seeds in SEEDS_OF_LENGTH.items()}
    if start.smoke:
        lengths = {epochs: (0,)}
    labels = SMOKE_SHAPES if start.smoke else SHAPES
    catalogue = _catalogue(labels) | {BASELINE: BASELINE_SHAPE}
    shapes = start.shapes(catalogue)
    recipes: dict[str, Recipe] = {}
    seeds: dict[str, tuple[int, ...]] = {}

    def add(label: str, shape: ModelConfig, length: int) -> str:
        recipe = start.recipe(shape, eval_every_epochs=min(lengths))
        recipes[f"{label}-e{length}"] = tuned(recipe, epochs=length)
        seeds[f"{label}-e{length}"] = lengths[length]
        return f"{label}-e{length}"

    for length in lengths:
        for label, shape in shapes.items():
            if label != BASELINE:
                add(label, shape, length)
    predicted = None
    if predict:
        predicted = add(PREDICTED_SHAPE, GRID[PREDICTED_SHAPE], epochs)
    if BASELINE in shapes:
        recipes[BASELINE] = start.paper(
            shapes[BASELINE],
            epochs=epochs,
            eval_every_epochs=min(lengths),
            train_images=start.train_images,
        )
        seeds[BASELINE] = (0,)
    return Study(
        name=_name(start),
        question=_question(),
        recipes=recipes,
        seeds=seeds,
        predicted=predicted,
        baseline=BASELINE if BASELINE in recipes else None,
    )


def _published(start: Start, predict: bool) -> Study:
    """The published variants, and shapes of Femto's MACs with fewer and with more blocks."""
    catalogue = {name: VARIANTS[name] for name in PAPER_LADDER}
    shapes = start.shapes(catalogue | iso(FEMTO, cost(FEMTO).macs, depths=ISO_DEPTHS))
    if predict and PREDICTED_VARIANT not in shapes:
        raise WrongRequest(f"--predict predicts {PREDICTED_VARIANT}; name it in --variants, too")
    return Study(
        name=_name(start),
        question=_question(),
        recipes={label: start.recipe(shape) for label, shape in shapes.items()},
        predicted=PREDICTED_VARIANT if predict else None,
    )


def _tuned(start: Start, num_trials: int) -> Study:
    """The same search at each width, and at the shape that spends the MACs of one in depth."""
    if not start.small:
        catalogue = {name: VARIANTS[name] for name in PAPER_LADDER}
        shapes = start.shapes(catalogue | iso(FEMTO, cost(FEMTO).macs, depths=ISO_DEPTHS))
        recipes = {label: start.recipe(shape) for label, shape in shapes.items()}
        searches = tuning(recipes, TUNED_AXES, num_trials, early_stop=True)
    else:
        shapes = start.shapes(_catalogue(SMOKE_SHAPES[:2] if start.smoke else TUNED_SHAPES))
        epochs = _short(start)
        recipes = {label: start.recipe(shape, epochs=epochs) for label, shape in shapes.items()}
        seeds = (0,) if start.smoke else TUNED_SEEDS
        searches = tuning(recipes, SMALL_TUNED_AXES, num_trials, seeds=seeds)
    return Study(name=_name(start, "-tuned"), question=_question(), recipes={}, searches=searches)


def _transfer(start: Start) -> Study:
    """Does a learning rate tuned on the thinnest network carry over to wider ones by muP's rule?"""
    if start.small:
        labels = TRANSFER_SHAPES[:2] if start.smoke else TRANSFER_SHAPES
        wanted = {"epochs": _short(start), "peak_lr": TRANSFER_LR}
        shapes = start.shapes(_catalogue(labels))
    else:
        wanted = {}
        shapes = start.shapes({label: VARIANTS[label] for label in TRANSFER_VARIANTS})
    recipes = {label: start.recipe(shape, **wanted) for label, shape in shapes.items()}
    if len(recipes) < 2:
        raise WrongRequest(
            f"--transfer compares widths; --variants {','.join(recipes)} is only one"
        )
    thinnest, *wider = recipes
    base = recipes[thinnest].model.dims[0]
    moved = {f"{label}-mup": tuned(recipes[label], lr_base_dim=base) for label in wider}
    return Study(
        name=_name(start, "-transfer"),
        question=str(_transfer.__doc__),
        recipes=recipes | moved,
        seeds=TUNED_SEEDS,
    )


def _short(start: Start) -> int:
    """Epochs of the shortest training."""
    return start.epochs if start.smoke else max(1, round(min(SEEDS_OF_LENGTH) * start.epochs))


def _catalogue(labels: tuple[str, ...]) -> dict[str, ModelConfig]:
    return {label: GRID[label] for label in labels}


if __name__ == "__main__":
    sys.exit(main(scale))
