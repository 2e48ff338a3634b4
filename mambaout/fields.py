"""The fields of a recipe: meaning, unit, source, bound and type of each, and its value as text.

Pure values: no torch, no I/O. variants.py and recipe.py declare their fields with `knob`. Help
texts, error messages and documents take all facts about a field from these declarations.
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

# The upper ends of bounds. Every number has one: with a number beyond any real one, a count
# overflows or a plan never ends.
MOST_COUNT = 2**31 - 1  # of images, steps or epochs
MOST_CHANNELS = 65536

# A rule that several fields must satisfy together: a function whose parameters have the names of
# the fields. It returns a text that says what is wrong with the values, or None.
Rule = Callable[..., str | None]


class WrongValues(WrongRequest):
    """Values that are out of bounds or do not go together; `args` has one line for each fault."""

    def __str__(self) -> str:
        if len(self.args) == 1:
            return self.args[0]
        return "\n  ".join([f"{len(self.args)} things are wrong:", *self.args])


def neighbours(number: int) -> str:
    """The text "3 or 5" for 4: the numbers to try instead, each at least 1."""
    return " or ".join(str(n) for n in (number - 1, number + 1) if n >= 1)


def all_of(*parts: Callable[[], Any]) -> list[Any]:
    """Call every part and return the results.

    If parts raise, one WrongValues holds the faults of all of them, so that a user can fix
    everything at once.
    """
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
    """The range of a number. `least` and `most` belong to the range; `above` and `below` do not.

    A tuple is in the range if each of its numbers is.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, tuple):
            return all(part in self for part in value)
        return (  # NaN is in no range, not even in a range without ends
            value == value
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words, without an upper end that only guards against nonsense."""
        return self._text(None if self._most_is_a_guard else self.most)

    def text_for(self, value: Any) -> str:
        """The range in words for the error of `value`, which is told the end that it is beyond."""
        parts = value if isinstance(value, tuple) else (value,)
        if self._most_is_a_guard and any(part > self.most for part in parts):
            return self._text(self.most)
        return str(self)

    @property
    def _most_is_a_guard(self) -> bool:
        return self.most is not None and self.most >= MOST_COUNT

    def _text(self, most: float | None) -> str:
        if self.least is not None and most is not None:
            return f"{_end_text(self.least)} to {_end_text(most)}"
        ends = {"at least": self.least, "above": self.above, "at most": most, "below": self.below}
        return " and ".join(
            f"{word} {_end_text(end)}" for word, end in ends.items() if end is not None
        )


def _end_text(end: float) -> str:
    return str(end) if isinstance(end, int) else f"{end:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """The facts about a field, written where the field is defined."""

    help: str
    unit: str | None  # None: it has no unit
    source: str | None  # where the default comes from; None: this project's own choice
    bound: Bound | None  # the range, if the field is a number
    choices: Collection[Any]  # the only values allowed; empty: any value in the bound


def knob(
    default: Any,
    help: str,
    *,
    unit: str | None,
    source: str | None = None,
    bound: Bound | None = None,
    choices: Collection[Any] = (),
) -> Any:
    """A dataclass field with its default and the facts about it."""
    said = Knob(help=help, unit=unit, source=source, bound=bound, choices=choices)
    return field(default=default, metadata={KNOB: said})


@functools.cache  # a study of thousands of trials reads its recipes often
def knobs(owner: type) -> dict[str, Knob]:
    """The Knob of each field of `owner`, without the fields of its parts."""
    return {f.name: f.metadata[KNOB] for f in fields(owner) if KNOB in f.metadata}


hints = functools.cache(typing.get_type_hints)  # the types of a class's fields


def flat_fields(value: Any) -> dict[str, Any]:
    """Every field by its own name, also those of the parts: {"peak_lr": 0.004, "epochs": 300}..."""
    flat: dict[str, Any] = {}
    for item in fields(value):
        part = getattr(value, item.name)
        flat |= flat_fields(part) if is_dataclass(part) else {item.name: part}
    return flat


def choices_of(said: Knob, hint: Any) -> tuple[Any, ...]:
    """The only values that a field of the type `hint` may have; empty if its bound says it all."""
    return tuple(said.choices) or (typing.get_args(hint) if _is_literal(hint) else ())


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


# -- what a value may be --------------------------------------------------------------------------


def faults(owner: type, values: Mapping[str, Any]) -> list[str]:
    """One line for each field of `owner` that is out of its bound and for each broken rule.

    A rule of `owner.RULES` is checked only if each of its fields is in its bound. Fields that
    `values` lacks are skipped, and so are the rules that use them.
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
    """The rules, each with the names of the fields that it uses."""
    return [(rule, inspect.signature(rule).parameters) for rule in owner.RULES]


def fault_of(name: str, value: Any, said: Knob) -> str | None:
    """What is wrong with this value on its own, or None. The value must have the field's type."""
    if value is None:
        return None  # `typed` has refused None already if the field cannot be None
    if said.choices and value not in said.choices:
        return f"{name}={value!r} must be one of {', '.join(map(str, said.choices))}"
    if said.bound is not None and value not in said.bound:
        return f"{name}={value!r} is out of range: {said.bound.text_for(value)}"
    return None


def check(value: Any) -> None:
    """Raise WrongValues if `value`, a dataclass with RULES, has faults."""
    found = faults(type(value), flat_fields(value))
    if found:
        raise WrongValues(*found)


def typed(name: str, value: Any, hint: Any) -> Any:
    """`value` converted to the type `hint`; a ValueError names the field if that is impossible."""
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
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    raise WrongRequest(f"{name}={value!r} must be {type_in_words(hint)}")


def parsed(name: str, text: str, hint: Any) -> Any:
    """The value of a command-line text like "8e-3", "3,3,15,3" or "none".

    A ValueError names the field if the text does not fit the type `hint`. Numbers have the digits
    0 to 9 alone; Python's int would take others, and underscores between them.
    """
    plain = _without_none(hint)
    if plain is not hint and text.lower() == "none":
        return None
    origin = typing.get_origin(plain)
    try:
        if (origin is tuple or plain in (int, float)) and (not text.isascii() or "_" in text):
            raise ValueError
        if origin is tuple:
            return tuple(int(part) for part in text.split(","))
        value = plain(text) if plain in (int, float) else text
        return typed(name, value, plain)
    except ValueError:
        raise WrongRequest(f"{name}={text!r} must be {type_in_words(hint)}") from None


def type_in_words(hint: Any, bound: Bound | str | None = None) -> str:
    """The type in words: "a finite number, above 0, or none", "one of fp32, bf16".

    `bound` may also be a text, like Bound.text_for.
    """
    plain = _without_none(hint)
    origin, args = typing.get_origin(plain), typing.get_args(plain)
    if origin is Literal:
        words = f"one of {', '.join(map(str, args))}"
    elif origin is tuple:
        words = "whole numbers joined by commas"
    else:
        words = {int: "a whole number", float: "a finite number", str: "a text"}[plain]
    if bound:
        words += f", {bound}"
    return words if plain is hint else f"{words}, or none"


def _without_none(hint: Any) -> Any:
    """`hint` without None: `float | None` becomes float."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    return next(arg for arg in typing.get_args(hint) if arg is not type(None))
