"""Searches driven without training: trials whose result is a formula of their recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from study_files import DATA, record, write_outcome
from study_files import SMALL as TEN_EPOCHS

from mambaout.endings import Ending
from mambaout.recipe import Recipe, tuned
from mambaout.study.axes import Choice, LinearRange, LogRange, Search, WholeRange
from mambaout.study.search.agenda import Agenda
from mambaout.study.search.study_agenda import agenda
from mambaout.study.study import Run, Study, StudyFolder, Trial
from mambaout.train.metrics import MACS, MINIVAL_TOP1

SMALL = tuned(TEN_EPOCHS, epochs=6)
AXES = (
    LogRange("peak_lr", 2.5e-4, 1e-2),
    LinearRange("weight_decay", 0.0, 0.3),
    LinearRange("drop_path", 0.0, 0.3, step=0.05),
    WholeRange("blocks", 0, 4),
    Choice("kernel_size", (5, 7, 9)),
)
BEST_LR = 3e-3
EPOCHS = SMALL.schedule.total_epochs


def search(**changes: Any) -> Search:
    given: dict[str, Any] = dict(label="femto", base=SMALL, axes=AXES, num_trials=12) | changes
    return Search(**given)


def top1(recipe: Recipe, seed: int) -> float:
    """Peaks at BEST_LR and weight decay 0.1; deeper is better, and so is a later seed."""
    off = math.log(recipe.optim.peak_lr / BEST_LR)
    decay = 20 * (recipe.optim.weight_decay - 0.1) ** 2
    return 90 - 3 * off**2 - decay + 0.3 * recipe.model.depths[2] + 0.1 * seed


def at_epoch(trial: Trial, epoch: int) -> float:
    return top1(trial.recipe, trial.seed) - 40 * math.exp(-epoch / 2)


class Driver:
    """A launcher: so many trials at a time, each of them an epoch a turn.

    `outcome` may name another end than "finished" for a trial; `turn` is called before each turn
    and may raise, which is how a driver dies.
    """

    def __init__(
        self,
        storage: Path,
        study: Study,
        *,
        slots: int = 1,
        outcome: Callable[[Trial], Ending] = lambda trial: Ending.FINISHED,
        turn: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = StudyFolder(storage, study.name)
        known = {trial.key: trial for trial in self.folder.searched(study.searches)}
        known |= {trial.key: trial for trial in study.trials(DATA)}
        self.folder.write(study, list(known.values()))
        self.study, self.slots, self.outcome, self.turn = study, slots, outcome, turn
        self.started: list[Trial] = []
        self.predicting_after: int | None = None  # trials that had ended when it was to predict
        self.num_ended = 0
        self.agenda = agenda(
            study, self.folder, DATA, study.trials(DATA), before_predicted=self._predict
        )

    def _predict(self) -> None:
        self.predicting_after = self.num_ended

    def run(self) -> Driver:
        running: list[Trial] = []
        while True:
            # A launch of what is over starts nothing, not even Ray.
            if self.agenda.over and not running:
                return self
            while len(running) < self.slots and (trial := self.agenda.next()) is not None:
                assert trial.key not in {other.key for other in running}
                assert self.folder.run(trial).status is Ending.UNFINISHED
                self.started.append(trial)
                running.append(trial)
            if not running:
                assert self.agenda.over
                return self
            self.turn()
            for trial in list(running):
                if self._epoch(trial):
                    running.remove(trial)
                    self.num_ended += 1

    def _epoch(self, trial: Trial) -> bool:
        """Train an epoch; whether the trial is over."""
        epoch = len(self.folder.run(trial).records) + 1
        directory = self.folder.run_directory(trial)
        directory.mkdir(parents=True, exist_ok=True)
        value = at_epoch(trial, epoch)
        with (directory / "records.jsonl").open("a") as out:
            out.write(record(epoch * 40, epoch, {MINIVAL_TOP1: value}).to_json() + "\n")
        why = self.agenda.observe(trial, epoch, value)
        if why is not None:
            self.folder.stop(trial, why)
            # A worker that has not yet seen the file trains on.
            assert self.agenda.observe(trial, epoch + 1, value + 10) == why
        elif epoch < EPOCHS:
            return False
        elif (ending := self.outcome(trial)).is_failure:
            self.agenda.ended(replace(self.folder.run(trial), status=ending))
            return True
        else:
            metrics = {MINIVAL_TOP1: top1(trial.recipe, trial.seed)}
            metrics[MACS] = 1e4 * sum(trial.recipe.model.dims) * sum(trial.recipe.model.depths)
            write_outcome(directory, ending, metrics if ending is Ending.FINISHED else {})
        self.agenda.ended(self.folder.run(trial))
        return True

    def runs(self) -> list[Run]:
        return self.folder.runs()


def study(*searches: Search, **changes: Any) -> Study:
    given: dict[str, Any] = dict(name="x", question="?", recipes={}, searches=searches) | changes
    return Study(**given)


def suggested(agenda: Agenda, count: int) -> list[Trial]:
    """What the agenda gives out when nothing ends."""
    found = [agenda.next() for _ in range(count)]
    return [trial for trial in found if trial is not None]
