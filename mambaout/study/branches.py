"""Long trainings that go on from shorter ones, so that several lengths cost little more than one.

Two recipes with a late decay (`lr_decay_share`) that differ only in their epochs are the same
training until the shorter one begins its decay. There the shorter run keeps a checkpoint, a branch
point. The longer run starts from it and trains only the rest. It ends with the same bits as if it
had been trained alone from step 0. So a branch point only saves time: where it is missing, nothing
else changes.

    4 epochs     |----.__
    12 epochs         |--------.____
    36 epochs                  |-----------------------.___________

A run that has begun so holds branch.json, and the records of the shorter run up to that step.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mambaout.durable import replacing, write_whole
from mambaout.errors import WrongRequest
from mambaout.recipe import Recipe, canonical_json
from mambaout.study.run_files import without_val
from mambaout.study.study import (
    BRANCH_FILE,
    BRANCH_OF,
    BRANCH_STEP,
    CHECKPOINT_FILE,
    OUTCOME_FILE,
    RECIPE_FILE,
    RECORDS_FILE,
    Run,
    StudyFolder,
    Trial,
)
from mambaout.train.metrics import NUM_DEVICES, read_records

BRANCH_POINTS = "branch-*.ckpt"  # written by train/checkpoint.py; the number is the step
_STEP = re.compile(r"branch-(\d+)\.ckpt")


@dataclass(frozen=True)
class BranchPoint:
    """A checkpoint of a shorter run from which a longer one can start."""

    checkpoint: Path  # in the run directory of the shorter run
    step: int
    key: str  # of the shorter trial


def is_start_of(shorter: Trial, longer: Trial) -> bool:
    """Whether `longer` is the same training as `shorter` until the decay of `shorter` begins."""
    first, second = shorter.recipe, longer.recipe
    if not (_decays_late(first) and _decays_late(second)):
        return False
    same = ("seed", "data", "code_version")
    if any(getattr(shorter, name) != getattr(longer, name) for name in same):
        return False
    epochs = first.schedule.epochs
    if first.model != second.model or epochs >= second.schedule.epochs:
        return False  # the usual case, told quickly
    return first == replace(second, schedule=replace(second.schedule, epochs=epochs))


def longest_start(trial: Trial, others: Iterable[Trial]) -> Trial | None:
    """The longest of the `others` that `trial` can go on from; None if there is none."""
    if not _decays_late(trial.recipe):
        return None  # without a look at all pairs of a large study
    starts = [other for other in others if is_start_of(other, trial)]
    return max(starts, key=lambda other: other.recipe.schedule.epochs, default=None)


def num_starts(trial: Trial, others: Sequence[Trial]) -> int:
    """How many of the `others` the trial can go on from. Trials start in this order."""
    if not _decays_late(trial.recipe):
        return 0
    return sum(is_start_of(other, trial) for other in others)


def branch_points(folder: StudyFolder, trial: Trial) -> Iterator[BranchPoint]:
    """Where the trial can start, the longest way first: in this study, then in those beside it.

    With `folder.reuse` off, only this study is searched.
    """
    if not _decays_late(trial.recipe):
        return
    studies = "*" if folder.reuse else folder.path.name
    kept: dict[str, list[Path]] = {}
    for path in sorted(folder.path.parent.glob(f"{studies}/trials/*/{BRANCH_POINTS}")):
        kept.setdefault(path.parent.name, []).append(path)
    if not kept:
        return
    for epochs in range(trial.recipe.schedule.epochs - 1, 0, -1):
        try:
            shorter = replace(trial, recipe=_with_epochs(trial.recipe, epochs))
        except WrongRequest:  # the decay would begin within the warm-up
            return
        own_first = sorted(
            kept.get(shorter.key, ()), key=lambda path: path.parents[2] != folder.path
        )
        for path in own_first:
            if match := _STEP.fullmatch(path.name):
                yield BranchPoint(path, int(match[1]), shorter.key)


def has_branched(folder: StudyFolder, trial: Trial) -> bool:
    """Whether the trial's run has kept a branch point, so that a longer one can start."""
    return any(folder.run_directory(trial).glob(BRANCH_POINTS))


def begin_at(folder: StudyFolder, trial: Trial, point: BranchPoint) -> None:
    """Give the trial's new run directory what its run alone would have after `point.step` steps.

    Raises WrongRequest, and writes nothing, if the records of the shorter run are damaged.
    """
    directory, source = folder.run_directory(trial), point.checkpoint.parent
    directory.mkdir(parents=True, exist_ok=True)
    records = [
        record for record in read_records(source / RECORDS_FILE) if record.step <= point.step
    ]
    write_whole(directory / RECORDS_FILE, "".join(f"{without_val(record)}\n" for record in records))
    for listed in source.glob("undecodable*.txt"):
        write_whole(directory / listed.name, listed.read_bytes())
    write_whole(directory / RECIPE_FILE, canonical_json(trial.recipe) + "\n")
    facts = {BRANCH_OF: point.key, BRANCH_STEP: point.step}
    write_whole(directory / BRANCH_FILE, json.dumps(facts) + "\n")
    # The checkpoint comes last: without it the run starts at step 0, and drops these records.
    with replacing(directory / CHECKPOINT_FILE) as aside:
        shutil.copy(point.checkpoint, aside)


def has_begun(directory: Path) -> bool:
    """Whether a run has something to go on from, or is over."""
    return (directory / OUTCOME_FILE).exists() or any(directory.glob("*.ckpt"))


def shared_device_hours(run: Run) -> float:
    """The device-hours of a finished run that it took over from the shorter run."""
    step = run.facts.get(BRANCH_STEP, 0)
    seconds = [record.seconds for record in run.records if record.step <= step]
    return max(seconds, default=0.0) * run.facts.get(NUM_DEVICES, 1) / 3600


def _decays_late(recipe: object) -> bool:
    """Whether the recipe has steps at a constant rate, which other lengths can share."""
    return isinstance(recipe, Recipe) and recipe.schedule.lr_decay_share not in (None, 1)


def _with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    return replace(recipe, schedule=replace(recipe.schedule, epochs=epochs))
