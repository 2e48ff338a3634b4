"""What the report of a study of detectors or segmenters says.

The images of val both choose and score here, as is usual on COCO and ADE20K: there is no minival.
The report says so, because the highest of many then looks better than it is.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from mambaout.numbers import count_text, hours_text, percent_text, rate_text
from mambaout.study.law.noise import SeedNoise, noise_of_runs
from mambaout.study.report.content import Content, Section
from mambaout.study.report.curves import score_curves, training_loss
from mambaout.study.report.findings import missing
from mambaout.study.report.labels import Spot, place_labels
from mambaout.study.report.paired_chart import paired_chart
from mambaout.study.report.paired_reading import PairedReading, paired_reading
from mambaout.study.report.paired_section import (
    PAIRED_CAPTION,
    PAIRED_CHART,
    paired_said,
    paired_section,
    paired_text,
)
from mambaout.study.report.picture import PLAIN, log_ticks, new, nothing_yet, png, small_jpeg
from mambaout.study.report.rows import Row, rows
from mambaout.study.report.tables import (
    NAME,
    NOTE,
    RankedTable,
    interval_text,
    terminal_text,
)
from mambaout.study.report.trial_files import checkpoint_path
from mambaout.study.report.varied import varied
from mambaout.study.speeds import own_speeds
from mambaout.study.study import Run, StudyFolder
from mambaout.train.metrics import IMAGES_PER_SECOND, MACS, PARAMS, TRAIN_DEVICE_HOURS
from mambaout.train.tasks import SHEET, TaskKind, kind_named

MOST_VARIED = 4  # columns of varied fields
PICTURES = "predictions.jpg"
SHOWN_SCORES = 2  # columns of further scores, where there are any


def dense_content(folder: StudyFolder, runs: Sequence[Run], study: Mapping[str, Any]) -> Content:
    """The content of the report."""
    kind = kind_named(study["task"])
    table, noise = _ranked_rows(runs, kind)
    best = _best_run(table, kind)
    paired = paired_reading(study, table, kind.final, kind.score)
    pictures: dict[str, Callable[[], bytes]] = {
        name: lambda draw=draw: png(draw()) for name, draw in _charts(table, kind, noise).items()
    }
    if paired is not None and paired.has_results:
        pictures[PAIRED_CHART] = lambda: png(paired_chart(paired))
    sheet = None if best is None else folder.run_directory(best.trial) / SHEET
    if sheet is not None and sheet.exists():
        pictures[PICTURES] = partial(small_jpeg, sheet)
    captions = {
        PAIRED_CHART: PAIRED_CAPTION,
        "score_macs.png": "Up and to the left is better. Bars are 95 % intervals over seeds.",
        "score_curves.png": "One line a seed, light to dark by MACs.",
        "training_loss.png": "The sum of the losses, a mean over the images since the last record.",
        PICTURES: f"{best.trial.name if best else ''}: images of val with what the network says.",
    }
    parts = [
        ("Score against cost", [], ["score_macs.png"]),
        ("What the best trial sees", [], [PICTURES]),
        ("Over training", [], ["score_curves.png", "training_loss.png"]),
        ("Noise between seeds", [noise.text()], []),
    ]
    return Content(
        study=study,
        table=table,
        ranked=_cells(table, kind, noise),
        heading=f"Recipes, highest {kind.score} first",
        said=_answer(table, kind, noise) if paired is None else _paired_answer(table, paired),
        sections=[
            *paired_section(paired),
            *(
                Section(title, said, (), shown)
                for title, said, names in parts
                if (shown := [name for name in names if name in pictures]) or said
            ),
        ],
        notes=_notes(kind),
        best_run=best,
        pictures=pictures,
        captions=captions,
    )


def dense_summary(folder: StudyFolder, runs: Sequence[Run], study: Mapping[str, Any]) -> str:
    """The last output of a launch: the ranked table and the best trial's folder."""
    kind = kind_named(study["task"])
    table, noise = _ranked_rows(runs, kind)
    lines = [terminal_text(_cells(table, kind, noise))]
    paired = paired_text(paired_reading(study, table, kind.final, kind.score))
    lines += ["\n".join(["", *paired])] if paired else []
    best = _best_run(table, kind)
    path = None if best is None else checkpoint_path(folder, best.trial)
    if best is None or path is None:
        return "\n".join(lines)
    name = shlex.quote(f"{folder.path.name}/{best.trial.name}")
    storage = shlex.join(["--storage", str(folder.path.parent)])
    directory = folder.run_directory(best.trial)
    reached = f"{kind.score} {percent_text(best.metrics[kind.final])}"
    lines.append(f"\nhighest trial: {best.trial.name} ({reached})")
    lines.append(f"  checkpoint:   {folder.path / path}")
    if (directory / SHEET).exists():
        lines.append(f"  its pictures: {directory / SHEET}")
    if not best.trial.recipe.model.not_in_timm:
        lines.append(
            f"  for timm:     mambaout export {name} best.safetensors --features {storage}"
        )
    return "\n".join(lines)


def _ranked_rows(runs: Sequence[Run], kind: TaskKind) -> tuple[list[Row], SeedNoise]:
    """The recipes, highest score first and unfinished ones last, and the noise of the score."""
    table = rows(own_speeds(runs).runs)
    table.sort(key=lambda row: -row.mean(kind.final).value if row.mean(kind.final) else math.inf)
    return table, noise_of_runs(runs, kind.final)


def _best_run(table: Sequence[Row], kind: TaskKind) -> Run | None:
    finished = [run for row in table for run in row.finished if kind.final in run.metrics]
    return max(finished, key=lambda run: run.metrics[kind.final], default=None)


# -- words ----------------------------------------------------------------------------------------


def _answer(table: Sequence[Row], kind: TaskKind, noise: SeedNoise) -> list[str]:
    ready = [row for row in table if row.mean(kind.final)]
    if not ready:
        return [*missing(table), "No trial has a result yet."]
    best = ready[0]
    told = f"{best.label} reaches {kind.score} {interval_text(best, kind.final, noise)}"
    told += f" for {count_text(best.mean(MACS).value)} MACs"
    said = [f"{told}{', the highest here' if len(ready) > 1 else ''}."]
    if not best.mean(kind.final).value > 0:
        said = ["No recipe has found anything yet: train longer."]
    elif len(ready) > 1:
        second = ready[1]
        difference = noise.difference(best.mean(kind.final), second.mean(kind.final))
        text = f"{second.label} comes next with {interval_text(second, kind.final, noise)}, for "
        text += f"{count_text(second.mean(MACS).value)} MACs."
        if noise.has_seeds:
            text += f" The difference is {difference.text()}."
        else:
            text += " Each recipe has one seed, so this does not tell a better one from luck."
        said.append(text)
    return [*missing(table), *said]


def _paired_answer(table: Sequence[Row], paired: PairedReading) -> list[str]:
    return [*missing(table), *paired_said(paired)]


def _notes(kind: TaskKind) -> list[str]:
    return [
        f"{kind.score} is in percent, over all images of val after the last step. Val both ranks "
        "and scores here, as is usual for this task, so the highest of many recipes looks better "
        "than it is.",
        "± is half the 95 % interval of the mean over n seeds, by Student's t. The spread is "
        "pooled over recipes.",
        "MACs are multiply-adds of one image, one forward, by the closed form; which size that "
        "image has stands in the plan. Images/s count the training, without the first step, while "
        "other trials shared the machine; the time of a seed includes its evaluations.",
    ]


def _cells(table: Sequence[Row], kind: TaskKind, noise: SeedNoise) -> RankedTable:
    ready = [row for row in table if row.mean(kind.final)]
    columns: dict[str, list[str]] = {
        "#": [str(place) if row in ready else "" for place, row in enumerate(table, 1)],
        NAME: [row.label for row in table],
        f"{kind.score} %": [_score_text(row, kind, noise) for row in table],
    }
    more = [name for name in kind.more if any(row.mean(name) for row in table)]
    for name in more[:SHOWN_SCORES]:
        texts = [f"{row.mean(name).value:.2f}" if row.mean(name) else "-" for row in table]
        columns[f"{kind.more[name]} %"] = texts
    fields = varied(table, ())
    columns |= {one.name: one.texts for one in fields[:MOST_VARIED]}
    columns |= {
        "MACs": [count_text(row.mean(MACS).value) for row in table],
        "params": [count_text(row.mean(PARAMS).value) for row in table],
        kind.unit: [str(row.epochs) for row in table],
        "images/s": [rate_text(row.mean(IMAGES_PER_SECOND).value) for row in table],
        "time a seed": [hours_text(row.mean(TRAIN_DEVICE_HOURS).value) for row in table],
    }
    notes = [row.state for row in table]
    columns |= {NOTE: notes} if any(notes) else {}
    legend = ["±: half the 95 % interval of the mean over n seeds."] if noise.has_seeds else []
    if ready and not noise.has_seeds:
        legend = ["n: the number of seeds. One seed does not tell a better recipe from luck."]
    others = [one.name for one in fields[MOST_VARIED:]]
    legend += [f"Also varied: {', '.join(others)}; trials.csv has them."] if others else []
    return RankedTable(
        header=tuple(columns),
        cells=tuple(zip(*columns.values(), strict=True)),
        shared="",
        legend=tuple(legend),
        warnings=(),
    )


def _score_text(row: Row, kind: TaskKind, noise: SeedNoise) -> str:
    if row.mean(kind.final):
        return interval_text(row, kind.final, noise)
    values = [
        record.values[kind.watched]
        for run in row.runs
        for record in run.records
        if kind.watched in record.values
    ]
    return f"{values[-1]:.2f} so far" if values else "-"


# -- pictures -------------------------------------------------------------------------------------


def _charts(
    table: Sequence[Row], kind: TaskKind, noise: SeedNoise
) -> dict[str, Callable[[], Figure]]:
    found: dict[str, Callable[[], Figure]] = {
        "score_curves.png": partial(score_curves, table, kind),
        "training_loss.png": partial(training_loss, table, "training loss"),
    }
    if sum(bool(row.mean(kind.final)) for row in table) > 1:
        found = {"score_macs.png": partial(_score_chart, table, kind, noise)} | found
    return found


def _score_chart(table: Sequence[Row], kind: TaskKind, noise: SeedNoise) -> Figure:
    """The score of each recipe against its MACs, with 95 % intervals over seeds."""
    title = f"{kind.score} against MACs"
    figure, axes = new(title, "MACs of one image (log)", f"{kind.score} on val, %")
    ready = [row for row in table if row.mean(kind.final) and row.mean(MACS)]
    if not ready:
        return nothing_yet(figure, axes)
    axes.set_xscale("log")
    macs = [row.mean(MACS).value for row in ready]
    if math.isclose(min(macs), max(macs)):  # recipes of one network: the axis has no length yet
        axes.set_xlim(macs[0] / 2, macs[0] * 2)
    spots = []
    for row in ready:
        mean, x = row.mean(kind.final), row.mean(MACS).value
        half = noise.half_width(mean)
        axes.errorbar(x, mean.value, half, fmt="o", color=PLAIN, markersize=5, capsize=2)
        spots.append(Spot(row.label, x, mean.value, half))
    axes.margins(x=0.25, y=0.2)
    log_ticks(axes, count_text)
    place_labels(figure, axes, spots)
    return figure
