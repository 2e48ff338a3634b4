"""The end of a launch: what is left to do, and errors, which are raised after all else is done."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from mambaout.errors import WrongRequest
from mambaout.launch.failures import FAILURES_FILE
from mambaout.launch.request import Request
from mambaout.numbers import counted
from mambaout.study.store_uri import default_tracking_uri, hidden
from mambaout.study.study import CHECKPOINT_FILE, Run, StudyFolder

T = TypeVar("T")


class StudyBroke(RuntimeError):
    """After trials began, an error came up that a user can fix. The same command goes on."""


class Problems:
    """Errors of a launch outside its trials, kept until the results are saved and printed."""

    def __init__(self) -> None:
        self.found: list[Exception] = []

    def tried(self, work: Callable[[], T], instead: T) -> T:
        """The result of `work`, or `instead` if it fails."""
        try:
            return work()
        except Exception as error:
            self.found.append(error)
            return instead

    def raise_all(self, study: str, *, began: bool) -> None:
        """Raise the errors found. Bugs are raised unchanged.

        If trials had begun, an error that a user can fix becomes a StudyBroke.
        """
        bugs = [error for error in self.found if not isinstance(error, WrongRequest)]
        if gone := [error for error in bugs if isinstance(error, BrokenPipeError)]:
            raise gone[0]  # nobody reads the output
        if len(bugs) > 1:
            raise ExceptionGroup(f"study {study}: {len(bugs)} failures", bugs)
        if bugs:
            raise bugs[0]
        if self.found and not began:
            raise self.found[0]
        if self.found:
            said = "; ".join(dict.fromkeys(map(str, self.found)))
            raise StudyBroke(f"{said}; once that is mended, the same command goes on")


def left_lines(
    folder: StudyFolder, runs: Sequence[Run], *, num_undecided: int, is_over: bool
) -> list[str]:
    """What is left of the study, and why. Empty if nothing is left."""
    left = [run for run in runs if not run.status.is_over]
    if not left and is_over:
        return []
    lines = [f"\n{len(left)} of {counted(len(runs), 'trial')} did not finish:"]
    for run in left:
        step = run.records[-1].step if run.records else 0
        directory = folder.run_directory(run.trial)
        begun = f"stopped after step {step}" if step else "stopped before its first record"
        so_far = begun if (directory / CHECKPOINT_FILE).exists() else "not begun"
        lines.append(f"    {run.trial.name}  {run.facts.get('error', so_far)}")
        if run.status.is_failure:
            lines.append(f"        {directory / FAILURES_FILE}")
    if num_undecided:
        lines.append(f"{counted(num_undecided, 'trial')} not decided on yet")
    return lines


def ui_command(request: Request) -> str:
    """The shell command that opens the MLflow UI for the study."""
    uri = request.tracking_uri
    # In `make demo`, the commands of the virtual environment are not on the PATH.
    ours = ["mambaout"] if shutil.which("mambaout") else [sys.executable, "-m", "mambaout"]
    if uri == default_tracking_uri(request.storage):
        return shlex.join([*ours, "ui", "--storage", str(request.storage)])
    return shlex.join([*ours, "ui", "--tracking-uri", hidden(uri)])
