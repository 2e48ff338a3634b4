"""Charts of accuracy against cost: MACs, parameters, throughput, and the whole training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mambaout.numbers import count_text, hours_text, percent_text, rate_text
from mambaout.study.law.pareto import front
from mambaout.study.report.labels import MOST_NAMES, Spot, place_labels
from mambaout.study.report.picture import (
    BASELINE_COLOR,
    FAINT,
    MARKERS,
    PLAIN,
    legend_below,
    log_ticks,
    new,
    nothing_yet,
    shades,
)
from mambaout.study.report.ranking import Standing
from mambaout.study.report.rows import Row
from mambaout.train.metrics import (
    IMAGES_PER_SECOND,
    MACS,
    MINIVAL_TOP1,
    PARAMS,
    TOP1,
    TRAIN_DEVICE_HOURS,
)

MANY = 40  # points
MAX_WIDTH_COLORS = 6  # if there are more network widths, all share one colour


@dataclass(frozen=True, kw_only=True)
class CostAxis:
    """One way to count what a recipe costs."""

    title: str
    label: str
    cost: Callable[[Row], float]  # nan if not known
    ticks: Callable[[float], str]
    more_is_better: bool = False
    is_measured: bool = False  # as opposed to computed from the recipe


def _mean(name: str) -> Callable[[Row], float]:
    return lambda row: row.mean(name).value


COST_AXES = {
    "accuracy_macs.png": CostAxis(
        title="Accuracy against MACs",
        label="MACs of one image (log)",
        cost=_mean(MACS),
        ticks=count_text,
    ),
    "accuracy_params.png": CostAxis(
        title="Accuracy against parameters",
        label="parameters (log)",
        cost=_mean(PARAMS),
        ticks=count_text,
    ),
    "accuracy_throughput.png": CostAxis(
        title="Accuracy against throughput",
        label="training images/s of a trial (log)",
        cost=_mean(IMAGES_PER_SECOND),
        ticks=rate_text,
        more_is_better=True,
        is_measured=True,
    ),
    "accuracy_train_macs.png": CostAxis(
        title="Accuracy against training MACs",
        label="MACs of the whole training (log)",
        cost=lambda row: row.train_macs,
        ticks=count_text,
    ),
    "accuracy_device_hours.png": CostAxis(
        title="Accuracy against training time",
        label="device time of one training (log)",
        cost=_mean(TRAIN_DEVICE_HOURS),
        ticks=hours_text,
        is_measured=True,
    ),
}


@dataclass(frozen=True)
class _Point:
    row: Row
    x: float
    y: float
    half: float | None  # half the mean's 95 % interval
    color: str
    marker: str
    name: str

    @property
    def spot(self) -> Spot:
        return Spot(self.name, self.x, self.y, self.half)


def accuracy(found: Standing, axis: CostAxis) -> Figure:
    """Val top-1 against a cost, with 95 % intervals over seeds and the Pareto front.

    The front is chosen on minival. Val only gives the accuracy of what was chosen.
    """
    points = _points(found, axis.cost)
    figure, axes = new(axis.title, axis.label, "top-1 on val, %")
    if not points:
        return nothing_yet(figure, axes)
    axes.set_xscale("log")
    floor = _floor([p.y for p in points])
    sign = -1 if axis.more_is_better else 1
    scored = [p for p in points if p.row.mean(MINIVAL_TOP1)]
    chosen = front([(sign * p.x, p.row.mean(MINIVAL_TOP1).value) for p in scored])
    best = [scored[i] for i in chosen if scored[i].y >= floor]
    axes.plot(
        [p.x for p in best],
        [p.y for p in best],
        color=FAINT,
        linewidth=1,
        linestyle=(0, (4, 3)),
        zorder=1,
        label="front, chosen on minival",
    )
    shown = [p for p in points if p.y >= floor]
    _draw(axes, shown, best)
    _legend(axes, shown)
    axes.margins(x=0.12, y=0.12)
    if len(places := {p.x for p in shown}) == 1:  # there is no range from which to compute a margin
        axes.set_autoscalex_on(False)
        axes.set_xlim(min(places) / 2, max(places) * 2)
    _hold(axes, shown)
    fallen = _at_the_bottom(axes, [p for p in points if p.y < floor])
    log_ticks(axes, axis.ticks)
    legend_below(figure, axes)
    first = [p for p in best if len(points) > MOST_NAMES]
    first += [p for p in shown if p.row.is_baseline]
    place_labels(
        figure,
        axes,
        [p.spot for p in shown + fallen],
        [p.spot for p in best],
        [p.spot for p in first],
    )
    return figure


def _points(found: Standing, cost: Callable[[Row], float]) -> list[_Point]:
    table = found.rows
    colors = _width_colors(table)
    lengths = sorted({row.epochs for row in table if not row.is_baseline})
    many = len(lengths) > len(MARKERS)
    markers = {epochs: "o" if many else MARKERS[i] for i, epochs in enumerate(lengths)}
    return [
        _Point(
            row,
            cost(row),
            row.mean(TOP1).value,
            found.noise.half_width(row.mean(TOP1)),
            BASELINE_COLOR if row.is_baseline else colors[row.width],
            "*" if row.is_baseline else markers[row.epochs],
            row.label,
        )
        for row in table
        if row.mean(TOP1) and cost(row) > 0
    ]


def _draw(axes: Axes, points: Sequence[_Point], best: Sequence[_Point]) -> None:
    """Draw dots and error bars, one call for each style, because a search has thousands of points.

    Many points are drawn small and without an edge, and only the front has error bars.
    """
    many = len(points) > MANY
    for color, marker in sorted({(p.color, p.marker) for p in points}):
        group = [p for p in points if (p.color, p.marker) == (color, marker)]
        barred = [p for p in group if p.half and (p in best or not many)]
        if barred:
            axes.errorbar(
                [p.x for p in barred],
                [p.y for p in barred],
                [p.half or 0.0 for p in barred],
                color=color,
                capsize=2.5,
                linewidth=1,
                linestyle="none",
                zorder=2,
            )
        axes.scatter(
            [p.x for p in group],
            [p.y for p in group],
            s=150 if marker == "*" else 12 if many else 34,
            marker=marker,
            color=color,
            alpha=0.55 if many and marker != "*" else 1,
            edgecolor="none" if many else "white",
            linewidth=0 if many else 0.8,
            zorder=3,
        )


def _hold(axes: Axes, points: Sequence[_Point]) -> None:
    """Fit the axis to the points, because an interval of two seeds can be wider than all points."""
    low, high = min(p.y for p in points), max(p.y for p in points)
    room = max(0.35 * (high - low), 0.5)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - room), min(top, high + room))


def _floor(values: Sequence[float]) -> float:
    """The lowest value on the axis. One failed recipe must not flatten the rest of the chart.

    Values below median - 4 * (best - median) fall off.
    """
    middle = statistics.median(values)
    return middle - 4 * max(max(values) - middle, 1.0)


def _at_the_bottom(axes: Axes, points: Sequence[_Point]) -> list[_Point]:
    """Mark points below the axis by an arrow at its lower edge. Their name includes the value."""
    low, high = axes.get_ylim()
    edge = low + 0.03 * (high - low)
    moved = [replace(p, y=edge, half=None, name=f"{p.name} {percent_text(p.y, 1)}") for p in points]
    for p in moved:
        axes.scatter(p.x, p.y, s=45, marker="v", color=p.color, zorder=3)
    if points:
        axes.set_xlim(*_wide(axes.get_xlim(), [p.x for p in points]))
        axes.set_ylim(low, high)
    return moved


def _wide(limits: tuple[float, float], values: Sequence[float]) -> tuple[float, float]:
    """The limits of a logarithmic axis, widened to hold the values and their names."""
    return min(limits[0], *(value / 1.3 for value in values)), max(
        limits[1], *(value * 1.3 for value in values)
    )


def _width_colors(table: Sequence[Row]) -> dict[int, str]:
    """A colour for each width of the first stage, from light (narrow) to dark (wide)."""
    widths = sorted({row.width for row in table if not row.is_baseline})
    if len(widths) > MAX_WIDTH_COLORS:
        return dict.fromkeys(widths, PLAIN)
    return dict(zip(widths, shades(len(widths)), strict=True))


def _legend(axes: Axes, points: Sequence[_Point]) -> None:
    """Explain colour, mark and error bar, if there is more than one."""
    plain = [p for p in points if not p.row.is_baseline]
    looks = {p.row.width: p.color for p in plain}
    if len(looks) > 1 and len(set(looks.values())) > 1:
        for width, color in sorted(looks.items()):
            axes.scatter([], [], s=34, color=color, label=f"first width {width}")
    marks = {p.row.epochs: p.marker for p in plain}
    if len(set(marks.values())) > 1:
        for epochs, marker in sorted(marks.items()):
            axes.scatter([], [], s=30, marker=marker, color=FAINT, label=f"{epochs} epochs")
    if len(plain) < len(points):
        axes.scatter([], [], s=120, marker="*", color=BASELINE_COLOR, label="baseline recipe")
    if any(p.half for p in points):
        axes.errorbar([], [], [], color=FAINT, capsize=2.5, linewidth=1, label="95 % over seeds")


def is_drawn(table: Sequence[Row], axis: CostAxis) -> bool:
    """Whether there are recipes to compare. If all cost the same, there is no chart.

    Measured values differ a little even between equal trainings. That is no difference in cost.
    """
    ready = [row for row in table if row.mean(TOP1)]
    priced = [row for row in ready if math.isfinite(axis.cost(row)) and axis.cost(row) > 0]
    if axis.is_measured and len(priced) > 1 and len({_work(row) for row in priced}) == 1:
        return False
    costs = [axis.cost(row) for row in priced]
    return bool(costs) and (len(ready) == 1 or max(costs) > 1.05 * min(costs))


def _work(row: Row) -> Hashable:
    """The values on which a training's time depends."""
    recipe = row.recipe
    model = replace(recipe.model, drop_path=0.0)
    batch = recipe.global_batch, recipe.image_size, recipe.precision
    return model, batch, row.epochs, recipe.train_images
