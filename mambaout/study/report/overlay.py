"""A study on ImageNet-1k beside published results: a chart and its sentences.

Only for studies with 1000 classes, because top-1 on other data is not comparable.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from mambaout.numbers import count_text, percent_text
from mambaout.study.law.fit import TooFew, fit_law
from mambaout.study.law.noise import noise_of
from mambaout.study.law.plateau import plateaus
from mambaout.study.law.published import VAL_IMAGES, PublishedModel, ladder, published
from mambaout.study.report.labels import Spot, place_labels
from mambaout.study.report.picture import BASELINE_COLOR, legend_below, log_ticks, new
from mambaout.study.report.ranking import Standing
from mambaout.train.metrics import MACS, TOP1

NUM_CLASSES = 1000
FAMILIES = {  # drawn as lines; the others are faint dots
    "MambaOut": "#2563a8",
    "ConvNeXt": "#b7791f",
    "CAFormer": "#7c3aed",
    "VMamba": "#0f766e",
    "LocalVMamba": "#be185d",
}
SOURCE = (
    "Published models: mambaout/study/law/published.csv names the source of each (timm's results "
    "at 224 px where there are any, else the owners' README, else MambaOut's paper, arXiv "
    "2405.07992)."
)


def is_comparable(num_classes: object) -> bool:
    return num_classes == NUM_CLASSES


def published_chart(found: Standing) -> Figure:
    """Top-1 against MACs: the study's recipes among published models."""
    figure, axes = new("Beside published models", "MACs of one image (log)", "ImageNet top-1, %")
    axes.set_xscale("log")
    others = [model for model in published() if model.family not in FAMILIES]
    axes.scatter(
        [m.macs for m in others], [m.top1 for m in others], s=9, color="#cfd5dd", label="others"
    )
    spots, line = [], []
    for family, color in FAMILIES.items():
        models = [model for model in published() if model.family == family]
        axes.plot(
            [m.macs for m in models],
            [m.top1 for m in models],
            color=color,
            linewidth=1.1,
            marker="o",
            markersize=4,
            label=family,
        )
        if family in ("MambaOut", "LocalVMamba"):
            spots += [Spot(m.model, m.macs, m.top1) for m in models]
            line += [Spot("", m.macs, m.top1) for m in models]
    ready = [row for row in found.rows if row.mean(TOP1) and row.mean(MACS)]
    own = [(row.mean(MACS).value, row.mean(TOP1).value) for row in ready]
    if own:
        axes.errorbar(
            [x for x, _ in own],
            [y for _, y in own],
            [found.noise.half_width(row.mean(TOP1)) or 0.0 for row in ready],
            linestyle="none",
            marker="*",
            markersize=9,
            capsize=2,
            linewidth=0.9,
            color=BASELINE_COLOR,
            label="this study, 95 %",
        )
        spots += [Spot(row.label, x, y) for row, (x, y) in zip(ready[:8], own, strict=False)]
    tops = [m.top1 for m in published()] + [y for _, y in own]
    axes.set_ylim(max(min(tops), 70) - 1, max(tops) + 1)  # untrained models fall off
    log_ticks(axes, count_text)
    legend_below(figure, axes, ncols=4)
    place_labels(figure, axes, spots, line)
    return figure


def published_said() -> list[str]:
    """What the published MambaOut sizes show by themselves."""
    said = []
    small, local = _model("MambaOut-Small"), _model("LocalVMamba-S")
    said.append(
        f"{small.model} reaches {percent_text(small.top1, 1)} with {count_text(small.macs)} MACs, "
        f"{local.model} {percent_text(local.top1, 1)} with {count_text(local.macs)}: "
        f"{small.top1 - local.top1:+.1f} points at {small.macs / local.macs:.0%} of the MACs."
    )
    sizes = ladder("MambaOut")
    noise = noise_of([size.seeds for size in sizes], VAL_IMAGES)
    try:
        law = fit_law(sizes, noise)
        said.append(f"The published MambaOut sizes: {law.text()}.")
    except TooFew as error:
        said.append(f"The published MambaOut sizes have no law: {error}.")
    said += [f"There {plateau.text()}." for plateau in plateaus(sizes, noise)]
    return [*said, SOURCE]


def _model(name: str) -> PublishedModel:
    return next(model for model in published() if model.model == name)
