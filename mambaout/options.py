"""The command-line options that set a recipe's fields: one option for each field, by its name.

    add_recipe_options(parser)                   --peak-lr X, --depths A,B,C,D, ... in groups
    values = given_fields(parser.parse_args())   {"peak_lr": 0.008}
    recipe = tuned(BASELINE, **values)

The help text of a field is written where the field is defined (recipe.py, variants.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args, get_origin

from mambaout.errors import WrongRequest
from mambaout.fields import Knob, WrongValues, fault_of, knobs, type_in_words
from mambaout.layers import has_scan
from mambaout.mixer_layers import CONV_MIXER
from mambaout.recipe import (
    BASELINE,
    Recipe,
    field_choices,
    field_knobs,
    field_types,
    flat_fields,
    following,
    judged,
    parse_field,
)
from mambaout.recipe_parts import Augment, Optim, Schedule
from mambaout.variants import NUM_STAGES, ModelConfig

GROUPS: dict[type, tuple[str, str | None]] = {
    ModelConfig: ("network", "The defaults are femto's."),
    Optim: ("optimizer", None),
    Schedule: ("schedule", None),
    Augment: ("augmentation", None),
    Recipe: ("data and batch", None),
}
FOLLOWS_DATA = (
    "These and all below are the fields of a recipe. A field that you do not give follows your "
    "data, and --precision the device: --plan and every launch print the value and the reason. A "
    "field that does not follow has the default that stands here. For the network that is femto, "
    "and on small data a smaller one."
)
FIELD_DEST = "field_"  # the names in a Namespace begin so


def add_recipe_options(
    parser: argparse.ArgumentParser, *, skip: Collection[str] = (), follow_data: bool = True
) -> None:
    """Give `parser` an option for each field of a recipe except those in `skip`.

    `follow_data` says whether the rules (rules.py) choose the fields that are not given.
    """
    for owner, (title, description) in GROUPS.items():
        if owner is ModelConfig and follow_data:
            description = FOLLOWS_DATA
        group = parser.add_argument_group(title, description)
        for name, said in knobs(owner).items():
            if name not in skip:
                group.add_argument(
                    option(name),
                    dest=f"{FIELD_DEST}{name}",
                    metavar=_metavar(name),
                    help=_help(name, said).replace("%", "%%"),
                )


def given_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that are given on the command line, as {flat name: typed value}.

    Each value is in its own bound; `tuned` checks them together. Raises WrongValues, with one line
    for each wrong option.
    """
    values, wrong = _read(options)
    if wrong:
        raise WrongValues(*wrong.values())
    return values


def check_used(names: Collection[str], shapes: Collection[ModelConfig]) -> None:
    """Raise WrongRequest if a field of `names` acts in no network of `shapes`, by its mixer."""
    for name in ("ssm_state", "ssm_discretisation"):
        if name in names and not any(map(has_scan, shapes)):
            raise WrongRequest(
                f"{option(name)}: no network here has an SSM; leave it out, or give a "
                "mixer that has one, like --mixer conv_ssm"
            )
    if "mixer_stages" in names and all(shape.mixer == CONV_MIXER for shape in shapes):
        raise WrongRequest(
            f"--mixer-stages: every stage has {CONV_MIXER} anyway; leave it out, or give "
            "another mixer, like --mixer conv_ssm"
        )


def given_recipe(flat: Mapping[str, Any], options: argparse.Namespace) -> Recipe:
    """The recipe of the fields `flat`, changed by the command line.

    Fields that follow from a given field change too (`following`). Raises WrongValues, with one
    line for each fault.
    """
    values, wrong = _read(options)
    moved, said = following(flat, values), field_knobs()
    for name, value in moved.items():
        if (fault := fault_of(name, value, said[name])) is not None:
            wrong[name] = f"{fault}; it follows from the other options, so give {option(name)} too"
    return judged(flat, moved | values, wrong)


def _read(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """The right values that are given, and the faults of the wrong ones, both by field name."""
    values, wrong = {}, {}
    for name, said in field_knobs().items():
        text = getattr(options, f"{FIELD_DEST}{name}", None)
        if text is None:
            continue
        try:
            value = parse_field(name, text)
        except WrongRequest:
            wrong[name] = _refusal(name, text, str(said.bound or ""))
            continue
        if fault_of(name, value, said) is None:
            values[name] = value
        else:
            bound = said.bound.text_for(value) if said.bound is not None else ""
            wrong[name] = _refusal(name, text, bound)
    return values, wrong


def option(name: str) -> str:
    """The option of a field: "peak_lr" gives "--peak-lr"."""
    return f"--{name.replace('_', '-')}"


def field_text(value: Any) -> str:
    """A field's value as command-line text; `parse_field` reads it back."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _refusal(name: str, text: str, bound: str) -> str:
    """One line that says what the option's text must be."""
    said, example = field_knobs()[name], field_text(flat_fields(BASELINE)[name])
    if said.choices:
        return f"{option(name)} {text!r} must be one of {', '.join(map(str, said.choices))}"
    wanted = type_in_words(field_types()[name], bound)
    shown = example != "none" and get_origin(field_types()[name]) is not Literal
    return f"{option(name)} {text!r} must be {wanted}{f', like {example}' if shown else ''}"


def _metavar(name: str) -> str:
    kinds = {int: "N", float: "X", str: "NAME"}
    hint = field_types()[name]
    if get_origin(hint) is tuple:
        return ",".join("ABCD"[:NUM_STAGES])
    if get_origin(hint) is Literal:
        return "NAME"
    return next(kinds[kind] for kind in (hint, *get_args(hint)) if kind in kinds)


def _help(name: str, said: Knob) -> str:
    """The help text: meaning, unit, allowed values, default and its source."""
    choices = field_choices(name)
    allowed = f"one of {', '.join(map(str, choices))}" if choices else str(said.bound or "")
    facts = [fact for fact in (said.unit, allowed) if fact]
    default = field_text(flat_fields(BASELINE)[name])
    source = said.source or "our choice"
    return f"{said.help} [{'; '.join(facts)}]. Default: {default} ({source})"
