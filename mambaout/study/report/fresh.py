"""The best recipe's accuracy on seeds that did not choose it.

The seed on which a recipe was highest among many was a lucky one, on val as well as on minival. So
its accuracy is too high a guess of what a new seed gives. Three cases:

- a search chose the recipe on its first seed, and it has others: its means leave the first out
  (`Row.counted`), and nothing more is to be done;
- several recipes with two seeds or more were compared by their means: each seed in turn is left out
  of the choice, and read alone (`fresh_top1`). This is cross-validation, with seeds for folds;
- the choice was made on one seed, and there is no other: the report says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mambaout.study.law.noise import SeedMean
from mambaout.study.report.ranking import Standing
from mambaout.study.report.rows import Row
from mambaout.train.metrics import MINIVAL_TOP1, TOP1

TOO_HIGH = "the seed that chose it, so they are too high"


@dataclass(frozen=True)
class _SeedValues:
    """A recipe's finished seeds that count: minival's and val's top-1 in percent, by seed."""

    row: Row
    values: dict[int, tuple[float, float]]


def rivals(found: Standing) -> list[Row]:
    """The recipes that the best one was compared with, and itself."""
    best = found.best
    if best is None:
        return []
    for group in (found.search_bests, found.confirmed):
        if best.recipe in group:
            return [row for row in found.ready if row.recipe in group]
    return found.ready


def fresh_top1(found: Standing) -> SeedMean | None:
    """Val's top-1 of the recipe that is best without a seed, at that seed: a value a seed.

    None if nothing was chosen between, or if the best recipe has no two seeds that count.
    """
    best, compared = found.best, [_seeds(row) for row in rivals(found)]
    if best is None or len(compared) < 2:
        return None
    own = _seeds(best).values
    compared = [one for one in compared if len(one.values) > 1]
    if len(own) < 2 or len(compared) < 2:
        return None
    read = []
    for seed in own:
        others = [one for one in compared if seed in one.values]
        winner = max(others, key=lambda one: _mean_without(one, seed))
        read.append(winner.values[seed][1])
    return SeedMean(tuple(read), best.epochs)


def about_seeds(found: Standing) -> str:
    """A sentence on the best recipe's accuracy on fresh seeds; "" if its own is on such seeds."""
    best = found.best
    if best is None or len(rivals(found)) < 2:
        return ""
    if len(best.counted) < 2:
        return f" Both are of {TOO_HIGH}."
    fresh = fresh_top1(found)
    if fresh is None or math.isclose(fresh.value, best.mean(TOP1).value):
        return ""  # whichever seed is left out, the choice is the same
    text = fresh.text(found.noise.half_width(fresh), unit=" %")
    return (
        " These seeds have chosen it, so its mean is too high. If each seed in turn is left out of "
        f"the choice and read alone, the best recipe has {text} on val."
    )


def _seeds(row: Row) -> _SeedValues:
    pairs = {
        run.trial.seed: (run.metrics.get(MINIVAL_TOP1, math.nan), run.metrics.get(TOP1, math.nan))
        for run in row.counted
    }
    return _SeedValues(
        row, {seed: pair for seed, pair in pairs.items() if all(map(math.isfinite, pair))}
    )


def _mean_without(one: _SeedValues, seed: int) -> float:
    kept = [minival for other, (minival, _) in one.values.items() if other != seed]
    return sum(kept) / len(kept)
