"""A search's first recipes: they cover every axis before there are results to learn from.

Each range is cut at the base's value, and both sides into equal parts, so that there are as many
parts as first draws. Each draw takes a part that no recipe has yet, on every axis. So both sides of
the base are tried, and no part of a range is left out by chance. This is a Latin hypercube (McKay,
Beckman and Conover, 1979) around the base. A part that an earlier search's best recipe lies in
needs no draw.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mambaout.study.axes import Axis, Choice, LogRange, Range, Search, WholeRange
from mambaout.study.search.best import EDGE, share_of
from mambaout.study.search.space import Values, base_values, rounded

STARTUP_SHARE, STARTUP_RANGE = 1 / 4, (4, 10)  # of a search: its recipes before the sampler
MARGIN = 0.01  # of a part, at both ends, so that rounding moves no draw into another part


def num_startup(search: Search) -> int:
    """How many recipes come before the sampler's: the base and the first draws."""
    least, most = STARTUP_RANGE
    return min(most, max(least, round(STARTUP_SHARE * search.num_trials)))


def first_draw(search: Search, known: Sequence[Values], seed: int) -> dict[str, Any] | None:
    """The values of the next first draw; None if there are enough of them.

    `known` are the values of the recipes after the base, in their order. They alone and `seed`
    decide.
    """
    count = min(num_startup(search), search.num_trials) - 1
    base, generator = base_values(search), random.Random(seed)
    if count < 1 or len(known) > count:
        return None
    uses = {axis: _uses(axis, base[axis.name], count, known) for axis in search.axes}
    ranges = [of_axis for axis, of_axis in uses.items() if not isinstance(axis, Choice)]
    if len(known) == count and all(min(of_axis) > 0 for of_axis in ranges):
        return None
    found = {}
    for axis, of_axis in uses.items():
        part = generator.choice([i for i, n in enumerate(of_axis) if n == min(of_axis)])
        if isinstance(axis, Choice):
            found[axis.name] = axis.values[part]
        else:
            low, high = parts(axis, base[axis.name], count)[part]
            inside = generator.uniform(MARGIN, 1 - MARGIN)
            found[axis.name] = _at(axis, low + inside * (high - low))
    return found


def parts(axis: Range, base: float, count: int) -> list[tuple[float, float]]:
    """The `count` parts of a range, as shares of it from 0 to 1; none contains the base.

    A side that the base leaves almost nothing of has no part of its own.
    """
    middle = share_of(axis, base)
    if count == 1 or not EDGE < middle < 1 - EDGE:
        edges = [i / count for i in range(count + 1)]
    else:
        below = min(max(round(count * middle), 1), count - 1)
        edges = [middle * i / below for i in range(below)]
        edges += [middle + (1 - middle) * i / (count - below) for i in range(count - below + 1)]
    return list(pairwise(edges))


def _uses(axis: Axis, base: Any, count: int, known: Sequence[Values]) -> list[int]:
    """How many of the known recipes lie in each part of the axis; the parts of a choice are its
    values."""
    if isinstance(axis, Choice):
        tried = [values[axis.name] for values in known]
        return [tried.count(value) + (value == base) for value in axis.values]
    shares = [share_of(axis, values[axis.name]) for values in known]
    return [
        sum(low <= share < high or share == high == 1 for share in shares)
        for low, high in parts(axis, base, count)
    ]


def _at(axis: Range, share: float) -> Any:
    """The value at a share of a range."""
    if isinstance(axis, LogRange):
        return rounded(axis, axis.low * (axis.high / axis.low) ** share)
    value = axis.low + share * (axis.high - axis.low)
    return rounded(axis, round(value) if isinstance(axis, WholeRange) else value)
