"""The command-line options that set the fields of a detection's or a segmentation's recipe.

    add_dense_options(parser, DETECT_BASELINE)           --peak-lr X, --depths A,B,C,D, ...
    given_dense_fields(parser.parse_args(), DetectRecipe)    {"peak_lr": 0.0002}

The help text of a field is written where the field is defined.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from importlib.util import find_spec
from typing import Any

from mambaout.errors import WrongRequest
from mambaout.fields import (
    WrongValues,
    choices_of,
    fault_of,
    flat_fields,
    hints,
    knobs,
    parsed,
    type_in_words,
)
from mambaout.options import FIELD_DEST, field_text, option
from mambaout.variants import ModelConfig


def add_dense_options(
    parser: argparse.ArgumentParser, baseline: Any, *, skip: Collection[str] = ()
) -> None:
    """Give `parser` an option for each field of `baseline` and its network except those in `skip`.

    The help says the value in `baseline`.
    """
    values = flat_fields(baseline)
    for owner, title in ((ModelConfig, "network"), (type(baseline), "recipe")):
        group = parser.add_argument_group(title)
        for name, said in knobs(owner).items():
            if name in skip:
                continue
            choices = ", ".join(map(str, choices_of(said, hints(owner)[name])))
            allowed = f"one of {choices}" if choices else str(said.bound or "")
            facts = "; ".join(filter(None, [said.unit, allowed]))
            source = said.source or "our choice"
            text = f"{said.help}{f' [{facts}]' * bool(facts)}. Default: {field_text(values[name])}"
            group.add_argument(
                option(name),
                dest=f"{FIELD_DEST}{name}",
                metavar="X",
                help=f"{text} ({source})".replace("%", "%%"),
            )


def require_dense_extra(what: str) -> None:
    """Raise WrongRequest if the packages of detection and segmentation are not installed."""
    if find_spec("pycocotools") is None:
        raise WrongRequest(
            f"{what} needs pycocotools: in the project's folder, "
            "pip install -c constraints.txt -e '.[dense]'"
        )


def dense_field_types(recipe_type: type) -> dict[str, Any]:
    """The type of every field by its name, those of the network included."""
    owners = (ModelConfig, recipe_type)
    return {name: hints(owner)[name] for owner in owners for name in knobs(owner)}


def given_dense_fields(options: argparse.Namespace, recipe_type: type) -> dict[str, Any]:
    """The fields that are given on the command line, as {name: typed value}.

    Raises WrongValues, with one line for each wrong option.
    """
    values, wrong = {}, []
    for name in dense_field_types(recipe_type):
        text = getattr(options, f"{FIELD_DEST}{name}", None)
        if text is None:
            continue
        try:
            values[name] = dense_field(name, text, recipe_type)
        except WrongRequest as error:
            wrong.append(f"{option(name)} {error}")
    if wrong:
        raise WrongValues(*wrong)
    return values


def dense_field(name: str, text: str, recipe_type: type) -> Any:
    """The value of the field `name` that `text` says. WrongRequest says what it must be."""
    said = {**knobs(ModelConfig), **knobs(recipe_type)}[name]
    hint = dense_field_types(recipe_type)[name]
    try:
        value = parsed(name, text, hint)
        is_wrong = fault_of(name, value, said) is not None
    except WrongRequest:
        value, is_wrong = None, True
    if is_wrong:
        choices = ", ".join(map(str, said.choices or ()))
        bound = said.bound if value is None or not said.bound else said.bound.text_for(value)
        words = f"one of {choices}" if choices else type_in_words(hint, bound)
        raise WrongRequest(f"{text!r} must be {words}")
    return value
