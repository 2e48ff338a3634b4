"""`mambaout list`: all studies, or a study's trials with their checkpoints."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaout.commands.options import DEFAULT_STORAGE, STORAGE_HELP
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.launch.named import named_errors, read_study, studies, study_folder
from mambaout.numbers import count_text
from mambaout.study.study import CHECKPOINT_FILE, STUDY_FILE, Run, StudyFolder
from mambaout.train.metrics import MACS, TOP1
from mambaout.train.tasks import CLASSIFY, TaskKind, kind_named


def add_list(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("list", help="the studies, or a study's trials and checkpoints")
    parser.add_argument("study", nargs="?", help="a study's name; default: list the studies")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE, help=STORAGE_HELP)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.study is not None:
        print(trial_table(study_folder(options.storage, options.study)))
        return 0
    if not os.path.isdir(options.storage):
        raise WrongRequest(
            f"{options.storage} is no folder; give that of the studies with --storage"
        )
    found = studies(options.storage)
    print(study_table(found) if found else f"{options.storage} holds no study yet")
    return 0


def study_table(folders: Sequence[StudyFolder]) -> str:
    """One line for each study: trials finished of all, last change, and the best result."""
    of = "of the recipe chosen (on minival, if there is one)"
    rows = [("study", "finished", "changed", "score on val, %", of)]
    unread = []
    for folder in folders:
        try:
            study, runs = read_study(folder)
        except WrongRequest as error:
            unread.append(str(error))
            continue
        finished = sum(run.status is Ending.FINISHED for run in runs)
        rows.append(
            (folder.path.name, f"{finished}/{len(runs)}", _changed(folder), *_best(study, runs))
        )
    return "\n".join([_aligned(rows, numbers={1, 3}), *unread])


def trial_table(folder: StudyFolder) -> str:
    """One line for each trial, in the study's order: its numbers and its weights' path."""
    with named_errors(folder):
        runs = folder.runs()
    kind = runs[0].trial.kind if runs else CLASSIFY
    scores = ("minival %", "val top-1 %")
    if kind is not CLASSIFY:
        scores = (f"{kind.score} %", f"{next(iter(kind.more.values()))} %")
    rows = [("trial", "status", *scores, "MACs", "checkpoint")]
    for run in runs:
        path = folder.run_directory(run.trial) / CHECKPOINT_FILE
        second = TOP1 if kind is CLASSIFY else next(iter(kind.more))
        rows.append(
            (
                run.trial.name,
                run.status,
                _watched(run),
                _percent(run.metrics.get(second)),
                count_text(run.metrics.get(MACS, math.nan)),
                str(path) if path.exists() else "none",
            )
        )
    return "\n".join([_aligned(rows, numbers={2, 3, 4}), *_earlier(folder, runs)])


def _earlier(folder: StudyFolder, runs: Sequence[Run]) -> list[str]:
    """A line on runs whose recipes the study's last command did not include."""
    known = {run.trial.key for run in runs}
    others = [path for path in sorted(folder.path.glob("trials/[!.]*")) if path.name not in known]
    if not others:
        return []
    return [f"of what earlier commands asked for: {', '.join(map(str, others))}"]


def _best(study: Mapping[str, Any], runs: Sequence[Run]) -> tuple[str, str]:
    """The result, over its seeds, of the recipe that is best on minival, and its label.

    Without a minival, it is the recipe that is best on val.
    """
    from mambaout.study.report.ranking import standing

    if (name := study.get("task", CLASSIFY.name)) != CLASSIFY.name:
        return _best_dense(kind_named(name), runs)
    found = standing(runs, study)
    if found.best is None:
        return "-", "-"
    note = ", near chance" if found.guessing else ""
    top1 = found.best.mean(TOP1).value
    return f"top-1 {top1:.2f}", f"{found.best.label} (n={len(found.best.counted)}{note})"


def _best_dense(kind: TaskKind, runs: Sequence[Run]) -> tuple[str, str]:
    """The same of a study without a minival."""
    from mambaout.study.report.rows import rows

    ready = [row for row in rows(runs) if row.mean(kind.final)]
    best = max(ready, key=lambda row: row.mean(kind.final).value, default=None)
    if best is None:
        return "-", "-"
    score = f"{kind.score} {best.mean(kind.final).value:.2f}"
    return score, f"{best.label} (n={len(best.counted)})"


def _watched(run: Run) -> str:
    watched = run.trial.kind.watched
    name = watched if run.trial.kind is CLASSIFY else run.trial.kind.final
    if name in run.metrics:
        return _percent(run.metrics[name])
    so_far = [record.values[watched] for record in run.records if watched in record.values]
    return f"{so_far[-1]:.2f} so far" if so_far else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _changed(folder: StudyFolder) -> str:
    """The local time at which a launch or a trial last wrote to the study."""
    paths = [folder.path / STUDY_FILE, *folder.path.glob("trials/*")]
    newest = max(path.stat().st_mtime for path in paths)
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(newest))


def _aligned(rows: Sequence[Sequence[str]], numbers: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
