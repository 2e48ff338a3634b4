"""The task that a worker gets, and the first steps of every process that trains.

A trial on one machine (trial.py) and a trial on a slice (hosts.py) begin in the same way.
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
# If a driver is killed, its workers end too, some of them a moment later.
PREDECESSOR_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Task(WorkerSetup):
    """The settings for every trial of a launch: plain values, because Tune copies them."""

    study: str
    launch: str
    stop_file: str  # the trial saves and ends when this file exists
    commit: str  # of the driver's code
    trainer: str  # MODULE:FUNCTION, with the arguments of trial.train_trial
    reuse: bool = True  # whether a trial may go on from runs of other studies


def writing(directory: Path) -> AbstractContextManager[None]:
    """Lock the run directory. If another process writes to it, wait."""
    return held(directory, f"run directory {directory}", PREDECESSOR_SECONDS)


def call_trainer(
    task: Task,
    trial: Trial,
    directory: Path,
    report: Callable[[Record], None],
    stop: Callable[[], bool],
) -> None:
    """Prepare this process for its share of the machine, and train."""
    task.prepare()
    module, _, name = task.trainer.partition(":")
    getattr(import_module(module), name)(task, trial, directory, report, stop)


def stop_of(task: Task, directory: Path) -> Appearance:
    """Tells, on any machine, when the trial must save and end."""
    return Appearance(Path(task.stop_file), directory / STOPPED_FILE)


class Appearance:
    """Tells whether one of the paths exists. It checks at most once a second."""

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
