"""`mambaout account`: parameters, MACs and memory of published shapes and of your own.

Of classifiers, or with --detect and --segment of the networks of the paper's Tables 2 and 3. With
--sequence: how many tokens each stage has, and whether that is a long sequence.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from typing import Any

from mambaout.command_line import whole_number
from mambaout.commands.options import pixel_size
from mambaout.errors import WrongRequest
from mambaout.options import add_recipe_options, check_used, given_fields
from mambaout.recipe import field_types
from mambaout.variants import VARIANTS, ModelConfig, variant

OWN = "own"  # the name of a shape without a name
# The fields on which the table depends. drop_path acts only in training and costs nothing.
SHAPE_FIELDS = {item.name for item in fields(ModelConfig)} - {"drop_path"}


def add_account(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "account",
        help="parameters, MACs, memory of shapes, and how they fit a TPU v3",
        epilog="One's own shape: `mambaout account --depths 1,1,3,1 --dims 16,32,64,96`. A "
        "published one, changed: `mambaout account tiny --kernel-size 5`. A detector: "
        "`mambaout account --detect tiny`.",
    )
    parser.add_argument(
        "variants", nargs="*", metavar="VARIANT", help=f"default: all of {', '.join(VARIANTS)}"
    )
    tasks = parser.add_mutually_exclusive_group()
    tasks.add_argument(
        "--detect", action="store_true", help="of Mask R-CNN on it, as in the paper's Table 2"
    )
    tasks.add_argument(
        "--segment", action="store_true", help="of UperNet on it, as in the paper's Table 3"
    )
    tasks.add_argument(
        "--sequence",
        action="store_true",
        help="tokens of each stage, and whether they are a long sequence (paper, section 3)",
    )
    parser.add_argument(
        "--image-size",
        type=pixel_size,
        metavar="N|HxW",
        help="pixels, height first; default 224, 800x1280 of --detect, 512x2048 of --segment",
    )
    parser.add_argument(
        "--num-classes",
        type=whole_number(1),
        metavar="N",
        help="default 1000, 80 of --detect, 150 of --segment",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a list of rows as JSON, with exact numbers"
    )
    add_recipe_options(parser, skip=field_types().keys() - SHAPE_FIELDS, follow_data=False)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    given = given_fields(options)
    shapes = _shapes(options.variants, given)
    check_used(given, shapes.values())
    if options.sequence:
        text = _sequence(options, shapes)
    elif options.detect or options.segment:
        text = _dense(options, shapes)
    else:
        text = _plain(options, shapes)
    print(text)
    return 0


def _plain(options: argparse.Namespace, shapes: dict[str, ModelConfig]) -> str:
    """The text on classifiers."""
    from mambaout.accounting import account_rows, account_table
    from mambaout.memory import recompute_table, tpu_table

    sizes = options.image_size or 224, options.num_classes or 1000
    if options.json:
        return json.dumps(account_rows(shapes, *sizes), indent=2)
    tables = (account_table, recompute_table, tpu_table)
    return "\n\n".join(table(shapes, *sizes) for table in tables)


def _dense(options: argparse.Namespace, shapes: dict[str, ModelConfig]) -> str:
    """The text on detectors or segmenters."""
    from mambaout.dense_accounting import DETECTOR, SEGMENTER, dense_rows, dense_table

    task = DETECTOR if options.detect else SEGMENTER
    sizes = options.image_size or task.image_size, options.num_classes or task.num_classes
    if options.json:
        return json.dumps(dense_rows(task, shapes, *sizes), indent=2)
    return dense_table(task, shapes, *sizes)


def _sequence(options: argparse.Namespace, shapes: dict[str, ModelConfig]) -> str:
    """The text on tokens."""
    from mambaout.sequence import sequence_rows, sequence_table

    if options.num_classes is not None:
        raise WrongRequest(
            f"--num-classes {options.num_classes}: --sequence counts tokens, which do not depend "
            "on the classes; leave it out"
        )
    image_size = options.image_size or 224
    if options.json:
        return json.dumps(sequence_rows(shapes, image_size), indent=2)
    return sequence_table(shapes, image_size)


def _shapes(names: list[str], changes: dict[str, Any]) -> dict[str, ModelConfig]:
    """The shapes to show, by name. A changed shape stands below the original."""
    if not changes:
        return {name: variant(name) for name in names or VARIANTS}
    if not names:
        if missing := {"depths", "dims"} - changes.keys():
            raise WrongRequest(
                f"--{min(missing)} is missing: an own shape needs --depths and --dims; or name the "
                f"variant to change, one of {', '.join(VARIANTS)}"
            )
        return {OWN: replace(ModelConfig(), **changes)}
    shapes = {}
    for name in names:
        shapes[name] = variant(name)
        shapes[f"{name}, changed"] = replace(variant(name), **changes)
    return shapes
