"""A study that is to be run: what the command line asked for, checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mambaout.code_version import CODE_VERSION
from mambaout.data.shards.column_options import GivenColumns
from mambaout.errors import WrongRequest
from mambaout.launch.progress import Job
from mambaout.launch.resources import Share
from mambaout.memory import micro_batches
from mambaout.numbers import counted
from mambaout.study.price.trial_price import NumImages
from mambaout.study.speeds import speed_goals
from mambaout.study.study import Study, StudyFolder, Trial

TRAINER = "mambaout.launch.trial:train_trial"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A study to run, checked: what the command line asked for."""

    study: Study
    trials: Sequence[Trial]  # those known beforehand, in the order to start them
    job: Callable[[Trial], Job]
    num_images: NumImages
    fingerprint: str  # of the data
    data: str  # what open_data is given on every machine
    data_name: str
    storage: Path
    name: str
    tracking_uri: str
    columns: GivenColumns = field(default_factory=GivenColumns)  # that open_data is told of
    stage: str | None = None  # the folder of each machine that the shards are copied to
    address: str | None = None
    accelerator: str | None = None
    max_concurrent: int | None = None
    budget_hours: float | None = None
    rerun: bool = False
    command: str = ""
    trainer: str = TRAINER  # MODULE:FUNCTION that a worker calls to train a trial
    facts: Mapping[str, Any] = field(default_factory=dict)
    about_data: str = ""  # a line on the data
    about_others: str = ""  # a line on trials of another code version
    rules: Sequence[str] = ()  # which fields of the recipes follow data and device, a line each

    @property
    def reuse(self) -> bool:
        """Whether finished trials of the studies beside this one are taken over. Not for a search
        that looks for speed, which is a measurement of the device that it runs on."""
        return not self.rerun and not speed_goals(self.study.searches)


def hello(request: Request) -> list[str]:
    """What is said of earlier trials, of the data and of what follows from it, before a plan or a
    launch."""
    lines = [request.about_others] if request.about_others else []
    if request.about_data:
        lines.append(f"{request.data_name}: {request.about_data}")
    if request.about_data and request.rules:
        each = "each is an option, --image-size 64 for one"
        lines.append(f"what follows the data and the device ({each}):")
        lines += [f"    {rule}" for rule in request.rules]
    return lines + [
        f"search {label} looks for {goal}, which is measured on this device: no trial is taken "
        "over from another study"
        for label, goal in speed_goals(request.study.searches).items()
    ]


def about_others(folder: StudyFolder) -> str:
    """What is said where a study was begun by another code version: its trials are trained anew."""
    others = folder.begun_by_others()
    if not others:
        return ""
    versions = " and ".join(map(str, sorted({trial.code_version for trial in others})))
    return (
        f"{counted(len(others), 'trial')} here of code version {versions}, and this mambaout is of "
        f"{CODE_VERSION}, which comes to other numbers: trained anew; the old ones stay in "
        f"{folder.path / 'trials'}"
    )


def check_batches(request: Request, part: Share) -> None:
    """ValueError for a recipe whose batch the share's devices cannot split."""
    recipes = {f"trial {trial.label}": trial.recipe for trial in request.trials}
    recipes |= {f"search {one.label}": one.base for one in request.study.searches}
    for what, recipe in recipes.items():
        try:
            micro_batches(recipe, part.num_devices)
        except WrongRequest as error:
            raise WrongRequest(f"{what} on {part.accelerator}: {error}") from error
