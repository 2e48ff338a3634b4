"""`mambaout evaluate`: top-1 and top-5 of weights, or the figures of a detector or segmenter."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from mambaout.command_line import whole_number
from mambaout.commands.evaluate_dense import (
    add_dense_evaluation,
    refuse_dense_options,
    require_no_annotations,
)
from mambaout.commands.evaluate_detector import evaluate_detector
from mambaout.commands.evaluate_segmenter import evaluate_segmenter
from mambaout.commands.options import (
    DEFAULT_STORAGE,
    MOST_WORKERS,
    NO_EMA_HELP,
    STAGE_HELP,
    STORAGE_HELP,
    WEIGHTS_HELP,
    WORKERS_HELP,
    folder,
    load_workers,
)
from mambaout.data.packing.data_option import missing_data
from mambaout.data.shards.column_options import add_column_options, given_columns
from mambaout.errors import WrongRequest
from mambaout.launch.named import named_weights
from mambaout.numbers import percent_text, rate_text
from mambaout.recipe import BASELINE, tuned
from mambaout.variants import VARIANTS, variant

BATCH_SIZE = 256
DENSE = {"detect": evaluate_detector, "segment": evaluate_segmenter}  # by the task of a run


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="top-1 and top-5 of weights: ours, timm's or the authors'; COCO's figures of a "
        "detection run, mIoU of a segmentation run",
    )
    parser.add_argument("weights", help=WEIGHTS_HELP)
    parser.add_argument("--data", help="what `mambaout train` takes; default: the run's own")
    add_column_options(parser.add_argument)
    parser.add_argument("--stage", type=folder, metavar="DIR", help=STAGE_HELP)
    parser.add_argument(
        "--split", default="val", choices=["train", "minival", "val"], help="(default val)"
    )
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE, help=STORAGE_HELP)
    parser.add_argument("--no-ema", action="store_true", help=NO_EMA_HELP)
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help=f"the shape, where the file does not say it: {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--backend", choices=["cpu", "cuda", "xla"], help="default: what the machine has"
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        metavar="N",
        help=f"images at a time, over all devices (default {BATCH_SIZE}); it changes no number",
    )
    parser.add_argument(
        "--workers", type=whole_number(0, MOST_WORKERS), metavar="N", help=WORKERS_HELP
    )
    parser.add_argument(
        "--image-size", type=int, metavar="PX", help="default: the weights' own, else 224"
    )
    add_dense_evaluation(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    named = named_weights(options.weights, options.storage)

    from mambaout.cache import default_cache
    from mambaout.data.packing.sources import open_data
    from mambaout.data.packing.stage import stage
    from mambaout.data.shards.files import DataError
    from mambaout.model.file_shape import without_shape
    from mambaout.model.network import build
    from mambaout.model.weights import load_weights, read_weights
    from mambaout.train.backend import backend
    from mambaout.train.evaluation import evaluate

    weights = read_weights(named.path, ema=not options.no_ema)
    if weights.task is not None:
        if weights.task not in DENSE:
            raise WrongRequest(
                f"{named.path} is of a run with --task {weights.task}; evaluate takes "
                "classifiers, detectors and segmenters"
            )
        return DENSE[weights.task](options, named, weights)
    refuse_dense_options(options, named.path)
    recipe = weights.recipe
    if options.variant is not None:
        recipe = replace(recipe or BASELINE, model=variant(options.variant))
    if recipe is None:
        raise without_shape(named.path, weights.tensors)
    if options.image_size is not None:
        recipe = tuned(recipe, image_size=options.image_size)
    source = options.data or named.data
    if source is None:
        raise missing_data()
    require_no_annotations(source, named.path)
    columns = given_columns(options)
    if not options.data:
        columns = named.columns | columns
    try:
        data = open_data(source, **columns)
    except DataError as error:
        hint = "" if options.data else f" (the data of {named.path}; --data gives another)"
        raise DataError(f"{error}{hint}") from error
    model = build(recipe.model, data.num_classes)
    load_weights(model, weights)
    if options.stage:
        data = stage(data, options.stage, split=options.split)
    # One pass over a split takes less time than compiling.
    compiles = None if options.backend == "xla" else False
    device = backend(options.backend, cache=default_cache() / "xla", compiles=compiles)
    unfinished = ", of a run that has not finished" if named.is_unfinished else ""
    for line in (f"{weights.text}{unfinished}", *weights.of_other_numbers):
        print(f"{named.path}: {line}", flush=True)
    started = time.monotonic()
    count = data.num_images(options.split, recipe)
    # A batch takes its memory whether it is full or not, so none is larger than the split.
    whole = max(BATCH_SIZE, -(-count // device.num_devices) * device.num_devices)
    try:
        values = evaluate(
            device.move(model),
            data,
            options.split,
            recipe,
            backend=device,
            batch_size=min(options.batch_size or BATCH_SIZE, whole),
            num_workers=load_workers(options.workers, device.name),
        )
    except DataError as error:  # the request was right, but the data have changed
        print(f"mambaout evaluate: {error}", file=sys.stderr)
        return 1
    print(
        f"{data.name} {options.split} ({count} images at {recipe.image_size} px): "
        f"top-1 {percent_text(values[f'{options.split}/top1'], 3)}, "
        f"top-5 {percent_text(values[f'{options.split}/top5'], 3)}, "
        f"loss {values[f'{options.split}/loss']:.4f}, "
        f"{rate_text(count / (time.monotonic() - started))} images/s"
    )
    return 0
