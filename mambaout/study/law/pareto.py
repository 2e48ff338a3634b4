"""The front of accuracy against cost: the points that no other point beats on both axes."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, accuracy) points on the Pareto front, cheapest first.

    A point is off the front if another point is at least as accurate, costs at most as much, and is
    better in one of the two. Of equal points, the first stays. If more is better on the cost axis,
    as for images/s, pass the negative.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept
