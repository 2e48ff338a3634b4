"""What a search came to: its best recipe, how near that is to an edge, and ranges that widen.

Pure values, from runs alone; the report and the search itself read them here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.recipe import Augment, Optim, Recipe
from mambaout.study.axes import Axis, Choice, LinearRange, LogRange, Search, WholeRange
from mambaout.study.origin import searches_of
from mambaout.study.search.space import DIGITS, Values, base_values, recipe_of, values_of
from mambaout.study.study import Run

# The axes that a search may widen by itself: none of them changes what a trial costs, so a search
# never comes to more than its price.
WIDENED = {*Optim.__dataclass_fields__, *Augment.__dataclass_fields__} | {
    "drop_path", "warmup_epochs", "warmup_lr", "final_lr",
}  # fmt: skip
EDGE = 0.05  # of the range: a value this near to an end of it counts as the end
WIDEN_FACTOR, WIDEN_SHARE = 2.0, 0.25  # of a logarithmic range's end; of another range's length

# -- results --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Best:
    """The recipe that a search came to."""

    label: str
    recipe: Recipe
    values: Values  # of the axes
    scores: tuple[float, ...]  # of the first goal, one a seed: without the one it was chosen on,
    # where there are others, since that one was the highest of many

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


Name = TypeVar("Name", bound=Hashable)  # of a recipe: itself, or the key of its first seed
Results = Mapping[Name, Mapping[int, tuple[float, ...]]]  # recipe -> seed -> the goals' values


def scores_of(search: Search, run: Run) -> tuple[float, ...] | None:
    """The run's values of the search's goals; None where it has none to choose on."""
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
    """The best recipe: by the mean over the seeds among those that have them all,
    so that no lucky first seed is compared with a mean; by the first seed where none has them.
    """
    order = ranked(search, results)
    whole = [name for name in order if set(search.seeds) <= results[name].keys()]
    sign = 1 if search.goals[0][1] == "max" else -1

    def mean(name: Name) -> float:
        return sum(results[name][seed][0] for seed in search.seeds) / len(search.seeds)

    if whole:
        return max(whole, key=lambda name: sign * mean(name))
    return order[0] if order else None


def runs_of(search: Search, runs: Sequence[Run]) -> list[Run]:
    """The runs that the search asked for, also where another part of the study had them first."""
    return [run for run in runs if search.label in searches_of(run.trial.origins)]


def best(search: Search, runs: Sequence[Run]) -> Best | None:
    """What the search came to, from the study's runs; None before one of its own has finished."""
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
    """ "lower" or "upper" where the value is at that end of the axis's range."""
    if isinstance(axis, Choice):
        return None
    share = _share(axis, value)
    step = getattr(axis, "step", None)
    near = EDGE if step is None else min(0.5, step / (axis.high - axis.low)) / 2
    return "lower" if share <= near else "upper" if share >= 1 - near else None


def _share(axis: LogRange | LinearRange | WholeRange, value: float) -> float:
    """Where the value lies in the range, 0 to 1."""
    low, high = axis.low, axis.high
    if isinstance(axis, LogRange):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def widened(search: Search, axis: Axis, side: str) -> Axis | None:
    """The axis with more room on that side, as much of it as the field allows; None for none."""
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


def _further(axis: LogRange | LinearRange | WholeRange, end: float, side: str) -> Iterator[Any]:
    """Ends beyond `end`, the one that is wanted first, then nearer ones."""
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
    yield 0.0 if side == "lower" else 1.0  # where most fields end
    yield float(f"{end + sign * wanted / 2:.{DIGITS}g}")


def widened_at(search: Search, values: Values) -> Search:
    """`search` with more room around `values` wherever they are at an edge that can move."""
    axes = list(search.axes)
    for i, axis in enumerate(axes):
        side = edge_of(axis, values[axis.name]) if axis.name in values else None
        if side is not None:
            axes[i] = widened(search, axis, side) or axis
    return replace(search, axes=tuple(axes))


def holding(search: Search, values: Values) -> Search:
    """`search` with its ranges widened until they hold `values`, where they can be."""
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
    """`search` with the ranges it has in fact used: widened until they hold every recipe tried.

    A search widens by fixed steps, so this is read off the trials alone.
    """
    for run in runs_of(search, runs):
        search = holding(search, values_of(search, run.trial.recipe))
    return search


def edges(search: Search, runs: Sequence[Run]) -> list[str]:
    """The axes on which the search's best recipe is at an edge of what was tried and more could
    have been: its optimum is not known to be one."""
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
