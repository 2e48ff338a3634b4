"""All trials of a study as CSV and Parquet, with the commands that run them again."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mambaout.options import field_text
from mambaout.recipe import BASELINE, flat_fields, following
from mambaout.study.kept_weights import kept_weights
from mambaout.study.origin import searches_of
from mambaout.study.report.rows import rows
from mambaout.study.study import CHECKPOINT_FILE, Run, StudyFolder, Trial
from mambaout.train.metrics import FINAL_METRICS, MINIVAL_TOP1, TOP1, TOP5
from mambaout.train.tasks import CLASSIFY
from mambaout.variants import VARIANTS

TRAIN_MACS = "train_macs"  # of the whole training; it follows from the recipe
_OWN = {"label", "key", "seed", "data", "origin", "search", "status"}
_NOT_FACTS = {*_OWN, *FINAL_METRICS, "task"}  # they have their own columns
LAST_EPOCH = "last_epoch"  # it and last_minival/top1 are there for runs without a result, too
_DENSE_FINALS = tuple(name for name in FINAL_METRICS if name not in (TOP1, TOP5, MINIVAL_TOP1))


def reproduce_command(
    trial: Trial, data: str, columns: Mapping[str, str] | None = None, *, storage: Path
) -> str:
    """The command that trains only this trial, into a new folder.

    It names the nearest variant and the fields that differ from BASELINE.

    `columns` are the options for reading `data`: {"label_column": "fine_label"}. `storage` has the
    copy of the weights that the trial starts from.
    """
    flat = flat_fields(trial.recipe)
    options = min((_differing(flat, start) for start in _starts().values()), key=len)
    name = next(n for n, start in _starts().items() if _differing(flat, start) == options)
    words = ["mambaout", "train", name, "--recipe", "paper", "--data", data]
    words += ["--out", f"again/{trial.name}", "--seed", str(trial.seed)]
    for option, column in (columns or {}).items():
        words += [f"--{option.replace('_', '-')}", column]
    for field in ("peak_lr", "warmup_epochs"):  # else they follow batch and epochs
        if field in following(_starts()[name], options):
            options[field] = flat[field]
    if (digest := options.pop("init", None)) is not None:
        words += ["--init", str(kept_weights(storage, digest))]
    for field, value in options.items():
        words += [f"--{field.replace('_', '-')}", field_text(value)]
    return shlex.join(words)


@cache
def _starts() -> dict[str, dict[str, Any]]:
    """The fields that `mambaout train NAME` starts from, by published variant."""
    return {
        name: flat_fields(BASELINE) | {field: getattr(shape, field) for field in shape.__slots__}
        for name, shape in VARIANTS.items()
    }


def _differing(flat: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in flat.items() if value != start[field]}


def checkpoint_path(folder: StudyFolder, trial: Trial) -> str | None:
    """The path of the trial's checkpoint, relative to the study's folder; None if there is none."""
    path = folder.run_directory(trial) / CHECKPOINT_FILE
    return path.relative_to(folder.path).as_posix() if path.exists() else None


def trial_lines(
    folder: StudyFolder, runs: Sequence[Run], commands: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One line for each trial, with its results, paths, facts, recipe and command.

    Paths are relative to the study's folder. All lines have the same names. A missing value is
    None.
    """
    facts = sorted({name for run in runs for name in run.facts} - _NOT_FACTS)
    kind = runs[0].trial.kind if runs else CLASSIFY
    finals = FINAL_METRICS if kind is CLASSIFY else (*kind.final_metrics, *_DENSE_FINALS)
    train_macs = {row.recipe: row.train_macs for row in rows(runs)}
    lines = []
    for run in runs:
        trial, key = run.trial, run.trial.key
        price = train_macs[trial.recipe]
        ended = [record for record in run.records if kind.watched in record.values][-1:]
        lines.append(
            {"label": trial.label, "key": key, "seed": trial.seed, "data": trial.data}
            | {"origin": trial.origins[0].kind, "search": ", ".join(searches_of(trial.origins))}
            | {"status": run.status}
            | {name: run.metrics.get(name) for name in finals}
            | {TRAIN_MACS: price if price == price else None}
            | {LAST_EPOCH: run.records[-1].epoch if run.records else None}
            | {f"last_{kind.watched}": ended[0].values[kind.watched] if ended else None}
            | {name: _fact(run.facts.get(name)) for name in facts}
            | {name: _cell(value) for name, value in flat_fields(trial.recipe).items()}
            | {"command": commands[key]}
            | {"run_directory": folder.run_directory(trial).relative_to(folder.path).as_posix()}
            | {"checkpoint": checkpoint_path(folder, trial)}
        )
    return lines


def _cell(value: object) -> object:
    return field_text(value) if value is None or isinstance(value, tuple) else value


def _fact(value: object) -> object:
    """A fact as a cell: what is left out, or an image's size, is JSON, which any reader takes."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def csv_text(lines: Sequence[Mapping[str, Any]]) -> str:
    body = io.StringIO()
    out = csv.DictWriter(body, list(lines[0]) if lines else [], lineterminator="\n")
    out.writeheader()
    out.writerows(lines)
    return body.getvalue()


def parquet_bytes(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """The same table with types. A column with several types is text."""
    import pandas

    def typed(values: list[Any]) -> list[Any]:
        kinds = {type(value) for value in values if value is not None}
        if kinds & {list, dict} or (len(kinds) > 1 and not kinds <= {int, float}):
            return [None if value is None else str(value) for value in values]
        return values

    names = list(lines[0]) if lines else []
    columns = {name: typed([line[name] for line in lines]) for name in names}
    body = io.BytesIO()
    pandas.DataFrame(columns).to_parquet(body, index=False)
    return body.getvalue()
