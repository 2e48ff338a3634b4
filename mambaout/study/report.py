"""What a study says: a ranked table, a page with charts, and files that others can read.

Run:    mambaout report NAME
Writes: report.html (one file, works offline), trials.csv, results.md, accuracy_macs.png,
        accuracy_throughput.png, learning_curves.png into the study's folder

Works at any time, also while trials run: what has not finished stands below what has. Numbers
over seeds are mean ± sample standard deviation (n).
"""

from __future__ import annotations

import csv
import io
import math
import os
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mambaout.recipe import BASELINE, Recipe, content_key, flat_fields
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


# -- numbers over seeds ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A quantity over the seeds that have it."""

    values: tuple[float, ...]

    @property
    def value(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None for a single seed, which says nothing of it."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __bool__(self) -> bool:
        return bool(self.values)

    def text(self, digits: int = 2) -> str:
        if not self.values:
            return "-"
        if self.spread is None:
            return f"{self.value:.{digits}f} (n=1)"
        return f"{self.value:.{digits}f} ± {self.spread:.{digits}f} (n={len(self.values)})"


@dataclass(frozen=True)
class Row:
    """One recipe of a study with all its seeds."""

    label: str
    recipe: Recipe
    runs: tuple[Run, ...]

    @property
    def is_baseline(self) -> bool:
        return self.label.startswith("baseline")

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.status == "finished")

    def mean(self, name: str) -> Mean:
        """The final metric `name` over the finished seeds; values that are not finite left out."""
        found = (run.metrics.get(name, math.nan) for run in self.finished)
        return Mean(tuple(value for value in found if math.isfinite(value)))

    @property
    def state(self) -> str:
        """What became of the seeds: "" where all finished."""
        parts = []
        for run in self.runs:
            if run.status == "unfinished":
                epoch = run.records[-1].epoch if run.records else 0
                total = run.trial.recipe.schedule.total_epochs
                parts.append(f"s{run.trial.seed} at epoch {epoch:.3g} of {total}")
            elif run.status != "finished":
                parts.append(f"s{run.trial.seed} {run.status}")
        return ", ".join(parts)


def rows(runs: Iterable[Run]) -> list[Row]:
    """The runs by recipe, best val top-1 first, recipes without a finished seed last."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.trial.label, content_key(run.trial.recipe)), []).append(run)
    found = [
        Row(label, group[0].trial.recipe, tuple(group)) for (label, _), group in groups.items()
    ]
    return sorted(found, key=lambda row: -row.mean(TOP1).value if row.mean(TOP1) else math.inf)


def chosen(table: Sequence[Row]) -> Row | None:
    """The row that minival, the split to choose on, prefers; None before any has finished."""
    ready = [row for row in table if row.mean(MINIVAL_TOP1)]
    return max(ready, key=lambda row: row.mean(MINIVAL_TOP1).value, default=None)


# -- numbers for people ---------------------------------------------------------------------------


def count_text(value: float) -> str:
    """1147984992 -> "1.15G"."""
    if not math.isfinite(value):
        return "-"
    for bound, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= bound:
            return f"{value / bound:.3g}{unit}"
    return f"{value:.3g}"


def rate_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if math.isfinite(value) else "-"


def hours_text(hours: float) -> str:
    if not math.isfinite(hours):
        return "-"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


# -- tables ---------------------------------------------------------------------------------------

HEADERS = (
    "#",
    "variant",
    "top-1 %",
    "minival %",
    "MACs",
    "params",
    "images/s",
    "time a seed",
    "note",
)


def table_cells(table: Sequence[Row]) -> list[list[str]]:
    """The ranked table as text, a row of cells a recipe, in the order of HEADERS."""
    cells, choice = [], chosen(table)
    for rank, row in enumerate(table, 1):
        notes = ["baseline recipe"] if row.is_baseline else []
        notes += ["chosen on minival"] if row is choice else []
        notes += [row.state] if row.state else []
        cells.append(
            [
                str(rank) if row.mean(TOP1) else "",
                row.label,
                row.mean(TOP1).text(),
                _minival_text(row),
                count_text(row.mean(MACS).value),
                count_text(row.mean(PARAMS).value),
                rate_text(row.mean(IMAGES_PER_SECOND).value),
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
    for field, text in differing(name).items():
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


def csv_text(runs: Sequence[Run], data: str) -> str:
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
            + [reproduce_command(trial, data)]
        )
    return body.getvalue()


# -- the files ------------------------------------------------------------------------------------


def write_report(folder: StudyFolder) -> list[Path]:
    """Write the report's files into the study's folder, each whole or not at all; their paths."""
    study, runs = folder.read(), folder.runs()
    data = str(study.get("data_name") or study.get("data") or (runs[0].trial.data if runs else ""))
    files: dict[str, bytes] = {
        "trials.csv": csv_text(runs, data).encode(),
        "results.md": (markdown_table(runs) + "\n").encode(),
    }
    written = []
    for name, body in files.items():
        aside = folder.path / f".{name}.{os.getpid()}"
        aside.write_bytes(body)
        aside.replace(folder.path / name)
        written.append(folder.path / name)
    return written
