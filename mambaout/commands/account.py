"""`mambaout account`: parameters, MACs and memory of published shapes and of your own."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from typing import Any

from mambaout.commands.options import whole_number
from mambaout.errors import WrongRequest
from mambaout.options import add_recipe_options, given_fields
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
        "published one, changed: `mambaout account tiny --kernel-size 5`.",
    )
    parser.add_argument(
        "variants", nargs="*", metavar="VARIANT", help=f"default: all of {', '.join(VARIANTS)}"
    )
    for name, default in (("--image-size", 224), ("--num-classes", 1000)):
        text = f"default {default}"
        parser.add_argument(name, type=whole_number(1), default=default, metavar="N", help=text)
    add_recipe_options(parser, skip=field_types().keys() - SHAPE_FIELDS, follow_data=False)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from mambaout.accounting import account_table
    from mambaout.memory import recompute_table, tpu_table

    shapes = _shapes(options.variants, given_fields(options))
    print(account_table(shapes, options.image_size, options.num_classes))
    for table in (recompute_table, tpu_table):
        print(f"\n{table(shapes, options.image_size, options.num_classes)}")
    return 0


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
