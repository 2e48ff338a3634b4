"""How a search goes: which recipe is next, when its ranges widen, which ones get more seeds.

The recipes and their results are in a memory (memory.py) that outlives the process. Everything here
is computed from the memory and from the run directories.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.recipe import Recipe, flat_fields
from mambaout.study.axes import BLOCKS, WIDTH, Choice, Search
from mambaout.study.origin import ConfirmingSeed, SearchPoint, trial_label
from mambaout.study.search.best import chosen, holding, ranked, scores_of, widened_at
from mambaout.study.search.candidates import candidates
from mambaout.study.search.ledger import Ledger
from mambaout.study.search.space import Values, base_values, recipe_of, rounded
from mambaout.study.speeds import device_of, speed_goals, study_device
from mambaout.study.study import REUSED_FROM, Run, StudyFolder, Trial

if TYPE_CHECKING:
    from mambaout.study.search.memory import Memory


class SearchAgenda:
    """The trials of one search; an Agenda."""

    def __init__(
        self, search: Search, memory: Memory, folder: StudyFolder, data: str, ledger: Ledger
    ) -> None:
        self.search, self.memory, self.folder, self.data = search, memory, folder, data
        self.ledger = ledger
        self.notice: str | None = None  # why there are fewer trials than asked for
        self.begun = False
        # Both by the key of a recipe's first seed, in the order in which recipes were chosen.
        self._keys: dict[str, int] = {}  # the recipes' numbers in the memory
        self._trials: dict[str, Trial] = {}
        self._open: set[str] = set()  # keys of first seeds that run or are waited for
        self._left: list[Trial] = []  # begun in an earlier launch
        self._results: dict[str, dict[int, tuple[float, ...]]] = {}  # key -> seed -> goals
        self._confirming: list[Trial] | None = None  # other seeds to start; None: not yet known
        self._confirmed_open: set[str] = set()
        self._exhausted = False
        self._on_another_device = False  # in this launch, whose trials cannot be compared
        self._carried: dict[str, Any] = {}  # values of this search's axes, tried second
        self._taken: dict[str, Any] = {}  # values of other fields, for all recipes but the base
        self._read()

    # -- what an earlier launch left

    def _read(self) -> None:
        noted = self.memory.note("carried") or {"tried": {}, "taken": {}}
        self._carried, self._taken = noted["tried"], noted["taken"]
        latest = {known.key: known for known in self.memory.trials()}
        for number, known in enumerate(latest.values()):
            trial = self.ledger.trials.get(known.key)
            if trial is None:  # killed between the memory and the folder
                recipe = self.search.base if number == 0 else self._recipe(known.values)
                trial = self._trial(number, recipe)
            trial = trial.asked_for_by(SearchPoint(self.search.label, number))
            self.ledger.write(trial, self.folder)
            self._keys[known.key] = known.number
            self._trials[known.key] = trial
            self.ledger.given.add(known.key)
            if known.scores is not None:
                self._results[known.key] = {trial.seed: known.scores}
        for known in latest.values():
            trial = self._trials[known.key]
            if known.is_running:
                self._take_up(trial, known.stopped)
            elif known.has_failed and self.folder.run(trial).status is Ending.UNFINISHED:
                self._open.add(trial.key)  # an earlier launch gave it up; it is tried once more
                self._left.append(trial)
        if self._keys:
            self.begun = True
        if self.memory.note("exhausted"):
            self._exhaust()
        self._settle()

    def _take_up(self, trial: Trial, stopped: str | None) -> None:
        """Go on with a trial that was running when the last launch ended."""
        self._open.add(trial.key)
        run = self.folder.run(trial)
        if run.status is Ending.UNFINISHED:
            # Epochs that the killed driver did not see, or did not act on.
            for record in run.records:
                if (value := record.values.get(self.search.goals[0][0])) is not None:
                    stopped = self.observe(trial, record.epoch, value) or stopped
            if stopped is not None:
                self.folder.stop(trial, stopped)
                run = self.folder.run(trial)
        if run.status.is_over:
            self._take(run)
        else:
            self._left.append(trial)

    def begin(self, carried: Values) -> None:
        """Start with the base, then `carried`: the best recipe of the search that this one follows.

        The earlier search may have tuned fields that this one does not vary. All recipes but the
        base keep these tuned values. A search that an earlier launch began continues unchanged.
        """
        self.begun = True
        noted = self.memory.note("carried")
        if noted is None:
            own = {axis.name: axis for axis in self.search.axes}
            tried, taken = {}, {}
            for name, value in carried.items():
                axis = own.get(name)
                if axis is None and name not in (WIDTH, BLOCKS):
                    taken[name] = value
                elif axis is not None and (not isinstance(axis, Choice) or value in axis.values):
                    tried[name] = value
            now = widened_at(holding(self.search, tried), tried)
            tried = {a.name: rounded(a, tried[a.name]) for a in now.axes if a.name in tried}
            noted = {"tried": tried, "taken": taken}
            self.memory.use(now)
            self.memory.put("carried", noted)
        self._carried, self._taken = noted["tried"], noted["taken"]

    # -- the agenda

    def next(self) -> Trial | None:
        if not self.begun:
            return None
        if self._left:
            return self._left.pop(0)
        while self._undecided and not self._ends_early:
            trial = self._decide()
            if trial is not None:
                return trial
        self._settle()
        while self._confirming:
            trial = self._confirming.pop(0)
            if self._to_start(trial, self._confirmed_open):
                return trial
        return None

    @property
    def over(self) -> bool:
        if len(self.search.seeds) == 1:
            return self._all_given_out
        return self._confirming == []

    @property
    def _all_given_out(self) -> bool:
        return self.begun and not self._left and (not self._undecided or self._ends_early)

    @property
    def _ends_early(self) -> bool:
        """Whether this launch tries fewer recipes than the study asked for."""
        return self._exhausted or self._on_another_device

    @property
    def done(self) -> bool:
        """Whether the search is over and none of its trials is running."""
        return self.over and not self._open and not self._confirmed_open

    @property
    def num_undecided(self) -> int:
        recipes = 0 if self._ends_early else self._undecided
        if self._confirming is not None:
            return recipes
        confirmed = min(self.search.num_confirmed, self.search.num_trials)
        return recipes + confirmed * (len(self.search.seeds) - 1)

    def observe(self, trial: Trial, epoch: float, value: float) -> str | None:
        """Report the trial to the memory, which may stop it early.

        Only a trial that this search alone suggested may be stopped. The base, and any trial of
        another part of the study, run to their end.
        """
        if not self.search.early_stop or (key := trial.key) not in self._open:
            return None
        ours = all(
            isinstance(origin, SearchPoint) and origin.search == self.search.label and origin.number
            for origin in self.ledger.trials[key].origins
        )
        return self.memory.report(self._keys[key], epoch, value, may_stop=ours)

    def ended(self, run: Run) -> None:
        key = run.trial.key
        if key in self._open:
            self._take(run)
        elif key in self._confirmed_open:
            self._take_confirmed(run)

    @property
    def carries(self) -> Values:
        """The best recipe's values, for the search that follows this one."""
        key = chosen(self.search, self._results)
        if key is None:
            return {}
        fields = flat_fields(self._trials[key].recipe)
        taken = {name: fields[name] for name in self._taken}
        return {**taken, **self.memory.known(self._keys[key]).values}

    # -- first seeds

    @property
    def _undecided(self) -> int:
        return max(0, self.search.num_trials - len(self._keys))

    def _decide(self) -> Trial | None:
        """Choose the next recipe. Returns its trial if this agenda must start it."""
        self._widen()
        index = len(self._keys)
        found = self._untried(index)
        if found is None:
            self.memory.put("exhausted", True)
            self._exhaust()
            return None
        values, recipe = found
        trial = self.ledger.known(self._trial(index, recipe))
        self._keys[trial.key] = self.memory.add(values, key=trial.key, label=trial.label)
        self._trials[trial.key] = trial
        return trial if self._to_start(trial, self._open) else None

    def _exhaust(self) -> None:
        self._exhausted = True
        self.notice = (
            f"search {self.search.label}: its axes have no recipe left to try after "
            f"{len(self._keys)} of {self.search.num_trials}"
        )

    def _untried(self, index: int) -> tuple[Values, Recipe] | None:
        """The values and the recipe for number `index`, which this search has not had yet."""
        base = base_values(self.search)
        if index == 0:
            return base, self.search.base
        if index == 1 and (self._carried or self._taken):
            values = {**base, **self._carried}
            if (recipe := self._new(values)) is not None:
                return values, recipe
        for values in candidates(self.memory, index):
            if (recipe := self._new(values)) is not None:
                return values, recipe
        return None

    def _new(self, values: Values) -> Recipe | None:
        """The recipe with `values`; None if it is not valid or was chosen before."""
        try:
            recipe = self._recipe(values)
        except WrongRequest:  # values that do not go together
            return None
        key = self._trial(len(self._keys), recipe).key
        return None if key in self._keys or key in self.ledger.reserved else recipe

    def _recipe(self, values: Values) -> Recipe:
        return recipe_of(self.search, {**self._taken, **values})

    def _widen(self) -> None:
        """Widen the ranges at whose edge the best recipe lies, once half of the trials are in."""
        if len(self.search.goals) > 1 or self.memory.note("widened") is not None:
            return
        if len(self._keys) - len(self._open) < math.ceil(self.search.num_trials / 2):
            return
        values = self.carries
        if values:
            wider = widened_at(self.memory.search, values)
            changed = [a.name for a in wider.axes if a not in self.memory.search.axes]
            self.memory.use(wider)
            self.memory.put("widened", changed)

    def _take(self, run: Run) -> None:
        """Tell the memory how a first seed ended."""
        if run.status is Ending.UNFINISHED:
            return  # interrupted: the next launch goes on with it
        trial = self._trials[run.trial.key]
        self._open.discard(trial.key)
        number, scores = self._keys[trial.key], self._scores(run)
        if self.memory.known(number).has_failed:  # it was given up once and has run again
            if scores is None:
                return
            values = self.memory.known(number).values
            number = self.memory.add(values, key=trial.key, label=trial.label)
            self._keys[trial.key] = number
        if scores is not None:
            self._results[trial.key] = {trial.seed: scores}
        self.memory.tell(number, run.status, scores)

    # -- goals that are a measurement of the device

    def _scores(self, run: Run) -> tuple[float, ...] | None:
        """The run's values of the goals; None if one is a speed of another device."""
        scores = scores_of(self.search, run)
        goal = speed_goals([self.search]).get(self.search.label)
        device = device_of(run)
        if scores is None or goal is None or device is None:
            return scores
        before = study_device(
            self.folder.run(trial)
            for trial in self._trials.values()
            if trial.seed in self._results.get(trial.key, {})
        )
        if REUSED_FROM in run.facts and device != before:
            self.notice = (
                f"search {self.search.label}: {run.trial.name} was trained on {device} by another "
                f"study and has no {goal} here; it is left out of the search"
            )
            return None
        if before in (None, device):
            return scores
        self._on_another_device = True
        self.notice = (
            f"search {self.search.label} compares {goal} on {before}, and {run.trial.name} was "
            f"trained on {device}: it is left out, and no more recipes are tried here. Go on with "
            f"the search on {before}, or begin another one here with --name"
        )
        return None

    # -- the other seeds of the best

    def _settle(self) -> None:
        """Choose the best, once all first seeds are over."""
        if self._confirming is None and self._all_given_out and not self._open:
            trials = [] if self._on_another_device else self._confirmations()
            self._confirming = [t for t in trials if not self._is_over(t, self._confirmed_open)]

    def _confirmations(self) -> list[Trial]:
        """The other seeds of the best recipes: one seed of each recipe, then the next seed."""
        best = ranked(self.search, self._results)[: self.search.num_confirmed]
        numbers = {key: number for number, key in enumerate(self._trials)}
        found = []
        for seed in self.search.seeds[1:]:
            for key in best:
                origin = ConfirmingSeed(self.search.label, numbers[key])
                trial = replace(self._trials[key], seed=seed, origins=(origin,))
                found.append(self.ledger.known(trial))
        return found

    def _take_confirmed(self, run: Run) -> None:
        if run.status is Ending.UNFINISHED:
            return
        self._confirmed_open.discard(run.trial.key)
        scores = self._scores(run)
        if scores is not None:
            first = replace(run.trial, seed=self.search.seeds[0])
            self._results[first.key][run.trial.seed] = scores
            confirmed: dict[str, dict[str, tuple[float, ...]]] = {}
            for key, seeds in self._results.items():
                others = {str(s): v for s, v in seeds.items() if s != self.search.seeds[0]}
                if others:
                    confirmed[self._trials[key].label] = others
            self.memory.put("confirmed", confirmed)

    # -- trials

    def _trial(self, number: int, recipe: Recipe) -> Trial:
        return Trial(
            label=trial_label(self.search.label, number),
            recipe=recipe,
            seed=self.search.seeds[0],
            data=self.data,
            origins=(SearchPoint(self.search.label, number),),
        )

    def _is_over(self, trial: Trial, waiting: set[str]) -> bool:
        """Whether the trial's run exists already. If so, its result is recorded."""
        run = self.ledger.ended.get(trial.key)
        if run is None:
            self.folder.adopt(trial)
            run = self.folder.run(trial)
        if run.status is Ending.UNFINISHED:
            return False
        self.ledger.write(trial, self.folder)
        waiting.add(trial.key)
        self.ended(run)
        return True

    def _to_start(self, trial: Trial, waiting: set[str]) -> bool:
        """Whether this agenda must start the trial.

        It must not if the trial is over, or if another part of the study starts it.
        """
        if self._is_over(trial, waiting):
            return False
        self.ledger.write(trial, self.folder)
        waiting.add(trial.key)
        if trial.key in self.ledger.given:
            return False
        self.ledger.given.add(trial.key)
        return True
