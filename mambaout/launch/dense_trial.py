"""A worker's training of a detector or a segmenter."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mambaout.errors import WrongRequest
from mambaout.launch.task import Task
from mambaout.launch.trial import CHECKPOINT_SECONDS
from mambaout.study.kept_weights import kept_weights
from mambaout.study.study import Trial
from mambaout.train.imports import import_training
from mambaout.train.metrics import Record
from mambaout.train.tasks import DETECT


def train_dense_trial(
    task: Task,
    trial: Trial,
    directory: Path,
    report: Callable[[Record], None],
    stop: Callable[[], bool],
) -> None:
    """Train to the end, or until `stop` returns True. `report` gets every record."""
    import_training()
    from mambaout.dense.dense_sets import detect_sets, segment_sets
    from mambaout.train.facts import COMMIT_VARIABLE
    from mambaout.train.outcomes import OutOfMemory

    os.environ[COMMIT_VARIABLE] = task.commit
    sets = (detect_sets if trial.kind is DETECT else segment_sets)(task.data)
    if sets.fingerprint != trial.data:
        raise WrongRequest(
            f"{task.data} here is {sets.fingerprint}, and the study began with {trial.data}: the "
            "images differ between machines, or have changed since"
        )
    backend = task.devices()
    recipe = trial.recipe
    init = None if recipe.init is None else kept_weights(Path(task.storage), recipe.init)
    if trial.kind is DETECT:
        from mambaout.dense.detect import train_detector
        from mambaout.dense.detector_plan import detector_plan
        from mambaout.detect_rules import MICRO_BATCH

        plan, _ = detector_plan(recipe, sets.train, init)
        size = min(task.micro_batch or MICRO_BATCH, recipe.global_batch)
        train = partial(train_detector, recipe, plan, micro_batch=size)
    else:
        from mambaout.dense.segment import segmenter_plan, train_segmenter

        segmenter, _ = segmenter_plan(recipe, sets.train, init)
        train = partial(train_segmenter, recipe, segmenter, micro_batch=task.micro_batch)
    outcome = train(
        sets.train,
        sets.val,
        out=directory,
        backend=backend,
        seed=trial.seed,
        sinks=[report],
        num_workers=task.num_workers,
        checkpoint_seconds=CHECKPOINT_SECONDS,
        stop=stop,
    )
    backend.free_memory()
    if isinstance(outcome, OutOfMemory):
        raise outcome.as_error()
