"""What a trial is told, and what every process that trains a part of one does first.

A trial on one machine (trial.py) and one on a slice of several (hosts.py) begin alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from mambaout.launch.lock import held
from mambaout.launch.worker import WorkerSetup
from mambaout.study.study import STOPPED_FILE, Trial
from mambaout.train.metrics import Record

STOP_CHECK_SECONDS = 1.0  # least time between two looks for the stop file
# A driver that was killed takes its workers with it, some of them a moment later.
PREDECESSOR_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Task(WorkerSetup):
    """What every trial of a launch is told; plain values, since Tune copies them about."""

    study: str
    launch: str
    stop_file: str  # the trial saves and ends once this file is there
    commit: str  # of the code, as the driver sees it
    trainer: str  # MODULE:FUNCTION, called as trial.train_trial is


def writing(directory: Path) -> AbstractContextManager[None]:
    """Hold the run directory; one that is being written to is waited for."""
    return held(directory, f"run directory {directory}", PREDECESSOR_SECONDS)


def call_trainer(
    task: Task,
    trial: Trial,
    directory: Path,
    report: Callable[[Record], None],
    stop: Callable[[], bool],
) -> None:
    """Make this process ready for the share that it has, and train on it."""
    task.prepare()
    module, _, name = task.trainer.partition(":")
    getattr(import_module(module), name)(task, trial, directory, report, stop)


def stop_of(task: Task, directory: Path) -> Appearance:
    """Says, on any machine, when the trial is to save and end."""
    return Appearance(Path(task.stop_file), directory / STOPPED_FILE)


class Appearance:
    """Says whether one of the paths exists, and looks at most once a second."""

    def __init__(self, *paths: Path) -> None:
        self.paths, self.looked = paths, -float("inf")

    def look_now(self) -> None:
        self.looked = -float("inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self.looked < STOP_CHECK_SECONDS:
            return False
        self.looked = now
        return any(path.exists() for path in self.paths)
