"""Means over seeds, and how much seeds of one recipe differ: alone, and beside other recipes.

A seed is the same draw for all recipes: of the order of the images, and in many studies of the
images themselves. So a part of what it does moves all recipes alike. That part is fitted as a shift
for each seed, beside a mean for each recipe (a two-way layout). The rest is a recipe's own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mambaout.numbers import counted

# A spread from fewer degrees of freedom is too uncertain, so the spread of all recipes is used.
# Even with four, the 95 % interval of a spread is from 0.6 to 2.9 times its value.
LEAST_DEGREES = 4


@dataclass(frozen=True)
class SeedMean:
    """A quantity over the seeds of one recipe."""

    values: tuple[float, ...]
    epochs: int | None = None  # of the recipe's training; None if not known
    seeds: tuple[int, ...] = ()  # of the values; empty if not known

    @property
    def value(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    def __bool__(self) -> bool:
        return bool(self.values)

    def text(self, half: float | None = None, digits: int = 2, unit: str = "") -> str:
        """ "90.07 ± 0.45 % (n=2)". `half` is half the width of the mean's interval."""
        if not self.values:
            return "-"
        sure = "" if half is None else f" ± {half:.{digits}f}"
        return f"{self.value:.{digits}f}{sure}{unit} (n={len(self.values)})"


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """The standard deviation between the seeds of one recipe, and the data behind it."""

    points: float
    degrees: int  # of freedom
    num_recipes: int  # with two seeds or more
    # The part that a seed does not give to all recipes alike; None if the two cannot be told apart.
    own_points: float | None = None
    own_degrees: int = 0
    shared_degrees: int = 0  # of the part that all recipes of a seed have in common

    def text(self) -> str:
        recipes = counted(self.num_recipes, "recipe")
        return f"{self.points:.2f} points ({self.degrees} degrees of freedom, {recipes})"

    @property
    def shared_variance(self) -> float:
        """Of one seed: what it gives to all recipes alike; 0 if that is not known."""
        return 0.0 if self.own_points is None else max(0.0, self.points**2 - self.own_points**2)


def pooled(means: Sequence[SeedMean]) -> SeedSpread:
    """The spread of recipes that have two seeds or more each."""
    degrees = sum(len(mean.values) - 1 for mean in means)
    # With fsum, the order of the recipes changes nothing.
    squares = math.fsum(statistics.variance(mean.values) * (len(mean.values) - 1) for mean in means)
    spread = SeedSpread(
        points=math.sqrt(squares / degrees), degrees=degrees, num_recipes=len(means)
    )
    shared = [_shared_by_seeds(group) for group in _by_epochs(means)]
    shared_degrees = sum(one.degrees for one in shared)
    own_degrees = degrees - shared_degrees
    if shared_degrees == 0 or own_degrees < LEAST_DEGREES:
        return spread
    own = max(0.0, squares - math.fsum(one.squares for one in shared)) / own_degrees
    # If the seeds share nothing, own comes out larger than the whole in half of all cases.
    return replace(
        spread,
        own_points=math.sqrt(own),
        own_degrees=own_degrees,
        shared_degrees=shared_degrees,
    )


def _by_epochs(means: Iterable[SeedMean]) -> list[list[SeedMean]]:
    groups: dict[int | None, list[SeedMean]] = {}
    for mean in means:
        if len(mean.seeds) == len(mean.values):
            groups.setdefault(mean.epochs, []).append(mean)
    return list(groups.values())


@dataclass(frozen=True)
class _SharedPart:
    """What a shift for each seed explains of the squares within recipes."""

    squares: float
    degrees: int


def _shared_by_seeds(means: Sequence[SeedMean]) -> _SharedPart:
    """A shift for each seed is fitted to all recipes by least squares, beside their means."""
    seeds = sorted({seed for mean in means for seed in mean.seeds})
    places = {seed: place for place, seed in enumerate(seeds)}
    normal, right = np.zeros((len(seeds), len(seeds))), np.zeros(len(seeds))
    for mean in means:
        own = [places[seed] for seed in mean.seeds]
        normal[own, own] += 1
        normal[np.ix_(own, own)] -= 1 / len(own)
        right[own] += np.array(mean.values) - mean.value
    rank = int(np.linalg.matrix_rank(normal, tol=1e-9))
    return _SharedPart(float(right @ np.linalg.pinv(normal) @ right), rank)
