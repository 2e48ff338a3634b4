"""How should a network grow? Three studies: deeper or wider, each size tuned, one rate for all.

Run:    python sweeps/scale.py --data fashion-mnist      (or a folder of images; again to resume)
        python sweeps/scale.py --data fashion-mnist --tune-per-size 6
        python sweeps/scale.py --data fashion-mnist --transfer
        python sweeps/scale.py --smoke                   (5,000 digits, under 2 minutes on 2 cores)
        Any of them with --plan prints the cost and starts nothing.
Writes: runs/scale-DATA/, runs/scale-tuned-DATA/ or runs/scale-transfer-DATA/: a run directory a
        trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

from mambaout.errors import WrongRequest
from mambaout.launch.cli import main
from mambaout.recipe import tuned
from mambaout.rules import SMALL_MODEL
from mambaout.study.axes import LinearRange, LogRange
from mambaout.study.search.catalogue import published_shapes, small_shapes
from mambaout.study.search.space import tuning
from mambaout.study.start import Start
from mambaout.study.study import Study
from mambaout.variants import VARIANTS

SEEDS = (0, 1, 2)
# Small data: each shape is trained for 1/3, 1 and 3 times the epochs that the rules choose: 4, 12
# and 36 epochs with 6,000 images. Short trainings are noisier and cheaper, so they get more seeds.
SEEDS_OF_LENGTH = {1 / 3: SEEDS, 1: (0, 1), 3: (0,)}


def shortest(start: Start) -> int:
    """Epochs of the shortest training on small data."""
    return start.epochs if start.smoke else max(1, round(min(SEEDS_OF_LENGTH) * start.epochs))


# -- deeper or wider ------------------------------------------------------------------------------

# Deep and wide shapes with equal MACs, counted at 28 px: w16-d10 and w24-d4 have 6.7M; w16-d22,
# w24-d10 and w32-d4 have 11.6M to 14.1M.
SHAPES = ("w8-d4", "w8-d10", "w16-d4", "w24-d4", "w16-d10", "w32-d4", "w16-d22", "w24-d10")
SMOKE_SHAPES = ("w8-d4", "w8-d10", "w16-d4", "w16-d10")
# On small data two sizes are predicted, with 1.8 and 4 times the MACs of the largest of the eight.
PREDICTED_SHAPES, PREDICTED_VARIANT = ("w32-d10", "w48-d10"), "base"
BASELINE = "baseline"  # the paper's recipe on small data: its augmentation, at the middle length


def deeper_or_wider(start: Start, predict: bool) -> Study:
    """How should a Gated CNN grow, deeper or wider, and does the answer change with the length of
    training?"""
    study = Study(name="scale", question=str(deeper_or_wider.__doc__), recipes={})
    if not start.small:
        shapes = start.shapes(published_shapes())
        if predict and PREDICTED_VARIANT not in shapes:
            raise WrongRequest(f"--predict predicts {PREDICTED_VARIANT}; name it in --variants too")
        recipes = {label: start.recipe(shape) for label, shape in shapes.items()}
        return replace(study, recipes=recipes, predicted=(PREDICTED_VARIANT,) * predict)
    epochs = start.epochs
    lengths = {max(1, round(share * epochs)): seeds for share, seeds in SEEDS_OF_LENGTH.items()}
    if start.smoke:
        lengths = {epochs: SEEDS[:1]}
    catalogue = small_shapes(*(SMOKE_SHAPES if start.smoke else SHAPES))
    shapes = start.shapes(catalogue | {BASELINE: SMALL_MODEL})
    points = [(shape, length) for length in lengths for shape in shapes if shape != BASELINE]
    if predict:
        points += [(shape, epochs) for shape in PREDICTED_SHAPES]
        shapes |= small_shapes(*PREDICTED_SHAPES)
    recipes, seeds = {}, {}
    for shape, length in points:
        recipe = start.recipe(shapes[shape], eval_every_epochs=min(lengths))
        recipes[f"{shape}-e{length}"] = tuned(recipe, epochs=length)
        seeds[f"{shape}-e{length}"] = lengths[length]
    if BASELINE in shapes:
        same = {"eval_every_epochs": min(lengths), "train_images": start.train_images}
        recipes[BASELINE] = start.paper(shapes[BASELINE], epochs=epochs, **same)
        seeds[BASELINE] = SEEDS[:1]
    return replace(
        study,
        recipes=recipes,
        seeds=seeds,
        predicted=[f"{shape}-e{epochs}" for shape in PREDICTED_SHAPES] if predict else (),
        baseline=BASELINE if BASELINE in shapes else None,
    )


# -- each size tuned ------------------------------------------------------------------------------

# The same shapes, so that the two answers can be compared.
TUNED_SHAPES = SHAPES
SMALL_AXES = (LogRange("peak_lr", 2.5e-4, 4e-3),)
AXES = (LogRange("peak_lr", 5e-4, 8e-3), LinearRange("drop_path", 0.0, 0.6))


def each_size_tuned(start: Start, num_trials: int) -> Study:
    """How should a Gated CNN grow, deeper or wider, if every size has a recipe of its own that the
    same search has found?"""
    if start.small:
        shapes = start.shapes(small_shapes(*(TUNED_SHAPES[:2] if start.smoke else TUNED_SHAPES)))
        epochs = shortest(start)
        recipes = {label: start.recipe(shape, epochs=epochs) for label, shape in shapes.items()}
        seeds = SEEDS[:1] if start.smoke else SEEDS
        searches = tuning(recipes, SMALL_AXES, num_trials, seeds=seeds)
    else:
        shapes = start.shapes(published_shapes())
        recipes = {label: start.recipe(shape) for label, shape in shapes.items()}
        searches = tuning(recipes, AXES, num_trials, early_stop=True)
    question = str(each_size_tuned.__doc__)
    return Study(name="scale-tuned", question=question, recipes={}, searches=searches)


# -- one rate for all -----------------------------------------------------------------------------

# The learning rate that the search above found for the thinnest network. Each network is trained
# with it, and with the rate that muP's rule computes from it. Large images use the paper's rate, as
# if it had been found on Femto.
TRANSFER_SHAPES, TRANSFER_LR = ("w8-d4", "w16-d4", "w32-d4"), 2.2e-3
TRANSFER_VARIANTS = ("femto", "tiny")


def one_rate_for_all(start: Start) -> Study:
    """Does a learning rate tuned on the thinnest network carry over to wider ones by muP's rule?"""
    if start.small:
        labels = TRANSFER_SHAPES[:2] if start.smoke else TRANSFER_SHAPES
        shapes = start.shapes(small_shapes(*labels))
        fields = {"epochs": shortest(start), "peak_lr": TRANSFER_LR}
    else:
        shapes, fields = start.shapes({name: VARIANTS[name] for name in TRANSFER_VARIANTS}), {}
    recipes = {label: start.recipe(shape, **fields) for label, shape in shapes.items()}
    thinnest, *wider = recipes
    if not wider:
        raise WrongRequest(f"--transfer compares widths; --variants {thinnest} is only one")
    base = recipes[thinnest].model.dims[0]
    carried = {f"{label}-mup": tuned(recipes[label], mup_base_dim=base) for label in wider}
    return Study(
        name="scale-transfer",
        question=str(one_rate_for_all.__doc__),
        recipes=recipes | carried,
        seeds=SEEDS,
    )


# -------------------------------------------------------------------------------------------------


def scale(
    start: Start,
    *,
    predict: Annotated[bool, "predict the largest sizes, then train them"] = False,
    tune_per_size: Annotated[
        int | None,
        "search each size's recipe with N trials; the best is tried first at the next size",
    ] = None,
    transfer: Annotated[
        bool, "compare one learning rate for all widths with muP's transfer of it"
    ] = False,
) -> Study:
    """How should a Gated CNN grow, deeper or wider?"""
    if sum((predict, tune_per_size is not None, transfer)) > 1:
        raise WrongRequest(
            "--predict, --tune-per-size and --transfer are three studies; give one of them"
        )
    if start.weights and (tune_per_size is not None or transfer):
        name = "--transfer" if transfer else "--tune-per-size"
        raise WrongRequest(
            f"--init: weights start one shape only, and {name} compares several; leave one of the "
            "two out. sweeps/mine.py --search tunes one shape"
        )
    if tune_per_size is not None:
        return each_size_tuned(start, tune_per_size)
    return one_rate_for_all(start) if transfer else deeper_or_wider(start, predict)


if __name__ == "__main__":
    sys.exit(main(scale))
