"""The work of a Ray worker on one trial: train it into its run directory and report to Tune.

The run directory decides everything. A trial that was started before goes on from its last.ckpt. A
trial with an outcome is over. A worker may get one trial after another. Tune reuses it, because
importing torch takes longer than some trials, and compiling for a TPU takes far longer. So the
module keeps no state of a trial.
"""

from __future__ import annotations

import gc
import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mambaout.durable import DamagedLine
from mambaout.errors import WrongRequest
from mambaout.launch.failures import (
    Failure,
    add_failure,
    cause_of,
    classify,
    one_line,
    read_failures,
    retried,
)
from mambaout.launch.feed import TASK, TRIAL
from mambaout.launch.task import Appearance, Task, call_trainer, stop_of, writing
from mambaout.study.branches import begin_at, branch_points, has_begun
from mambaout.study.kept_weights import kept_weights
from mambaout.study.study import BRANCH_FILE, RECORDS_FILE, StudyFolder, Trial
from mambaout.train.imports import import_training
from mambaout.train.metrics import IMAGES_PER_SECOND, Record, read_records

REPORT_SECONDS = 5.0  # least time between two reports to Tune, as each delays the trial a little
CHECKPOINT_SECONDS = 60.0


class Retry(Exception):
    """Tells Tune to start the trial again. The failure itself is in failures.jsonl."""


def run_trial(config: dict[str, Any]) -> None:
    """Tune's trainable: train the trial in `config`, from its last checkpoint if it has one.

    Returns when the outcome is in the run directory, or if the trial must not be tried again.
    Raises Retry if it must be tried again.
    """
    task = Task(**config[TASK])
    folder = StudyFolder(Path(task.storage), task.study, reuse=task.reuse)
    if not folder.path.exists():
        raise WrongRequest(
            f"{socket.gethostname()} does not see {folder.path}: --storage must be a folder that "
            "every machine of the cluster shares"
        )
    trial = Trial.from_json(config[TRIAL])
    directory = folder.run_directory(trial)
    stop = stop_of(task, directory)
    if stop() or not retried(read_failures(directory, task.launch)):
        return
    try:
        begin_branch(folder, trial)
        if task.num_hosts > 1:
            from mambaout.launch.hosts import train_on_slice as train
        else:
            train = train_here
        train(task, trial, directory, _TuneReports(trial.kind.watched, stop), stop)
    except Exception as reported:
        error = cause_of(reported)
        failure = Failure(
            kind=classify(error),
            error=one_line(error),
            step=recorded_step(directory),
            launch=task.launch,
            trace=traceback.format_exc(),
        )
        add_failure(directory, failure)
        if retried(read_failures(directory, task.launch)):
            raise Retry(failure.error) from None  # the cause may not be picklable
    finally:
        gc.collect()


def begin_branch(folder: StudyFolder, trial: Trial) -> None:
    """Let a new run go on from a shorter one, if one is there that is the start of this one."""
    directory = folder.run_directory(trial)
    if has_begun(directory):
        return
    for point in branch_points(folder, trial):
        from mambaout.train.checkpoint import is_whole  # imports torch

        if is_whole(point.checkpoint):
            with writing(directory), suppress(DamagedLine):  # of the shorter run's records
                if not has_begun(directory):  # a worker of a killed driver may have been faster
                    begin_at(folder, trial, point)
                return
    # A worker may have been killed before it had copied a checkpoint that is no longer there.
    (directory / BRANCH_FILE).unlink(missing_ok=True)


def train_here(
    task: Task,
    trial: Trial,
    directory: Path,
    report: Callable[[Record], None],
    stop: Callable[[], bool],
) -> None:
    """Call the task's trainer in this process. Only this process may write to the run directory."""
    with writing(directory):
        # A worker may have trained on after its driver was killed. This driver does not know yet.
        for record in list(read_records(directory / RECORDS_FILE)):
            if trial.kind.watched in record.values:
                report(record)
        if not stop():
            call_trainer(task, trial, directory, report, stop)


def recorded_step(directory: Path) -> int:
    """The last step with a record in the run directory."""
    return max((record.step for record in read_records(directory / RECORDS_FILE)), default=0)


def train_trial(
    task: Task,
    trial: Trial,
    directory: Path,
    report: Callable[[Record], None],
    stop: Callable[[], bool],
) -> None:
    """Train to the end, or until `stop` returns True. `report` gets every record."""
    import_training()
    from mambaout.train.facts import COMMIT_VARIABLE
    from mambaout.train.loop import train
    from mambaout.train.outcomes import OutOfMemory

    os.environ[COMMIT_VARIABLE] = task.commit
    data, backend = task.open(trial.data)
    digest = trial.recipe.init
    outcome = train(
        trial.recipe,
        data,
        out=directory,
        backend=backend,
        seed=trial.seed,
        init=None if digest is None else kept_weights(Path(task.storage), digest),
        sinks=[report],
        num_workers=task.num_workers,
        recompute=task.recompute,
        checkpoint_seconds=CHECKPOINT_SECONDS,
        stop=stop,
    )
    backend.free_memory()
    if isinstance(outcome, OutOfMemory):
        raise outcome.as_error()


class _TuneReports:
    """A sink that reports a trial's progress to Tune's scheduler, not too often."""

    def __init__(self, watched: str, stop: Appearance) -> None:
        self.watched, self.stop = watched, stop
        self.last = -float("inf")

    def __call__(self, record: Record) -> None:
        from ray import tune

        now = time.monotonic()
        if self.watched not in record.values and now - self.last < REPORT_SECONDS:
            return
        self.last = now
        shown = {"step": record.step, "epoch": record.epoch}
        for name in (self.watched, IMAGES_PER_SECOND):
            if name in record.values:
                shown[name] = record.values[name]
        tune.report(shown)
        self.stop.look_now()  # by now the driver has decided whether the trial goes on
