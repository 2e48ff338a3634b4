"""The report of a study: a ranked table, a page with charts, and files for other programs.

Run:    mambaout report NAME
Writes: report.html (one file, works offline, under 1 MB), results.md, trials.csv, trials.parquet
        and the page's charts as PNG into the study's folder

Works at any time, also while trials run. Unfinished recipes stand below finished ones. Numbers over
seeds are means with 95 % intervals. If the results are near chance, or if each recipe has one seed,
the numbers cannot support an answer, and the report gives none.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaout.durable import write_whole
from mambaout.errors import WrongRequest
from mambaout.numbers import percent_text
from mambaout.study.law.prediction import read_predictions
from mambaout.study.report.content import Content
from mambaout.study.report.dense_command import dense_command
from mambaout.study.report.dense_report import dense_content, dense_summary
from mambaout.study.report.findings import answer
from mambaout.study.report.page import HEADING, NOTES, page
from mambaout.study.report.paired_reading import paired_reading
from mambaout.study.report.paired_section import paired_text
from mambaout.study.report.picture import png
from mambaout.study.report.ranking import standing
from mambaout.study.report.reading import PAIRED_SCORE, reading
from mambaout.study.report.sections import CAPTIONS, drawings, sections
from mambaout.study.report.tables import (
    MARKDOWN_ROWS,
    markdown_lines,
    markdown_table,
    ranked_cells,
    ranked_table,
    terminal_text,
)
from mambaout.study.report.trial_files import (
    checkpoint_path,
    csv_text,
    parquet_bytes,
    reproduce_command,
    trial_lines,
)
from mambaout.study.study import Run, StudyFolder
from mambaout.train.metrics import MINIVAL_TOP1, TOP1
from mambaout.train.tasks import CLASSIFY

__all__ = ["NotWritten", "ranked_table", "summary", "write_report"]


class NotWritten(WrongRequest):
    """The report cannot write to the study's folder."""


def write_report(folder: StudyFolder) -> list[Path]:
    """Write the report's files, each whole or not at all, and return their paths.

    Charts of an earlier report that this one does not draw are removed. Raises NotWritten if the
    folder is not writable.
    """
    study, runs = folder.read(), folder.runs()
    data = _data_name(study, runs)
    columns = study.get("columns", {})
    storage = folder.path.parent
    commands = {
        run.trial.key: reproduce_command(run.trial, data, columns, storage=storage)
        if run.trial.kind is CLASSIFY
        else dense_command(run.trial, data, storage=storage, micro_batch=study.get("micro_batch"))
        for run in runs
    }
    lines = trial_lines(folder, runs, commands)
    # The numbers are written first, so that a failed fit or chart loses none of them.
    tables = {"trials.csv": csv_text(lines).encode(), "trials.parquet": parquet_bytes(lines)}
    _write(folder, tables)
    content = _content(folder, runs, study)
    paths = {run.trial.key: checkpoint_path(folder, run.trial) for run in runs}
    checkpoints = {key: path for key, path in paths.items() if path}
    pictures = {name: draw() for name, draw in content.pictures.items()}
    texts = {
        "results.md": _markdown(content, commands, checkpoints).encode(),
        "report.html": page(content, pictures, commands, checkpoints).encode(),
    }
    _write(folder, pictures | texts)
    for name in content.captions.keys() - pictures.keys():
        (folder.path / name).unlink(missing_ok=True)
    return [folder.path / name for name in pictures | tables | texts]


def _content(folder: StudyFolder, runs: Sequence[Run], study: Mapping[str, Any]) -> Content:
    if study.get("task", CLASSIFY.name) != CLASSIFY.name:
        return dense_content(folder, runs, study)
    found = reading(runs, study=study, predictions=read_predictions(folder))
    return Content(
        study=found.study,
        table=found.table,
        ranked=ranked_cells(found.standing),
        heading=HEADING,
        said=answer(found),
        sections=sections(found),
        notes=NOTES,
        best_run=found.standing.best_run,
        pictures={name: lambda draw=draw: png(draw()) for name, draw in drawings(found).items()},
        captions=CAPTIONS,
    )


def _write(folder: StudyFolder, files: Mapping[str, bytes]) -> None:
    for name, body in files.items():
        try:
            write_whole(folder.path / name, body)
        except OSError as error:
            raise NotWritten(
                f"the report cannot be written to {folder.path} ({error.strerror or error})"
            ) from error


def summary(folder: StudyFolder, runs: Sequence[Run] | None = None) -> str:
    """The last output of a launch: the ranked table, its meaning, and the best trial's folder."""
    runs, study = folder.runs() if runs is None else runs, folder.read()
    if study.get("task", CLASSIFY.name) != CLASSIFY.name:
        return dense_summary(folder, runs, study)
    found = standing(runs, study)
    lines = [terminal_text(ranked_cells(found))]
    paired = paired_text(paired_reading(study, found.rows, TOP1, PAIRED_SCORE))
    lines += ["\n".join(["", *paired])] if paired else []
    run = found.best_run
    if run is None or checkpoint_path(folder, run.trial) is None:
        return "\n".join(lines)
    name = f"{folder.path.name}/{run.trial.name}"
    of = "near chance" if found.guessing else f"minival {percent_text(run.metrics[MINIVAL_TOP1])}"
    storage = shlex.join(["--storage", str(folder.path.parent)])
    lines += [
        f"\nhighest trial: {run.trial.name} ({of})",
        f"  checkpoint: {folder.path / str(checkpoint_path(folder, run.trial))}",
        f"  evaluate:   mambaout evaluate {shlex.quote(name)} {storage}"
        if run.trial.recipe.model.not_in_timm
        else f"  for timm:   mambaout export {shlex.quote(name)} best.safetensors {storage}",
    ]
    return "\n".join(lines)


def _data_name(study: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """The value of --data, from study.json, else from a run, else a placeholder."""
    for facts in (study, *(run.facts for run in runs)):
        if facts.get("data_name"):
            return str(facts["data_name"])
    return "DATA"


def _markdown(content: Content, commands: Mapping[str, str], checkpoints: Mapping[str, str]) -> str:
    study, best = content.study, content.best_run
    lines = [f"# {study['name']}", "", study["question"], ""]
    for text in content.said:
        lines += [text, ""]
    lines += [markdown_table(content.ranked), ""]
    if best and best.trial.key in checkpoints:
        lines += [f"Highest trial: {best.trial.name}, `{checkpoints[best.trial.key]}`", ""]
    for part in content.sections:
        if part.said or part.tables:
            lines += [f"## {part.title}", ""]
        for text in part.said:
            lines += [text, ""]
        for table in part.tables:
            left = {0, *table.long}
            lines += [markdown_lines(table.header, table.cells, left), ""]
    if study.get("command"):
        lines += [f"The study: `{study['command']}`", ""]
    if study.get("detect"):
        lines += [
            "`--detect` chose by the spread and the speed that were known then. The command "
            "chooses the same again if the study's folder holds this study.json.",
            "",
        ]
    lines += ["Each trial alone, trained into a new folder:", "", "```"]
    order = [run for row in content.table for run in row.runs]
    lines += [commands[run.trial.key] for run in order[:MARKDOWN_ROWS]]
    more = [f"and {len(order) - MARKDOWN_ROWS} more in trials.csv", ""]
    return "\n".join([*lines, "```", "", *(more if len(order) > MARKDOWN_ROWS else [])])
