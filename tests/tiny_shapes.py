"""A sweep script for the tests of `launch`: tiny shapes, some deeper and some wider."""

from __future__ import annotations

import sys

from tiny_sweep import recipe

from mambaout.launch.cli import main
from mambaout.recipe import tuned
from mambaout.study.start import Start
from mambaout.study.study import Study


def shapes(start: Start) -> Study:
    """Deeper or wider?"""
    base = tuned(recipe("thin"), train_images=128, epochs=1, warmup_epochs=0.5)
    recipes = {
        f"w{width}-d{depth}": tuned(
            base,
            dims=(width, 2 * width, 3 * width, 4 * width),
            depths=(1, 1, depth, 1),
        )
        for width in (4, 8, 12)
        for depth in (1, 4)
    }
    return Study(name="shapes", question=str(shapes.__doc__), recipes=recipes, seeds=(0, 1))


if __name__ == "__main__":
    sys.exit(main(shapes))
