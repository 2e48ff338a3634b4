"""`mambaout export`: weights as safetensors, and the timm code that computes the same.

It prints Python: the timm code, with comments that say what was written and how it was checked.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from mambaout.commands.options import (
    DEFAULT_STORAGE,
    NO_EMA_HELP,
    STORAGE_HELP,
    WEIGHTS_HELP,
)
from mambaout.errors import WrongRequest
from mambaout.launch.named import named_weights
from mambaout.recipe import BASELINE
from mambaout.variants import VARIANTS, variant


def add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="weights as safetensors, and the call of timm's that is right for them",
        description="Writes OUT and prints the Python lines with which timm computes the same, "
        "after running them: `mambaout export STUDY/TRIAL best.safetensors > load.py`.",
    )
    parser.add_argument("weights", help=WEIGHTS_HELP)
    parser.add_argument("out", type=Path, help="the file to write, NAME.safetensors")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE, help=STORAGE_HELP)
    parser.add_argument("--no-ema", action="store_true", help=NO_EMA_HELP)
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help=f"the shape, where the file does not say it: {', '.join(VARIANTS)}",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    named, out = named_weights(options.weights, options.storage), options.out

    from mambaout.model.network import build
    from mambaout.model.timm_call import check, data_config, timm_code
    from mambaout.model.weights import SAFETENSORS, load_weights, read_weights, save_weights

    if out.suffix != SAFETENSORS:
        raise WrongRequest(f"{out} must end in {SAFETENSORS}, by which timm tells the format")
    _check_out(out, named.path)
    weights = read_weights(named.path, ema=not options.no_ema)
    recipe = weights.recipe
    if options.variant is not None:
        recipe = replace(recipe or BASELINE, model=variant(options.variant))
    if recipe is None:
        raise WrongRequest(f"{named.path} does not say its shape; add --variant")
    if not weights.num_classes:
        raise WrongRequest(f"{named.path} has no head, whose classes a network needs")
    try:
        code = timm_code(recipe, weights.num_classes, out)
    except WrongRequest as error:
        raise WrongRequest(f"{named.path}: {error}") from error
    model = build(recipe.model, weights.num_classes)
    load_weights(model, weights)
    facts = {"timm": code, "timm_data_config": json.dumps(data_config(recipe))}
    if weights.code_version is not None:
        facts["code_version"] = str(weights.code_version)
    save_weights(model, out, recipe, is_ema=weights.is_ema, facts=facts)
    try:
        checked = check(code, model, recipe.image_size)
    except BaseException:
        out.unlink()  # remove a file that timm reads in a wrong way
        raise
    params = sum(parameter.numel() for parameter in model.parameters())
    unfinished = ", of a run that has not finished" if named.is_unfinished else ""
    print(f"# {out}: {params:,} parameters, {weights.num_classes} classes")
    for line in (f"{weights.text}{unfinished}", *weights.of_other_numbers):
        print(f"# from {named.path}: {line}")
    print(f"# {checked}")
    if recipe.precision != "fp32":
        print(f"# our evaluation computes matrix products in {recipe.precision}, these lines fp32")
    print(code)
    return 0


def _check_out(out: Path, source: Path) -> None:
    """Raise ValueError if `out` is not writable or is the file of the weights itself."""
    if os.path.exists(out) and out.samefile(source):
        raise WrongRequest(f"{out} is the file that is exported; give another name")
    if os.path.isdir(out):
        raise WrongRequest(f"{out} is a folder; give a file, like {out / 'weights.safetensors'}")
    if not os.path.isdir(out.parent):
        raise WrongRequest(f"{out.parent}, where {out.name} goes, is no folder; make it first")
    if not os.access(out.parent, os.W_OK):
        raise WrongRequest(f"{out.parent}, where {out.name} goes, cannot be written")
