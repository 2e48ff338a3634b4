"""What `mambaout train --task detect` and `--task segment` share: checks, progress, the ending."""

from __future__ import annotations

import argparse
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mambaout.commands.dense_options import given_dense_fields
from mambaout.commands.options import DEFAULT_STORAGE, load_workers
from mambaout.errors import WrongRequest
from mambaout.fields import all_of, flat_fields
from mambaout.launch.named import NamedWeights, named_weights
from mambaout.launch.start_weights import start_weights
from mambaout.numbers import clock_text, rate_text
from mambaout.options import field_text, option
from mambaout.variants import ModelConfig

if TYPE_CHECKING:
    from mambaout.model.initial import InitialWeights
    from mambaout.train.backend import Backend
    from mambaout.train.outcomes import Outcome

SHAPES = "shapes"  # the value of --data for the generated set
SMOKE_IMAGES = (12, 6)  # training and validation


# -- the request ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenseRequest(ABC):
    """What the options ask for, before the data are read."""

    data: str
    shape: ModelConfig | None
    given: Mapping[str, Any]
    smoke: bool
    start: Mapping[str, Any] = field(default_factory=dict)  # fields that fit the weights of --init

    baseline: ClassVar[Any]  # the recipe, if nothing is said
    shapes_fields: ClassVar[Mapping[str, Any]]  # what --data shapes trains, if nothing else is said
    smoke_fields: ClassVar[Mapping[str, Any]]

    @abstractmethod
    def recipe(self, num_images: int) -> tuple[Any, list[str]]:
        """The recipe for so many training images, and a line for each field that follows."""

    def fields(self) -> tuple[dict[str, Any], list[str]]:
        """The fields that do not depend on the number of images, and a line for each of them that
        is not given."""
        fields: dict[str, Any] = dict(self.start)
        fields |= {} if self.shape is None else flat_fields(self.shape)
        own: dict[str, Any] = {}
        if self.data == SHAPES:
            chosen = self.smoke_fields if self.smoke else self.shapes_fields
            taken = {*self.given, *fields}
            own = {name: value for name, value in chosen.items() if name not in taken}
        lines = [f"{option(n)} {field_text(v)}: for the small shapes" for n, v in own.items()]
        usual = flat_fields(self.baseline)
        for name, value in self.start.items():
            if name not in self.given and fields[name] == value != usual[name]:
                lines.append(f"{option(name)} {field_text(value)}: as in --init")
        return {**fields, **own, **self.given}, lines


MANY_WARMUPS = 20  # a shorter training than so many warm-ups has a shorter warm-up


def shorter_warmup(fields: dict[str, Any], steps: int, usual: int) -> list[str]:
    """Set warmup_steps in `fields` if it is not there and the training is short; says so."""
    if "warmup_steps" in fields or not 0 < steps <= MANY_WARMUPS * usual:
        return []
    fields["warmup_steps"] = steps // MANY_WARMUPS
    return [
        f"{option('warmup_steps')} {fields['warmup_steps']}: 1 of {MANY_WARMUPS} of the {steps} "
        f"steps, which is less than {usual}"
    ]


class DenseCommand(ABC):
    """One task: how its data are read, how it is trained, and which of its figures are printed."""

    task: ClassVar[str]
    format: ClassVar[str]  # of the data, in words
    request: ClassVar[type[DenseRequest]]
    figures: ClassVar[Mapping[str, str]]  # name of a metric -> in words

    def check(self, options: argparse.Namespace) -> None:
        """Raise WrongRequest if an option is not for this task."""
        if find_spec("pycocotools") is None:
            raise WrongRequest(
                f"--task {self.task} needs pycocotools: in the project's folder, "
                "pip install -c constraints.txt -e '.[dense]'"
            )

    @abstractmethod
    def variant(self, name: str) -> ModelConfig: ...

    @abstractmethod
    def read(self, root: str) -> Sequence[Any]:
        """The training and the validation split in the folder or bucket `root`."""

    @abstractmethod
    def fields_of_start(self, initial: InitialWeights) -> Mapping[str, Any]:
        """The fields of a recipe that fit the weights of --init, which a new run takes."""

    @abstractmethod
    def num_images(self, train: Any) -> int: ...

    @abstractmethod
    def num_steps(self, recipe: Any, train: Any) -> int: ...

    @abstractmethod
    def read_recipe(self, text: str, where: str) -> Any: ...

    @abstractmethod
    def trainer(
        self,
        recipe: Any,
        splits: Sequence[Any],
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
    shape, given = all_of(
        lambda: None if options.variant is None else command.variant(options.variant),
        lambda: given_dense_fields(options, command.task),
    )
    return command.request(data, shape, given, options.smoke)


def _given_weights(text: str | None) -> NamedWeights | None:
    if text is None:
        return None
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
        lambda: _given_weights(options.init),
    )
    from mambaout.cache import default_cache
    from mambaout.dense.shapes import ShapesSize, shapes_folder
    from mambaout.train.backend import backend

    root = request.data
    if root == SHAPES:
        train_images, val_images = SMOKE_IMAGES
        size = ShapesSize(train=train_images, val=val_images) if options.smoke else ShapesSize()
        root = str(shapes_folder(size))
    if init is not None:
        initial = start_weights(options.init, DEFAULT_STORAGE)
        request = replace(request, start=command.fields_of_start(initial))
    splits = command.read(root)
    for data in splits:
        print(data.report)
    # torch.compile is for classification: it has not been tried on these networks.
    compiles = None if options.backend == "xla" else False
    where = backend(options.backend, cache=default_cache() / "xla", compiles=compiles)
    recipe, lines = request.recipe(command.num_images(splits[0]))
    if "precision" not in request.given:
        precision, reason = _precision(command, recipe, folder, where)
        if precision != recipe.precision:
            recipe = replace(recipe, precision=precision)
            lines.append(f"--precision {precision}: {reason}")
    steps = command.num_steps(recipe, splits[0])
    train, said = command.trainer(
        recipe, splits, None if init is None else init.path, where, options
    )
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
) -> tuple[Literal["fp32", "bf16"], str]:
    """The precision on these devices, and why. A run that has begun keeps its own anywhere."""
    try:
        text = (out / "recipe.json").read_text(encoding="utf-8")
        kept = command.read_recipe(text, str(out))
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
