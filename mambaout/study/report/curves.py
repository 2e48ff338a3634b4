"""Charts over the training: the error on minival and the loss, one line for each seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mambaout.endings import Ending
from mambaout.study.report.picture import (
    BASELINE_COLOR,
    hexadecimal,
    legend_below,
    log_error_axis,
    new,
    nothing_yet,
)
from mambaout.study.report.rows import Row
from mambaout.train.metrics import MACS, MINIVAL_TOP1, TRAIN_LOSS
from mambaout.train.tasks import TaskKind

MAX_NAMES = 12  # if more, only the smallest, the largest and the baseline are named
MAX_RECIPES = 60  # if more, the best, the worst and some between are drawn


def learning_curves(table: Sequence[Row]) -> Figure:
    """Minival error by epoch on a logarithmic axis."""
    figure, axes = _curves(
        table,
        MINIVAL_TOP1,
        lambda top1: 100 - top1,
        "Error over training",
        "minival error, % (log)",
    )
    if axes.lines:
        log_error_axis(axes)
    return figure


def score_curves(table: Sequence[Row], kind: TaskKind) -> Figure:
    """The score of a detection or a segmentation on val, by epoch."""
    title, ylabel = f"{kind.score} over training", f"{kind.score} on val, %"
    return _curves(table, kind.watched, lambda score: score, title, ylabel)[0]


def training_loss(table: Sequence[Row], ylabel: str = "training loss, nats") -> Figure:
    """Training loss by epoch."""
    return _curves(table, TRAIN_LOSS, lambda loss: loss, "Loss over training", ylabel)[0]


def drawn(table: Sequence[Row]) -> list[Row]:
    """The recipes of the table whose curves are drawn. The table is ranked best first."""
    if len(table) <= MAX_RECIPES:
        return list(table)
    steps = (len(table) - 1) / (MAX_RECIPES - 1)
    return [table[round(i * steps)] for i in range(MAX_RECIPES)]


def _curves(
    table: Sequence[Row], name: str, shown: Callable[[float], float], title: str, ylabel: str
) -> tuple[Figure, Axes]:
    figure, axes = new(title, "epoch", ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    rows = sorted(
        drawn(table), key=lambda row: (row.mean(MACS).value if row.mean(MACS) else 0, row.label)
    )
    shades = colormaps["viridis"]
    named = {rows[0].label, rows[-1].label} if len(rows) > MAX_NAMES else None
    for i, row in enumerate(rows):
        color = hexadecimal(shades(0.9 - 0.85 * i / max(len(rows) - 1, 1)))
        color = BASELINE_COLOR if row.is_baseline else color
        label = row.label if named is None or row.is_baseline or row.label in named else None
        for run in row.runs:
            line = [
                (record.epoch, shown(record.values[name]))
                for record in run.records
                if math.isfinite(record.values.get(name, math.nan))
            ]
            if name == MINIVAL_TOP1:
                line = [(x, y) for x, y in line if y > 0]  # an error of 0 has no logarithm
            if line:
                alone = "." if len(line) == 1 else None  # a line of one point is invisible
                axes.plot(
                    *zip(*line, strict=True), color=color, linewidth=1.1, label=label, marker=alone
                )
                label = None  # one entry for each recipe
                end = {Ending.DIVERGED: "x", Ending.STOPPED: "|"}.get(run.status)
                if end:
                    axes.plot(*line[-1], marker=end, color=color, markersize=7)
    if not axes.lines:
        return nothing_yet(figure, axes), axes
    lengths = {row.epochs for row in rows}
    if max(lengths) >= 3 * min(lengths):  # else short trainings are crowded at the left
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("epoch (log)")
    legend_below(figure, axes, ncols=4)
    return figure, axes
