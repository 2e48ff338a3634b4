"""The space of a search: which recipes its axes span, and whether it can be run.

The functions are pure and need no Optuna. A study is checked, listed, priced and reported with
them.

Two axes are not fields of a recipe. "width" is the factor of `variants.widen`. "blocks" is the
number of blocks that `variants.deepen` adds. Every other axis is named after a field of the recipe.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mambaout.accounting import cost
from mambaout.errors import WrongRequest
from mambaout.recipe import Recipe, field_types, flat_fields, tuned
from mambaout.study.axes import (
    BLOCKS,
    WIDTH,
    Axis,
    Choice,
    LogRange,
    Search,
    WholeRange,
    axis_names,
)
from mambaout.study.origin import trial_label
from mambaout.train.metrics import (
    ACTIVATIONS,
    IMAGES_PER_SECOND,
    MACS,
    MINIVAL_TOP1,
    PARAMS,
    TRAIN_DEVICE_HOURS,
)

GOALS = (MINIVAL_TOP1, MACS, PARAMS, ACTIVATIONS, IMAGES_PER_SECOND, TRAIN_DEVICE_HOURS)

DIGITS = 4  # significant digits of a suggested float, to keep commands readable

NARROW = "narrow the axis, or list the values that fit"

# Fields that may make a network learn more slowly at first, and better in the end.
SLOW_STARTS = ("drop_path",)

MAX_LISTED = 20_000  # points of a finite space that are gone through one by one

MOST_TRIALS = 100_000  # of a search; every trial is a line of the plan and of the study's file

Values = Mapping[str, Any]  # axis name -> value


# -- axes and recipes -----------------------------------------------------------------------------


def base_values(search: Search) -> dict[str, Any]:
    """The values of the axes at the search's base."""
    return values_of(search, search.base)


def values_of(search: Search, recipe: Recipe) -> dict[str, Any]:
    """The values of the axes in `recipe`, one of the search's."""
    flat, model, base = flat_fields(recipe), recipe.model, search.base.model
    flat[WIDTH] = round(sum(model.dims) / sum(base.dims), DIGITS)
    flat[BLOCKS] = model.depths[2] - base.depths[2]
    return {name: flat[name] for name in axis_names(search.axes)}


def recipe_of(search: Search, values: Values) -> Recipe:
    """The base with `values`. ValueError if they do not fit together."""
    from mambaout.variants import deepen, widen

    fields = {name: value for name, value in values.items() if name not in (WIDTH, BLOCKS)}
    recipe = tuned(search.base, **fields)
    model = recipe.model
    if values.get(WIDTH, 1) != 1:
        model = widen(model, values[WIDTH])
    if values.get(BLOCKS, 0):
        model = deepen(model, values[BLOCKS])
    return replace(recipe, model=model)


def rounded(axis: Axis, value: Any) -> Any:
    """The value of the axis nearest to `value`: on its grid, or with few digits."""
    if isinstance(axis, Choice):
        return value
    value = min(max(value, axis.low), axis.high)
    step = getattr(axis, "step", None)
    if step is None:
        return min(max(float(f"{value:.{DIGITS}g}"), axis.low), axis.high)
    last = math.floor((axis.high - axis.low) / step + 1e-9)
    value = axis.low + min(round((value - axis.low) / step), last) * step
    return value if isinstance(axis, WholeRange) else round(value, 10)


def points(search: Search) -> Iterator[dict[str, Any]] | None:
    """Every point of a finite space; None if the space is infinite or too large to list."""
    if math.prod(map(_num_values, search.axes)) > MAX_LISTED:
        return None
    names = axis_names(search.axes)
    grids = map(_grid, search.axes)
    return (dict(zip(names, row, strict=True)) for row in itertools.product(*grids))


def _num_values(axis: Axis) -> float:
    """How many values the axis has; infinity if it has no steps."""
    if isinstance(axis, Choice):
        return len(axis.values)
    step = getattr(axis, "step", None)
    return math.inf if step is None else math.floor((axis.high - axis.low) / step + 1e-9) + 1


def _grid(axis: Axis) -> list[Any]:
    """Every value of an axis whose values are counted."""
    if isinstance(axis, Choice):
        return list(axis.values)
    step = getattr(axis, "step", 1)
    return [rounded(axis, axis.low + i * step) for i in range(int(_num_values(axis)))]


# -- checks ---------------------------------------------------------------------------------------


def check(search: Search) -> None:
    """Raise ValueError, with the value and a remedy, if the search cannot be run."""
    where = f"search {search.label!r}"
    if not search.axes:
        raise WrongRequest(f"{where} has no axes")
    if not 1 <= search.num_trials <= MOST_TRIALS:
        raise WrongRequest(f"{where}: num_trials={search.num_trials} must be 1 to {MOST_TRIALS}")
    if not search.seeds or len(set(search.seeds)) < len(search.seeds):
        raise WrongRequest(f"{where}: seeds={search.seeds} must be one or more different numbers")
    if search.num_confirmed < 1:
        raise WrongRequest(f"{where}: num_confirmed={search.num_confirmed} must be at least 1")
    _check_goals(search, where)
    names = axis_names(search.axes)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise WrongRequest(f"{where} has more than one axis {twice[0]!r}; keep one")
    for shape, whole in ((WIDTH, "dims"), (BLOCKS, "depths")):
        if shape in names and whole in names:
            raise WrongRequest(f"{where}: axes {shape!r} and {whole!r} both set dims; keep one")
    known = [*field_types(), WIDTH, BLOCKS]
    for axis in search.axes:
        if axis.name not in known:
            near = difflib.get_close_matches(axis.name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; fields are {', '.join(known)}"
            raise WrongRequest(f"{where}: a recipe has no field {axis.name!r}{hint}")
        _check_axis(search, axis, where)
    try:
        for _ in corners(search):
            pass
    except WrongRequest as error:
        raise WrongRequest(f"{where}: {error}; {NARROW}") from error


def check_all(searches: Sequence[Search], labels: Iterable[str] = ()) -> None:
    """Raise ValueError if the searches cannot be run in this order beside the recipes `labels`."""
    before: list[str] = []
    for search in searches:
        check(search)
        if search.label in before:
            raise WrongRequest(f"two searches are called {search.label!r}; give each its own label")
        if search.follows is not None and search.follows not in before:
            raise WrongRequest(
                f"search {search.label!r} follows {search.follows!r}, which is none of the ones "
                f"before it ({', '.join(before) or 'there are none'})"
            )
        taken = {trial_label(search.label, number) for number in range(search.num_trials)}
        for label in labels:
            if label in taken:
                raise WrongRequest(
                    f"recipe {label!r} is called like a trial of the search {search.label!r}; "
                    "give one of the two another label"
                )
        before.append(search.label)


def _check_goals(search: Search, where: str) -> None:
    if not search.goals:
        raise WrongRequest(f"{where} has no goal; give goals=(({MINIVAL_TOP1!r}, 'max'),)")
    for metric, direction in search.goals:
        if metric not in GOALS:
            why = " (val is reported once, at the end)" if metric in ("top1", "val/top1") else ""
            raise WrongRequest(
                f"{where}: goal {metric!r} cannot be chosen on{why}; choose from {', '.join(GOALS)}"
            )
        if direction not in ("max", "min"):
            raise WrongRequest(f"{where}: goal ({metric!r}, {direction!r}) must be 'max' or 'min'")
    if not search.early_stop:
        return
    if len(search.goals) > 1:
        raise WrongRequest(
            f"{where}: early_stop needs one goal, not {len(search.goals)}: a curve of "
            f"{search.goals[0][0]} says nothing of {search.goals[1][0]}; leave early_stop out"
        )
    uneven = {"epochs", "eval_every_epochs", "cooldown_epochs"} & set(axis_names(search.axes))
    if uneven:
        raise WrongRequest(
            f"{where}: early_stop compares recipes at the same epoch, and with an axis "
            f"{min(uneven)!r} they are not as far on; leave one of the two out"
        )


def _check_axis(search: Search, axis: Axis, where: str) -> None:
    base = base_values(search)[axis.name]
    if isinstance(axis, Choice):
        if len(axis.values) < 2 or len(set(axis.values)) < len(axis.values):
            raise WrongRequest(f"{where}: {axis.name}={axis.values}: give two or more values, once")
        if base not in axis.values:
            raise WrongRequest(
                f"{where} starts from its base, whose {axis.name}={base} is not among "
                f"{axis.values}; add it"
            )
        return
    if not axis.low < axis.high:
        raise WrongRequest(f"{where}: {axis.name} from {axis.low} to {axis.high} is no range")
    if isinstance(axis, LogRange) and axis.low <= 0:
        raise WrongRequest(
            f"{where}: {axis.name} from {axis.low} has no logarithm; start above 0, or use Linear"
        )
    step = None if isinstance(axis, LogRange) else axis.step
    if step is not None and not 0 < step <= axis.high - axis.low:
        raise WrongRequest(f"{where}: {axis.name} in steps of {step}; give a step in the range")
    if not isinstance(axis, WholeRange) and (
        axis.name == BLOCKS or field_types().get(axis.name) is int
    ):
        raise WrongRequest(f"{where}: {axis.name}={base} is a whole number; use Whole or Choice")
    if not isinstance(base, (int, float)) or isinstance(base, bool):
        raise WrongRequest(f"{where}: {axis.name}={base!r} is no number; use Choice")
    if not axis.low <= base <= axis.high:
        raise WrongRequest(
            f"{where} starts from its base, whose {axis.name}={base} is outside of "
            f"{axis.low} to {axis.high}; widen the range or change the base"
        )


def corners(search: Search) -> Iterator[Recipe]:
    """The recipes with one axis at an end, and those with two axes at their ends.

    Raises ValueError at the first recipe whose values do not fit together.
    """
    base = base_values(search)
    ends = {axis.name: _ends(axis) for axis in search.axes}
    for name, values in ends.items():
        for value in values:
            yield recipe_of(search, base | {name: value})
    for first, second in itertools.combinations(ends, 2):
        for one, other in itertools.product(ends[first], ends[second]):
            yield recipe_of(search, base | {first: one, second: other})


def _ends(axis: Axis) -> list[Any]:
    """The ends of an axis. All its values if they are few, or if a single one could be invalid."""
    if isinstance(axis, Choice) or (isinstance(axis, WholeRange) and _num_values(axis) <= 16):
        return _grid(axis)
    return [axis.low, axis.high]


def doubts(searches: Iterable[Search]) -> list[str]:
    """A line for each search that can be run and whose result is in doubt from the start."""
    found = []
    for search in searches:
        names = [name for name in axis_names(search.axes) if name in SLOW_STARTS]
        if search.early_stop and names:
            found.append(
                f"search {search.label} stops recipes early and varies {', '.join(names)}: with "
                "more of it a network may start more slowly, and a recipe may be stopped that "
                f"would have won. sweeps/mine.py --search {names[0]}=LOW..HIGH stops none"
            )
    return found


# -- the same budget at every size ----------------------------------------------------------------


def tuning(
    recipes: Mapping[str, Recipe],
    axes: Sequence[Axis],
    num_trials: int,
    *,
    seeds: Sequence[int] = (0,),
    num_confirmed: int = 1,
    early_stop: bool = False,
    sampler_seed: int = 0,
) -> tuple[Search, ...]:
    """One search for each recipe, all with the same axes and number of trials.

    The recipe with the fewest MACs comes first. Each search tries its own recipe first, and then
    the best values of the search before it.
    """

    def macs(label: str) -> int:
        return cost(recipes[label].model, recipes[label].image_size).macs

    found: list[Search] = []
    for label in sorted(recipes, key=macs):
        found.append(
            Search(
                label=label,
                base=recipes[label],
                axes=tuple(axes),
                num_trials=num_trials,
                seeds=tuple(seeds),
                num_confirmed=num_confirmed,
                early_stop=early_stop,
                sampler_seed=sampler_seed,
                follows=found[-1].label if found else None,
            )
        )
    return tuple(found)
