"""A study as a value (its question and its trials), and its folder on disk.

    STORAGE/NAME/study.json           the question, what was asked for
    STORAGE/NAME/trials.jsonl         one line for each trial, in the order of decision; if another
                                      part of the study asks for a trial too, it gets a new line,
                                      which replaces the earlier one
    STORAGE/NAME/trials/KEY/          a trial's run directory (recipe.json, records.jsonl,
                                      last.ckpt, outcome.json), written by mambaout.train
    STORAGE/NAME/report.html, trials.csv, ...

A trial is finished if its run directory holds outcome.json. Nothing else is checked. If the study
stopped the trial early, the directory holds stopped.json instead, and the checkpoint, so that the
trial can still be finished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mambaout.code_version import CODE_VERSION
from mambaout.durable import (
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
from mambaout.recipe import Recipe, canonical_json, content_key
from mambaout.study.axes import Search, search_from_json
from mambaout.study.origin import (
    AddedSeed,
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
from mambaout.study.pairing import Pairing
from mambaout.study.run_files import look, named, without_val
from mambaout.train.metrics import Record, read_records
from mambaout.train.tasks import CLASSIFY, SHEET, TaskKind, kind_named, kind_of

RECIPE_FILE = "recipe.json"
RECORDS_FILE = "records.jsonl"
OUTCOME_FILE = "outcome.json"
CHECKPOINT_FILE = "last.ckpt"
REUSED_FILE = "reused.json"  # names the study from which a run was reused
REUSED_FROM = "reused_from"  # its one fact: the study
BRANCH_FILE = "branch.json"  # says from which shorter run the run has begun (branches.py)
BRANCH_OF, BRANCH_STEP = "branch_of", "branch_step"  # its facts: that trial's key, and the step
STOPPED_FILE = "stopped.json"
STUDY_FILE = "study.json"
TRIALS_FILE = "trials.jsonl"
# A Run is read from them.
_RUN_FILES = (RECORDS_FILE, OUTCOME_FILE, REUSED_FILE, BRANCH_FILE, STOPPED_FILE)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a study."""

    label: str  # for people: "w16-d12", "baseline"
    recipe: Any  # of the study's task: Recipe, DetectRecipe, ... (tasks.py)
    seed: int
    data: str  # the fingerprint of the data set
    code_version: int = CODE_VERSION
    # The parts of the study that asked for it, in the order in which they asked. Empty if an
    # earlier version stored the trial. Like the label, they are no part of the trial's identity.
    origins: Origins = field(default=(GridPoint(),), compare=False)

    @cached_property
    def key(self) -> str:
        """The trial's identity in twelve hex digits. Label and origins do not change it."""
        return content_key(self.recipe, self.seed, self.data, self.code_version)

    @property
    def name(self) -> str:
        return f"{self.label}-s{self.seed}"

    @property
    def kind(self) -> TaskKind:
        return kind_of(self.recipe)

    @property
    def is_baseline(self) -> bool:
        return BaselinePoint() in self.origins

    @property
    def is_predicted(self) -> bool:
        return PredictedPoint() in self.origins

    def asked_for_by(self, *origins: Origin) -> Trial:
        """A copy of the trial to which these origins are added."""
        whole = tuple(dict.fromkeys([*self.origins, *origins]))
        return self if whole == self.origins else replace(self, origins=whole)

    def to_json(self) -> str:
        """The trial as one line of text, for trials.jsonl and for a worker."""
        body = {"label": self.label, "key": self.key, "seed": self.seed, "data": self.data}
        body |= {"origins": origins_to_json(self.origins)}
        body |= {"task": self.kind.name} if self.kind is not CLASSIFY else {}
        return json.dumps(body | {"recipe": json.loads(canonical_json(self.recipe))})

    @classmethod
    @lru_cache(maxsize=10_000)  # a launch reads a study's trials about four times
    def from_json(cls, line: str) -> Trial:
        row = json.loads(line)
        recipe = kind_named(row.get("task", CLASSIFY.name)).read(
            json.dumps(row["recipe"]), "recipe"
        )
        trial = cls(
            label=row["label"],
            recipe=recipe,
            seed=row["seed"],
            data=row["data"],
            origins=origins_from_json(row.get("origins", ())),
        )
        # The key tells the code version of the trial.
        older = (replace(trial, code_version=n) for n in reversed(range(1, CODE_VERSION)))
        return next((each for each in (trial, *older) if each.key == row.get("key")), trial)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the recipes that answer it. Each recipe is trained with all its seeds."""

    name: str
    question: str
    recipes: Mapping[str, Any]  # label -> recipe; all are of one task
    seeds: Sequence[int] | Mapping[str, Sequence[int]] = (0,)  # for all, or for each label
    searches: Sequence[Search] = ()  # run after the recipes, one after another
    predicted: Sequence[str] = ()  # labels of the recipes whose results the others predict
    baseline: str | None = None  # label of the recipe that the others are compared with
    pairing: Pairing | None = None  # which recipes are compared within a seed

    def __post_init__(self) -> None:
        # A docstring that is a question may take two lines.
        object.__setattr__(self, "question", " ".join(self.question.split()))

    @property
    def kind(self) -> TaskKind:
        recipe = next(iter(self.recipes.values()), None)
        return CLASSIFY if recipe is None else kind_of(recipe)  # only they have searches

    def trials(self, data: str) -> list[Trial]:
        """Every trial, on the data set with the fingerprint `data`. All first seeds come first."""
        rows = [
            (position, index, self._trial(label, recipe, seed, data))
            for index, (label, recipe) in enumerate(self.recipes.items())
            for position, seed in enumerate(self._seeds_of(label))
        ]
        return [trial for _, _, trial in sorted(rows, key=lambda row: row[:2])]

    def _seeds_of(self, label: str) -> Sequence[int]:
        return self.seeds[label] if isinstance(self.seeds, Mapping) else self.seeds

    def _trial(self, label: str, recipe: Any, seed: int, data: str) -> Trial:
        found: list[Origin] = [PredictedPoint()] if label in self.predicted else []
        found += [BaselinePoint()] if label == self.baseline else []
        origins = tuple(found) or (GridPoint(),)
        return Trial(label=label, recipe=recipe, seed=seed, data=data, origins=origins)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known about a trial, as read from its run directory."""

    trial: Trial
    status: Ending
    metrics: Mapping[str, float] = field(default_factory=dict)  # the final ones
    facts: Mapping[str, Any] = field(default_factory=dict)  # device, host, git commit, ...
    records: Sequence[Record] = ()


class StudyFolder:
    """The files of one study."""

    def __init__(self, storage: Path, name: str, *, reuse: bool = True) -> None:
        self.path = Path(storage) / name
        self.reuse = reuse  # reuse finished trials of the studies beside this one
        self._read: dict[str, tuple[Any, Run]] = {}  # key -> state of its files, run

    def run_directory(self, trial: Trial) -> Path:
        return self.path / "trials" / trial.key

    def write(self, study: Study, trials: Sequence[Trial], **facts: Any) -> None:
        """Write study.json and trials.jsonl, each whole or not at all.

        `facts` (data, command, ...) are stored in study.json too.
        """
        body = {
            "name": study.name,
            "question": study.question,
            "task": study.kind.name,
            "predicted": list(study.predicted),
            "searches": [search.to_json() for search in study.searches],
            "pairing": None if study.pairing is None else study.pairing.to_json(),
            **facts,
        }
        self.path.mkdir(parents=True, exist_ok=True)
        lines = "".join(trial.to_json() + "\n" for trial in trials)
        write_whole(self.path / TRIALS_FILE, lines)
        write_whole(self.path / STUDY_FILE, json.dumps(body, indent=1) + "\n")

    def add(self, trial: Trial) -> None:
        """Append a trial that is new or that has got another origin."""
        append_lines(self.path / TRIALS_FILE, [trial.to_json()], sync=True)

    def texts(self) -> dict[str, str]:
        """The texts of the files that `write` will replace, for `put_back`."""
        paths = [self.path / name for name in (STUDY_FILE, TRIALS_FILE)]
        return {path.name: path.read_text() for path in paths if path.exists()}

    def put_back(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            write_whole(self.path / name, text)

    def read(self) -> dict[str, Any]:
        """The content of study.json. If there is none, FileNotFoundError names the path."""
        path = self.path / STUDY_FILE
        text = read_whole(path)
        if text is None and path.exists():
            raise WrongRequest(
                f"{path} cannot be read: a power loss has emptied it; run the study's command "
                "again, which writes it anew"
            )
        with named(path, remedy=""):
            return json.loads(path.read_text() if text is None else text)

    def trials(self) -> list[Trial]:
        """Every trial decided on so far. A last line that a kill cut off is ignored."""
        path = self.path / TRIALS_FILE
        found = self._with_origins(list(read_lines(path, Trial.from_json)))
        return list({trial.key: trial for trial in found}.values())

    def trials_to_go_on(self) -> list[Trial]:
        """The trials of this code version. Only the same code version can continue a trial."""
        return [trial for trial in self.trials() if trial.code_version == CODE_VERSION]

    def begun_by_others(self) -> list[Trial]:
        """The trials that other code versions have begun."""
        others = (trial for trial in self.trials() if trial.code_version != CODE_VERSION)
        return [trial for trial in others if self.run_directory(trial).exists()]

    def _with_origins(self, trials: list[Trial]) -> list[Trial]:
        """The trials. Those of an earlier version get the origins that study.json implies."""
        if all(trial.origins for trial in trials):
            return trials
        study = self.read() if (self.path / STUDY_FILE).exists() else {}
        searches = [search_from_json(body) for body in study.get("searches", ())]
        predicted = study.get("predicted") or ()
        predicted = [predicted] if isinstance(predicted, str) else predicted  # earlier versions

        def known(trial: Trial) -> Trial:
            if trial.origins:
                return trial
            found = earlier(trial.label, trial.recipe, trial.seed, searches, predicted)
            return replace(trial, origins=found)

        return [known(trial) for trial in trials]

    def searched(self, searches: Sequence[Search]) -> list[Trial]:
        """The trials that these searches asked for, with no other origins than theirs."""
        labels = [search.label for search in searches]
        found = []
        for trial in self.trials_to_go_on():
            if own := of_searches(trial.origins, labels):
                label = trial_label(own[0].search, own[0].number)
                found.append(replace(trial, label=label, origins=own))
        return found

    def added(self, trials: Sequence[Trial]) -> list[Trial]:
        """The seeds that an earlier launch added to the recipes of `trials`."""
        known = {trial.key for trial in trials}
        recipes = {trial.recipe for trial in trials}
        return [
            trial
            for trial in self.trials_to_go_on()
            if AddedSeed() in trial.origins and trial.recipe in recipes and trial.key not in known
        ]

    def run(self, trial: Trial) -> Run:
        """What the trial's run directory holds now. Only a changed file is read again."""
        directory = self.run_directory(trial)
        now = [look(directory / name) for name in _RUN_FILES]
        before, run = self._read.get(trial.key, (None, None))
        if run is None or now != before:
            run = self._run(trial, directory)
            self._read[trial.key] = (now, run)
        same = run.trial.label == trial.label and run.trial.origins == trial.origins
        return run if same else replace(run, trial=trial)

    def _run(self, trial: Trial, directory: Path) -> Run:
        with named(directory / RECORDS_FILE):
            records = tuple(read_records(directory / RECORDS_FILE))
        path = directory / OUTCOME_FILE
        text = read_whole(path)
        if text is None:  # not over; or a power loss emptied the file, and it ends again
            stopped = directory / STOPPED_FILE
            if stopped.exists():
                with named(stopped):
                    facts = json.loads(read_whole(stopped) or "{}")
                return Run(trial=trial, status=Ending.STOPPED, facts=facts, records=records)
            return Run(trial=trial, status=Ending.UNFINISHED, records=records)
        origin: dict[str, Any] = {}
        for begun in (directory / REUSED_FILE, directory / BRANCH_FILE):
            with named(begun):
                origin |= json.loads(read_whole(begun) or "{}")
        with named(path):
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
        """Reuse the trial's run of a study beside this one. Returns that study's name, or None.

        A finished run is taken as it is. A run of the same recipe with a shorter cool-down is the
        first part of this run. Its checkpoint and records are taken, and training continues from
        there.
        """
        directory = self.run_directory(trial)
        if directory.exists() or not self.reuse:
            return None
        for source, complete in self._sources(trial):
            for left in leftovers(directory):
                remove(left)  # left by a driver that was killed while it copied
            study = source.parent.parent.name
            with replacing(directory) as aside:
                aside.mkdir(parents=True)
                shutil.copy(source / CHECKPOINT_FILE, aside)
                if complete:
                    names = (RECIPE_FILE, RECORDS_FILE, OUTCOME_FILE)
                    for name in (*names, *([SHEET] if (source / SHEET).exists() else [])):
                        shutil.copy(source / name, aside)
                else:
                    write_whole(aside / RECIPE_FILE, canonical_json(trial.recipe) + "\n")
                    records = read_records(source / RECORDS_FILE)
                    append_lines(aside / RECORDS_FILE, map(without_val, records))
                write_whole(aside / REUSED_FILE, json.dumps({REUSED_FROM: study}) + "\n")
            return study
        return None

    def finished_elsewhere(self, trials: Sequence[Trial]) -> set[str]:
        """Keys of the trials for which `adopt` would find a finished run."""
        if not self.reuse:
            return set()
        sources = {trial.key: next(self._sources(trial), None) for trial in trials}
        return {key for key, source in sources.items() if source is not None and source[1]}

    def _sources(self, trial: Trial) -> Iterator[tuple[Path, bool]]:
        """Directories of finished runs: first of the whole trial, then of its start."""
        for twin in _with_shorter_cooldowns(trial):
            for outcome in sorted(self.path.parent.glob(f"*/trials/{twin.key}/{OUTCOME_FILE}")):
                complete = twin.key == trial.key
                text = read_whole(outcome)
                finished = text is not None and json.loads(text)["status"] == Ending.FINISHED
                if finished and (outcome.parent / CHECKPOINT_FILE).exists():
                    yield outcome.parent, complete

    def stop(self, trial: Trial, why: str) -> None:
        """Ask the trial to stop early. Its worker sees the file, saves a checkpoint and ends."""
        directory = self.run_directory(trial)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / STOPPED_FILE, json.dumps({"why": why}) + "\n")


def _with_shorter_cooldowns(trial: Trial) -> Iterator[Trial]:
    """The trial, then the trials that are its first part: those with a shorter cool-down."""
    yield trial
    if not isinstance(trial.recipe, Recipe):
        return
    schedule = trial.recipe.schedule
    for cooldown in range(schedule.cooldown_epochs - 1, -1, -1):
        shorter = replace(schedule, cooldown_epochs=cooldown)
        yield replace(trial, recipe=replace(trial.recipe, schedule=shorter))
