"""A study to run, as the command line asked for it. It is checked before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambaout.code_version import CODE_VERSION
from mambaout.command_line import NOT_ON_XLA, TF32_ELSEWHERE
from mambaout.data.shards.column_options import GivenColumns
from mambaout.durable import read_whole
from mambaout.errors import WrongRequest
from mambaout.launch.progress import Job
from mambaout.launch.resources import Share
from mambaout.memory import micro_batches
from mambaout.numbers import counted
from mambaout.recompute import Stages, check_recompute, stages_text
from mambaout.study.price.trial_price import NumImages
from mambaout.study.search.space import doubts
from mambaout.study.speeds import speed_goals
from mambaout.study.study import STUDY_FILE, Study, StudyFolder, Trial
from mambaout.train.tasks import CLASSIFY, TaskKind, kind_of

if TYPE_CHECKING:
    from mambaout.model.initial import InitialWeights

TRAINER = "mambaout.launch.trial:train_trial"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked study to run, as the command line asked for it."""

    study: Study
    trials: Sequence[Trial]  # those known beforehand, in the order in which they start
    job: Callable[[Trial], Job]
    num_images: NumImages
    fingerprint: str  # of the data
    data: str  # the argument of open_data on every machine
    data_name: str
    storage: Path
    name: str
    tracking_uri: str
    columns: GivenColumns = field(default_factory=GivenColumns)  # also passed to open_data
    stage: str | None = None  # folder on each machine to which the shards are copied
    recompute: Stages = ()  # every trial computes these stages again in the backward pass
    compiles: bool | None = None  # with torch.compile; None: on a GPU
    address: str | None = None
    accelerator: str | None = None
    max_concurrent: int | None = None
    budget_hours: float | None = None
    until: float | None = None  # points: seeds are added until width against depth is so precise
    rerun: bool = False
    command: str = ""
    not_on_xla: str = ""  # why its trials cannot run on XLA; "" if they can
    trainer: str = TRAINER  # MODULE:FUNCTION that a worker calls to train a trial
    facts: Mapping[str, Any] = field(default_factory=dict)
    weights: Sequence[InitialWeights] = ()  # that trials start from
    micro_batch: int | None = None  # images in memory at once; only of a detector or a segmenter
    about_weights: str = ""  # a line on them
    about_data: str = ""  # a line on the data
    about_others: str = ""  # a line on trials of another code version
    about_design: str = ""  # a line on the shapes that a budget leaves out
    rules: Sequence[str] = ()  # a line for each field that a rule sets from data or device

    @property
    def reuse(self) -> bool:
        """Whether finished trials of the studies beside this one are reused.

        They are not for a search that optimises speed, because speed depends on the device.
        """
        return not self.rerun and not speed_goals(self.study.searches)


def hello(request: Request) -> list[str]:
    """The lines before a plan or a launch: earlier trials, the data, and what follows from them."""
    lines = [request.about_others] if request.about_others else []
    if request.about_data:
        lines.append(f"{request.data_name}: {request.about_data}")
    if request.about_weights:
        lines.append(request.about_weights)
    if request.about_design:
        lines.append(request.about_design)
    if request.about_data and request.rules:
        example = request.rules[0].partition(":")[0]
        if request.study.kind is CLASSIFY:
            example = "--image-size 64"
        each = f"each is an option, {example} for one"
        follows = "the data, the weights" if request.weights else "the data"
        lines.append(f"what follows {follows} and the device ({each}):")
        lines += [f"    {rule}" for rule in request.rules]
    if request.recompute:
        lines.append(
            f"--recompute {stages_text(request.recompute)}: less memory, and up to 1.4 times the "
            "time; a plan knows that only after --calibrate with the same option"
        )
    lines += doubts(request.study.searches)
    return lines + [
        f"search {label} looks for {goal}, which is measured on this device: no trial is taken "
        "over from another study"
        for label, goal in speed_goals(request.study.searches).items()
    ]


def check_task(folder: StudyFolder, kind: TaskKind) -> None:
    """Raise WrongRequest if the folder has a study of another task, which would be replaced."""
    text = read_whole(folder.path / STUDY_FILE)
    there = kind.name if text is None else json.loads(text).get("task", CLASSIFY.name)
    if there != kind.name:
        raise WrongRequest(
            f"{folder.path} is a study of --task {there}, and this one is of --task {kind.name}; "
            "give it another --name or --storage"
        )


def about_others(folder: StudyFolder) -> str:
    """A line for a study that another code version began: its trials are trained anew."""
    others = folder.begun_by_others()
    if not others:
        return ""
    versions = " and ".join(map(str, sorted({trial.code_version for trial in others})))
    return (
        f"{counted(len(others), 'trial')} here of code version {versions}, and this mambaout is of "
        f"{CODE_VERSION}, which comes to other numbers: trained anew; the old ones stay in "
        f"{folder.path / 'trials'}"
    )


def check_share(request: Request, part: Share) -> None:
    """Raise ValueError if a recipe's batch does not split over the share's devices, or if they
    cannot recompute stages, multiply in TF32 or take --compile."""
    if part.backend == "xla" and request.not_on_xla:
        raise WrongRequest(
            f"{part.accelerator}: {request.not_on_xla}; use --accelerator gpu or cpu"
        )
    check_recompute(request.recompute, part.backend)
    if part.backend == "xla" and request.compiles is not None:
        raise WrongRequest(f"{NOT_ON_XLA} on {part.accelerator}")
    recipes = {f"trial {trial.label}": trial.recipe for trial in request.trials}
    recipes |= {f"search {one.label}": one.base for one in request.study.searches}
    for what, recipe in recipes.items():
        if recipe.precision == "tf32" and part.backend != "cuda":
            raise WrongRequest(f"{what} on {part.accelerator}: {TF32_ELSEWHERE}")
        if kind_of(recipe) is not CLASSIFY:
            continue  # it runs on one device, where any batch fits by micro-batches
        try:
            micro_batches(recipe, part.num_devices)
        except WrongRequest as error:
            raise WrongRequest(f"{what} on {part.accelerator}: {error}") from error
