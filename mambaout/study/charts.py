"""The study's charts: accuracy against cost, against throughput, and over training.

Drawn narrow, 4.8 inches, so that their text is still readable on a phone. Home of matplotlib,
without pyplot: no global state, so a driver can draw while its trials run.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from mambaout.study.pareto import front
from mambaout.study.rows import Row, count_text, rate_text
from mambaout.train.metrics import IMAGES_PER_SECOND, MACS, MINIVAL_TOP1, TOP1, TRAIN_LOSS

WIDTH, HEIGHT, DPI = 4.8, 3.9, 160  # inches, dots an inch
INK, FAINT, BASELINE_COLOR = "#1c2430", "#8a94a3", "#c2410c"
LABEL_SIZE = 8  # points
MAX_CURVE_NAMES = 12  # with more curves only the smallest, the largest and the baseline are named
MAX_WIDTH_COLORS = 6  # more network widths than this share one colour


def accuracy_macs(table: Sequence[Row]) -> Figure:
    """Val top-1 against MACs, with the Pareto front and the spread over seeds."""
    return _scatter(
        table,
        cost=MACS,
        sign=1,
        xlabel="MACs of one image (log)",
        ticks=count_text,
        title="Accuracy against MACs",
    )


def accuracy_throughput(table: Sequence[Row]) -> Figure:
    """Val top-1 against training images/s; the front runs along the upper right."""
    return _scatter(
        table,
        cost=IMAGES_PER_SECOND,
        sign=-1,
        xlabel="training images/s of a trial (log)",
        ticks=rate_text,
        title="Accuracy against throughput",
    )


@dataclass(frozen=True)
class _Point:
    row: Row
    x: float
    y: float
    spread: float | None
    color: str
    name: str


def _scatter(
    table: Sequence[Row],
    *,
    cost: str,
    sign: int,
    xlabel: str,
    ticks: Callable[[float], str],
    title: str,
) -> Figure:
    """A chart of top-1 against `cost`; `sign` is -1 where more of the cost is better."""
    colors = _width_colors(table)
    points = [
        _Point(
            row,
            row.mean(cost).value,
            row.mean(TOP1).value,
            row.mean(TOP1).spread,
            BASELINE_COLOR if row.is_baseline else colors[row.recipe.model.dims],
            row.label,
        )
        for row in table
        if row.mean(TOP1) and row.mean(cost) and row.mean(cost).value > 0
    ]
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _dress(axes, title, xlabel, "top-1 on val, %")
    if not points:
        return _nothing_yet(figure, axes)
    axes.set_xscale("log")
    floor = _floor([p.y for p in points])
    best = [points[i] for i in front([(sign * p.x, p.y) for p in points]) if points[i].y >= floor]
    axes.plot(
        [p.x for p in best],
        [p.y for p in best],
        color=FAINT,
        linewidth=1,
        linestyle=(0, (4, 3)),
        zorder=1,
        label="Pareto front",
    )
    shown = [p for p in points if p.y >= floor]
    for p in shown:
        if p.spread:
            axes.errorbar(p.x, p.y, p.spread, color=p.color, capsize=3, linewidth=1.2, zorder=2)
        marker, size = ("*", 150) if p.row.is_baseline else ("o", 38)
        axes.scatter(
            p.x,
            p.y,
            s=size,
            marker=marker,
            color=p.color,
            edgecolor="white",
            linewidth=0.8,
            zorder=3,
        )
    _legend_of_widths(axes, points, colors)
    axes.margins(x=0.12, y=0.12)
    if len(places := {p.x for p in shown}) == 1:  # no range to take a margin of
        axes.set_autoscalex_on(False)
        axes.set_xlim(min(places) / 2, max(places) * 2)
    fallen = _at_the_bottom(axes, [p for p in points if p.y < floor])
    _log_ticks(axes, ticks)
    _place_labels(figure, axes, shown + fallen, best)
    return figure


def _floor(values: Sequence[float]) -> float:
    """The lowest value that still belongs on the axis: one failed recipe must not flatten the rest.

    What lies further below the median than four times the median below the best falls off.
    """
    middle = statistics.median(values)
    return middle - 4 * max(max(values) - middle, 1.0)


def _at_the_bottom(axes: Axes, points: Sequence[_Point]) -> list[_Point]:
    """Mark points below the axis by an arrow at its lower edge, their value in their name."""
    low, high = axes.get_ylim()
    edge = low + 0.03 * (high - low)
    moved = [replace(p, y=edge, spread=None, name=f"{p.name} {p.y:.1f} %") for p in points]
    for p in moved:
        axes.scatter(p.x, p.y, s=45, marker="v", color=p.color, zorder=3)
    if points:
        axes.set_xlim(*_wide(axes.get_xlim(), [p.x for p in points]))
        axes.set_ylim(low, high)
    return moved


def _wide(limits: tuple[float, float], values: Sequence[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis that hold the values too, with room for their names."""
    return min(limits[0], *(value / 1.3 for value in values)), max(
        limits[1], *(value * 1.3 for value in values)
    )


def _width_colors(table: Sequence[Row]) -> dict[tuple[int, ...], str]:
    """A colour for each width of network, narrow to wide from light to dark."""
    widths = sorted({row.recipe.model.dims for row in table if not row.is_baseline})
    if len(widths) > MAX_WIDTH_COLORS:
        return dict.fromkeys((row.recipe.model.dims for row in table), "#2563a8")
    shades = colormaps["viridis"]
    count = max(len(widths) - 1, 1)
    return {dims: _hex(shades(0.8 - 0.72 * i / count)) for i, dims in enumerate(widths)}


def _hex(rgba: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgba[:3])


def _legend_of_widths(
    axes: Axes, points: Sequence[_Point], colors: dict[tuple[int, ...], str]
) -> None:
    shown = {p.row.recipe.model.dims for p in points if not p.row.is_baseline}
    if 1 < len(shown) <= MAX_WIDTH_COLORS:
        for dims in sorted(shown):
            axes.scatter([], [], s=38, color=colors[dims], label=f"first width {dims[0]}")
    if any(p.row.is_baseline for p in points):
        axes.scatter([], [], s=120, marker="*", color=BASELINE_COLOR, label="baseline recipe")
    if any(p.spread for p in points):
        axes.errorbar([], [], [], color=FAINT, capsize=3, linewidth=1.2, label="± spread of seeds")
    axes.legend(
        fontsize=7.5,
        frameon=False,
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        labelcolor=INK,
        handletextpad=0.5,
        columnspacing=1.2,
    )


# -- labels that do not overlap -------------------------------------------------------------------

_DISTANCES = (12, 20, 32, 46, 60)  # dots from a point's middle, near ones first
_CHOICE = 12  # free places to choose among; later ones are too far away
_DIRECTIONS = (0, 180, 90, 270, 35, 145, 215, 325)  # degrees


def _place_labels(
    figure: Figure, axes: Axes, points: Sequence[_Point], line: Sequence[_Point]
) -> None:
    """Name every point at the first free place around it; the baseline and the best choose first.

    Places off the front's `line` are preferred. Where no place is free the name is left out: the
    table has it.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # fixes the axes' place, which the search below measures in
    figure.set_layout_engine("none")
    frame = axes.get_window_extent()
    taken = [box for p in points for box in _marks(axes, p)]
    drawn = list(_along(axes, line))
    for p in sorted(points, key=lambda p: (not p.row.is_baseline, -p.y)):
        probe = axes.text(p.x, p.y, p.name, fontsize=LABEL_SIZE)
        size = probe.get_window_extent(canvas.get_renderer())
        probe.remove()
        x, y = axes.transData.transform((p.x, p.y))
        free = []
        for dx, dy in _around():
            left = x + dx - (size.width / 2 if abs(dx) < 1 else size.width if dx < 0 else 0)
            box = Bbox.from_bounds(left, y + dy - size.height / 2, size.width, size.height)
            box = box.padded(1.5)
            inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                crosses = any(box.overlaps(other) for other in drawn)
                free.append((crosses, len(free), dx, dy, box))
        if free:
            _, _, dx, dy, box = min(free[:_CHOICE])
            taken.append(box)
            _write_label(axes, p, dx, dy)


def _along(axes: Axes, line: Sequence[_Point]) -> Iterator[Bbox]:
    """Small boxes that cover the line between the points."""
    corners = [axes.transData.transform((p.x, p.y)) for p in line]
    for (x0, y0), (x1, y1) in pairwise(corners):
        count = max(2, int(math.hypot(x1 - x0, y1 - y0) / 6))
        for i in range(count + 1):
            x, y = x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count
            yield Bbox.from_extents(x - 2, y - 2, x + 2, y + 2)


def _around() -> Iterator[tuple[float, float]]:
    for distance in _DISTANCES:
        for angle in map(math.radians, _DIRECTIONS):
            yield distance * math.cos(angle), distance * math.sin(angle)


def _marks(axes: Axes, point: _Point) -> Iterator[Bbox]:
    """What a point's dot and its error bar cover."""
    x, y = axes.transData.transform((point.x, point.y))
    yield Bbox.from_extents(x - 7, y - 7, x + 7, y + 7)
    if point.spread:
        low, high = (
            axes.transData.transform((point.x, point.y + sign * point.spread))[1]
            for sign in (-1, 1)
        )
        yield Bbox.from_extents(x - 4, low - 3, x + 4, high + 3)


def _write_label(axes: Axes, point: _Point, dx: float, dy: float) -> None:
    far = math.hypot(dx, dy) > _DISTANCES[1]
    axes.annotate(
        point.name,
        (point.x, point.y),
        (dx, dy),
        textcoords="offset pixels",
        fontsize=LABEL_SIZE,
        color=INK,
        va="center",
        ha="center" if abs(dx) < 1 else "left" if dx > 0 else "right",
        arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6} if far else None,
    )


# -- over training --------------------------------------------------------------------------------


def learning_curves(table: Sequence[Row]) -> Figure:
    """Minival error by epoch on a logarithmic axis, a line a seed."""
    figure, axes = _curves(
        table,
        MINIVAL_TOP1,
        lambda top1: 100 - top1,
        "Error over training",
        "minival error, % (log)",
    )
    if axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def training_loss(table: Sequence[Row]) -> Figure:
    """Training loss by epoch, a line a seed."""
    return _curves(
        table, TRAIN_LOSS, lambda loss: loss, "Loss over training", "training loss, nats"
    )[0]


def _curves(
    table: Sequence[Row], name: str, shown: Callable[[float], float], title: str, ylabel: str
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _dress(axes, title, "epoch", ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    rows = sorted(table, key=lambda row: (row.mean(MACS).value if row.mean(MACS) else 0, row.label))
    shades = colormaps["viridis"]
    named = {rows[0].label, rows[-1].label} if len(rows) > MAX_CURVE_NAMES else None
    for i, row in enumerate(rows):
        color = _hex(shades(0.9 - 0.85 * i / max(len(rows) - 1, 1)))
        color = BASELINE_COLOR if row.is_baseline else color
        label = row.label if named is None or row.is_baseline or row.label in named else None
        for run in row.runs:
            line = [
                (record.epoch, shown(record.values[name]))
                for record in run.records
                if math.isfinite(record.values.get(name, math.nan))
            ]
            line = [(x, y) for x, y in line if y > 0]  # an error of 0 has no logarithm
            if line:
                axes.plot(*zip(*line, strict=True), color=color, linewidth=1.1, label=label)
                label = None  # one entry a recipe
                if run.status == "diverged":
                    axes.plot(*line[-1], marker="x", color=color, markersize=7)
    if not axes.lines:
        return _nothing_yet(figure, axes), axes
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=7.5,
        frameon=False,
        labelcolor=INK,
    )
    return figure, axes


# -- shared ---------------------------------------------------------------------------------------


def _dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(True, which="major", color="#e6e9ee", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def _log_ticks(axes: Axes, text: Callable[[float], str]) -> None:
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high / low < 1000 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _nothing_yet(figure: Figure, axes: Axes) -> Figure:
    axes.text(0.5, 0.5, "nothing to draw yet", transform=axes.transAxes, ha="center", color=FAINT)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG; equal figures give equal bytes, for no date or version is in it."""
    body = io.BytesIO()
    figure.savefig(body, format="png", metadata={"Software": None})
    return body.getvalue()
