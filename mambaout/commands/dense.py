"""What `mambaout train --task detect` and `--task segment` share: checks, progress, the ending."""

from __future__ import annotations

import argparse
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mambaout.commands.dense_options import given_task_fields
from mambaout.commands.options import DEFAULT_STORAGE, load_workers
from mambaout.dense_options import require_dense_extra
from mambaout.dense_rules import SHAPES, SMOKE_SHAPES
from mambaout.errors import WrongRequest
from mambaout.fields import all_of, flat_fields
from mambaout.launch.named import NamedWeights, named_weights
from mambaout.launch.start_weights import start_weights
from mambaout.numbers import clock_text, rate_text
from mambaout.options import check_used, option
from mambaout.train.tasks import TaskKind
from mambaout.variants import ModelConfig

if TYPE_CHECKING:
    from mambaout.dense.dense_sets import DenseSets
    from mambaout.model.initial import InitialWeights
    from mambaout.train.backend import Backend
    from mambaout.train.outcomes import Outcome


@dataclass(frozen=True)
class DenseRequest:
    """What the options ask for, before the data are read."""

    data: str
    shape: ModelConfig | None
    given: Mapping[str, Any]


class DenseCommand(ABC):
    """One task: how its data are read, how it is trained, and which of its figures are printed."""

    kind: ClassVar[TaskKind]
    format: ClassVar[str]  # of the data, in words
    small: ClassVar[Mapping[str, Mapping[str, Any]]]  # fields of the generated sets, by their names
    fit: ClassVar[Callable[..., tuple[Any, list[str]]]]  # fitted_detect or fitted_segment
    figures: ClassVar[Mapping[str, str]]  # name of a metric -> in words

    @property
    def task(self) -> str:
        return self.kind.name

    def check(self, options: argparse.Namespace) -> None:
        """Raise WrongRequest if an option is not for this task."""
        require_dense_extra(f"--task {self.task}")

    @abstractmethod
    def variant(self, name: str) -> ModelConfig: ...

    @abstractmethod
    def read(self, data: str) -> DenseSets: ...

    @abstractmethod
    def num_steps(self, recipe: Any, num_images: int) -> int: ...

    def fields_of_start(self, weights: InitialWeights) -> Mapping[str, Any]:
        """The fields of a recipe with which the weights to start from fit."""
        return flat_fields(weights.model)

    @abstractmethod
    def trainer(
        self,
        recipe: Any,
        sets: DenseSets,
        init: Path | None,
        where: Backend,
        options: argparse.Namespace,
    ) -> tuple[Callable[..., Outcome], list[str]]:
        """A function that trains, and lines about what it will do."""


def _request(command: DenseCommand, options: argparse.Namespace) -> DenseRequest:
    task = f"--task {command.task}"
    foreign = [
        option(name)
        for name in ("recipe", "stage", "image_column", "label_column")
        if getattr(options, name) is not None
    ]
    if options.recompute:
        foreign.append("--recompute")
    if options.compile is not None:
        foreign.append("--compile" if options.compile else "--no-compile")
    if options.multi_scale and command.task != "segment":
        foreign.append("--multi-scale")
    if foreign:
        raise WrongRequest(f"{foreign[0]} is not for {task}; leave it out")
    command.check(options)
    data = options.data or (SHAPES if options.smoke else None)
    if data is None:
        raise WrongRequest(
            f"--data is missing: give {SHAPES}, or a folder or bucket in {command.format} format"
        )
    if options.smoke and data != SHAPES:
        raise WrongRequest(f"--smoke with {task} is for --data {SHAPES}; leave --data out")
    data = SMOKE_SHAPES if options.smoke else data
    shape, given = all_of(
        lambda: None if options.variant is None else command.variant(options.variant),
        lambda: given_task_fields(options, command.task),
    )
    return DenseRequest(data, shape, given)


def _given_weights(text: str) -> NamedWeights:
    try:
        return named_weights(text, DEFAULT_STORAGE)
    except WrongRequest as error:
        raise WrongRequest(f"--init: {error}") from error


# -- the run --------------------------------------------------------------------------------------


def run_dense(
    command: DenseCommand,
    options: argparse.Namespace,
    out: Callable[[], Path],
    stop: Callable[[], Callable[[], bool]],
) -> int:
    """Train as the options say; returns the exit status."""
    request, folder, init = all_of(
        lambda: _request(command, options),
        out,
        lambda: None if options.init is None else _given_weights(options.init),
    )
    from mambaout.cache import default_cache
    from mambaout.train.backend import backend

    start = {}
    if init is not None:
        start = command.fields_of_start(start_weights(options.init, DEFAULT_STORAGE))
    sets = command.read(request.data)
    for line in sets.reports:
        print(line)
    # torch.compile is for classification: it has not been tried on these networks.
    compiles = None if options.backend == "xla" else False
    where = backend(options.backend, cache=default_cache() / "xla", compiles=compiles)
    small = command.small.get(request.data)
    recipe, lines = command.fit(sets.num_train, request.shape, request.given, small, start)
    check_used(request.given, [recipe.model])
    if "precision" not in request.given:
        precision, reason = _precision(command, recipe, folder, where)
        if precision != recipe.precision:
            recipe = replace(recipe, precision=precision)
            lines.append(f"--precision {precision}: {reason}")
    steps = command.num_steps(recipe, sets.num_train)
    train, said = command.trainer(recipe, sets, None if init is None else init.path, where, options)
    if lines:
        print("what follows the data (each is an option):")
    for line in lines:
        print(f"    {line}")
    for line in said:
        print(line)
    print(f"{steps} steps of {recipe.global_batch} into {folder}", flush=True)
    began: list[bool] = []
    try:
        outcome = train(
            out=folder,
            backend=where,
            seed=options.seed,
            sinks=[_progress(command, steps)],
            max_steps=options.max_steps,
            log_every_steps=options.log_every_steps,
            num_workers=load_workers(options.workers, where.name),
            stop=stop(),
            began=lambda: began.append(True),
        )
    except WrongRequest as error:
        if not began:
            raise
        text = f"mambaout train: {error}; once that is mended, the same command continues"
        print(text, file=sys.stderr)
        return 1
    return _ended(command, outcome, options.max_steps, steps, folder)


def _ended(
    command: DenseCommand, outcome: Outcome, max_steps: int | None, steps: int, folder: Path
) -> int:
    """Print how the run ended; returns the exit status."""
    from mambaout.train.outcomes import Diverged, Finished, OutOfMemory, Preempted

    match outcome:
        case Finished(metrics=final):
            rate, shown = rate_text(final["images_per_second"]), _figures(command, final)
            print(f"finished: {shown}, {rate} images/s; {folder / 'outcome.json'}")
            return 0
        case Preempted(step=step) if max_steps is not None and step >= max_steps:
            print(f"stopped at step {step} of {steps}, as --max-steps says; a larger one continues")
            return 0
        case Preempted(step=step):
            print(f"stopped at step {step} of {steps}; the same command continues")
        case Diverged(step=step):
            print(f"diverged: the loss was not finite at step {step}; try a smaller --peak-lr")
        case OutOfMemory():
            print(outcome.text, file=sys.stderr)
    return 1


def _precision(
    command: DenseCommand, recipe: Any, out: Path, where: Backend
) -> tuple[Literal["fp32", "tf32", "bf16"], str]:
    """The precision on these devices, and why. A run that has begun keeps its own anywhere."""
    try:
        text = (out / "recipe.json").read_text(encoding="utf-8")
        kept = command.kind.read(text, str(out))
    except (OSError, WrongRequest, UnicodeDecodeError):
        kept = None  # nothing has begun, or the training will report the error
    if kept is not None and replace(kept, precision=recipe.precision) == recipe:
        return kept.precision, f"the run in {out} was begun with it"
    if where.multiplies_bf16:
        return "bf16", f"{where.device_name} has units for it"
    return recipe.precision, "the default"


def _figures(command: DenseCommand, values: Mapping[str, float], before: str = "") -> str:
    return ", ".join(
        f"{text} {values[before + name]:.1f}"
        for name, text in command.figures.items()
        if before + name in values
    )


def _progress(command: DenseCommand, num_steps: int) -> Callable[[Any], None]:
    def show(record: Any) -> None:
        left = record.seconds / record.step * (num_steps - record.step)
        loss = f"loss {record.values['train/loss']:.3f}"
        found = _figures(command, record.values, "val/")
        shown = "  ".join(part for part in (loss, found) if part)
        print(
            f"step {record.step}/{num_steps}  epoch {record.epoch:.1f}  {shown}"
            f"  ETA {clock_text(left)}",
            flush=True,
        )

    return show
