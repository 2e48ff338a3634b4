"""What a study says: a ranked table, a page with charts, and files that others can read.

Run:    mambaout report NAME
Writes: report.html (one file, works offline, under 1 MB), results.md, trials.csv, trials.parquet
        and the page's charts as PNG into the study's folder

Works at any time, also while trials run: what has not finished stands below what has. Numbers
over seeds are means with 95 % intervals.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaout.study.reporting.findings import answer
from mambaout.study.reporting.page import page
from mambaout.study.reporting.picture import png
from mambaout.study.reporting.reading import Reading, read
from mambaout.study.reporting.sections import CAPTIONS, drawings, sections
from mambaout.study.reporting.tables import (
    MARKDOWN_ROWS,
    markdown_lines,
    markdown_table,
    ranked_table,
    table_cells,
)
from mambaout.study.reporting.trial_files import (
    csv_text,
    parquet_bytes,
    reproduce_command,
    trial_lines,
)
from mambaout.study.study import Run, StudyFolder

__all__ = ["ranked_table", "write_report"]


def write_report(folder: StudyFolder) -> list[Path]:
    """Write the report's files into the study's folder, each whole or not at all; their paths.

    Charts of an earlier report that this one does not draw are removed.
    """
    reading = read(folder)
    data = _data_name(reading.study, reading.runs)
    columns = reading.study.get("columns", {})
    commands = {run.trial.key: reproduce_command(run.trial, data, columns) for run in reading.runs}
    pictures = {name: png(draw()) for name, draw in drawings(reading).items()}
    said, parts = answer(reading), sections(reading)
    html = page(
        reading.study,
        reading.table,
        said,
        parts,
        table_cells(reading.table),
        pictures,
        CAPTIONS,
        commands,
    )
    lines = trial_lines(reading.runs, commands)
    files = pictures | {
        "trials.csv": csv_text(lines).encode(),
        "trials.parquet": parquet_bytes(lines),
        "results.md": _markdown(reading, said, parts, commands).encode(),
        "report.html": html.encode(),
    }
    for name, body in files.items():
        aside = folder.path / f".{name}.{os.getpid()}"
        aside.write_bytes(body)
        aside.replace(folder.path / name)
    for name in CAPTIONS.keys() - pictures.keys():
        (folder.path / name).unlink(missing_ok=True)
    return [folder.path / name for name in files]


def _data_name(study: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """What --data was: as study.json has it, else as a run does, else a place to fill in."""
    for facts in (study, *(run.facts for run in runs)):
        if facts.get("data_name"):
            return str(facts["data_name"])
    return "DATA"


def _markdown(
    reading: Reading, said: Sequence[str], parts: Sequence[Any], commands: Mapping[str, str]
) -> str:
    study, runs = reading.study, reading.runs
    lines = [f"# {study['name']}", "", study["question"], ""]
    for text in said:
        lines += [text, ""]
    lines += [markdown_table(runs), ""]
    for part in parts:
        if part.said or part.tables:
            lines += [f"## {part.title}", ""]
        for text in part.said:
            lines += [text, ""]
        for table in part.tables:
            left = {0, *table.long}
            lines += [markdown_lines(table.header, table.cells, left), ""]
    if study.get("command"):
        lines += [f"The study: `{study['command']}`", ""]
    lines += ["Each trial alone:", "", "```"]
    ranked = [run for row in reading.table for run in row.runs]
    lines += [commands[run.trial.key] for run in ranked[:MARKDOWN_ROWS]]
    more = [f"and {len(ranked) - MARKDOWN_ROWS} more in trials.csv", ""]
    return "\n".join([*lines, "```", "", *(more if len(ranked) > MARKDOWN_ROWS else [])])
