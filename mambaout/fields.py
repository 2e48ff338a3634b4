"""What a field of a recipe is: its meaning, unit, source and bound, its type, its value as text.

Pure values: no torch, no I/O. variants.py and recipe.py declare their fields with `knob`. Help
texts, error messages and documents take what they say about a field from there.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from mambaout.errors import WrongRequest

KNOB = "knob"  # the key of a field's Knob in its metadata

# What fields must satisfy together: a function whose parameters are called as the fields, and
# which returns what is wrong with their values, or None.
Rule = Callable[..., str | None]


class WrongValues(WrongRequest):
    """Values that are out of bounds or do not go together; `args` has one line for each fault."""

    def __str__(self) -> str:
        if len(self.args) == 1:
            return self.args[0]
        return "\n  ".join([f"{len(self.args)} things are wrong:", *self.args])


def neighbours(number: int) -> str:
    """The numbers below and above `number` that are at least 1, to try instead."""
    return " or ".join(str(n) for n in (number - 1, number + 1) if n >= 1)


def all_of(*parts: Callable[[], Any]) -> list[Any]:
    """The result of each part; one WrongValues with what all of them have to say where some are
    wrong, so that a user mends everything at once."""
    results, wrong = [], []
    for part in parts:
        try:
            results.append(part())
        except WrongValues as error:
            wrong += error.args
        except WrongRequest as error:
            wrong.append(str(error))
    if wrong:
        raise WrongValues(*wrong)
    return results


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """The range of a number: its ends belong to it (`least`, `most`) or do not (`above`, `below`).

    A tuple is in the range where each of its numbers is.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, tuple):
            return all(part in self for part in value)
        return (  # nan is in no range, not even in one without ends
            value == value
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        ends = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        return " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """What is said of a field where it is defined."""

    help: str
    unit: str | None  # None: it has no unit
    source: str | None  # of the default; None: this project's own choice
    bound: Bound | None  # of numbers
    choices: Collection[Any]  # where only these are allowed; empty: any in the bound


def knob(
    default: Any,
    help: str,
    *,
    unit: str | None,
    source: str | None = None,
    bound: Bound | None = None,
    choices: Collection[Any] = (),
) -> Any:
    """A dataclass field with its default and what is said of it."""
    said = Knob(help=help, unit=unit, source=source, bound=bound, choices=choices)
    return field(default=default, metadata={KNOB: said})


@functools.cache  # a study of thousands reads its recipes often
def knobs(owner: type) -> dict[str, Knob]:
    """What is said of each field of `owner`, its parts not opened."""
    return {f.name: f.metadata[KNOB] for f in fields(owner) if KNOB in f.metadata}


hints = functools.cache(typing.get_type_hints)  # the types of a class's fields


def flat_fields(value: Any) -> dict[str, Any]:
    """Every field by its own name, parts opened: {"peak_lr": 0.004, "depths": (3, 3, 9, 3)}..."""
    flat: dict[str, Any] = {}
    for item in fields(value):
        part = getattr(value, item.name)
        flat |= flat_fields(part) if is_dataclass(part) else {item.name: part}
    return flat


# -- what a value may be --------------------------------------------------------------------------


def faults(owner: type, values: Mapping[str, Any]) -> list[str]:
    """A line for each of `owner`'s fields that is out of its bound, and for each of its RULES that
    is broken by values that are each in their bounds.

    A field that `values` lacks is not known yet, and neither are the rules that look at it.
    """
    known = {name: said for name, said in knobs(owner).items() if name in values}
    alone = {
        name: fault
        for name, said in known.items()
        if (fault := fault_of(name, values[name], said)) is not None
    }
    right = values.keys() - alone.keys()
    together = [
        fault
        for rule, names in _rules(owner)
        if right >= names.keys() and (fault := rule(**{n: values[n] for n in names})) is not None
    ]
    return [*alone.values(), *together]


@functools.cache
def _rules(owner: Any) -> list[tuple[Rule, Mapping[str, Any]]]:
    """The rules with the names of the fields that each looks at."""
    return [(rule, inspect.signature(rule).parameters) for rule in owner.RULES]


def fault_of(name: str, value: Any, said: Knob) -> str | None:
    """What is wrong with a value of a field's own type, whatever the other fields are."""
    if value is None:
        return None  # where None is no value of the field, its type says so
    if said.choices and value not in said.choices:
        return f"{name}={value!r} must be one of {', '.join(map(str, said.choices))}"
    if said.bound is not None and value not in said.bound:
        return f"{name}={value!r} is out of range: {said.bound}"
    return None


def check(value: Any) -> None:
    """WrongValues where a field of `value`, a dataclass with RULES, is out of bounds."""
    found = faults(type(value), flat_fields(value))
    if found:
        raise WrongValues(*found)


def typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` says; a ValueError names the field where it cannot be."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
    elif type(None) in args:
        return None if value is None else typed(name, value, _without_none(hint))
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(typed(name, v, args[0]) for v in value)
    elif hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and abs(value) <= sys.float_info.max:
            return float(value)
    elif hint is int:
        # Larger ones are no floats, and no database holds them.
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            return value
    elif isinstance(value, hint):
        return value
    raise WrongRequest(f"{name}={value!r} must be {type_in_words(hint)}")


def parsed(name: str, text: str, hint: Any) -> Any:
    """The value that `text` of a command line stands for: "8e-3", "3,3,15,3", "none".

    A ValueError names the field where the text is of another type.
    """
    plain = _without_none(hint)
    if plain is not hint and text.lower() == "none":
        return None
    origin = typing.get_origin(plain)
    try:
        if origin is tuple:
            return tuple(int(part) for part in text.split(","))
        value = plain(text) if plain in (int, float) else text
        return typed(name, value, plain)
    except ValueError:
        raise WrongRequest(f"{name}={text!r} must be {type_in_words(hint)}") from None


def type_in_words(hint: Any, bound: Bound | None = None) -> str:
    """What a value of this type is: "a finite number, above 0, or none", "one of fp32, bf16"."""
    plain = _without_none(hint)
    origin, args = typing.get_origin(plain), typing.get_args(plain)
    if origin is Literal:
        words = f"one of {', '.join(map(str, args))}"
    elif origin is tuple:
        words = "whole numbers, one a stage"
    else:
        words = {int: "a whole number", float: "a finite number", str: "a text"}[plain]
    if bound is not None:
        words += f", {bound}"
    return words if plain is hint else f"{words}, or none"


def _without_none(hint: Any) -> Any:
    """`hint` without its None: float of `float | None`."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    return next(arg for arg in typing.get_args(hint) if arg is not type(None))
