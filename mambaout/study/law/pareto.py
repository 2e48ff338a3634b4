"""Which points no other point beats on both axes: the accuracy-against-cost front."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, accuracy) points on the Pareto front, cheapest first.

    A point is on it when no other is at least as accurate for at most the cost and better in one
    of the two. Of equal points the first stays. For an axis where more is better, such as images
    a second, pass its negative as the cost.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept
