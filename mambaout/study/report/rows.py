"""A study's runs, grouped by recipe, with means over their seeds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mambaout.accounting import TRAIN_FORWARDS, train_macs
from mambaout.endings import Ending
from mambaout.recipe import BASELINE, Recipe
from mambaout.study.law.noise import SeedMean
from mambaout.study.origin import ConfirmingSeed, SearchPoint
from mambaout.study.study import Run
from mambaout.train.metrics import MACS
from mambaout.train.tasks import kind_of


@dataclass(frozen=True)
class Row:
    """One recipe of a study with all its seeds."""

    label: str
    recipe: Any  # of the study's task
    runs: tuple[Run, ...]

    @property
    def is_baseline(self) -> bool:
        return any(run.trial.is_baseline for run in self.runs)

    @property
    def cut(self) -> str:
        """How a baseline was shortened: ", after 3 of its 300 epochs"; "" if it was not."""
        epochs, whole = self.recipe.schedule.epochs, BASELINE.schedule.epochs
        return f", after {epochs} of its {whole} epochs" if epochs < whole else ""

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.status is Ending.FINISHED)

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The finished seeds over which the means are taken.

        If a search chose the recipe on its first seed and other seeds have finished since, only the
        others count. The first seed was the highest of many, so a mean with it would be too high.
        """
        chosen_by = {
            origin.search
            for run in self.finished
            for origin in run.trial.origins
            if isinstance(origin, ConfirmingSeed)
        }
        others = tuple(run for run in self.finished if not _was_chosen_on(run, chosen_by))
        return others or self.finished

    def mean(self, name: str) -> SeedMean:
        """The final metric `name` over the counted seeds, without values that are not finite."""
        found = [(run.metrics.get(name, math.nan), run.trial.seed) for run in self.counted]
        found = [(value, seed) for value, seed in found if math.isfinite(value)]
        return SeedMean(
            tuple(value for value, _ in found), self.epochs, tuple(seed for _, seed in found)
        )

    @property
    def facts(self) -> Mapping[str, Any]:
        """The first finished run's facts about data and machine; empty if none finished."""
        return next((run.facts for run in self.finished), {})

    @property
    def epochs(self) -> int:
        """The length of a training, in the unit of its task."""
        return kind_of(self.recipe).length(self.recipe)

    @property
    def blocks(self) -> int:
        return sum(self.recipe.model.depths)

    @property
    def width(self) -> int:
        return self.recipe.model.dims[0]

    @cached_property
    def train_macs(self) -> float:
        """Multiply-adds of one whole training without evaluations; nan if no run has ended."""
        if not isinstance(self.recipe, Recipe):
            last = [run.records[-1].images_seen for run in self.finished if run.records]
            return TRAIN_FORWARDS * self.mean(MACS).value * max(last, default=math.nan)
        if "num_train" not in self.facts or "num_classes" not in self.facts:
            return math.nan
        num_train, num_classes = (int(self.facts[n]) for n in ("num_train", "num_classes"))
        return train_macs(self.recipe, num_train, num_classes)

    @property
    def state(self) -> str:
        """How the seeds ended; "" if all have finished."""
        if all(run.status is Ending.UNFINISHED and not run.records for run in self.runs):
            return "not begun"
        parts = []
        for run in self.runs:
            if run.status in (Ending.UNFINISHED, Ending.STOPPED):
                epoch = run.records[-1].epoch if run.records else 0
                early = f"{run.status.text} " if run.status is Ending.STOPPED else ""
                of = f" of {self.epochs}" if run.trial.kind.unit == "epochs" else ""
                parts.append(f"s{run.trial.seed} {early}at epoch {epoch:.3g}{of}")
            elif run.status is not Ending.FINISHED:
                parts.append(f"s{run.trial.seed} {run.status.text}")
        return ", ".join(parts)


def _was_chosen_on(run: Run, searches: Collection[str]) -> bool:
    """Whether one of the searches chose the run's recipe on this seed."""
    origins = run.trial.origins
    return any(isinstance(one, SearchPoint) and one.search in searches for one in origins)


def rows(runs: Iterable[Run]) -> list[Row]:
    """The runs by recipe, in the order of the study."""
    groups: dict[tuple[str, Any], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.trial.label, run.trial.recipe), []).append(run)
    return [Row(label, group[0].trial.recipe, tuple(group)) for (label, _), group in groups.items()]
