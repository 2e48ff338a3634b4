"""The options that only the dense tasks have: detection and segmentation.

A recipe's field that a dense task shares with classification, like --peak-lr, has the same option
with another default. Fields that only dense tasks have are in a group of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from mambaout.command_line import whole_number
from mambaout.dense_options import dense_field, dense_field_types
from mambaout.errors import WrongRequest
from mambaout.fields import WrongValues, knobs
from mambaout.options import FIELD_DEST, field_text, option
from mambaout.recipe import field_types
from mambaout.train.tasks import DETECT, SEGMENT

BASELINES: Mapping[str, Any] = {kind.name: kind.baseline for kind in (DETECT, SEGMENT)}


def add_dense_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only `--task detect` and `--task segment` have."""
    group = parser.add_argument_group(
        "detection and segmentation",
        "Only for --task detect, which trains Mask R-CNN on --data FOLDER in COCO format "
        "(annotations/instances_{train,val}2017.json), and --task segment, which trains UperNet on "
        "--data FOLDER in ADE20K's format ({images,annotations}/{training,validation}). Both take "
        "--data shapes too, a generated set. They have the options of the network (default: tiny) "
        f"and, with other defaults than above: {_shared_defaults()}. No other field above is for "
        "them.",
    )
    for name, tasks in _own_fields().items():
        said = [knobs(type(BASELINES[task]))[name] for task in tasks]
        defaults = [
            f"{getattr(BASELINES[task], name)} ({one.source})"
            for task, one in zip(tasks, said, strict=True)
        ]
        text, default = said[0].help, f"Default: {defaults[0]}"
        if len(tasks) == 1:
            text = f"--task {tasks[0]}: {text}"
        else:
            text += "" if said[1].help == text else f"; in segmentation: {said[1].help}"
            default += f"; in segmentation: {defaults[1]}"
        bound = f"; {said[0].bound}" if said[0].bound else ""
        text = f"{text} [{said[0].unit or 'a number'}{bound}]. {default}"
        group.add_argument(
            option(name),
            dest=f"{FIELD_DEST}{name}",
            metavar="N",
            help=text.replace("%", "%%"),
        )
    group.add_argument(
        "--micro-batch",
        type=whole_number(1),
        metavar="N",
        help="images in memory at once; a step adds up as many micro-batches as its global batch "
        "needs (default: 2 in detection, and in segmentation as many as are estimated to fit)",
    )
    group.add_argument(
        "--multi-scale",
        action="store_true",
        help="--task segment: at the end, evaluate at six scales with mirrors too; it costs as "
        "much as 17 evaluations",
    )


def _shared_defaults() -> str:
    parts = []
    for task, baseline in BASELINES.items():
        names = [name for name in knobs(type(baseline)) if name in field_types()]
        said = (f"{option(name)} {field_text(getattr(baseline, name))}" for name in names)
        parts.append(f"{task} has {', '.join(said)}")
    return "; ".join(parts)


def _own_fields() -> dict[str, list[str]]:
    """The fields that only dense tasks have, each with its tasks."""
    found: dict[str, list[str]] = {}
    for task, baseline in BASELINES.items():
        for name in knobs(type(baseline)):
            if name not in field_types():
                found.setdefault(name, []).append(task)
    return found


def refuse_dense_options(options: argparse.Namespace) -> None:
    """Raise WrongRequest if an option of a dense task is given for classification."""
    tasks = {
        name: tasks
        for name, tasks in _own_fields().items()
        if getattr(options, f"{FIELD_DEST}{name}") is not None
    }
    if options.micro_batch is not None:
        tasks["micro_batch"] = list(BASELINES)
    if options.multi_scale:
        tasks["multi_scale"] = ["segment"]
    for name, of in tasks.items():
        wanted = " or ".join(f"--task {task}" for task in of)
        raise WrongRequest(f"{option(name)} is for {wanted} alone; add that or leave it out")


def given_task_fields(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """The fields on the command line; WrongValues has a line for each wrong or foreign option."""
    recipe_type = type(BASELINES[task])
    types = dense_field_types(recipe_type)
    values, wrong = {}, []
    for name in dict.fromkeys([*field_types(), *types, *_own_fields()]):
        text = getattr(options, f"{FIELD_DEST}{name}", None)
        if text is None:
            continue
        if name not in types:
            wrong.append(f"{option(name)} is not for --task {task}; leave it out")
            continue
        try:
            values[name] = dense_field(name, text, recipe_type)
        except WrongRequest as error:
            wrong.append(f"{option(name)} {error}")
    if wrong:
        raise WrongValues(*wrong)
    return values
