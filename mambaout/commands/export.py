"""`mambaout export`: weights as safetensors or ONNX, and the code that computes the same with them.

It prints Python: the code of timm or onnxruntime, with comments that say what was written and how
it was checked.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
from mambaout.recipe import BASELINE, canonical_json
from mambaout.variants import VARIANTS, variant

# What becomes of the norms on a backbone's outputs, which timm's network does not have.
NORMS_LEFT_OUT = {
    ".onnx": "the maps are without the norms on the outputs, as timm's are",
    ".safetensors": "the norms on the outputs are in the file for --init of a detector; timm calls "
    "them unexpected keys and leaves them out",
}


def add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="weights as safetensors or ONNX, and the Python lines that compute with them",
        description="Writes OUT and prints the Python lines with which timm or onnxruntime "
        "computes the same, after a check: "
        "`mambaout export STUDY/TRIAL best.safetensors > load.py`.",
    )
    parser.add_argument("weights", help=WEIGHTS_HELP)
    parser.add_argument("out", type=Path, help="the file to write, NAME.safetensors or NAME.onnx")
    parser.add_argument(
        "--features",
        action="store_true",
        help="without the head: the maps of the four stages, for detection and the like",
    )
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

    from mambaout.dense.backbone import Backbone
    from mambaout.model.dense_checkpoint import NORMS
    from mambaout.model.file_shape import without_shape
    from mambaout.model.network import Trunk, build
    from mambaout.model.onnx_file import ONNX, onnx_code, save_onnx
    from mambaout.model.timm_call import check, data_config, timm_code, timm_features_code
    from mambaout.model.weights import (
        SAFETENSORS,
        load_trunk,
        load_weights,
        read_weights,
        save_weights,
    )

    if out.suffix not in (SAFETENSORS, ONNX):
        raise WrongRequest(
            f"{out} must end in {SAFETENSORS}, by which timm tells the format, or in {ONNX}"
        )
    _check_out(out, named.path)
    weights = read_weights(named.path, ema=not options.no_ema)
    recipe, num_classes = weights.recipe, weights.num_classes
    if options.variant is not None:
        recipe = replace(recipe or BASELINE, model=variant(options.variant))
    if recipe is None:
        raise without_shape(named.path, weights.tensors)
    if weights.task is not None and not options.features:
        raise WrongRequest(
            f"{named.path} is of a run with --task {weights.task}, and only its backbone can be "
            "exported; add --features"
        )
    if not num_classes and not options.features:
        raise WrongRequest(
            f"{named.path} has no head, whose classes a network needs; add --features to export it "
            "without"
        )
    with _named(named.path):
        if out.suffix == ONNX:
            code = onnx_code(out, has_head=not options.features)
        elif options.features:
            code = timm_features_code(recipe.model, out)
        else:
            code = timm_code(recipe, num_classes or 0, out)
    model: Trunk
    left_out = 0
    has_norms = any(name.startswith(NORMS) for name in weights.tensors)
    if options.features:
        model = Backbone(recipe.model) if has_norms else Trunk(recipe.model)
        left_out = load_trunk(model, weights)
        left_out += max(0, len(weights.checkpoint.get("model", ())) - len(weights.tensors))
    else:
        model = build(recipe.model, num_classes or 0)
        load_weights(model, weights)
    facts: dict[str, str] = {}
    trained_by = recipe if weights.task is None else None  # a detection's recipe is another kind
    if trained_by is not None:
        facts["timm_data_config"] = json.dumps(data_config(trained_by))
    if weights.code_version is not None:
        facts["code_version"] = str(weights.code_version)
    if out.suffix == ONNX:
        facts["model"] = canonical_json(recipe.model)
        checked = save_onnx(model, out, facts)
    else:
        save_weights(model, out, trained_by, is_ema=weights.is_ema, facts=facts | {"timm": code})
        try:
            checked = check(code, model, recipe.image_size)
        except BaseException:
            out.unlink()  # remove a file that timm reads in a wrong way
            raise
    written = [n for n in model.state_dict() if out.suffix != ONNX or not n.startswith(NORMS)]
    params = sum(model.get_parameter(name).numel() for name in written)
    unfinished = ", of a run that has not finished" if named.is_unfinished else ""
    head = f"no head, {left_out} tensors left out" if options.features else f"{num_classes} classes"
    print(f"# {out}: {params:,} parameters, {head}")
    for line in (f"{weights.text}{unfinished}", *weights.of_other_numbers):
        print(f"# from {named.path}: {line}")
    print(f"# {checked}")
    if has_norms:
        print(f"# {NORMS_LEFT_OUT[out.suffix]}")
    if trained_by is not None and trained_by.precision != "fp32":
        print(f"# our evaluation computes matrix products in {recipe.precision}, these lines fp32")
    print(code)
    return 0


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before the text of a WrongRequest."""
    try:
        yield
    except WrongRequest as error:
        raise WrongRequest(f"{path}: {error}") from error


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
