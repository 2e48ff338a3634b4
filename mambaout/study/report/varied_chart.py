"""Charts of accuracy over each varied field outside the network, one panel for each field."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mambaout.study.report.picture import BASELINE_COLOR, INK, PLAIN, grid, new
from mambaout.study.report.ranking import Standing
from mambaout.study.report.rows import Row
from mambaout.study.report.varied import VariedField, varied
from mambaout.train.metrics import MINIVAL_TOP1

MOST_PANELS = 4
LOG_RATIO = 4  # largest / smallest value from which the axis is logarithmic


def charted_fields(table: Sequence[Row]) -> list[VariedField]:
    """The numeric fields that differ between finished recipes."""
    ready = [row for row in table if row.mean(MINIVAL_TOP1)]
    return [one for one in varied(ready, ()) if one.is_numeric][:MOST_PANELS]


def varied_chart(found: Standing, fields: Sequence[VariedField]) -> Figure:
    ready = [row for row in found.rows if row.mean(MINIVAL_TOP1)]
    title, ylabel = "What was varied", f"{MINIVAL_TOP1}, %"
    if len(fields) == 1:
        figure, axes = new(title, "", ylabel)
        panels = [axes]
    else:
        figure, panels = grid(title, ylabel, len(fields))
    for panel, one in zip(panels, fields, strict=True):
        for row, x in zip(ready, one.values, strict=True):
            if x is None:
                continue
            panel.errorbar(
                [x],
                [(mean := row.mean(MINIVAL_TOP1)).value],
                found.minival_noise.half_width(mean),
                color=BASELINE_COLOR if row.is_baseline else PLAIN,
                marker="o",
                markersize=4.5,
                capsize=2.5,
                linewidth=1,
            )
        known = [value for value in one.values if value is not None]
        if min(known) > 0 and max(known) >= LOG_RATIO * min(known):
            panel.set_xscale("log")
            wide = max(known) / min(known) > 20
            panel.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
        panel.margins(x=0.1)
        panel.set_xlabel(one.name, fontsize=8.5, color=INK)
    return figure
