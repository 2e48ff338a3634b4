"""Place names beside the points of a chart, so that they cover no name and no point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mambaout.study.report.picture import FAINT, INK

LABEL_SIZE = 8  # points
MOST_NAMES = 24  # if there are more points, only the first ones get a name
_DISTANCES = (12, 20, 32, 46, 60)  # dots from the centre of a point, the nearest first
_CHOICE = 12  # free places to compare; later ones are too far away
_DIRECTIONS = (0, 180, 90, 270, 35, 145, 215, 325)  # degrees


@dataclass(frozen=True)
class Spot:
    """A point with a name, and `half` the length of its error bar, if it has one."""

    name: str
    x: float
    y: float
    half: float | None = None


def place_labels(
    figure: Figure,
    axes: Axes,
    spots: Sequence[Spot],
    line: Sequence[Spot] = (),
    first: Sequence[Spot] = (),
) -> None:
    """Name each spot at the first free place around it. The spots of `first` choose first.

    Places away from the `line` are preferred. If no place is free, the name is left out, because
    the table has it.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # fixes the position of the axes, which the search below needs
    figure.set_layout_engine("none")
    frame = axes.get_window_extent()
    taken = np.array([box for spot in spots for box in _marks(axes, spot)]).reshape(-1, 4)
    drawn = np.array(list(_along(axes, line))).reshape(-1, 4)
    order = sorted(spots, key=lambda spot: (spot not in first, -spot.y))
    for spot in order[:MOST_NAMES] if len(spots) > MOST_NAMES else order:
        probe = axes.text(spot.x, spot.y, spot.name, fontsize=LABEL_SIZE)
        size = probe.get_window_extent(canvas.get_renderer())
        probe.remove()
        x, y = axes.transData.transform((spot.x, spot.y))
        free = []
        for dx, dy in _around():
            left = x + dx - (size.width / 2 if abs(dx) < 1 else size.width if dx < 0 else 0)
            low = y + dy - size.height / 2
            box = (left - 1.5, low - 1.5, left + size.width + 1.5, low + size.height + 1.5)
            inside = frame.contains(box[0], box[1]) and frame.contains(box[2], box[3])
            if inside and not _overlaps(box, taken):
                free.append((_overlaps(box, drawn), len(free), dx, dy, box))
        if free:
            _, _, dx, dy, box = min(free[:_CHOICE])
            taken = np.vstack([taken, box])
            _write(axes, spot, dx, dy)


def _overlaps(box: tuple[float, float, float, float], others: np.ndarray) -> bool:
    if not len(others):
        return False
    left, low, right, high = others.T
    beside = (left > box[2]) | (right < box[0]) | (low > box[3]) | (high < box[1])
    return not bool(beside.all())


def _along(axes: Axes, line: Sequence[Spot]) -> Iterator[tuple[float, float, float, float]]:
    """Small boxes that cover the line between the spots."""
    corners = [axes.transData.transform((spot.x, spot.y)) for spot in line]
    for (x0, y0), (x1, y1) in pairwise(corners):
        count = max(2, int(math.hypot(x1 - x0, y1 - y0) / 6))
        for i in range(count + 1):
            x, y = x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count
            yield x - 2, y - 2, x + 2, y + 2


def _around() -> Iterator[tuple[float, float]]:
    for distance in _DISTANCES:
        for angle in map(math.radians, _DIRECTIONS):
            yield distance * math.cos(angle), distance * math.sin(angle)


def _marks(axes: Axes, spot: Spot) -> Iterator[tuple[float, float, float, float]]:
    """The boxes that a point's dot and error bar cover."""
    x, y = axes.transData.transform((spot.x, spot.y))
    yield x - 7, y - 7, x + 7, y + 7
    if spot.half:
        low, high = (
            axes.transData.transform((spot.x, spot.y + sign * spot.half))[1] for sign in (-1, 1)
        )
        yield x - 4, low - 3, x + 4, high + 3


def _write(axes: Axes, spot: Spot, dx: float, dy: float) -> None:
    far = math.hypot(dx, dy) > _DISTANCES[1]
    axes.annotate(
        spot.name,
        (spot.x, spot.y),
        (dx, dy),
        textcoords="offset pixels",
        fontsize=LABEL_SIZE,
        color=INK,
        va="center",
        ha="center" if abs(dx) < 1 else "left" if dx > 0 else "right",
        arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6} if far else None,
    )
