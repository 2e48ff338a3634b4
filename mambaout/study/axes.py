"""What a search varies, as values: typed axes over a recipe, and the search itself.

    Search(label="femto", base=SHORT, num_trials=40, axes=(
        Log("peak_lr", 5e-4, 8e-3), Linear("drop_path", 0.0, 0.3, step=0.05),
        Choice("kernel_size", (5, 7, 9)), Whole("blocks", 4, 16)))

The classes here are pure values. So a study with searches can be listed and priced without Optuna.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from mambaout.recipe import Recipe, canonical_json, recipe_from_json
from mambaout.train.metrics import MINIVAL_TOP1

# These two axes are not fields of a recipe. They make the network wider or deeper.
WIDTH, BLOCKS = "width", "blocks"


@dataclass(frozen=True)
class LogRange:
    """A float on a logarithmic scale, like a learning rate."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class LinearRange:
    """A float on a linear scale. It starts at `low` and goes in steps of `step`, if given."""

    name: str
    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class WholeRange:
    """A whole number."""

    name: str
    low: int
    high: int
    step: int = 1


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    name: str
    values: tuple[Any, ...]


Range = LogRange | LinearRange | WholeRange
Axis = Range | Choice
# (metric, "max" | "min"): minival/top1 upwards, macs downwards, images_per_second upwards
Goal = tuple[str, Literal["max", "min"]]


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search: `num_trials` recipes from the axes around `base`. It runs `base` first."""

    label: str  # its trials are LABEL-t000, LABEL-t001, ...
    base: Recipe
    axes: tuple[Axis, ...]
    num_trials: int  # recipes with their first seed; stopped ones count
    goals: tuple[Goal, ...] = ((MINIVAL_TOP1, "max"),)
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    sampler_seed: int = 0
    early_stop: bool = False  # ASHA on minival; one goal only
    seeds: tuple[int, ...] = (0,)  # all recipes get the first, only the best get the others
    num_confirmed: int = 1  # recipes that get the other seeds
    follows: str | None = None  # label of a search; its best recipe is tried early here

    def to_json(self) -> dict[str, Any]:
        """For study.json."""
        body = asdict(self) | {"base": json.loads(canonical_json(self.base))}
        kinds = [{"kind": type(axis).__name__.lower()} | asdict(axis) for axis in self.axes]
        return json.loads(json.dumps(body | {"axes": kinds}))


def axis_names(axes: Sequence[Axis]) -> list[str]:
    return [axis.name for axis in axes]


_KINDS = {kind.__name__.lower(): kind for kind in (LogRange, LinearRange, WholeRange, Choice)}


def search_from_json(body: Mapping[str, Any]) -> Search:
    """The search that `Search.to_json` wrote."""
    values = {f.name: body[f.name] for f in fields(Search) if f.name in body}
    return Search(
        **values
        | {
            "base": recipe_from_json(json.dumps(body["base"])),
            "axes": tuple(map(_axis, body["axes"])),
            "goals": tuple((str(metric), way) for metric, way in body["goals"]),
            "seeds": tuple(body["seeds"]),
        }
    )


def _axis(body: Mapping[str, Any]) -> Axis:
    kind = _KINDS[body["kind"]]
    values = {name: value for name, value in body.items() if name != "kind"}
    if kind is Choice:
        values["values"] = tuple(
            tuple(value) if isinstance(value, list) else value for value in values["values"]
        )
    return kind(**values)
