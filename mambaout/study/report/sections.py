"""The parts of the report between its answer and its tables: charts with their text.

A part is left out if the study has no data for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from mambaout.study.law.fit import Law
from mambaout.study.report.charts import COST_AXES, accuracy, is_drawn
from mambaout.study.report.checklist import checklist
from mambaout.study.report.content import Section, Table
from mambaout.study.report.curves import MAX_RECIPES, learning_curves, training_loss
from mambaout.study.report.growing import at_equal_macs, contrast_table, shape_exponents
from mambaout.study.report.joint_section import (
    JOINT_CAPTIONS,
    JOINT_CHART,
    joint_chart,
    joint_section,
)
from mambaout.study.report.law_charts import contrast_chart, iso_chart, law_chart
from mambaout.study.report.overlay import SOURCE, is_comparable, published_chart, published_said
from mambaout.study.report.paired_chart import paired_chart
from mambaout.study.report.paired_section import PAIRED_CAPTION, PAIRED_CHART, paired_section
from mambaout.study.report.reading import IMAGE_MACS, SLICE_TOLERANCE, TRAINING_MACS, Reading
from mambaout.study.report.search_findings import (
    SEARCH_CHARTS,
    axes_chart,
    importance_chart,
    search_sections,
)
from mambaout.study.report.varied_chart import charted_fields, varied_chart
from mambaout.study.training_images import training_images_text

CAPTIONS = {
    "accuracy_macs.png": "Up and to the left is better. The dashed line joins the recipes that no "
    "other beats on both MACs and minival, at their height on val, so it can fall; an arrow at the "
    "lower edge is a recipe that lies below the chart.",
    "varied.png": "Top-1 on minival over each field that the study varies, with 95 % intervals "
    "over seeds where they are known. Other fields may differ between two dots of a panel.",
    "accuracy_params.png": "Parameters count nothing at run time and little in memory while "
    "training; they are what a checkpoint weighs.",
    "accuracy_throughput.png": "Up and to the right is better. Images/s as measured while the "
    "trials of the study shared the machine.",
    "accuracy_train_macs.png": "What reaching the accuracy cost: forward and backward over every "
    "image of the training, so that a small network trained long stands beside a large one "
    "trained briefly.",
    "accuracy_device_hours.png": "The same in time: training and evaluations, while the trials of "
    "the study shared the machine.",
    "law.png": "Error on val against MACs, both logarithmic. Lines are the fitted laws with the "
    "95 % band of the law, dots the means over seeds with their 95 % intervals, hollow dots sizes "
    "that the law leaves out. A cross is what the law of the smaller sizes says of the largest.",
    "law_training.png": "The same over the MACs of the whole training, all lengths together: what "
    "the best size at each budget reaches.",
    "contrast.png": "Above 0, a wider network is better than a deeper one with as many MACs. Dots "
    "beside an interval are the same number without one width or one depth.",
    "iso_mac.png": f"Shapes whose MACs are within {SLICE_TOLERANCE:.0%} of each other. What that "
    "difference gains is taken out, so that only their shape differs; a curve is the parabola "
    "through three shapes or more.",
    PAIRED_CHART: PAIRED_CAPTION,
    **JOINT_CAPTIONS,
    **SEARCH_CHARTS,
    "published.png": SOURCE,
    "learning_curves.png": "One line a seed, light to dark by MACs; a cross marks a run that "
    "diverged, a stroke one that the search stopped.",
    "training_loss.png": "Against the targets that mixing and smoothing make, so it does not fall "
    "to 0.",
}


LAW_CHARTS = {"law.png": IMAGE_MACS, "law_training.png": TRAINING_MACS}
ONE_SEED = (
    "No recipe has a second seed. The intervals here hold only what the number of val images and "
    "the scatter of the sizes show; seeds would make them wider."
)
LAW_TRUST = (
    "How far to trust the 95 % intervals: in simulated studies they held 95 to 98 % of new runs at "
    "twice the largest cost where all sizes lie on the law, 90 to 94 % where shapes lie beside it "
    "by 1.5 times the noise of a run, and 77 to 90 % where by 3 times; fewest with four sizes, "
    "which cannot show that they do."
)
MOST_LEFT_OUT = 4  # of the sizes that a law leaves out, so many are named


def drawings(reading: Reading) -> dict[str, Callable[[], Figure]]:
    """The functions that draw the study's charts, by file name."""
    table = reading.table
    curves = {
        "learning_curves.png": partial(learning_curves, table),
        "training_loss.png": partial(training_loss, table),
    }
    found: dict[str, Callable[[], Figure]] = {}
    if reading.paired is not None and reading.paired.has_results:
        found[PAIRED_CHART] = partial(paired_chart, reading.paired)
    if reading.paired is None and not reading.searches and (fields := charted_fields(table)):
        found["varied.png"] = partial(varied_chart, reading.standing, fields)
    if any(one.best for one in reading.searches):
        found["axes.png"] = partial(axes_chart, reading.searches)
    if reading.standing.guessing:  # a chart or a law of luck means nothing
        return found | curves
    found |= {
        name: partial(accuracy, reading.standing, axis)
        for name, axis in COST_AXES.items()
        if is_drawn(table, axis)
    }
    for name, cost in LAW_CHARTS.items():
        if any(one.law for one in reading.laws if one.cost == cost):
            found[name] = partial(law_chart, reading, cost)
    if joint_section(reading):
        found[JOINT_CHART] = partial(joint_chart, reading)
    if any(one.importances for one in reading.searches):
        found["importances.png"] = partial(importance_chart, reading.searches)
    if is_comparable(reading.study.get("num_classes")):
        found["published.png"] = partial(published_chart, reading.standing)
    if any(one.growth.contrast for one in reading.grown):
        found["contrast.png"] = partial(contrast_chart, reading)
    if any(one.slices for one in reading.grown):
        found["iso_mac.png"] = partial(iso_chart, reading)
    return found | curves


def sections(reading: Reading) -> list[Section]:
    drawn = drawings(reading)
    parts = [
        *paired_section(reading.paired),
        *_costs(reading, drawn),
        *([Section("What was varied", (), (), ["varied.png"])] if "varied.png" in drawn else []),
        *_shapes(reading, drawn),
        *_laws(reading, drawn),
        *joint_section(reading),
        *search_sections(reading.searches, reading.noise, list(drawn)),
        *_published(drawn),
        Section("Noise between seeds", _noise(reading)),
        Section(
            "Over training", said=_few(reading), charts=["learning_curves.png", "training_loss.png"]
        ),
        *checklist(reading),
    ]
    return parts


def _noise(reading: Reading) -> list[str]:
    images = training_images_text(run.trial.recipe for run in reading.runs)
    return [reading.noise.text(), *([images] if images else [])]


def _shapes(reading: Reading, drawn: dict[str, Callable[[], Figure]]) -> list[Section]:
    charts = [name for name in ("contrast.png", "iso_mac.png") if name in drawn]
    said = [*at_equal_macs(reading), *shape_exponents(reading)]
    if not reading.standing.has_verdict:
        said = [ONE_SEED, *said]
    tables = contrast_table(reading)
    return [Section("Deeper or wider", said, tables, charts)] if charts or tables else []


def _costs(reading: Reading, drawn: dict[str, Callable[[], Figure]]) -> list[Section]:
    charts = [name for name in COST_AXES if name in drawn]
    note = reading.standing.speeds.note
    said = [note] if note else []
    return [Section("Accuracy against cost", said, (), charts)] if charts else []


def _published(drawn: dict[str, Callable[[], Figure]]) -> list[Section]:
    if "published.png" not in drawn:
        return []
    return [Section("Beside published models", published_said(), (), ["published.png"])]


def _few(reading: Reading) -> list[str]:
    count = len(reading.table)
    if count <= MAX_RECIPES:
        return []
    return [f"{MAX_RECIPES} of {count} recipes are drawn: the best, the last and some between."]


def _laws(reading: Reading, drawn: dict[str, Callable[[], Figure]]) -> list[Section]:
    """The fitted laws, each with its prediction of the largest size from the others."""
    if not reading.laws or reading.standing.guessing:
        return []
    header = ("ladder", "law", "scatter", "largest held out", "remarks")
    cells = []
    for found in reading.laws:
        law = found.law
        if law is None:
            cells.append([f"{found.name}, {found.cost}", "none", "-", "-", found.reason])
            continue
        held = law.holdout.text() if law.holdout else "-"
        cells.append(
            [
                f"{found.name}, {found.cost}",
                law.text(),
                f"{law.residual_sd:.2f} points",
                held,
                "; ".join(_notes(law)) or "-",
            ]
        )
    charts = [name for name in LAW_CHARTS if name in drawn]
    said = [LAW_TRUST] if any(found.law is not None for found in reading.laws) else []
    return [Section("Laws of error over cost", said, [Table(header, cells, (1, 3, 4))], charts)]


def _notes(law: Law) -> list[str]:
    """The law's remarks. A long list of names is replaced by their number."""
    count = len(law.left_out)
    if count <= MOST_LEFT_OUT:
        return list(law.notes)
    names = ", ".join(size.label for size in law.left_out)
    short = f"{count} of {count + len(law.sizes)} sizes are beaten by cheaper ones and are left out"
    return [short if names in note else note for note in law.notes]
