"""The command line of a sweep: the options that all sweeps share, and its own options.

Each parameter of a sweep's function, after the first, becomes an option of this sweep. The
signature defines the option:

    def scale(start: Start, *, predict: Annotated[bool, "predict the largest size"] = False): ...

gives --predict. A bool is a switch, an int is a whole number, at least 1, and a
Sequence[str] is one or more words. All types but bool may be None, which means that the option is
not given.
"""

from __future__ import annotations

import argparse
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from mambaout.chips import CHIPS, Chip, find_chip
from mambaout.command_line import Parser, add_compile_option, whole_number
from mambaout.data.packing.data_option import add_data_option
from mambaout.data.shards.column_options import add_column_options
from mambaout.dense_options import add_dense_options
from mambaout.errors import WrongRequest
from mambaout.fields import MOST_COUNT
from mambaout.launch.resources import CHOICES
from mambaout.launch.start_weights import INIT, add_init_option
from mambaout.options import add_recipe_options, option
from mambaout.recompute import add_recompute_option
from mambaout.study.study import Study

STORAGE = "runs"

MOST_GIVEN_SEEDS = 1000  # of --seeds: each seed of each recipe is a line of the study's file
MOST_CONCURRENT = 100_000
MOST_POINTS = 100  # a difference of top-1, in percent, cannot be more

# Builds the study from the data and the command line.
BuildStudy = Callable[..., Study]


EXIT = (
    "Exit status: 0 all done, 1 some trials did not finish (the same command goes on), 2 the "
    "request was wrong (nothing started), 130 interrupted. Running the same command again starts "
    "nothing that has finished and continues what has not."
)


def sweep_parser(build_study: BuildStudy) -> argparse.ArgumentParser:
    """The parser of the script whose study of classifiers `build_study` makes."""
    parser = Parser(
        usage="%(prog)s --data NAME|PATH|URI [options]",
        description=inspect.getdoc(build_study),
        epilog=EXIT,
    )
    add = parser.add_argument_group("what to study").add_argument
    add_data_option(add, metavar="NAME|PATH|URI")
    add_column_options(add)
    add_init_option(add)
    _add_study_options(add, smoke="the whole path in small, on the digits if no --data")
    what = "within a seed, or of top-1 for twice the width / depth at equal MACs"
    text = f"choose seeds so that a difference of POINTS {what} is found in 80 %% of such studies"
    text += "; within --budget-hours or --grant-hours also the shapes"
    add("--detect", type=_points, metavar="POINTS", help=text)
    text = "add seeds until width against depth is known to within POINTS, 95 %%"
    add("--until", type=_points, metavar="POINTS", help=text)
    own = parser.add_argument_group("what this study asks")
    text = "time some of the trials for seconds, then --plan"
    _add_cost_options(parser).add_argument("--calibrate", action="store_true", help=text)
    add = _add_place_options(parser).add_argument
    text = "copy the shards to this folder of each machine first, for example /dev/shm"
    add("--stage", metavar="DIR", help=text)
    add_recompute_option(add)
    add_compile_option(add)
    add_recipe_options(parser, skip={INIT})
    _add_own_options(own, build_study)
    return parser


def dense_parser(build_study: BuildStudy, baseline: Any, data: str) -> argparse.ArgumentParser:
    """The parser of the script whose study of detectors or segmenters `build_study` makes.

    `baseline` is the recipe whose fields are options, `data` the help of --data.
    """
    parser = Parser(
        usage="%(prog)s --data FOLDER|URI|shapes [options]",
        description=inspect.getdoc(build_study),
        epilog=EXIT,
    )
    add = parser.add_argument_group("what to study").add_argument
    add("--data", metavar="FOLDER|URI|shapes", help=data)
    text = (
        "the backbones start from these weights, one file for each network: files of ours, timm's "
        "or the authors', runs' folders, or STUDY/TRIAL. Default: none (random weights)"
    )
    add(f"--{INIT}", nargs="+", action="extend", metavar="FILE", help=text)
    _add_study_options(add, smoke="the whole path in small, on a few generated shapes")
    own = parser.add_argument_group("what this study asks")
    _add_cost_options(parser)
    add = _add_place_options(parser).add_argument
    text = "images in memory at once; a step adds up as many as its global batch needs"
    add("--micro-batch", type=whole_number(1, MOST_COUNT), metavar="N", help=text)
    add_dense_options(parser, baseline, skip={INIT})
    _add_own_options(own, build_study)
    return parser


def _add_study_options(add: Callable[..., Any], smoke: str) -> None:
    text = "train these shapes of the study's, or published ones, joined by commas"
    add("--variants", type=_names, metavar="A,B", help=text)
    add(
        "--seeds",
        type=whole_number(1, MOST_GIVEN_SEEDS),
        metavar="N",
        help="run every recipe with the seeds 0 to N-1",
    )
    add("--smoke", action="store_true", help=smoke)
    add("--name", help="of the study and its folder (default: script, data and given fields)")
    add("--rerun", action="store_true", help="all anew; earlier run directories are moved aside")


def _add_cost_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("what it costs")
    add = group.add_argument
    text = (
        "print the trials and what they cost; start nothing. It is for the machines where they "
        "would run, or for one GPU of a kind (more: --max-concurrent), like 'A100 80GB'"
    )
    add("--plan", nargs="?", const=True, default=False, type=_gpu, metavar="GPU", help=text)
    device = "a core, a GPU, a TPU v3 core (an eighth of a v3-8)"
    add("--price-per-hour", type=_amount, metavar="MONEY", help=f"of a device ({device})")
    add(
        "--grant-hours",
        type=_amount,
        metavar="H",
        help="device-hours to spend, for --plan and --detect",
    )
    add("--budget-hours", type=_amount, metavar="H", help="stop after so long; resumable")
    return group


def _add_place_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("where it runs and what it writes")
    add = group.add_argument
    text = f"of a trial: {CHOICES} (default: what the machines have: a TPU, a GPU, a core)"
    add("--accelerator", metavar="NAME", help=text)
    text = "trials at a time (default: what fits)"
    add("--max-concurrent", type=whole_number(1, MOST_CONCURRENT), metavar="N", help=text)
    add("--address", metavar="HOST:PORT", help="a Ray cluster's (default: Ray on this machine)")
    add("--storage", metavar="DIR", help=f"where studies lie (default {STORAGE})")
    where = "of MLflow (default: MLFLOW_TRACKING_URI, else sqlite in the storage folder)"
    add("--tracking-uri", metavar="URI", help=where)
    return group


def _add_own_options(group: argparse._ArgumentGroup, build_study: BuildStudy) -> None:
    """Add the options of this study alone, which its signature defines."""
    for name, settings in _own_options(build_study).items():
        try:
            group.add_argument(option(name), **settings)
        except argparse.ArgumentError:
            raise _wrong(
                build_study,
                name,
                f"would be {option(name)}, which is an option of every sweep; give the parameter "
                "another name, or take the value from `start`",
            ) from None


def own_values(build_study: BuildStudy, options: argparse.Namespace) -> dict[str, Any]:
    """The values of the study's own options on the command line."""
    return {name: getattr(options, name) for name in _own_options(build_study)}


# -- what a signature says ------------------------------------------------------------------------

_EXAMPLE = 'Annotated[int | None, "what it is"] = None'
_TYPES = "bool, int, float, str or Sequence[str]"


def _own_options(build_study: BuildStudy) -> dict[str, dict[str, Any]]:
    """The argparse settings of each parameter after the first.

    If a parameter cannot be an option, WrongRequest names the script and the parameter.
    """
    _, *parameters = inspect.signature(build_study).parameters.values()
    if not parameters:
        return {}
    try:
        hints = typing.get_type_hints(build_study, include_extras=True)
    except NameError as error:
        raise _wrong(
            build_study,
            ", ".join(parameter.name for parameter in parameters),
            f"cannot be typed ({error}); import the name at the top of the script",
        ) from None
    return {each.name: _settings(build_study, each, hints.get(each.name)) for each in parameters}


def _settings(build_study: BuildStudy, parameter: inspect.Parameter, hint: Any) -> dict[str, Any]:
    name, default = parameter.name, parameter.default
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise _wrong(build_study, name, f"has no name of an option; write {name}: {_EXAMPLE}")
    hint, *texts = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if hint is None:
        raise _wrong(build_study, name, f"has no type; write {name}: {_EXAMPLE}")
    if not texts or not isinstance(texts[0], str) or not texts[0]:
        shown = getattr(hint, "__name__", hint)
        raise _wrong(build_study, name, f'has no help; write {name}: Annotated[{shown}, "help"]')
    if default is inspect.Parameter.empty:
        raise _wrong(build_study, name, f"has no default; write {name}: {_EXAMPLE}")
    settings = {"help": texts[0].replace("%", "%%"), "default": default}
    kinds = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    kind = kinds[0] if len(kinds) == 1 else None
    if kind is bool:
        if default is not False:
            raise _wrong(
                build_study, name, f"is a switch whose default is {default!r}; make it False"
            )
        return settings | {"action": "store_true"}
    if kind is int:
        return settings | {"type": whole_number(1, MOST_COUNT), "metavar": "N"}
    if kind in (float, str):
        return settings | {"type": kind, "metavar": "X"}
    if kind == Sequence[str]:
        # If an option is given twice, its words are added. argparse would keep only the last ones.
        return settings | {"nargs": "+", "action": "extend", "metavar": "X"}
    raise _wrong(
        build_study, name, f"is of type {hint}, and an option is of {_TYPES}; take one of these"
    )


def _wrong(build_study: BuildStudy, name: str, why: str) -> WrongRequest:
    code = getattr(build_study, "__code__", None)
    script = Path(code.co_filename).name if code else repr(build_study)
    return WrongRequest(f"the parameter {name} of {build_study.__name__} in {script} {why}")


# -- words of the command line --------------------------------------------------------------------


def planned_chip(options: argparse.Namespace) -> Chip | None:
    """The GPU that `--plan GPU` names; None: the plan is for the machines of the launch."""
    return options.plan if isinstance(options.plan, Chip) else None


def _gpu(text: str) -> Chip:
    chip = find_chip(text)
    if chip is None or chip.name.startswith("TPU"):
        names = [name for name in CHIPS if not name.startswith("TPU")]
        raise argparse.ArgumentTypeError(f"{text!r} is none of the GPUs {', '.join(names)}")
    return chip


def _names(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} must be different names joined by commas")
    return names


def _amount(text: str) -> float:
    amount = _number(text)
    if not 0 < amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return amount


def _points(text: str) -> float:
    """A difference of top-1."""
    points = _number(text)
    if not 0 < points <= MOST_POINTS:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number above 0 and at most {MOST_POINTS}"
        )
    return points


def _number(text: str) -> float:
    """The number that the text says; 0 if it says none."""
    try:
        return float(text)
    except ValueError:
        return 0.0
