"""What a trial, or each trial of a search, costs: images, MACs, seconds and bytes.

It is not known beforehand which recipes a search will try. Its price is that of a typical recipe,
at the middle of its axes. Its highest price is that of its most expensive recipe.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mambaout.accounting import TRAIN_FORWARDS, cost
from mambaout.errors import WrongRequest
from mambaout.recipe import Recipe, flat_fields, steps_per_epoch
from mambaout.study.axes import Axis, Choice, LogRange, Search
from mambaout.study.price.rates import Forecast, Kind, num_evaluated
from mambaout.study.search.best import runs_of
from mambaout.study.search.space import recipe_of
from mambaout.study.study import Run, Trial

NumImages = Callable[[Literal["train", "minival", "val"], Recipe], int]  # DataSet.num_images

# A checkpoint holds the weights and AdamW's two moments in fp32, and the file's own tables: 69,701
# bytes more for 4 blocks and 124,357 for 10. A trial has last.ckpt, previous.ckpt and MLflow's
# copy. A running trial writes one more before it removes the oldest.
BYTES_PER_PARAMETER = 3 * 4
CHECKPOINT_BYTES, CHECKPOINT_BLOCK_BYTES = 34_000, 9_200
CHECKPOINTS = 3
# 375 bytes in records.jsonl; in MLflow's database about 240 a value, of nine.
RECORD_BYTES = 2_600
LOG_EVERY_STEPS = 50  # the default of train.loop
TRIAL_BYTES = 30_000  # outcome, recipe, MLflow's copies of them

State = Literal["finished", "begun", "new"]


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What one trial costs. For a search: what a trial of its typical recipe costs."""

    name: str  # "w16-d6-s0"; a search's label
    label: str
    recipe: Recipe
    num_trials: int = 1  # still to run; for a search, all that are left
    params: int
    macs: int  # one image, one forward
    images: int  # training images of the whole trial, every epoch counted
    train_macs: int  # of the whole trial, backward included
    shared_images: int = 0  # of `images`: trained by a shorter trial that this one goes on from
    seconds: float  # left of one trial, on its share of the machine
    most_seconds: float  # the same for a search's most expensive recipe
    disk_bytes: int  # of one trial at its end
    kind: Kind  # the source of the seconds
    state: State = "new"
    is_search: bool = False
    num_confirmations: int = 0  # how many of `num_trials` are other seeds of a search's best
    stops_early: bool = False

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def own_images(self) -> int:
        """Training images of one trial that no other trial of the study trains."""
        return self.images - self.shared_images


def checkpoint_bytes(recipe: Recipe, params: int) -> int:
    blocks = CHECKPOINT_BLOCK_BYTES * recipe.model.num_blocks
    return BYTES_PER_PARAMETER * params + CHECKPOINT_BYTES + blocks


class Pricing:
    """Prices recipes on one data set and device."""

    def __init__(
        self, num_train: int, num_classes: int, num_images: NumImages | None, forecast: Forecast
    ) -> None:
        self.num_train, self.num_classes, self.forecast = num_train, num_classes, forecast
        self._num_images = num_images
        self._splits: dict[tuple, tuple[int, int, int]] = {}
        self._rows: dict[tuple[str, Recipe], PlanRow] = {}

    def splits(self, recipe: Recipe) -> tuple[int, int, int]:
        """Images of train, minival and val."""
        key = recipe.minival_fraction, recipe.train_images
        if key not in self._splits:
            if self._num_images is None:
                share = recipe.minival_fraction
                held_out = round(self.num_train * share / (1 - share))
                self._splits[key] = self.num_train, held_out, 0
            else:
                train, minival, val = (
                    self._num_images(split, recipe) for split in ("train", "minival", "val")
                )
                self._splits[key] = train, minival, val
        return self._splits[key]

    def of_recipe(self, label: str, recipe: Recipe) -> PlanRow:
        key = label, recipe
        if key not in self._rows:
            self._rows[key] = self._of_recipe(label, recipe)
        return self._rows[key]

    def _of_recipe(self, label: str, recipe: Recipe) -> PlanRow:
        price = cost(recipe.model, recipe.image_size, self.num_classes)
        train, minival, val = self.splits(recipe)
        epochs, steps = recipe.schedule.total_epochs, steps_per_epoch(recipe, train)
        images = epochs * steps * recipe.global_batch
        each = self.forecast.of(recipe, self.num_classes)
        seconds = images * each.train_image_seconds
        seconds += num_evaluated(recipe, minival, val) * each.eval_image_seconds
        records = epochs * steps // LOG_EVERY_STEPS + epochs
        branches = recipe.schedule.lr_decay_share is not None  # it keeps one checkpoint more
        kept = (CHECKPOINTS + branches) * checkpoint_bytes(recipe, price.params)
        return PlanRow(
            name=label,
            label=label,
            recipe=recipe,
            params=price.params,
            macs=price.macs,
            images=images,
            train_macs=TRAIN_FORWARDS * images * price.macs,
            seconds=seconds,
            most_seconds=seconds,
            disk_bytes=kept + records * RECORD_BYTES + TRIAL_BYTES,
            kind=each.kind,
        )

    def of_trial(self, trial: Trial, run: Run | None, finished: Collection[str]) -> PlanRow:
        row = replace(self.of_recipe(trial.label, trial.recipe), name=trial.name)
        if (run is not None and run.status.is_over) or (finished and trial.key in finished):
            return replace(row, state="finished", seconds=0.0, most_seconds=0.0)
        if run is None or not run.records:
            return row
        left = 1 - min(1.0, run.records[-1].images_seen / row.images)
        seconds = row.seconds * left
        return replace(row, state="begun", seconds=seconds, most_seconds=seconds)

    def after(self, row: PlanRow, start: Recipe) -> PlanRow:
        """The row of a new trial, if it goes on from the trial of `start`."""
        train, minival, _ = self.splits(row.recipe)
        per_epoch = steps_per_epoch(row.recipe, train)
        step = start.schedule.decay_step(per_epoch)
        assert step is not None
        images = step * row.recipe.global_batch
        evaluated = step // (per_epoch * row.recipe.eval_every_epochs) * minival
        each = self.forecast.of(row.recipe, self.num_classes)
        seconds = row.seconds - images * each.train_image_seconds
        seconds -= evaluated * each.eval_image_seconds
        return replace(row, shared_images=images, seconds=seconds, most_seconds=seconds)

    def of_search(self, search: Search, runs: Sequence[Run]) -> PlanRow:
        """The search, priced at the middle of its axes and at their most expensive ends."""
        confirmations = (len(search.seeds) - 1) * search.num_confirmed
        over = {run.trial.key for run in runs_of(search, runs) if run.status.is_over}
        left = max(0, search.num_trials + confirmations - len(over))
        typical, *others = (
            self.of_recipe(search.label, recipe) for recipe in search_recipes(search)
        )
        return replace(
            typical,
            num_trials=left,
            most_seconds=max(row.seconds for row in (typical, *others)),
            state="new" if left else "finished",
            is_search=True,
            num_confirmations=min(left, confirmations),
            stops_early=search.early_stop,
        )


# -- the recipes from which a search is priced -----------------------------------------------------


def search_recipes(search: Search) -> list[Recipe]:
    """A typical recipe of the search, then the candidates for its most expensive one."""
    return [_legal(search, _middles(search)), *_ends(search)]


def _middles(search: Search) -> dict[str, Any]:
    return {axis.name: _middle(axis, search.base) for axis in search.axes}


def _middle(axis: Axis, base: Recipe) -> Any:
    if isinstance(axis, Choice):
        own = flat_fields(base).get(axis.name)
        return own if own in axis.values else axis.values[len(axis.values) // 2]
    if isinstance(axis, LogRange):
        return (axis.low * axis.high) ** 0.5
    steps = (axis.high - axis.low) / (axis.step or 1)
    return axis.low + (round(steps / 2) * axis.step if axis.step else steps / 2)


def _legal(search: Search, values: dict[str, Any]) -> Recipe:
    """The recipe of the values, or the base if they do not fit together."""
    try:
        return recipe_of(search, values)
    except WrongRequest:
        return search.base


def _ends(search: Search) -> Iterator[Recipe]:
    """The candidates for the most expensive recipe.

    Each axis stands at the end with more MACs an image or more images: one axis alone, and all of
    these axes together.
    """
    middles, dearest = _middles(search), {}
    for axis in search.axes:
        values = axis.values if isinstance(axis, Choice) else (axis.low, axis.high)
        dearest[axis.name] = max(
            values, key=lambda value, name=axis.name: _work(search, middles | {name: value})
        )
    yield search.base
    yield _legal(search, dearest)
    # If all ends together are no valid recipe (kernel, expansion and ratio have bounds), pairs are
    # used.
    for pair in itertools.combinations(dearest, 2):
        yield _legal(search, middles | {name: dearest[name] for name in pair})


def _work(search: Search, values: dict[str, Any]) -> float:
    try:
        recipe = recipe_of(search, values)
    except WrongRequest:
        return 0.0
    return cost(recipe.model, recipe.image_size).macs * recipe.schedule.total_epochs
