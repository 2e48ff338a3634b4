"""A study that is to be run: what the command line asked for, checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mambaout.data.column_options import GivenColumns
from mambaout.errors import WrongRequest
from mambaout.launch.progress import Job
from mambaout.launch.resources import Share
from mambaout.launch.trial import TRAINER
from mambaout.memory import micro_batches
from mambaout.study.pricing import NumImages
from mambaout.study.study import Study, Trial


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
    rules: Sequence[str] = ()  # which fields of the recipes follow the data, a line each


def hello(request: Request) -> list[str]:
    """What is said of the data and of what follows from it, before a plan or a launch."""
    if not request.about_data:
        return []
    lines = [f"{request.data_name}: {request.about_data}"]
    if request.rules:
        lines.append("what follows the data (each is an option, --image-size 64 for one):")
    return lines + [f"    {rule}" for rule in request.rules]


def check_batches(request: Request, part: Share) -> None:
    """ValueError for a recipe whose batch the share's devices cannot split."""
    recipes = {f"trial {trial.label}": trial.recipe for trial in request.trials}
    recipes |= {f"search {one.label}": one.base for one in request.study.searches}
    for what, recipe in recipes.items():
        try:
            micro_batches(recipe, part.num_devices)
        except ValueError as error:
            raise WrongRequest(f"{what} on {part.accelerator}: {error}") from error
