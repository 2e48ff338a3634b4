"""A search's memory: the recipes that Optuna suggested and their results. A kill loses nothing.

    STORAGE/NAME/optuna.db    one Optuna study per search; `optuna-dashboard sqlite:///...` opens it

The database is the search's memory. The sampler works on a copy of it. The copy is made anew for
every suggestion, from the search's seed, its label and the suggestion's number. So a suggestion
depends only on the results so far, and a relaunched driver suggests the same as an uninterrupted
one. The states of a recipe in the database:

| state | the recipe's first seed |
|---|---|
| RUNNING | was started and has not ended; the next launch goes on with it |
| COMPLETE | was trained to the end; the values are the final ones |
| PRUNED | was stopped early; the value is that of the epoch at which it was stopped |
| FAIL | diverged, was given up, or has a speed of another device; the samplers leave it out |

Only the best recipes get the other seeds. These are not Optuna trials. The study's attribute
"confirmed" holds them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambaout.code_version import CODE_VERSION
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.study.axes import Axis, Choice, LinearRange, LogRange, Search, WholeRange
from mambaout.study.search.first_draws import first_draw, num_startup
from mambaout.study.search.space import Values, rounded
from mambaout.study.store_uri import sqlite_uri

if TYPE_CHECKING:
    import optuna

OPTUNA_FILE = "optuna.db"
LOCK_SECONDS = 60  # to wait while another program (a dashboard) locks the database

RUNNING, COMPLETE, PRUNED, FAIL = "RUNNING", "COMPLETE", "PRUNED", "FAIL"  # Optuna's names
OPTUNA_STATES: Mapping[Ending, str] = {
    Ending.FINISHED: COMPLETE,
    Ending.STOPPED: PRUNED,
    Ending.UNFINISHED: RUNNING,
    Ending.DIVERGED: FAIL,
    Ending.PREEMPTED: FAIL,
    Ending.OUT_OF_MEMORY: FAIL,
    Ending.BROKEN: FAIL,
}

# Successive halving: at each rung, the best third of the recipes that have reached it goes on. Each
# rung's epoch is three times that of the rung before.
REDUCTION = 3
NUM_RUNGS = 2

POPULATION_SHARE, POPULATION_RANGE = 1 / 5, (6, 50)  # of NSGA-II; Optuna's 50 suits long searches


@dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """What the memory holds of one recipe."""

    number: int
    key: str
    label: str
    values: Values
    state: str  # by Optuna's name
    scores: tuple[float, ...] | None
    stopped: str | None  # why it must stop early, if that has been decided

    @property
    def is_running(self) -> bool:
        return self.state == RUNNING

    @property
    def has_failed(self) -> bool:
        return self.state == FAIL


class Memory:
    """The Optuna study of one search: the database, and the sampler's copy of it."""

    def __init__(self, store: optuna.storages.BaseStorage, search: Search, data: str) -> None:
        """Open or make the Optuna study. ValueError if it belongs to another search."""
        import optuna

        self.search = search  # with the ranges in use
        self._store = store
        self._directions = [
            getattr(optuna.study.StudyDirection, "MAXIMIZE" if way == "max" else "MINIMIZE")
            for _, way in search.goals
        ]
        definition = _definition(search, data)
        try:
            self._id = self._store.get_study_id_from_name(search.label)
        except KeyError:
            self._id = self._store.create_new_study(self._directions, search.label)
        begun = self.note("definition")
        if begun is None:  # new, or killed before this line
            self.put("definition", definition)
            self._store.set_study_system_attr(
                self._id, "study:metric_names", [metric for metric, _ in search.goals]
            )
        elif begun != definition:
            changed = sorted(name for name in definition if begun.get(name) != definition[name])
            raise WrongRequest(
                f"search {search.label!r} was begun with other values of {' and '.join(changed)}; "
                "give the study another --name, or start it anew with --rerun"
            )
        self.use(_in_use(search, self.note("ranges") or {}))

    # -- notes on the whole search

    def note(self, name: str) -> Any:
        return self._store.get_study_user_attrs(self._id).get(name)

    def put(self, name: str, value: Any) -> None:
        self._store.set_study_user_attr(self._id, name, value)

    def use(self, search: Search) -> None:
        """Sample in the ranges of `search` from now on."""
        import optuna

        if search != self.search:
            self.put("ranges", {axis.name: _range(axis) for axis in search.axes})
        self.search = search
        self._distributions = {axis.name: distribution(axis) for axis in search.axes}
        self._copy = optuna.storages.InMemoryStorage()
        self._copy_id = self._copy.create_new_study(self._directions, search.label)
        for name, value in (self.note("sampler") or {}).items():
            self._copy.set_study_system_attr(self._copy_id, name, value)
        self._store_ids: list[int] = []
        for trial in self._store.get_all_trials(self._id, deepcopy=True):
            # All trials get one range, because the sampler ignores a trial with another range.
            trial.distributions = dict(self._distributions)
            self._copy.create_new_trial(self._copy_id, trial)
            self._store_ids.append(trial._trial_id)
        self._asked: int | None = None  # the copy's trial that is being suggested

    # -- trials

    def trials(self) -> list[KnownTrial]:
        found = self._copy.get_all_trials(self._copy_id, deepcopy=False)
        return [self._known(trial) for trial in found if trial.number != self._asked]

    def known(self, number: int) -> KnownTrial:
        return self._known(self._copy.get_trial(number))

    def _known(self, trial: optuna.trial.FrozenTrial) -> KnownTrial:
        state = trial.state.name
        return KnownTrial(
            number=trial.number,
            key=trial.user_attrs["key"],
            label=trial.user_attrs["label"],
            values=self._values(trial.params),
            state=state,
            scores=tuple(trial.values) if state == COMPLETE else None,
            stopped=trial.user_attrs.get("stopped"),
        )

    def suggest(self, number: int, attempt: int = 0, *, at_random: bool = False) -> dict[str, Any]:
        """The values for recipe `number`: a first draw, then the sampler's. Each `attempt` gives
        other values."""
        import optuna

        if self._asked is None:
            self._asked = self._copy.create_new_trial(self._copy_id)
        seed = _seed(self.search, number, attempt)
        if self.search.sampler == "tpe" and not at_random:
            known = [known.values for known in self.trials() if known.number > 0]
            if (drawn := first_draw(self.search, known, seed)) is not None:
                return drawn
        sampler = (
            optuna.samplers.RandomSampler(seed=seed) if at_random else _sampler(self.search, seed)
        )
        # Made anew, because an Optuna study keeps its own list of the trials from ask to tell.
        study = optuna.Study(self.search.label, self._copy, sampler=sampler)
        trial = self._copy.get_trial(self._asked)
        space = sampler.infer_relative_search_space(study, trial)
        params = sampler.sample_relative(study, trial, space)
        for name, distribution in self._distributions.items():
            if name not in params:
                trial = self._copy.get_trial(self._asked)
                params[name] = sampler.sample_independent(study, trial, name, distribution)
        values = self._values(params)
        return {axis.name: rounded(axis, values[axis.name]) for axis in self.search.axes}

    def add(self, values: Values, *, key: str, label: str) -> int:
        """Record that the recipe with `values` starts. Returns its number.

        This is one transaction. A kill leaves all of it or nothing.
        """
        import optuna

        if self._asked is None:
            self.suggest(len(self._store_ids))  # NSGA-II counts generations as it suggests
        asked = self._asked
        assert asked is not None
        params = {axis.name: param(axis, values[axis.name]) for axis in self.search.axes}
        trial = optuna.trial.FrozenTrial(
            number=-1,
            trial_id=-1,
            state=optuna.trial.TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=params,
            distributions=dict(self._distributions),
            user_attrs={"key": key, "label": label},
            system_attrs=dict(self._copy.get_trial(asked).system_attrs),
            intermediate_values={},
        )
        sampler_notes = self._copy.get_study_system_attrs(self._copy_id)
        if sampler_notes != (self.note("sampler") or {}):
            self.put("sampler", dict(sampler_notes))
        self._store_ids.append(self._store.create_new_trial(self._id, trial))
        for name, distribution in self._distributions.items():
            internal = distribution.to_internal_repr(params[name])
            self._copy.set_trial_param(asked, name, internal, distribution)
        self._copy.set_trial_user_attr(asked, "key", key)
        self._copy.set_trial_user_attr(asked, "label", label)
        self._asked = None
        return asked

    def report(
        self, number: int, epoch: float, value: float, *, may_stop: bool = True
    ) -> str | None:
        """Record the recipe's value at `epoch`. Returns why to stop it there, or None.

        An epoch may be reported twice. A recipe may also train some epochs further before it can be
        stopped. In both cases the answer stays the same and nothing is written. So the memory does
        not depend on timing. The value is written last: a report that a kill cut off is made again.
        """
        import optuna

        step = max(1, round(epoch))
        trial = self._copy.get_trial(number)
        stopped = trial.user_attrs.get("stopped")
        is_decided = step in trial.intermediate_values or (stopped and _at(step) not in stopped)
        if is_decided or not math.isfinite(value):
            return stopped
        self._copy.set_trial_intermediate_value(number, step, float(value))
        if may_stop and step < self.last_epoch:
            pruner = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=self.first_rung, reduction_factor=REDUCTION
            )
            study = optuna.Study(self.search.label, self._copy, pruner=pruner)
            pruned = pruner.prune(study, self._copy.get_trial(number))
            after = self._copy.get_trial(number).system_attrs
            if pruned:
                metric = self.search.goals[0][0]
                why = f"{metric}={value:.4g}{_at(step)}is not in the best third there"
                for store, trial_id in self._both(number):
                    store.set_trial_user_attr(trial_id, "stopped", why)
            for name in sorted(after.keys() - trial.system_attrs.keys()):
                self._store.set_trial_system_attr(self._store_ids[number], name, after[name])
        self._store.set_trial_intermediate_value(self._store_ids[number], step, float(value))
        return self._copy.get_trial(number).user_attrs.get("stopped")

    def tell(self, number: int, ending: Ending, scores: Sequence[float] | None) -> None:
        """Record how the recipe ended. `scores` are its values of the goals, or None."""
        import optuna

        state = FAIL if ending is Ending.FINISHED and scores is None else OPTUNA_STATES[ending]
        if state == PRUNED:
            trial = self._copy.get_trial(number)
            if trial.last_step is not None:
                scores = [trial.intermediate_values[trial.last_step]]
        for store, trial_id in self._both(number):
            values = None if scores is None else [float(score) for score in scores]
            store.set_trial_state_values(trial_id, optuna.trial.TrialState[state], values)

    def _both(self, number: int) -> list[tuple[optuna.storages.BaseStorage, int]]:
        return [(self._copy, number), (self._store, self._store_ids[number])]

    # -- rungs

    @property
    def last_epoch(self) -> int:
        return self.search.base.schedule.total_epochs

    @property
    def first_rung(self) -> int:
        """The first epoch at which recipes are compared. Every warm-up is over by then."""
        warmups = [self.search.base.schedule.warmup_epochs]
        for axis in self.search.axes:
            if axis.name == "warmup_epochs":
                warmups = list(axis.values) if isinstance(axis, Choice) else [axis.high]
        return max(1, math.ceil(self.last_epoch / REDUCTION**NUM_RUNGS), math.ceil(max(warmups)))

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {axis.name: _value(axis, params[axis.name]) for axis in self.search.axes}


def open_store(path: Path) -> optuna.storages.BaseStorage:
    """The database at `path`, which is made if there is none."""
    quiet()
    import optuna
    from sqlalchemy.pool import NullPool

    # NullPool closes each connection after its transaction. None is left for the process's end.
    engine = {"connect_args": {"timeout": LOCK_SECONDS}, "poolclass": NullPool}
    return optuna.storages.RDBStorage(sqlite_uri(path), engine_kwargs=engine)


def quiet() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _definition(search: Search, data: str) -> dict[str, Any]:
    """What suggestions and results depend on. More trials or seeds make no other search."""
    body = search.to_json()
    names = ("base", "axes", "goals", "sampler", "sampler_seed", "early_stop")
    return {name: body[name] for name in names} | {"data": data, "code version": CODE_VERSION}


def _range(axis: Axis) -> list[float] | None:
    return None if isinstance(axis, Choice) else [axis.low, axis.high]


def _in_use(search: Search, ranges: Mapping[str, Any]) -> Search:
    axes = tuple(
        axis
        if isinstance(axis, Choice) or axis.name not in ranges
        else replace(axis, low=ranges[axis.name][0], high=ranges[axis.name][1])
        for axis in search.axes
    )
    return replace(search, axes=axes)


def _at(step: int) -> str:
    return f" at epoch {step} "


def _seed(search: Search, *parts: int) -> int:
    """A seed that each search of a study has for itself, the same in every launch."""
    text = repr((search.sampler_seed, search.label, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "nsga2":
        least, most = POPULATION_RANGE
        size = min(most, max(least, round(POPULATION_SHARE * search.num_trials)))
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=size)
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=num_startup(search), constant_liar=True
    )


# -- axes as Optuna's distributions ---------------------------------------------------------------


def distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    """The axis as a distribution without steps.

    The base may lie between two steps. Suggestions are rounded to the steps afterwards.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match axis:
        case LogRange():
            return FloatDistribution(axis.low, axis.high, log=True)
        case LinearRange():
            return FloatDistribution(axis.low, axis.high)
        case WholeRange():
            return IntDistribution(axis.low, axis.high)
        case Choice():
            return CategoricalDistribution([_choice(value) for value in axis.values])


def _choice(value: Any) -> Any:
    """A choice as the database can hold it: a tuple as its text."""
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else json.dumps(value)


def param(axis: Axis, value: Any) -> Any:
    return _choice(value) if isinstance(axis, Choice) else value


def _value(axis: Axis, param: Any) -> Any:
    if isinstance(axis, Choice):
        return next(value for value in axis.values if _choice(value) == param)
    return param
