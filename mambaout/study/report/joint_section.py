"""The part of the report on the joint law over size and length: sentences, a table, a chart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from mambaout.accounting import TRAIN_FORWARDS
from mambaout.numbers import count_text, counted, percent_text
from mambaout.study.law.fit import Holdout, TooFew
from mambaout.study.law.joint import REPEATS, JointLaw
from mambaout.study.report.content import Section, Table
from mambaout.study.report.law_charts import draw_holdout
from mambaout.study.report.picture import (
    MARKERS,
    legend_below,
    log_error_axis,
    log_ticks,
    new,
    shades,
)
from mambaout.study.report.reading import Reading

TITLE = "Size and length together"
JOINT_CHART = "size_and_length.png"
JOINT_CAPTIONS: Mapping[str, str] = {
    JOINT_CHART: "Error on val against MACs, both logarithmic. Lines are one law for all lengths, "
    "with its 95 % band; dots are the means over seeds with their 95 % intervals. A cross is what "
    "the law without the size, or without the length, says of it.",
}
JOINT_TRUST = (
    "How far to trust the 95 % intervals: in simulated studies they held 97 to 98 % of new runs at "
    "twice the largest size where all sizes lie on the law, but 87 to 89 % where shapes lie beside "
    "it by 1.5 times the noise of a run."
)
LARGER_BUDGET = 4  # times that of the largest training


def joint_section(reading: Reading) -> list[Section]:
    """Empty if the study's lengths and sizes are too few for a joint law."""
    law = reading.joint
    if not isinstance(law, JointLaw) or reading.standing.guessing:
        return []
    tables = [_left_out(law)] if law.left_out else []
    tables.append(_optima({"every image": law, "repeats count less": reading.joint_with_repeats}))
    return [Section(TITLE, _said(law), tables, [JOINT_CHART])]


def _said(law: JointLaw) -> list[str]:
    said = [
        f"N is the MACs of one image, and D the images seen: {law.text()}. The trainings lie "
        f"{law.residual_sd:.2f} points beside it."
    ]
    if law.notes:
        said.append(". ".join(note[:1].upper() + note[1:] for note in law.notes) + ".")
    said.append(JOINT_TRUST)
    guide = "" if law.is_determined else " As an exponent is not determined, they are a guide only."
    said.append(
        "The last table has the size and the length that the law expects to be best for the MACs "
        f"of the largest training, and for {LARGER_BUDGET} times as many.{guide} Its second part "
        "counts a repeated image for less than a new one, as Muennighoff et al. (arXiv 2305.16264) "
        f"found for language models (R = {REPEATS:g})."
    )
    return said


def _optima(laws: Mapping[str, JointLaw | str]) -> Table:
    header = ("images", "MACs of training", "MACs of the network", "epochs", "top-1 %", "remark")
    cells = []
    for images, law in laws.items():
        if isinstance(law, str):
            continue
        largest = max(
            TRAIN_FORWARDS * size.cost * size.epochs * law.num_images
            for size in law.sizes
            if size.epochs is not None
        )
        for budget in (largest, LARGER_BUDGET * largest):
            cells.append([images, count_text(budget), *_optimum(law, budget)])
    return Table(header, cells, (5,))


def _optimum(law: JointLaw, budget: float) -> list[str]:
    try:
        best = law.optimum(budget)
    except TooFew as error:
        return ["-", "-", "-", str(error)]
    p, macs = best.prediction, best.macs
    return [
        f"{count_text(macs.value)} ({count_text(macs.low)} to {count_text(macs.high)})",
        f"{best.epochs.value:.3g} ({best.epochs.low:.3g} to {best.epochs.high:.3g})",
        f"{100 - p.value:.2f} ({100 - p.high:.2f} to {100 - p.low:.2f})",
        best.doubt or "-",
    ]


def _left_out(law: JointLaw) -> Table:
    header = ("left out", "training", "predicted top-1 %", "reached", "points off", "interval")
    cells = [
        [group.name, one.size.label, *_outcome(one)]
        for group in law.left_out
        for one in group.holdouts
    ]
    return Table(header, cells)


def _outcome(one: Holdout) -> list[str]:
    p, n = one.prediction, len(one.size.errors)
    inside = "inside" if p.low <= one.size.error <= p.high else "outside"
    return [
        f"{100 - p.value:.2f} ({100 - p.high:.2f} to {100 - p.low:.2f})",
        f"{percent_text(100 - one.size.error)} (n={n})",
        f"{-one.error:+.2f}",
        inside,
    ]


def joint_chart(reading: Reading) -> Figure:
    """Error over size: a line of the law with its band, and dots, for each length."""
    law = reading.joint
    assert isinstance(law, JointLaw)
    figure, axes = new(TITLE, "MACs of one image (log)", "val error, % (log)")
    axes.set_xscale("log")
    costs = list(np.geomspace(law.sizes[0].cost, law.sizes[-1].cost, 40))
    held = [one for group in law.left_out for one in group.holdouts]
    looks = zip(law.lengths, shades(len(law.lengths)), MARKERS * 9, strict=False)
    for epochs, color, marker in looks:
        band = law.curve(costs, epochs)
        low, high = [p.low for p in band], [p.high for p in band]
        axes.plot(costs, [p.value for p in band], color=color, linewidth=1.4, zorder=2)
        axes.fill_between(costs, low, high, color=color, alpha=0.15, linewidth=0)
        some = [size for size in law.sizes if size.epochs == epochs]
        errors = [size.error for size in some]
        halves = [law.noise.half_width(size.seeds) or 0.0 for size in some]
        below = [min(half, 0.9 * error) for half, error in zip(halves, errors, strict=True)]
        axes.errorbar(
            [size.cost for size in some],
            errors,
            [below, halves],
            color=color,
            marker=marker,
            markersize=5,
            markeredgecolor="white",
            capsize=2,
            linewidth=0.9,
            linestyle="none",
            label=counted(epochs, "epoch"),
            zorder=3,
        )
        for one in held:
            if one.size.epochs == epochs:
                draw_holdout(axes, one, color)
    axes.margins(x=0.08, y=0.08)
    log_error_axis(axes)
    log_ticks(axes, count_text)
    legend_below(figure, axes)
    return figure
