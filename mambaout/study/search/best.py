"""The result of a search: its best recipe, its distance to an edge, and ranges that widen.

All of it is computed from runs alone. The report and the search both use it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.recipe import Augment, Optim, Recipe
from mambaout.study.axes import Axis, Choice, LogRange, Range, Search, WholeRange
from mambaout.study.origin import searches_of
from mambaout.study.search.space import DIGITS, Values, base_values, recipe_of, values_of
from mambaout.study.study import Run

# The axes that a search may widen by itself. None of them changes the cost of a trial, so a search
# never costs more than its price.
WIDENED = {*Optim.__dataclass_fields__, *Augment.__dataclass_fields__} | {
    "drop_path", "warmup_epochs", "warmup_lr", "final_lr",
}  # fmt: skip
EDGE = 0.05  # share of the range; a value this near to an end is at the end
WIDEN_FACTOR, WIDEN_SHARE = 2.0, 0.25  # of a logarithmic range's end; of another range's length

# -- results --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best recipe of a search."""

    label: str
    recipe: Recipe
    values: Values  # of the axes
    scores: tuple[float, ...]  # of the first goal, one a seed. The seed that the recipe was
    # chosen on is left out if there are others: it was the highest of many

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


Name = TypeVar("Name", bound=Hashable)  # a recipe, or the key of its first seed
Results = Mapping[Name, Mapping[int, tuple[float, ...]]]  # recipe -> seed -> the goals' values


def scores_of(search: Search, run: Run) -> tuple[float, ...] | None:
    """The run's values of the search's goals; None if it has no value to choose on."""
    if run.status is not Ending.FINISHED:
        return None
    scores = tuple(run.metrics.get(metric, math.nan) for metric, _ in search.goals)
    return scores if all(map(math.isfinite, scores)) else None


def ranked(search: Search, results: Results[Name]) -> list[Name]:
    """The recipes, the best first, by the first goal with the search's first seed."""
    sign = 1 if search.goals[0][1] == "max" else -1
    first = search.seeds[0]
    found = [name for name, seeds in results.items() if first in seeds]
    return sorted(found, key=lambda name: -sign * results[name][first][0])


def chosen(search: Search, results: Results[Name]) -> Name | None:
    """The best recipe: the best on the first seed, of those that have all seeds if any have.

    The other seeds do not choose. So they say, without luck, what the recipe reaches.
    """
    order = ranked(search, results)
    whole = [name for name in order if set(search.seeds) <= results[name].keys()]
    return next(iter(whole or order), None)


def runs_of(search: Search, runs: Sequence[Run]) -> list[Run]:
    """The runs that the search asked for, even if another part of the study asked first."""
    return [run for run in runs if search.label in searches_of(run.trial.origins)]


def best(search: Search, runs: Sequence[Run]) -> Best | None:
    """The search's best recipe, from the study's runs; None before one of its runs finishes."""
    own = runs_of(search, runs)
    results: dict[Recipe, dict[int, tuple[float, ...]]] = {}
    for run in own:
        if (scores := scores_of(search, run)) is not None:
            results.setdefault(run.trial.recipe, {})[run.trial.seed] = scores
    recipe = chosen(search, results)
    if recipe is None:
        return None
    label = next(run.trial.label for run in own if run.trial.recipe == recipe)
    found = results[recipe]
    seeds = sorted(found.keys() - {search.seeds[0]}) or sorted(found)
    scores = tuple(found[seed][0] for seed in seeds)
    return Best(label=label, recipe=recipe, values=values_of(search, recipe), scores=scores)


# -- edges ----------------------------------------------------------------------------------------


def at_edge(search: Search, values: Values) -> list[str]:
    """The axes whose value lies at an end of its range, for people."""
    found = []
    for axis in search.axes:
        side = edge_of(axis, values[axis.name])
        if side is not None and not isinstance(axis, Choice):
            found.append(
                f"{axis.name}={values[axis.name]:.{DIGITS}g} is the {side} edge of "
                f"{axis.low:g}..{axis.high:g}"
            )
    return found


def edge_of(axis: Axis, value: Any) -> str | None:
    """ "lower" or "upper" if the value is at that end of the axis's range, else None."""
    if isinstance(axis, Choice):
        return None
    share = share_of(axis, value)
    step = getattr(axis, "step", None)
    near = EDGE if step is None else min(0.5, step / (axis.high - axis.low)) / 2
    return "lower" if share <= near else "upper" if share >= 1 - near else None


def share_of(axis: Range, value: float) -> float:
    """The position of the value in the range, from 0 to 1 inside it."""
    low, high = axis.low, axis.high
    if isinstance(axis, LogRange):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def widened(search: Search, axis: Axis, side: str) -> Axis | None:
    """The axis, widened on that side as far as the field allows; None if it cannot be widened."""
    if isinstance(axis, Choice) or axis.name not in WIDENED:
        return None
    end = axis.low if side == "lower" else axis.high
    for candidate in _further(axis, end, side):
        inside = candidate < axis.low if side == "lower" else candidate > axis.high
        if not inside:
            continue
        try:
            recipe_of(search, base_values(search) | {axis.name: candidate})
        except WrongRequest:
            continue
        return replace(axis, **{"low" if side == "lower" else "high": candidate})
    return None


def _further(axis: Range, end: float, side: str) -> Iterator[Any]:
    """Possible new ends beyond `end`: first the wanted one, then nearer ones."""
    sign = -1 if side == "lower" else 1
    if isinstance(axis, LogRange):
        for power in (1.0, 0.5, 0.25):
            yield float(f"{end * WIDEN_FACTOR ** (sign * power):.{DIGITS}g}")
        return
    wanted = WIDEN_SHARE * (axis.high - axis.low)
    if axis.step is not None:
        for count in range(max(1, math.ceil(wanted / axis.step - 1e-9)), 0, -1):
            further = end + sign * count * axis.step
            yield further if isinstance(axis, WholeRange) else round(further, 10)
        return
    yield float(f"{end + sign * wanted:.{DIGITS}g}")
    yield 0.0 if side == "lower" else 1.0  # the bounds of most fields
    yield float(f"{end + sign * wanted / 2:.{DIGITS}g}")


def widened_at(search: Search, values: Values) -> Search:
    """`search` with a wider range on each axis whose value is at an edge that can move."""
    axes = list(search.axes)
    for i, axis in enumerate(axes):
        side = edge_of(axis, values[axis.name]) if axis.name in values else None
        if side is not None:
            axes[i] = widened(search, axis, side) or axis
    return replace(search, axes=tuple(axes))


def holding(search: Search, values: Values) -> Search:
    """`search` with its ranges widened, if possible, until they hold `values`."""
    axes = []
    for axis in search.axes:
        while (side := _outside(axis, values.get(axis.name))) is not None:
            wider = widened(search, axis, side)
            if wider is None:
                break
            axis = wider
        axes.append(axis)
    return replace(search, axes=tuple(axes))


def _outside(axis: Axis, value: Any) -> str | None:
    if isinstance(axis, Choice) or value is None:
        return None
    return "lower" if value < axis.low else "upper" if value > axis.high else None


def as_run(search: Search, runs: Sequence[Run]) -> Search:
    """`search` with the ranges that it really used, which hold every recipe tried.

    A search widens by fixed steps, so the trials alone show how far it widened.
    """
    for run in runs_of(search, runs):
        search = holding(search, values_of(search, run.trial.recipe))
    return search


def edges(search: Search, runs: Sequence[Run]) -> list[str]:
    """The axes on which the best recipe is at an edge of the tried range, and the range can widen.

    On such an axis, the true optimum may lie outside the range.
    """
    found = best(search, runs)
    if found is None:
        return []
    used = as_run(search, runs)
    open_ended = [
        axis
        for axis in used.axes
        if axis.name not in WIDENED
        or widened(used, axis, edge_of(axis, found.values[axis.name]) or "upper") is not None
    ]
    return at_edge(replace(used, axes=tuple(open_ended)), found.values)
