"""The recipe fields that a study varies: the columns of its table, the axes of its charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mambaout.recipe import flat_fields
from mambaout.study.axes import Search
from mambaout.study.report.rows import Row
from mambaout.study.search.best import runs_of
from mambaout.study.search.space import values_of

# The recipe's name, MACs and parameters already show the network's shape. Epochs have a column.
_SHOWN_ELSEWHERE = {"depths", "dims", "epochs"}
# Fields that sweeps change together with another one. They are shown if they vary on their own.
_FOLLOWS = {
    "warmup_epochs": "epochs",
    "warmup_lr": "peak_lr",
    "final_lr": "peak_lr",
    "drop_path": "dims",
}


@dataclass(frozen=True)
class VariedField:
    """One field with its value in each row of a table; None if the row has no value."""

    name: str
    values: tuple[Any, ...]

    @property
    def texts(self) -> list[str]:
        return [value_text(value) for value in self.values]

    @property
    def is_numeric(self) -> bool:
        kinds = {type(value) for value in self.values if value is not None}
        return bool(kinds) and kinds <= {int, float}


def varied(table: Sequence[Row], searches: Sequence[Search]) -> list[VariedField]:
    """The axes of the searches; without searches, the fields that differ between the recipes.

    The baseline recipe differs in everything, so it is ignored when the fields are chosen. Its
    values are still shown.
    """
    compared = [not row.is_baseline for row in table]
    found = _axes(table, searches) if searches else _fields(table)
    return [
        one
        for one in found
        if one.name not in _SHOWN_ELSEWHERE
        and len({v for v, on in zip(one.values, compared, strict=True) if on}) > 1
    ]


def _axes(table: Sequence[Row], searches: Sequence[Search]) -> list[VariedField]:
    owners = {}  # axis name -> the first search that has it
    for search in searches:
        for axis in search.axes:
            owners.setdefault(axis.name, search)
    members = {
        search.label: {run.trial.recipe for row in table for run in runs_of(search, row.runs)}
        for search in searches
    }
    every = set().union(*members.values())
    read = [
        [values_of(owner, row.recipe) if row.recipe in every else {} for row in table]
        for owner in owners.values()
    ]
    return [
        VariedField(name, tuple(values.get(name) for values in column))
        for name, column in zip(owners, read, strict=True)
    ]


def _fields(table: Sequence[Row]) -> list[VariedField]:
    flats = [flat_fields(row.recipe) for row in table]
    columns = {name: tuple(flat[name] for flat in flats) for name in (flats[0] if flats else {})}
    compared = [i for i, row in enumerate(table) if not row.is_baseline]

    def follows(name: str) -> bool:
        leader = _FOLLOWS.get(name)
        if leader is None:
            return False
        pairs = {(columns[leader][i], columns[name][i]) for i in compared}
        return len(pairs) == len({columns[leader][i] for i in compared})

    return [VariedField(name, values) for name, values in columns.items() if not follows(name)]


def value_text(value: Any) -> str:
    """0.00123456 -> "0.00123", (1, 1, 3, 1) -> "1,1,3,1"."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
