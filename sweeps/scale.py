"""The depth and width scaling study, with the paper's recipe scaled to the data beside it.

Run:    python sweeps/scale.py --data fashion-mnist      (or a folder of images; again to resume)
        python sweeps/scale.py --smoke                   (5,000 digits, under 2 minutes on 2 cores)
        python sweeps/scale.py --data fashion-mnist --plan
Writes: runs/scale-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import sys
from dataclasses import replace

from mambaout.accounting import cost
from mambaout.launch.cli import main
from mambaout.recipe import BASELINE, Recipe, scaled_to, tuned
from mambaout.study.axes import Linear, Log
from mambaout.study.ladder import PAPER_LADDER, iso
from mambaout.study.search import tuning
from mambaout.study.study import Study
from mambaout.variants import FEMTO, VARIANTS, ModelConfig, deepen, widen

# -- the numbers of the study, all of them ---------------------------------------------------------

# Images up to this side, in px, get the small stem and the small shapes and keep their size, but
# for ones below the smallest; larger ones get the published shapes at 224, and of Femto's MACs
# also shapes with fewer and with more blocks than its 18.
SMALL_SIDE, SMALLEST_SIDE = 64, 28
ISO_DEPTHS = (12, 24, 36)

# One block a stage at D, 2D, 4D, 6D channels, as in Femto; the axes go out from here.
REFERENCE = ModelConfig(
    depths=(1, 1, 1, 1), dims=(16, 32, 64, 96), stem_stride=2, hidden_multiple=8
)
WIDTHS = {"w8": 0.5, "w16": 1.0, "w24": 1.5, "w32": 2.0}  # factors of the reference's widths
BLOCKS = {"d4": 0, "d10": 6, "d22": 18}  # blocks added in stage 3
# Deep against wide at equal MACs: 6.7M is w16-d10 and w24-d4; 11.6M to 14.1M is w16-d22, w24-d10
# and w32-d4.
SHAPES = ("w8-d4", "w8-d10", "w16-d4", "w24-d4", "w16-d10", "w32-d4", "w16-d22", "w24-d10")
PREDICTED_SHAPE = "w32-d10"  # twice the MACs of the largest of them
# Epochs of 6,000 images and the seeds of each: short trainings are noisier and cost less.
LENGTHS = {4: (0, 1, 2), 12: (0, 1), 36: (0,)}
PREDICTED_EPOCHS = 12

# With --tune-per-size: what is searched at each of these sizes, and the seeds of each one's best.
TUNED_SHAPES, TUNED_EPOCHS, TUNED_SEEDS = ("w8-d4", "w16-d4", "w24-d4", "w16-d10"), 4, (0, 1, 2)
SMALL_TUNED_AXES = (Log("peak_lr", 2.5e-4, 4e-3),)
TUNED_AXES = (Log("peak_lr", 5e-4, 8e-3), Linear("drop_path", 0.0, 0.6))

# With --transfer: the rate that the search above found for the thinnest, 0.0022, for all of them
# and carried by muP's rule; large images take the paper's, as if it had been found on Femto.
TRANSFER_SHAPES, TRANSFER_LR = ("w8-d4", "w16-d4", "w32-d4"), 2.2e-3
TRANSFER_VARIANTS = ("femto", "tiny")

# What every point of the grid is trained with: little is augmented away, for so short a training.
# Of the rates 0.001, 0.002 and 0.004, four epochs of w8-d4, w16-d10, w24-d4 and w24-d10 were best
# or not clearly worse with the first (LOG.md, 2026-11-22).
POINT = dict(
    global_batch=64,
    peak_lr=1e-3,
    warmup_epochs=0.5,
    train_images=6000,
    minival_fraction=0.1,
    eval_every_epochs=4,
    crop_scale_min=0.6,
    hflip=0.0,
    randaugment=0.0,
    mixup=0.0,
    cutmix=0.0,
    erasing=0.0,
)

BASELINE_MODEL = deepen(REFERENCE, 2)

SMOKE_SHAPES = ("w8-d4", "w8-d10", "w16-d4", "w16-d10")
SMOKE_LENGTHS = {3: (0,)}
SMOKE_POINT = POINT | dict(image_size=SMALLEST_SIDE, train_images=None, eval_every_epochs=1)

# --------------------------------------------------------------------------------------------------


def scale(
    num_train: int,
    image_side: int,
    smoke: bool = False,
    *,
    predict: bool = False,
    tune_per_size: int | None = None,
    transfer: bool = False,
) -> Study:
    """How should a Gated CNN grow, deeper or wider, and does the answer change with the length of
    training?"""
    question = " ".join(str(scale.__doc__).split())
    name = "scale-smoke" if smoke else "scale"
    if sum((predict, tune_per_size is not None, transfer)) > 1:
        raise ValueError(
            "--predict, --tune-per-size and --transfer are three studies; give one of them"
        )
    if image_side > SMALL_SIDE and not smoke:
        slices = iso(FEMTO, cost(FEMTO).macs, depths=ISO_DEPTHS)
        shapes = {name: VARIANTS[name] for name in PAPER_LADDER} | slices
        recipes = {label: replace(BASELINE, model=shape) for label, shape in shapes.items()}
        if tune_per_size is not None:
            searches = tuning(recipes, TUNED_AXES, tune_per_size, early_stop=True)
            return Study(name="scale-tuned", question=question, recipes={}, searches=searches)
        if transfer:
            return _transfer(name, {label: recipes[label] for label in TRANSFER_VARIANTS})
        predicted = "base" if predict else None
        return Study(name=name, question=question, recipes=recipes, predicted=predicted)
    point = dict(image_size=max(image_side, SMALLEST_SIDE)) | (SMOKE_POINT if smoke else POINT)
    shapes, lengths = (SMOKE_SHAPES, SMOKE_LENGTHS) if smoke else (SHAPES, LENGTHS)
    base = tuned(BASELINE, **point)
    if tune_per_size is not None:
        return _tuned(name, question, base, tune_per_size, smoke)
    if transfer:
        base = tuned(base, epochs=3 if smoke else TUNED_EPOCHS, peak_lr=TRANSFER_LR)
        labels = TRANSFER_SHAPES[:2] if smoke else TRANSFER_SHAPES
        return _transfer(name, {label: replace(base, model=_shape(label)) for label in labels})
    recipes = {
        f"{shape}-e{epochs}": tuned(replace(base, model=_shape(shape)), epochs=epochs)
        for epochs in lengths
        for shape in shapes
    }
    epochs = max(lengths) if smoke else PREDICTED_EPOCHS
    seeds = {label: lengths[recipe.schedule.epochs] for label, recipe in recipes.items()}
    predicted = f"{PREDICTED_SHAPE}-e{epochs}" if predict else None
    if predicted:
        recipes[predicted] = tuned(replace(base, model=_shape(PREDICTED_SHAPE)), epochs=epochs)
        seeds[predicted] = lengths[epochs]
    recipes["baseline"] = _baseline(num_train, point, epochs)
    seeds["baseline"] = (0,)
    return Study(name=name, question=question, recipes=recipes, seeds=seeds, predicted=predicted)


def _tuned(name: str, question: str, base: Recipe, num_trials: int, smoke: bool) -> Study:
    """The same search at each width, and the two shapes that spend the MACs of one in depth."""
    base = tuned(base, epochs=3 if smoke else TUNED_EPOCHS)
    shapes = SMOKE_SHAPES[:2] if smoke else TUNED_SHAPES
    recipes = {shape: replace(base, model=_shape(shape)) for shape in shapes}
    seeds = (0,) if smoke else TUNED_SEEDS
    searches = tuning(recipes, SMALL_TUNED_AXES, num_trials, seeds=seeds)
    return Study(name=f"{name}-tuned", question=question, recipes={}, searches=searches)


def _transfer(name: str, recipes: dict[str, Recipe]) -> Study:
    """Does a learning rate tuned on the thinnest network carry over to wider ones by muP's rule?"""
    thinnest, *wider = recipes
    base = recipes[thinnest].model.dims[0]
    moved = {f"{label}-mup": tuned(recipes[label], lr_base_dim=base) for label in wider}
    return Study(
        name=f"{name}-transfer",
        question=str(_transfer.__doc__),
        recipes=recipes | moved,
        seeds=TUNED_SEEDS,
    )


def _shape(label: str) -> ModelConfig:
    """ "w16-d10" of the two axes."""
    wide, deep = label.split("-")
    return deepen(widen(REFERENCE, WIDTHS[wide]), BLOCKS[deep])


def _baseline(num_train: int, point: dict, epochs: int) -> Recipe:
    """The paper's recipe at the data's size: batch and learning rate by the linear rule, the
    warm-up the same share of the epochs, the augmentation as it is."""
    schedule = BASELINE.schedule
    num_images = min(num_train, point["train_images"] or num_train)
    kept = ("image_size", "minival_fraction", "train_images", "eval_every_epochs")
    return tuned(
        replace(scaled_to(BASELINE, num_images), model=BASELINE_MODEL),
        **{name: point[name] for name in kept},
        epochs=epochs,
        warmup_epochs=schedule.warmup_epochs / schedule.epochs * epochs,
    )


if __name__ == "__main__":
    sys.exit(main(scale))
