"""What a network is trained for. A study has one task, and the task names the recipe and the score.

    kind = kind_of(trial.recipe)
    kind.watched        "minival/top1", "val/box_ap": the series that a running trial is judged by
    kind.final          "top1", "box_ap": the score of a finished trial

Pure values: no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from mambaout.detect_recipe import DETECT_BASELINE, detect_recipe_from_json
from mambaout.detect_rules import SMOKE_FIELDS
from mambaout.errors import WrongRequest
from mambaout.recipe import BASELINE, recipe_from_json
from mambaout.segment_recipe import SEGMENT_BASELINE, segment_recipe_from_json
from mambaout.segment_rules import SMOKE_FIELDS as SEGMENT_SMOKE_FIELDS
from mambaout.train.metrics import MINIVAL_TOP1, TOP1

SHEET = "predictions.png"  # in the directory of a run that detects or segments


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A task: its recipe, and its metrics by their names in records.jsonl and outcome.json."""

    name: str  # the value of --task
    baseline: Any  # the published recipe
    read: Callable[[str, str], Any]  # (text of recipe.json, where it is from) -> recipe
    watched: str
    final: str
    score: str  # the final score in words, for tables and charts
    more: Mapping[str, str]  # further final scores, in percent, with their words
    length: Callable[[Any], int]  # of a recipe, in `unit`; pickled with a tracker
    unit: str = "epochs"
    follow: tuple[str, ...] = ()  # fields that follow others or the data if they are not given

    @property
    def recipe_type(self) -> type:
        return type(self.baseline)

    @property
    def final_metrics(self) -> tuple[str, ...]:
        return (self.final, *self.more)


CLASSIFY = TaskKind(
    name="classify",
    baseline=BASELINE,
    read=recipe_from_json,
    watched=MINIVAL_TOP1,
    final=TOP1,
    score="top-1",
    more={},
    length=attrgetter("schedule.total_epochs"),
)
DETECT = TaskKind(
    name="detect",
    baseline=DETECT_BASELINE,
    read=detect_recipe_from_json,
    watched="val/box_ap",
    final="box_ap",
    score="box AP",
    more={
        "mask_ap": "mask AP",
        "box_ap50": "box AP50",
        "mask_ap50": "mask AP50",
    },
    length=attrgetter("epochs"),
    follow=("first_drop_epoch", "second_drop_epoch", "warmup_steps", *SMOKE_FIELDS),
)
SEGMENT = TaskKind(
    name="segment",
    baseline=SEGMENT_BASELINE,
    read=segment_recipe_from_json,
    watched="val/miou",
    final="miou",
    score="mIoU",
    more={
        "pixel_accuracy": "pixel accuracy",
        "mean_accuracy": "mean accuracy",
        "miou_multi_scale": "multi-scale mIoU",
    },
    length=attrgetter("steps"),
    unit="steps",
    follow=("warmup_steps", "eval_every_steps", *SEGMENT_SMOKE_FIELDS),
)
TASKS: Mapping[str, TaskKind] = {kind.name: kind for kind in (CLASSIFY, DETECT, SEGMENT)}


def kind_of(recipe: object) -> TaskKind:
    """The task of a recipe."""
    return next(kind for kind in TASKS.values() if type(recipe) is kind.recipe_type)


def kind_named(name: str) -> TaskKind:
    """The task of this name. A study of a newer version may have one that is unknown here."""
    if name not in TASKS:
        raise WrongRequest(f"this mambaout knows no task {name!r}, only {', '.join(TASKS)}")
    return TASKS[name]
