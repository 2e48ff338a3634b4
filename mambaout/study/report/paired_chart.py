"""The chart of recipes that are compared within a seed."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mambaout.study.law.paired import Gate, PairedDifference
from mambaout.study.pairing import Pair
from mambaout.study.report.paired_reading import PairedReading
from mambaout.study.report.picture import FAINT, PLAIN, finite, legend_below, new

NAME_WIDTH = 24  # characters of a line


def paired_chart(reading: PairedReading) -> Figure:
    """Every difference with its interval, below each other; the gate comes first."""
    rows = [(_name(one.pair, one.group.place), one.difference, one.state) for one in reading.gates]
    rows += [
        (_name(one.pair, one.place), one.difference, one.gate)
        for one in [*reading.pairs, *reading.changes]
    ]
    shown = [row for row in rows if row[1].values]
    figure, axes = new(
        f"The {reading.pairing.what}, within a seed",
        f"points of {reading.score}",
        "",
        height=1.4 + 0.14 * sum(name.count("\n") + 1.5 for name, _, _ in shown),
    )
    for place, (_, found, state) in enumerate(shown):
        _draw(axes, place, found, is_open=state is Gate.OPEN, is_first=place == 0)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [name for name, _, _ in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    legend_below(figure, axes)
    return figure


def _name(pair: Pair, place: str) -> str:
    """Each part on lines of its own."""
    parts = [f"{pair.first} minus", pair.second, *textwrap.wrap(place, NAME_WIDTH)]
    return "\n".join(parts)


def _draw(axes: Axes, y: int, found: PairedDifference, *, is_open: bool, is_first: bool) -> None:
    interval = found.interval
    axes.scatter(
        found.values,
        [y + 0.22] * len(found.values),
        s=8,
        color=FAINT,
        label="one seed" if is_first else None,
    )
    axes.errorbar(
        found.value,
        y,
        xerr=interval.high - interval.value if finite(interval.high) else None,
        color=PLAIN,
        marker="o",
        markersize=6,
        markerfacecolor=PLAIN if is_open else "white",
        capsize=4,
        linewidth=1.2,
        linestyle="none",
        label="mean, 95 %" if is_first else None,
    )
