"""A study as a value: its question and its trials; and its folder on disk.

    STORAGE/NAME/study.json           the question, what was asked for
    STORAGE/NAME/trials.jsonl         a line a trial, in the order they were decided on; one that
                                      a further part of the study asks for gets a second line,
                                      which stands for it from then on
    STORAGE/NAME/trials/KEY/          one run directory a trial (recipe.json, records.jsonl,
                                      last.ckpt, outcome.json), written by mambaout.train
    STORAGE/NAME/report.html, trials.csv, ...

A trial is finished when its run directory holds outcome.json; nothing else is asked. One that the
study stopped early has stopped.json instead, and its checkpoint, so that it can still be finished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mambaout.code_version import CODE_VERSION
from mambaout.durable import (
    DamagedLine,
    append_lines,
    leftovers,
    read_lines,
    read_whole,
    remove,
    replacing,
    write_whole,
)
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.recipe import Recipe, canonical_json, content_key, recipe_from_json
from mambaout.study.axes import Search, search_from_json
from mambaout.study.origin import (
    BaselinePoint,
    GridPoint,
    Origin,
    Origins,
    PredictedPoint,
    earlier,
    of_searches,
    origins_from_json,
    origins_to_json,
    trial_label,
)
from mambaout.train.metrics import Record, read_records

RECIPE_FILE = "recipe.json"
RECORDS_FILE = "records.jsonl"
OUTCOME_FILE = "outcome.json"
CHECKPOINT_FILE = "last.ckpt"
REUSED_FILE = "reused.json"  # where a run was taken over from
REUSED_FROM = "reused_from"  # its one fact: the study
STOPPED_FILE = "stopped.json"
STUDY_FILE = "study.json"
TRIALS_FILE = "trials.jsonl"
_RUN_FILES = (RECORDS_FILE, OUTCOME_FILE, REUSED_FILE, STOPPED_FILE)  # what a Run is read from


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a study."""

    label: str  # for people: "w16-d12", "baseline"
    recipe: Recipe
    seed: int
    data: str  # the fingerprint of the data set
    code_version: int = CODE_VERSION
    # The parts of the study that asked for it, the first of them first; none in what an earlier
    # version stored. Like the label, they say nothing of what the trial is.
    origins: Origins = field(default=(GridPoint(),), compare=False)

    @cached_property
    def key(self) -> str:
        """What the trial is, in twelve hex digits; label and origins take no part."""
        return content_key(self.recipe, self.seed, self.data, self.code_version)

    @property
    def name(self) -> str:
        return f"{self.label}-s{self.seed}"

    @property
    def is_baseline(self) -> bool:
        return BaselinePoint() in self.origins

    @property
    def is_predicted(self) -> bool:
        return PredictedPoint() in self.origins

    def asked_for_by(self, *origins: Origin) -> Trial:
        """The trial, with these among its origins."""
        whole = tuple(dict.fromkeys([*self.origins, *origins]))
        return self if whole == self.origins else replace(self, origins=whole)

    def to_json(self) -> str:
        """One line: a line of trials.jsonl, and what a worker is told."""
        body = {"label": self.label, "key": self.key, "seed": self.seed, "data": self.data}
        body |= {"origins": origins_to_json(self.origins)}
        return json.dumps(body | {"recipe": json.loads(canonical_json(self.recipe))})

    @classmethod
    @lru_cache(maxsize=10_000)  # a launch reads a study's trials some four times
    def from_json(cls, line: str) -> Trial:
        row = json.loads(line)
        recipe = recipe_from_json(json.dumps(row["recipe"]))
        trial = cls(
            label=row["label"],
            recipe=recipe,
            seed=row["seed"],
            data=row["data"],
            origins=origins_from_json(row.get("origins", ())),
        )
        # The key says which code version it is of.
        older = (replace(trial, code_version=n) for n in reversed(range(1, CODE_VERSION)))
        return next((each for each in (trial, *older) if each.key == row.get("key")), trial)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the recipes that answer it, each run with every one of its seeds."""

    name: str
    question: str
    recipes: Mapping[str, Recipe]  # label -> recipe
    seeds: Sequence[int] | Mapping[str, Sequence[int]] = (0,)  # for all, or for each label
    searches: Sequence[Search] = ()  # run after the recipes, one after another
    predicted: str | None = None  # label of the recipe whose result is predicted from the others'
    baseline: str | None = None  # label of the recipe that the others are held against

    def __post_init__(self) -> None:
        # A docstring that is a question may take two lines.
        object.__setattr__(self, "question", " ".join(self.question.split()))

    def trials(self, data: str) -> list[Trial]:
        """Every trial, on the data set with the fingerprint `data`; cheap seeds first."""
        rows = [
            (position, index, self._trial(label, recipe, seed, data))
            for index, (label, recipe) in enumerate(self.recipes.items())
            for position, seed in enumerate(self._seeds_of(label))
        ]
        return [trial for _, _, trial in sorted(rows, key=lambda row: row[:2])]

    def _seeds_of(self, label: str) -> Sequence[int]:
        return self.seeds[label] if isinstance(self.seeds, Mapping) else self.seeds

    def _trial(self, label: str, recipe: Recipe, seed: int, data: str) -> Trial:
        found: list[Origin] = [PredictedPoint()] if label == self.predicted else []
        found += [BaselinePoint()] if label == self.baseline else []
        origins = tuple(found) or (GridPoint(),)
        return Trial(label=label, recipe=recipe, seed=seed, data=data, origins=origins)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a trial: read back from its run directory."""

    trial: Trial
    status: Ending
    metrics: Mapping[str, float] = field(default_factory=dict)  # the final ones
    facts: Mapping[str, Any] = field(default_factory=dict)  # device, host, git commit, ...
    records: Sequence[Record] = ()


class StudyFolder:
    """The files of one study."""

    def __init__(self, storage: Path, name: str, *, reuse: bool = True) -> None:
        self.path = Path(storage) / name
        self.reuse = reuse  # take finished trials over from the studies beside this one
        self._read: dict[str, tuple[Any, Run]] = {}  # key -> what its files looked like, and said

    def run_directory(self, trial: Trial) -> Path:
        return self.path / "trials" / trial.key

    def write(self, study: Study, trials: Sequence[Trial], **facts: Any) -> None:
        """Write study.json and trials.jsonl, each whole or not at all.

        `facts` (data, command, ...) ride along in study.json.
        """
        body = {
            "name": study.name,
            "question": study.question,
            "predicted": study.predicted,
            "searches": [search.to_json() for search in study.searches],
            **facts,
        }
        self.path.mkdir(parents=True, exist_ok=True)
        lines = "".join(trial.to_json() + "\n" for trial in trials)
        write_whole(self.path / TRIALS_FILE, lines)
        write_whole(self.path / STUDY_FILE, json.dumps(body, indent=1) + "\n")

    def add(self, trial: Trial) -> None:
        """Append a trial that has only now been decided on, or that has a further origin."""
        append_lines(self.path / TRIALS_FILE, [trial.to_json()], sync=True)

    def texts(self) -> dict[str, str]:
        """What `write` is about to replace, for `put_back`."""
        paths = [self.path / name for name in (STUDY_FILE, TRIALS_FILE)]
        return {path.name: path.read_text() for path in paths if path.exists()}

    def put_back(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            write_whole(self.path / name, text)

    def read(self) -> dict[str, Any]:
        """What study.json holds; FileNotFoundError says where it was looked for."""
        path = self.path / STUDY_FILE
        text = read_whole(path)
        if text is None and path.exists():
            raise WrongRequest(
                f"{path} cannot be read: a power loss has emptied it; run the study's command "
                "again, which writes it anew"
            )
        with _named(path, remedy=""):
            return json.loads(path.read_text() if text is None else text)

    def trials(self) -> list[Trial]:
        """Every trial decided on so far; a last line cut off by a kill is left out."""
        path = self.path / TRIALS_FILE
        found = self._with_origins(list(read_lines(path, Trial.from_json)))
        return list({trial.key: trial for trial in found}.values())

    def trials_to_go_on(self) -> list[Trial]:
        """The trials but for those of other code versions, which only their own goes on with."""
        return [trial for trial in self.trials() if trial.code_version == CODE_VERSION]

    def begun_by_others(self) -> list[Trial]:
        """The trials that other code versions have begun."""
        others = (trial for trial in self.trials() if trial.code_version != CODE_VERSION)
        return [trial for trial in others if self.run_directory(trial).exists()]

    def _with_origins(self, trials: list[Trial]) -> list[Trial]:
        """The trials, those of an earlier version with the origins that study.json tells of."""
        if all(trial.origins for trial in trials):
            return trials
        study = self.read() if (self.path / STUDY_FILE).exists() else {}
        searches = [search_from_json(body) for body in study.get("searches", ())]
        predicted = study.get("predicted")

        def known(trial: Trial) -> Trial:
            if trial.origins:
                return trial
            found = earlier(trial.label, trial.recipe, trial.seed, searches, predicted)
            return replace(trial, origins=found)

        return [known(trial) for trial in trials]

    def searched(self, searches: Sequence[Search]) -> list[Trial]:
        """The trials here that these searches asked for, as theirs alone."""
        labels = [search.label for search in searches]
        found = []
        for trial in self.trials_to_go_on():
            if own := of_searches(trial.origins, labels):
                label = trial_label(own[0].search, own[0].number)
                found.append(replace(trial, label=label, origins=own))
        return found

    def run(self, trial: Trial) -> Run:
        """What the trial's run directory holds by now; read again only where a file has changed."""
        directory = self.run_directory(trial)
        now = [_look(directory / name) for name in _RUN_FILES]
        before, run = self._read.get(trial.key, (None, None))
        if run is None or now != before:
            run = self._run(trial, directory)
            self._read[trial.key] = (now, run)
        same = run.trial.label == trial.label and run.trial.origins == trial.origins
        return run if same else replace(run, trial=trial)

    def _run(self, trial: Trial, directory: Path) -> Run:
        with _named(directory / RECORDS_FILE):
            records = tuple(read_records(directory / RECORDS_FILE))
        path = directory / OUTCOME_FILE
        text = read_whole(path)
        if text is None:  # not over, or to be ended once more: a power loss has emptied the file
            stopped = directory / STOPPED_FILE
            if stopped.exists():
                with _named(stopped):
                    facts = json.loads(read_whole(stopped) or "{}")
                return Run(trial=trial, status=Ending.STOPPED, facts=facts, records=records)
            return Run(trial=trial, status=Ending.UNFINISHED, records=records)
        reused = directory / REUSED_FILE
        with _named(reused):
            origin = json.loads(read_whole(reused) or "{}")
        with _named(path):
            outcome = json.loads(text)
            return Run(
                trial=trial,
                status=Ending(outcome["status"]),
                metrics=outcome["metrics"],
                facts=outcome["facts"] | origin,
                records=records,
            )

    def runs(self) -> list[Run]:
        return [self.run(trial) for trial in self.trials()]

    def adopt(self, trial: Trial) -> str | None:
        """Take the trial's run over from a study beside this one; that study's name, or None.

        A finished run is taken as it is. A run of the same recipe with a shorter cool-down is the
        beginning of this one, so its checkpoint and records are taken and training goes on.
        """
        directory = self.run_directory(trial)
        if directory.exists() or not self.reuse:
            return None
        for source, complete in self._sources(trial):
            for left in leftovers(directory):
                remove(left)  # of a driver killed while it copied
            study = source.parent.parent.name
            with replacing(directory) as aside:
                aside.mkdir(parents=True)
                shutil.copy(source / CHECKPOINT_FILE, aside)
                if complete:
                    for name in (RECIPE_FILE, RECORDS_FILE, OUTCOME_FILE):
                        shutil.copy(source / name, aside)
                else:
                    write_whole(aside / RECIPE_FILE, canonical_json(trial.recipe) + "\n")
                    records = read_records(source / RECORDS_FILE)
                    append_lines(aside / RECORDS_FILE, map(_without_val, records))
                write_whole(aside / REUSED_FILE, json.dumps({REUSED_FROM: study}) + "\n")
            return study
        return None

    def finished_elsewhere(self, trials: Sequence[Trial]) -> set[str]:
        """Keys of the trials that `adopt` would take over whole."""
        if not self.reuse:
            return set()
        sources = {trial.key: next(self._sources(trial), None) for trial in trials}
        return {key for key, source in sources.items() if source is not None and source[1]}

    def _sources(self, trial: Trial) -> Iterator[tuple[Path, bool]]:
        """Run directories of finished runs that hold all of the trial, then the start of it."""
        schedule = trial.recipe.schedule
        for cooldown in range(schedule.cooldown_epochs, -1, -1):
            shorter = replace(schedule, cooldown_epochs=cooldown)
            twin = replace(trial, recipe=replace(trial.recipe, schedule=shorter))
            for outcome in sorted(self.path.parent.glob(f"*/trials/{twin.key}/{OUTCOME_FILE}")):
                complete = cooldown == schedule.cooldown_epochs
                text = read_whole(outcome)
                finished = text is not None and json.loads(text)["status"] == Ending.FINISHED
                if finished and (outcome.parent / CHECKPOINT_FILE).exists():
                    yield outcome.parent, complete

    def stop(self, trial: Trial, why: str) -> None:
        """Have the trial stopped early: its worker sees the file, saves and ends."""
        directory = self.run_directory(trial)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / STOPPED_FILE, json.dumps({"why": why}) + "\n")


_OF_A_RUN = "; put it back from a copy, or move its folder away and run the study's command again"


@contextmanager
def _named(path: Path, remedy: str = _OF_A_RUN) -> Iterator[None]:
    """What is wrong with a file, of another version or damaged, as a ValueError that names it."""
    try:
        yield
    except DamagedLine as error:
        raise WrongRequest(f"{error}{remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ValueError) else repr(error)
        raise WrongRequest(f"{path} cannot be read: {reason}{remedy}") from error


def _look(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _without_val(record: Record) -> str:
    """The record as a line, without what a run measures at its end alone."""
    kept = {name: value for name, value in record.values.items() if not name.startswith("val/")}
    return replace(record, values=kept).to_json()
