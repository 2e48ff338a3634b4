"""What a network is trained for. A study has one task, and the task names the recipe and the score.

    kind = kind_of(trial.recipe)
    kind.watched        "minival/top1", "val/box_ap": the series that a running trial is judged by
    kind.final          "top1", "box_ap": the score of a finished trial

Pure values: no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mambaout.detect_recipe import DetectRecipe, detect_recipe_from_json
from mambaout.errors import WrongRequest
from mambaout.recipe import Recipe, recipe_from_json

SHEET = "predictions.png"  # in the directory of a run that detects or segments


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A task: its recipe, and its metrics by their names in records.jsonl and outcome.json."""

    name: str  # the value of --task
    recipe_type: type
    read: Callable[[str, str], Any]  # (text of recipe.json, where it is from) -> recipe
    watched: str
    final: str
    score: str  # the final score in words, for tables and charts
    more: Mapping[str, str]  # further final scores, in percent, with their words
    length: Callable[[Any], int]  # of a recipe, in `unit`
    unit: str = "epochs"

    @property
    def final_metrics(self) -> tuple[str, ...]:
        return (self.final, *self.more)


CLASSIFY = TaskKind(
    name="classify",
    recipe_type=Recipe,
    read=recipe_from_json,
    watched="minival/top1",
    final="top1",
    score="top-1",
    more={},
    length=lambda recipe: recipe.schedule.total_epochs,
)
DETECT = TaskKind(
    name="detect",
    recipe_type=DetectRecipe,
    read=detect_recipe_from_json,
    watched="val/box_ap",
    final="box_ap",
    score="box AP",
    more={
        "mask_ap": "mask AP",
        "box_ap50": "box AP50",
        "mask_ap50": "mask AP50",
    },
    length=lambda recipe: recipe.epochs,
)
TASKS: Mapping[str, TaskKind] = {kind.name: kind for kind in (CLASSIFY, DETECT)}


def kind_of(recipe: object) -> TaskKind:
    """The task of a recipe."""
    return next(kind for kind in TASKS.values() if type(recipe) is kind.recipe_type)


def kind_named(name: str) -> TaskKind:
    """The task of this name. A study of a newer version may have one that is unknown here."""
    if name not in TASKS:
        raise WrongRequest(f"this mambaout knows no task {name!r}, only {', '.join(TASKS)}")
    return TASKS[name]
