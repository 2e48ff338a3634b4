"""Charts of growing networks: fitted laws with bands, deep against wide, equal MACs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mambaout.numbers import count_text
from mambaout.study.law.fit import Holdout, Law
from mambaout.study.law.prediction import JudgedPrediction
from mambaout.study.law.slices import Slice
from mambaout.study.report.picture import (
    BASELINE_COLOR,
    FAINT,
    INK,
    MARKERS,
    WIDE,
    finite,
    legend_below,
    log_error_axis,
    log_ticks,
    new,
    shades,
    stacked,
)
from mambaout.study.report.reading import IMAGE_MACS, FamilyLaw, Reading


def law_chart(reading: Reading, cost: str = IMAGE_MACS) -> Figure:
    """Error against cost: one law with its band for each length, and the held-out largest size."""
    title = "Law of error over MACs" if cost == IMAGE_MACS else "Law of error over training MACs"
    figure, axes = new(title, f"{cost} (log)", "val error, % (log)")
    axes.set_xscale("log")
    found = [one for one in reading.laws if one.cost == cost]
    for one, color, marker in zip(found, shades(len(found)), MARKERS * 9, strict=False):
        _points(axes, one, reading, color, marker)
        if one.law:
            _curve(axes, one.law, color)
    if cost == IMAGE_MACS:
        _predicted(axes, reading)
    axes.margins(x=0.08, y=0.08)
    log_error_axis(axes)
    log_ticks(axes, count_text)
    legend_below(figure, axes)
    return figure


def _points(axes: Axes, one: FamilyLaw, reading: Reading, color: str, marker: str) -> None:
    used = {s.label for s in one.law.sizes} if one.law else set()
    for on in (True, False):
        shown = [
            (row, size)
            for row, size in zip(one.rows, one.sizes, strict=True)
            if (row.label in used) == on
        ]
        if not shown:
            continue
        xs = [size.cost for _, size in shown]
        ys = [size.error for _, size in shown]
        if reading.noise.has_seeds:
            halves = [reading.noise.half_width(size.seeds) or 0.0 for _, size in shown]
            low = [min(half, 0.9 * y) for half, y in zip(halves, ys, strict=True)]
            axes.errorbar(
                xs, ys, [low, halves], color=color, capsize=2, linewidth=0.9, linestyle="none"
            )
        axes.scatter(
            xs,
            ys,
            s=30,
            marker=marker,
            facecolor=color if on else "white",
            edgecolor="white" if on else color,
            linewidth=0.8 if on else 1.2,
            zorder=3,
            label=one.name if on or not used else None,
        )


def _curve(axes: Axes, law: Law, color: str) -> None:
    costs = np.geomspace(law.low_cost, law.high_cost, 60)
    band = law.curve(list(costs))
    axes.plot(costs, [p.value for p in band], color=color, linewidth=1.4, zorder=2)
    axes.fill_between(
        costs, [p.low for p in band], [p.high for p in band], color=color, alpha=0.15, linewidth=0
    )
    if law.holdout:
        draw_holdout(axes, law.holdout, color)


def draw_holdout(axes: Axes, holdout: Holdout, color: str) -> None:
    """Draw what the law of the others says of a size, as a cross with its interval."""
    p = holdout.prediction
    axes.errorbar(
        holdout.size.cost * 1.03,  # beside the size itself, not on it
        p.value,
        [[p.value - p.low], [p.high - p.value]],
        color=color,
        marker="x",
        markersize=6,
        capsize=2,
        linewidth=0.9,
        zorder=4,
    )


def _predicted(axes: Axes, reading: Reading) -> None:
    """Draw the predictions for the largest sizes, made before training, and the outcomes."""
    told = [(said, found) for said, found in reading.judged if found is not None]
    for place, (said, found) in enumerate(told):
        _one_predicted(axes, said, found, is_first=place == 0)


def _one_predicted(
    axes: Axes, said: Mapping[str, Any], found: JudgedPrediction, *, is_first: bool
) -> None:
    error = 100 - found.value
    axes.errorbar(
        said["cost"],
        error,
        [[error - (100 - found.high)], [100 - found.low - error]],
        color=BASELINE_COLOR,
        marker="D",
        markerfacecolor="white",
        markersize=6,
        capsize=3,
        linewidth=1.1,
        linestyle="none",
        label="predicted before training" if is_first else None,
    )
    if found.reached is not None:
        axes.scatter(
            said["cost"],
            100 - found.reached,
            s=60,
            marker="*",
            color=BASELINE_COLOR,
            zorder=5,
            label="its outcome" if is_first else None,
        )


# -- deep against wide ----------------------------------------------------------------------------


def contrast_chart(reading: Reading) -> Figure:
    """What twice the width / depth gains at equal MACs, for each length of training."""
    figure, axes = new(
        "Width against depth at equal MACs",
        "epochs of training",
        "points of top-1 for twice the width / depth",
    )
    told = [
        (one.family.name if one.family.title else str(one.family.epochs), one.growth.contrast)
        for one in reading.grown
        if one.growth.contrast is not None
    ]
    for place, (_, contrast) in enumerate(told):
        gain, others = contrast.gain, [one.value for one in contrast.without.values() if one]
        axes.errorbar(
            place,
            gain.value,
            gain.high - gain.value if finite(gain.high) else 0.0,
            color=WIDE,
            marker="o",
            markersize=6,
            capsize=4,
            linewidth=1.2,
            label=None if place else "all shapes, 95 %",
        )
        axes.scatter(
            [place + 0.12] * len(others),
            others,
            s=14,
            color=BASELINE_COLOR,
            label=None if place else "without one width or depth",
        )
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_xticks(range(len(told)), [name for name, _ in told])
    axes.set_xlim(-0.5, len(told) - 0.5)
    legend_below(figure, axes)
    return figure


def iso_chart(reading: Reading) -> Figure:
    """Error against depth / width: a panel for each length, a line for each slice of equal MACs."""
    grown = [one for one in reading.grown if one.slices]
    ordered = sorted((piece for one in grown for piece in one.slices), key=lambda one: one.cost)
    costs = list(dict.fromkeys(map(_group, ordered)))
    looks = dict(zip(costs, zip(shades(len(costs)), MARKERS * 9, strict=False), strict=True))
    figure, panels = stacked(
        "Deep against wide at equal MACs",
        "blocks / first width (log; deep to the right)",
        len(grown),
    )
    for one, axes in zip(grown, panels, strict=True):
        axes.set_xscale("log")
        axes.set_ylabel(f"val error, %\n{one.family.name}", fontsize=9, color=INK)
        for piece in one.slices:
            _slice(axes, piece, reading, *looks[_group(piece)])
        axes.margins(x=0.1, y=0.15)
    low, high = panels[-1].get_xlim()
    panels[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 30 else (1,)))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[-1].xaxis.set_minor_formatter(NullFormatter())
    legend_below(figure, panels[0])
    return figure


def _group(piece: Slice) -> str:
    return f"{count_text(piece.cost)} MACs"


def _slice(axes: Axes, piece: Slice, reading: Reading, color: str, marker: str) -> None:
    ratios = [one.depth / one.width for one in piece.sizes]
    errors = list(piece.errors)
    halves = [reading.noise.half_width(one.seeds) or 0.0 for one in piece.sizes]
    low = [min(half, 0.9 * error) for half, error in zip(halves, errors, strict=True)]
    curve = piece.curve(grid := list(np.geomspace(min(ratios), max(ratios), 40)))
    axes.errorbar(
        ratios,
        errors,
        [low, halves],
        color=color,
        marker=marker,
        markersize=5,
        capsize=2,
        linewidth=0.9,
        linestyle="none" if curve else "-",
        label=_group(piece),
    )
    if curve:
        axes.plot(grid, curve, color=color, linewidth=1.3)
