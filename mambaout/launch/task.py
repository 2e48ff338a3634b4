"""What a trial is told, and what every process that trains a part of one does first.

A trial on one machine (trial.py) and one on a slice of several (hosts.py) begin alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from mambaout.data.shards.column_options import GivenColumns
from mambaout.launch.lock import held
from mambaout.launch.tpu import prepare
from mambaout.study.study import STOPPED_FILE, Trial
from mambaout.train.metrics import Record

STOP_CHECK_SECONDS = 1.0  # least time between two looks for the stop file
TRAINER = "mambaout.launch.trial:train_trial"
# A driver that was killed takes its workers with it, some of them a moment later.
PREDECESSOR_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every trial of a launch is told; plain values, since Tune copies them about."""

    storage: str
    study: str
    data: str  # what open_data is given
    launch: str
    stop_file: str  # the trial saves and ends once this file is there
    backend: str
    cpus: int  # of each host
    num_workers: int
    commit: str  # of the code, as the driver sees it
    trainer: str  # MODULE:FUNCTION, called as `train_trial` here is
    columns: GivenColumns = field(default_factory=GivenColumns)  # and is told of them
    stage: str | None = None  # the folder of each machine that the shards are copied to
    gpus: float = 0
    chips: int = 0  # of a TPU, of each host
    num_hosts: int = 1
    env: Mapping[str, str] = field(default_factory=dict)  # see Share.env


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
    if task.chips:
        prepare(task.chips, task.env)
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
