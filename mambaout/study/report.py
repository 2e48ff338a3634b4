"""What a study says: a ranked table, a page with charts, and files that others can read.

Run:    mambaout report NAME
Writes: report.html (one file, works offline), trials.csv, results.md, accuracy_macs.png,
        accuracy_throughput.png, learning_curves.png, training_loss.png into the study's folder

Works at any time, also while trials run: what has not finished stands below what has. Numbers
over seeds are mean ± sample standard deviation (n).
"""

from __future__ import annotations

import csv
import io
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaout.recipe import BASELINE, flat_fields
from mambaout.study.charts import (
    accuracy_macs,
    accuracy_throughput,
    learning_curves,
    png,
    training_loss,
)
from mambaout.study.findings import answer
from mambaout.study.page import page
from mambaout.study.rows import Row, chosen, count_text, hours_text, rate_text, rows
from mambaout.study.study import Run, StudyFolder, Trial
from mambaout.train.metrics import (
    ACTIVATIONS,
    IMAGES_PER_SECOND,
    MACS,
    MINIVAL_TOP1,
    PARAMS,
    TOP1,
    TOP5,
    TRAIN_DEVICE_HOURS,
)
from mambaout.variants import VARIANTS

FINAL_METRICS = (
    TOP1,
    TOP5,
    MINIVAL_TOP1,
    MACS,
    PARAMS,
    ACTIVATIONS,
    IMAGES_PER_SECOND,
    TRAIN_DEVICE_HOURS,
)


# -- tables ---------------------------------------------------------------------------------------

HEADERS = (
    "#",
    "variant",
    "top-1 %",
    "MACs",
    "params",
    "images/s",
    "minival %",
    "time a seed",
    "note",
)


def table_cells(table: Sequence[Row]) -> list[list[str]]:
    """The ranked table as text, a row of cells a recipe, in the order of HEADERS."""
    cells, choice = [], chosen(table)
    for rank, row in enumerate(table, 1):
        notes = [f"baseline recipe{row.cut}"] if row.is_baseline else []
        notes += ["chosen on minival"] if row is choice else []
        notes += [row.state] if row.state else []
        cells.append(
            [
                str(rank) if row.mean(TOP1) else "",
                row.label,
                row.mean(TOP1).text(),
                count_text(row.mean(MACS).value),
                count_text(row.mean(PARAMS).value),
                rate_text(row.mean(IMAGES_PER_SECOND).value),
                _minival_text(row),
                hours_text(row.mean(TRAIN_DEVICE_HOURS).value),
                "; ".join(notes),
            ]
        )
    return cells


def _minival_text(row: Row) -> str:
    if row.mean(MINIVAL_TOP1):
        return f"{row.mean(MINIVAL_TOP1).value:.2f}"
    latest = [
        record.values[MINIVAL_TOP1]
        for run in row.runs
        for record in run.records
        if MINIVAL_TOP1 in record.values
    ][-1:]
    return f"{latest[0]:.2f} so far" if latest else "-"


def ranked_table(runs: Iterable[Run]) -> str:
    """The runs by recipe, best first, as text for a terminal."""
    cells = [list(HEADERS), *table_cells(rows(runs))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADERS))]
    left = {1, len(HEADERS) - 1}  # names and notes; numbers stand to the right
    lines = [
        "  ".join(
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown_table(runs: Iterable[Run]) -> str:
    """The same table in Markdown, for a README."""
    left = {1, len(HEADERS) - 1}
    lines = [
        HEADERS,
        [":---" if i in left else "---:" for i in range(len(HEADERS))],
        *table_cells(rows(runs)),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def reproduce_command(trial: Trial, data: str) -> str:
    """The command that runs the trial alone: the nearest variant and what differs from BASELINE."""

    def differing(name: str) -> dict[str, str]:
        start = flat_fields(BASELINE) | flat_fields_of(name)
        return {
            field: _option_text(value)
            for field, value in flat_fields(trial.recipe).items()
            if value != start[field]
        }

    name = min(VARIANTS, key=lambda name: len(differing(name)))
    words = ["mambaout", "train", name, "--data", data, "--out", f"runs/{trial.name}"]
    words += ["--seed", str(trial.seed)]
    options = differing(name)
    if "global_batch" in options:  # given alone it would scale the learning rate along
        options.setdefault("peak_lr", _option_text(trial.recipe.optim.peak_lr))
    for field, text in options.items():
        words += [f"--{field.replace('_', '-')}", text]
    return shlex.join(words)


def flat_fields_of(name: str) -> dict[str, object]:
    """The model's fields of the published variant `name`."""
    config = VARIANTS[name]
    return {field: getattr(config, field) for field in config.__slots__}


def _option_text(value: object) -> str:
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def csv_text(runs: Sequence[Run], commands: Mapping[str, str]) -> str:
    """One line a trial: label, key, seed, outcome, final metrics, facts, recipe, command."""
    facts = sorted({name for run in runs for name in run.facts} - {"seed", "data"})
    fields = list(flat_fields(BASELINE))
    body = io.StringIO()
    out = csv.writer(body, lineterminator="\n")
    head = ["label", "key", "seed", "data", "status", *FINAL_METRICS, *facts, *fields, "command"]
    out.writerow(head)
    for run in runs:
        trial, flat = run.trial, flat_fields(run.trial.recipe)
        out.writerow(
            [trial.label, trial.key, trial.seed, trial.data, run.status]
            + [run.metrics.get(name, "") for name in FINAL_METRICS]
            + [run.facts.get(name, "") for name in facts]
            + [_option_text(flat[name]) for name in fields]
            + [commands[trial.key]]
        )
    return body.getvalue()


# -- the files ------------------------------------------------------------------------------------


def write_report(folder: StudyFolder) -> list[Path]:
    """Write the report's files into the study's folder, each whole or not at all; their paths."""
    study, runs = folder.read(), folder.runs()
    table = rows(runs)
    data = _data_name(study, runs)
    commands = {run.trial.key: reproduce_command(run.trial, data) for run in runs}
    pictures = {
        "accuracy_macs.png": png(accuracy_macs(table)),
        "accuracy_throughput.png": png(accuracy_throughput(table)),
        "learning_curves.png": png(learning_curves(table)),
        "training_loss.png": png(training_loss(table)),
    }
    said = answer(table)
    html = page(study, table, said, HEADERS, table_cells(table), pictures, commands)
    files = pictures | {
        "trials.csv": csv_text(runs, commands).encode(),
        "results.md": _markdown(study, runs, said, commands).encode(),
        "report.html": html.encode(),
    }
    for name, body in files.items():
        aside = folder.path / f".{name}.{os.getpid()}"
        aside.write_bytes(body)
        aside.replace(folder.path / name)
    return [folder.path / name for name in files]


def _data_name(study: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """What --data was: as study.json has it, else as a run does, else a place to fill in."""
    for facts in (study, *(run.facts for run in runs)):
        if facts.get("data_name"):
            return str(facts["data_name"])
    return "DATA"


def _markdown(
    study: Mapping[str, Any], runs: Sequence[Run], said: Sequence[str], commands: Mapping[str, str]
) -> str:
    lines = [f"# {study['name']}", "", study["question"], "", *said, "", markdown_table(runs), ""]
    if study.get("command"):
        lines += [f"The study: `{study['command']}`", ""]
    lines += ["Each trial alone:", "", "```"]
    lines += [commands[run.trial.key] for row in rows(runs) for run in row.runs]
    return "\n".join([*lines, "```", ""])
