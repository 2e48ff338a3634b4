"""Which part of a study asked for a trial: an origin, stored with the trial in trials.jsonl.

    GridPoint()              a recipe that the study names
    Baseline()               the one that the others are compared with
    Predicted()              the one whose result is predicted before it is trained
    Suggested("recipe", 3)   number 3 of the search `recipe`, with the search's first seed
    Confirmed("recipe", 3)   the same recipe with another of the search's seeds
    Added()                  another seed, which makes a difference of the study more precise

A study holds each trial once, even if several parts ask for it. The trial keeps one origin for each
of these parts. The part that asked first comes first. A label is for people. Only `earlier` reads
labels, for trials that were stored by versions without origins.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from mambaout.recipe import Recipe
from mambaout.study.axes import Search


@dataclass(frozen=True, slots=True)
class GridPoint:
    kind: ClassVar[str] = "grid"


@dataclass(frozen=True, slots=True)
class BaselinePoint:
    kind: ClassVar[str] = "baseline"


@dataclass(frozen=True, slots=True)
class PredictedPoint:
    kind: ClassVar[str] = "predicted"


@dataclass(frozen=True, slots=True)
class SearchPoint:
    kind: ClassVar[str] = "suggested"
    search: str  # the search's label
    number: int  # in the order in which the search chose recipes; 0 is its base


@dataclass(frozen=True, slots=True)
class ConfirmingSeed:
    kind: ClassVar[str] = "confirmed"
    search: str
    number: int  # of the recipe


@dataclass(frozen=True, slots=True)
class AddedSeed:
    kind: ClassVar[str] = "added"


Origin = GridPoint | BaselinePoint | PredictedPoint | SearchPoint | ConfirmingSeed | AddedSeed
Origins = tuple[Origin, ...]

_KINDS = {
    one.kind: one
    for one in (GridPoint, BaselinePoint, PredictedPoint, SearchPoint, ConfirmingSeed, AddedSeed)
}


def trial_label(search: str, number: int) -> str:
    """The label of a trial that only a search has asked for."""
    return f"{search}-t{number:03d}"


def searches_of(origins: Origins) -> list[str]:
    """The labels of the searches that asked for the trial."""
    return [one.search for one in origins if isinstance(one, (SearchPoint, ConfirmingSeed))]


def of_searches(
    origins: Origins, labels: Iterable[str]
) -> tuple[SearchPoint | ConfirmingSeed, ...]:
    """Those of the origins that belong to the searches with these labels."""
    known = set(labels)
    found = (one for one in origins if isinstance(one, (SearchPoint, ConfirmingSeed)))
    return tuple(one for one in found if one.search in known)


def origins_to_json(origins: Origins) -> list[dict[str, Any]]:
    return [{"kind": one.kind} | asdict(one) for one in origins]


def origins_from_json(body: Sequence[Mapping[str, Any]]) -> Origins:
    return tuple(
        _KINDS[one["kind"]](**{name: value for name, value in one.items() if name != "kind"})
        for one in body
    )


# -- trials stored by versions without origins ----------------------------------------------------


def earlier(
    label: str, recipe: Recipe, seed: int, searches: Sequence[Search], predicted: Collection[str]
) -> Origins:
    """The origins of a trial that was stored without them, computed from study.json."""

    def asked(search: Search, number: int) -> SearchPoint | ConfirmingSeed:
        kind = SearchPoint if seed == search.seeds[0] else ConfirmingSeed
        return kind(search.label, number)

    named: list[Origin] = [PredictedPoint()] if label in predicted else []
    named += [BaselinePoint()] if label.startswith("baseline") else []  # by its label
    suggested = [asked(search, number) for search, number in _numbers(label, searches)]
    # A search's base may have been run under another label.
    bases = [asked(one, 0) for one in searches if recipe == one.base and seed in one.seeds]
    return tuple(dict.fromkeys([*(suggested or named or [GridPoint()]), *bases]))


def _numbers(label: str, searches: Sequence[Search]) -> list[tuple[Search, int]]:
    """The search that gave a trial this label, with the trial's number; empty if none did."""
    matches = [(one, re.fullmatch(re.escape(one.label) + r"-t(\d{3,})", label)) for one in searches]
    return [(search, int(match[1])) for search, match in matches if match is not None]
