"""A sweep script for the tests of `launch`: a study of tiny networks, a few seconds each.

The environment variables TINY_LABELS and TINY_EPOCHS pick its recipes and their length, so that a
test pays for what it needs.
"""

from __future__ import annotations

import os
import sys

from mambaout.launch.cli import main
from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.study.start import Start
from mambaout.study.study import Study

SHAPES = {"thin": (8, 16, 24, 32), "wide": (16, 32, 48, 64), "third": (8, 16, 24, 40)}


def recipe(label: str) -> Recipe:
    """Everything random is on: a resumed run that draws anew would show."""
    return tuned(
        with_global_batch(BASELINE, 32),
        dims=SHAPES[label],
        depths=(1, 1, 1, 1),
        stem_stride=2,
        drop_path=0.2,
        image_size=16,
        train_images=512,
        minival_fraction=0.1,
        epochs=int(os.environ.get("TINY_EPOCHS", 5)),
        warmup_epochs=1,
        peak_lr=2e-3,
    )


def tiny(start: Start) -> Study:
    """Do studies survive?"""
    labels = os.environ.get("TINY_LABELS", ",".join(SHAPES)).split(",")
    init = start.given.get("init")
    recipes = {label: tuned(recipe(label), init=init) for label in labels}
    return Study(name="tiny", question=str(tiny.__doc__), recipes=recipes)


if __name__ == "__main__":
    sys.exit(main(tiny))
