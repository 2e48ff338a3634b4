"""`mambaout train --task detect`: Mask R-CNN on a set in COCO format.

The options are those of `mambaout train`. A recipe's field that a detection has too, like
--peak-lr, has the same option with another default. Fields that only a detection has are in a group
of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mambaout.commands.options import DEFAULT_STORAGE, load_workers, whole_number
from mambaout.dense.detect_recipe import (
    DETECT_BASELINE,
    NOT_ON_XLA,
    DetectRecipe,
    detect_field_types,
    detect_recipe_from_json,
    detect_steps_per_epoch,
    tuned_detect,
)
from mambaout.errors import WrongRequest
from mambaout.fields import WrongValues, all_of, fault_of, flat_fields, knobs, parsed, type_in_words
from mambaout.launch.named import NamedWeights, named_weights
from mambaout.launch.start_weights import start_weights
from mambaout.numbers import clock_text, rate_text
from mambaout.options import FIELD_DEST, field_text, option
from mambaout.recipe import field_types
from mambaout.variants import ModelConfig, variant

if TYPE_CHECKING:
    from mambaout.train.backend import Backend

SHAPES = "shapes"  # the value of --data for the generated set
MICRO_BATCH = 2  # images in memory at once, as in mmdetection's 8 x 2
# What --data shapes trains if it is not said otherwise: minutes on a CPU, not a photograph's size.
SHAPES_FIELDS: Mapping[str, Any] = {
    **{"depths": (1, 1, 2, 1), "dims": (24, 48, 72, 96), "drop_path": 0.0},
    **{"head_channels": 64, "box_features": 256, "smallest_anchor": 12},
    **{"shorter_side": 96, "longer_side": 96, "global_batch": 6, "peak_lr": 1e-3},
}
SMOKE_FIELDS: Mapping[str, Any] = {
    **SHAPES_FIELDS,
    **{"dims": (8, 16, 24, 32), "head_channels": 16, "box_features": 64, "epochs": 1},
}
SMOKE_IMAGES = (12, 6)  # training and validation


def add_detect_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only `--task detect` has."""
    shared = [name for name in knobs(DetectRecipe) if name in field_types()]
    defaults = ", ".join(
        f"{option(name)} {field_text(getattr(DETECT_BASELINE, name))}" for name in shared
    )
    group = parser.add_argument_group(
        "detection",
        "Only for --task detect, which trains Mask R-CNN on --data FOLDER in COCO format "
        "(annotations/instances_{train,val}2017.json) or on --data shapes, a generated set. It "
        "takes the options of the network too (default: tiny) and, with other defaults than above: "
        f"{defaults}. No other field above is for detection.",
    )
    for name, said in knobs(DetectRecipe).items():
        if name in shared:
            continue
        default, source = getattr(DETECT_BASELINE, name), said.source or "our choice"
        bound = f"; {said.bound}" if said.bound else ""
        group.add_argument(
            option(name),
            dest=f"{FIELD_DEST}{name}",
            metavar="N",
            help=f"{said.help} [{said.unit}{bound}]. Default: {default} ({source})",
        )
    group.add_argument(
        "--micro-batch",
        type=whole_number(1),
        metavar="N",
        help="images in memory at once; a step adds up as many micro-batches as its global batch "
        f"needs (default {MICRO_BATCH})",
    )


def refuse_detect_options(options: argparse.Namespace) -> None:
    """Raise WrongRequest if an option of detection is given for another task."""
    only = [name for name in knobs(DetectRecipe) if name not in field_types()]
    given = [option(name) for name in only if getattr(options, f"{FIELD_DEST}{name}") is not None]
    if options.micro_batch is not None:
        given.append(option("micro_batch"))
    if given:
        raise WrongRequest(f"{given[0]} is for detection alone; add --task detect or leave it out")


def given_detect_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields on the command line; WrongValues has a line for each wrong or foreign option."""
    types = detect_field_types()
    said = {**knobs(ModelConfig), **knobs(DetectRecipe)}
    values, wrong = {}, []
    for name in dict.fromkeys([*field_types(), *types]):
        text = getattr(options, f"{FIELD_DEST}{name}", None)
        if text is None:
            continue
        if name not in types:
            wrong.append(f"{option(name)} is not for --task detect; leave it out")
            continue
        try:
            values[name] = parsed(name, text, types[name])
            fault = fault_of(name, values[name], said[name])
        except WrongRequest:
            fault = name
        if fault is not None:
            wanted = type_in_words(types[name], said[name].bound)
            wrong.append(f"{option(name)} {text!r} must be {wanted}")
    if wrong:
        raise WrongValues(*wrong)
    return values


# -- the recipe -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DetectRequest:
    """What the options ask for, before the data are read."""

    data: str
    shape: ModelConfig | None
    given: Mapping[str, Any]
    smoke: bool

    def recipe(self, num_images: int, start: Mapping[str, Any]) -> tuple[DetectRecipe, list[str]]:
        """The recipe for so many training images, and a line for each field that follows.

        `start` has the fields that fit the weights to start from.
        """
        base, lines = DETECT_BASELINE, []
        fields: dict[str, Any] = dict(start)
        fields |= {} if self.shape is None else flat_fields(self.shape)
        for name, value in start.items():
            if (
                name not in self.given
                and fields[name] == value
                and value != flat_fields(base)[name]
            ):
                lines.append(f"{option(name)} {field_text(value)}: as in --init")
        if self.data == SHAPES:
            chosen = SMOKE_FIELDS if self.smoke else SHAPES_FIELDS
            own = {
                name: value
                for name, value in chosen.items()
                if name not in self.given and name not in fields
            }
            lines += [f"{option(n)} {field_text(v)}: for the small shapes" for n, v in own.items()]
            fields |= own
        fields |= self.given
        epochs = fields.get("epochs", base.epochs)
        if epochs != base.epochs:
            for name in ("first_drop_epoch", "second_drop_epoch"):
                if name not in self.given:
                    fields[name] = max(1, round(getattr(base, name) * epochs / base.epochs))
                    lines.append(f"{option(name)} {fields[name]}: the same share of the epochs")
        batch = fields.get("global_batch", base.global_batch)
        steps = num_images // batch * epochs
        if "warmup_steps" not in self.given and 0 < steps <= MANY_WARMUPS * base.warmup_steps:
            fields["warmup_steps"] = steps // MANY_WARMUPS
            lines.append(
                f"{option('warmup_steps')} {fields['warmup_steps']}: 1 of {MANY_WARMUPS} of the "
                f"{steps} steps, which is less than {base.warmup_steps}"
            )
        return tuned_detect(base, fields), lines


MANY_WARMUPS = 20  # a shorter training than so many warm-ups has a shorter warm-up


def _request(options: argparse.Namespace) -> DetectRequest:
    foreign = [
        option(name)
        for name in ("recipe", "stage", "image_column", "label_column")
        if getattr(options, name) is not None
    ]
    if options.recompute:
        foreign.append("--recompute")
    if options.compile is not None:
        foreign.append("--compile" if options.compile else "--no-compile")
    if foreign:
        raise WrongRequest(f"{foreign[0]} is not for --task detect; leave it out")
    if options.backend == "xla":
        raise WrongRequest(NOT_ON_XLA)
    if find_spec("pycocotools") is None:
        raise WrongRequest(
            "--task detect needs pycocotools: in the project's folder, "
            "pip install -c constraints.txt -e '.[dense]'"
        )
    data = options.data or (SHAPES if options.smoke else None)
    if data is None:
        raise WrongRequest(
            f"--data is missing: give {SHAPES}, or a folder or bucket in COCO format"
        )
    if options.smoke and data != SHAPES:
        raise WrongRequest(f"--smoke with --task detect is for --data {SHAPES}; leave --data out")
    shape, given = all_of(
        lambda: None if options.variant is None else variant(options.variant),
        lambda: given_detect_fields(options),
    )
    return DetectRequest(data, shape, given, options.smoke)


def _given_weights(text: str | None) -> NamedWeights | None:
    if text is None:
        return None
    try:
        return named_weights(text, DEFAULT_STORAGE)
    except WrongRequest as error:
        raise WrongRequest(f"--init: {error}") from error


# -- the run --------------------------------------------------------------------------------------


def run_detect(
    options: argparse.Namespace, out: Callable[[], Path], stop: Callable[[], Callable[[], bool]]
) -> int:
    """Train as the options say; returns the exit status."""
    request, folder, init = all_of(
        lambda: _request(options),
        out,
        lambda: _given_weights(options.init),
    )
    from mambaout.dense.coco import read_coco
    from mambaout.dense.detect import train_detector
    from mambaout.dense.detector_plan import detector_plan
    from mambaout.dense.detector_start import fields_of_start
    from mambaout.dense.shapes import ShapesSize, shapes_folder
    from mambaout.train.backend import backend
    from mambaout.train.outcomes import Diverged, Finished, OutOfMemory, Preempted

    root = request.data
    if root == SHAPES:
        train_images, val_images = SMOKE_IMAGES
        size = ShapesSize(train=train_images, val=val_images) if options.smoke else ShapesSize()
        root = str(shapes_folder(size))
    start = {}
    if init is not None:
        start = fields_of_start(start_weights(options.init, DEFAULT_STORAGE))
    train, val = read_coco(root, "train"), read_coco(root, "val")
    for data in (train, val):
        print(data.report)
    where = backend(options.backend)
    recipe, lines = request.recipe(len(train.images), start)
    if "precision" not in request.given:
        precision, reason = _precision(recipe, folder, where)
        if precision != recipe.precision:
            recipe = replace(recipe, precision=precision)
            lines.append(f"--precision {precision}: {reason}")
    steps = detect_steps_per_epoch(recipe, len(train.images)) * recipe.epochs
    if lines:
        print("what follows the data (each is an option):")
    for line in lines:
        print(f"    {line}")
    micro_batch = options.micro_batch or min(MICRO_BATCH, recipe.global_batch)
    if micro_batch > recipe.global_batch:
        raise WrongRequest(
            f"--micro-batch {micro_batch} is more than --global-batch {recipe.global_batch}; give "
            "that or less"
        )
    plan, said = detector_plan(recipe, train, None if init is None else init.path)
    print(said)
    print(f"{steps} steps of {recipe.global_batch} into {folder}", flush=True)
    began: list[bool] = []
    try:
        outcome = train_detector(
            recipe,
            plan,
            train,
            val,
            out=folder,
            backend=where,
            seed=options.seed,
            micro_batch=micro_batch,
            sinks=[_progress(steps)],
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
    match outcome:
        case Finished(metrics=final):
            rate = rate_text(final["images_per_second"])
            print(f"finished: {_figures(final)}, {rate} images/s; {folder / 'outcome.json'}")
            return 0
        case Preempted(step=step) if options.max_steps is not None and step >= options.max_steps:
            print(f"stopped at step {step} of {steps}, as --max-steps says; a larger one continues")
            return 0
        case Preempted(step=step):
            print(f"stopped at step {step} of {steps}; the same command continues")
        case Diverged(step=step):
            print(f"diverged: the loss was not finite at step {step}; try a smaller --peak-lr")
        case OutOfMemory(micro_batch=size, error=error):
            print(
                f"out of memory with --micro-batch {size}: {error}; a smaller one continues",
                file=sys.stderr,
            )
    return 1


def _precision(
    recipe: DetectRecipe, out: Path, where: Backend
) -> tuple[Literal["fp32", "bf16"], str]:
    """The precision on these devices, and why. A run that has begun keeps its own anywhere."""
    try:
        text = (out / "recipe.json").read_text(encoding="utf-8")
        kept = detect_recipe_from_json(text, str(out))
    except (OSError, WrongRequest, UnicodeDecodeError):
        kept = None  # nothing has begun, or the training will report the error
    if kept is not None and replace(kept, precision=recipe.precision) == recipe:
        return kept.precision, f"the run in {out} was begun with it"
    if where.multiplies_bf16:
        return "bf16", f"{where.device_name} has units for it"
    return recipe.precision, "the default"


def _figures(values: Mapping[str, float], before: str = "") -> str:
    names = {"box_ap": "box AP", "mask_ap": "mask AP"}
    return ", ".join(
        f"{text} {values[before + name]:.1f}"
        for name, text in names.items()
        if before + name in values
    )


def _progress(num_steps: int) -> Callable[[Any], None]:
    def show(record: Any) -> None:
        left = record.seconds / record.step * (num_steps - record.step)
        loss = f"loss {record.values['train/loss']:.3f}"
        shown = "  ".join(part for part in (loss, _figures(record.values, "val/")) if part)
        print(
            f"step {record.step}/{num_steps}  epoch {record.epoch:.1f}  {shown}"
            f"  ETA {clock_text(left)}",
            flush=True,
        )

    return show
