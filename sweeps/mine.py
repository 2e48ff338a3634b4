"""A study of your own: your sizes, your values, your search, in one command.

Run:    python sweeps/mine.py --data photos --shapes small=1,1,1,1/16,32,64,96 femto
        python sweeps/mine.py --data photos --grid kernel_size=3,5,7 --seeds 3
        python sweeps/mine.py --data photos --search peak_lr=1e-4..1e-2 mixup=0..1 --trials 8
        python sweeps/mine.py --smoke            (two sizes on digits, about a minute on 2 cores)
        Any of them with --plan prints the cost and starts nothing. --epochs, --image-size and
        every other field of a recipe is an option.
Writes: runs/mine-QUESTION-DATA/: a run directory a trial, report.html, trials.csv; MLflow in runs/
"""

from __future__ import annotations

import difflib
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from mambaout.errors import WrongRequest
from mambaout.fields import flat_fields
from mambaout.launch.cli import main
from mambaout.options import field_text
from mambaout.recipe import Recipe, field_types, parse_field, tuned
from mambaout.study.axes import Axis, Choice, LinearRange, LogRange, WholeRange
from mambaout.study.search.space import tuning
from mambaout.study.start import Start
from mambaout.study.study import Study
from mambaout.variants import VARIANTS, ModelConfig

SEEDS = (0, 1, 2)  # --seeds N changes them
NUM_TRIALS = 8  # of a search, without --trials
HIDDEN_MULTIPLE = 8  # vector units are fast at multiples of 8
LOG_RATIO = 10  # if HIGH is at least ten times LOW, the scale is logarithmic
ASK = "give two --shapes, --grid FIELD=A,B or --search FIELD=LOW..HIGH"
SMOKE_SHAPES = ("small=1,1,1,1/8,16,32,48", "wide=1,1,1,1/16,32,64,96")


def mine(
    start: Start,
    *,
    shapes: Annotated[
        Sequence[str] | None,
        "sizes to compare: NAME=DEPTHS/WIDTHS, like small=1,1,1,1/16,32,64,96, or femto, tiny, ...",
    ] = None,
    grid: Annotated[
        Sequence[str] | None, "values to compare: FIELD=A,B,C, like kernel_size=3,5,7"
    ] = None,
    search: Annotated[
        Sequence[str] | None,
        "values to search with Optuna: FIELD=LOW..HIGH, like peak_lr=1e-4..1e-2, or FIELD=A,B,C",
    ] = None,
    trials: Annotated[
        int | None,
        f"of the search at each size (default {NUM_TRIALS}); the best then gets more seeds",
    ] = None,
) -> Study:
    """Which of my own sizes or values is best on my images?"""
    if grid and search:
        raise WrongRequest("--grid compares all values, --search samples them; give one of the two")
    if trials is not None and not search:
        raise WrongRequest(f"--trials {trials} is the length of a search; give --search, too")
    if start.smoke and not (shapes or grid or search):
        shapes = SMOKE_SHAPES
    networks = start.shapes(_shapes(shapes) if shapes else {"fitting": start.fitting})
    values = [_named(text, "--search" if search else "--grid") for text in search or grid or []]
    names = [name for name, _ in values]
    if len(networks) < 2 and not names:
        raise WrongRequest(f"nothing to compare; {ASK}")
    asked = [
        *(networks if shapes else []),
        *(["search"] if search else []),
        *names,
    ]
    seeds = SEEDS[:1] if start.smoke else SEEDS
    study = Study(
        name="-".join(["mine", *asked]),
        question=str(mine.__doc__),
        recipes={},
        seeds=seeds,
    )
    if not search:
        recipes = _grid(start, networks, values)
        if len(recipes) < 2:
            raise WrongRequest(f"one recipe, {next(iter(recipes))}, is nothing to compare; {ASK}")
        return replace(study, recipes=recipes)
    axes = [_axis(name, text) for name, text in values]
    bases = {label: _search_base(start, shape, axes) for label, shape in networks.items()}
    searches = tuning(bases, axes, NUM_TRIALS if trials is None else trials, seeds=seeds)
    return replace(study, searches=searches)


def _shapes(texts: Sequence[str]) -> dict[str, ModelConfig]:
    """ "small=1,1,1,1/16,32,64,96" and "tiny" as shapes by name."""
    found: dict[str, ModelConfig] = {}
    for text in texts:
        name, _, shape = text.partition("=")
        if name in found:
            raise WrongRequest(
                f"--shapes: {name!r} is there twice; give each size a name of its own"
            )
        if not shape and name in VARIANTS:
            found[name] = VARIANTS[name]
            continue
        depths, _, dims = shape.partition("/")
        if not re.fullmatch(r"[A-Za-z0-9._]+", name) or not depths or not dims:
            raise WrongRequest(
                f"--shapes {text!r}: write NAME=DEPTHS/WIDTHS, like small=1,1,1,1/16,32,64,96 "
                f"(four numbers of blocks, four of channels), or one of {', '.join(VARIANTS)}"
            )
        try:
            found[name] = ModelConfig(
                depths=parse_field("depths", depths),
                dims=parse_field("dims", dims),
                hidden_multiple=HIDDEN_MULTIPLE,
            )
        except WrongRequest as error:
            raise WrongRequest(f"--shapes {text!r}: {error}") from error
    return found


def _named(text: str, option: str) -> tuple[str, str]:
    """ "peak_lr=1e-4..1e-2" as a field's name and its text."""
    name, _, rest = text.partition("=")
    name = name.strip().replace("-", "_")
    if not rest:
        raise WrongRequest(
            f"{option} {text!r}: write FIELD=A,B,C" + " or FIELD=LOW..HIGH" * (option == "--search")
        )
    known = [known for known in field_types() if known not in ("depths", "dims")]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`mambaout train --help` lists the fields"
        if name in ("depths", "dims"):
            hint = "--shapes compares depths and widths"
        raise WrongRequest(f"{option}: {name!r} cannot be compared; {hint}")
    if option == "--grid" and ".." in rest:
        raise WrongRequest(f"--grid {text}: a range is for --search; give values, FIELD=A,B,C")
    return name, rest


def _parsed(name: str, parts: Sequence[str], what: str) -> tuple[Any, ...]:
    try:
        return tuple(parse_field(name, part) for part in parts)
    except WrongRequest as error:
        raise WrongRequest(f"{what}: {error}") from error


def _grid(
    start: Start, networks: Mapping[str, ModelConfig], values: Sequence[tuple[str, str]]
) -> dict[str, Recipe]:
    """Every network with every combination of the values. Nothing else differs."""
    names = [name for name, _ in values]
    if len(set(names)) < len(names):
        raise WrongRequest(
            f"--grid names a field twice ({', '.join(names)}); give its values at once"
        )
    rows = [_parsed(name, text.split(","), f"--grid {name}={text}") for name, text in values]
    found: dict[str, Recipe] = {}
    for label, shape in networks.items():
        base = start.recipe(shape)
        for row in itertools.product(*rows):
            fields = dict(zip(names, row, strict=True))
            texts = [f"{name}={field_text(value)}" for name, value in fields.items()]
            named = [label] if len(networks) > 1 or not texts else []
            name = " ".join([*named, *texts])
            if name in found:
                raise WrongRequest(f"--grid: {name} is there twice; give each value once")
            found[name] = tuned(base, **fields)
    return found


def _axis(name: str, text: str) -> Axis:
    """A range or a list of values as an axis."""
    low, dots, high = text.partition("..")
    what = f"--search {name}={text}"
    if not dots:
        return Choice(name, _parsed(name, text.split(","), what))
    least, most = _parsed(name, (low, high), what)
    if not all(isinstance(end, (int, float)) for end in (least, most)) or not least < most:
        raise WrongRequest(f"{what}: give two numbers, the smaller first")
    if isinstance(least, int):
        return WholeRange(name, least, most)
    return (
        LogRange(name, least, most)
        if 0 < LOG_RATIO * least <= most
        else LinearRange(name, least, most)
    )


def _search_base(start: Start, shape: ModelConfig, axes: Sequence[Axis]) -> Recipe:
    """The first recipe of the search: the one that fits the data, moved into the ranges."""
    fields = flat_fields(start.recipe(shape))
    inside: dict[str, Any] = {}
    for axis in axes:
        value = fields[axis.name]
        if isinstance(axis, Choice):
            inside[axis.name] = value if value in axis.values else axis.values[0]
        elif value is None or not axis.low <= value <= axis.high:
            inside[axis.name] = _middle(axis)
    return tuned(start.recipe(shape), **inside)


def _middle(axis: LogRange | LinearRange | WholeRange) -> float:
    if isinstance(axis, LogRange):
        return float(f"{(axis.low * axis.high) ** 0.5:.3g}")
    return (
        (axis.low + axis.high) // 2 if isinstance(axis, WholeRange) else (axis.low + axis.high) / 2
    )


if __name__ == "__main__":
    sys.exit(main(mine))
