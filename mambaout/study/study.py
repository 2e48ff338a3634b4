"""A study as a value: its question, its trials, its objective; and its folder on disk.

    STORAGE/NAME/study.json           the question, the objective, the trials
    STORAGE/NAME/trials/KEY/          one run directory a trial (recipe.json, records.jsonl,
                                      last.ckpt, outcome.json), written by mambaout.train
    STORAGE/NAME/report.html, trials.csv, ...

A trial is finished when its run directory holds outcome.json; nothing else is asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mambaout.recipe import Recipe, canonical_json, content_key, recipe_from_json
from mambaout.train.metrics import MINIVAL_TOP1, Record, read_records

RECIPE_FILE = "recipe.json"
RECORDS_FILE = "records.jsonl"
OUTCOME_FILE = "outcome.json"
STUDY_FILE = "study.json"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a study."""

    label: str  # for people: "w16-d12", "baseline"
    recipe: Recipe
    seed: int
    data: str  # the fingerprint of the data set

    @property
    def key(self) -> str:
        """What the trial is, in twelve hex digits; the label takes no part."""
        return content_key(self.recipe, self.seed, self.data)

    @property
    def name(self) -> str:
        return f"{self.label}-s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the recipes that answer it, each run with every one of its seeds."""

    name: str
    question: str
    recipes: Mapping[str, Recipe]  # label -> recipe
    seeds: Sequence[int] | Mapping[str, Sequence[int]] = (0,)  # for all, or for each label
    objective: str = MINIVAL_TOP1  # the metric to choose on, larger is better

    def trials(self, data: str) -> list[Trial]:
        """Every trial, on the data set with the fingerprint `data`; cheap seeds first."""
        rows = [
            (position, index, Trial(label=label, recipe=recipe, seed=seed, data=data))
            for index, (label, recipe) in enumerate(self.recipes.items())
            for position, seed in enumerate(self._seeds_of(label))
        ]
        return [trial for _, _, trial in sorted(rows, key=lambda row: row[:2])]

    def _seeds_of(self, label: str) -> Sequence[int]:
        return self.seeds[label] if isinstance(self.seeds, Mapping) else self.seeds


Status = Literal["finished", "diverged", "failed", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a trial: read back from its run directory."""

    trial: Trial
    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)  # the final ones
    facts: Mapping[str, Any] = field(default_factory=dict)  # device, host, git commit, ...
    records: Sequence[Record] = ()


class StudyFolder:
    """The files of one study."""

    def __init__(self, storage: Path, name: str) -> None:
        self.path = Path(storage) / name

    def run_directory(self, trial: Trial) -> Path:
        return self.path / "trials" / trial.key

    def write(self, study: Study, trials: Sequence[Trial], **facts: Any) -> None:
        """Write study.json whole or not at all. `facts` (data, command, ...) ride along."""
        body = {
            "name": study.name,
            "question": study.question,
            "objective": study.objective,
            **facts,
            "trials": [
                {
                    "label": trial.label,
                    "key": trial.key,
                    "seed": trial.seed,
                    "data": trial.data,
                    "recipe": json.loads(canonical_json(trial.recipe)),
                }
                for trial in trials
            ],
        }
        self.path.mkdir(parents=True, exist_ok=True)
        aside = self.path / f".{STUDY_FILE}.{os.getpid()}"
        aside.write_text(json.dumps(body, indent=1) + "\n")
        aside.replace(self.path / STUDY_FILE)

    def read(self) -> dict[str, Any]:
        """What study.json holds; FileNotFoundError says where it was looked for."""
        return json.loads((self.path / STUDY_FILE).read_text())

    def trials(self) -> list[Trial]:
        return [
            Trial(
                label=row["label"],
                recipe=recipe_from_json(json.dumps(row["recipe"])),
                seed=row["seed"],
                data=row["data"],
            )
            for row in self.read()["trials"]
        ]

    def run(self, trial: Trial) -> Run:
        """What the trial's run directory holds by now."""
        directory = self.run_directory(trial)
        records = tuple(read_records(directory / RECORDS_FILE))
        path = directory / OUTCOME_FILE
        if not path.exists():
            return Run(trial=trial, status="unfinished", records=records)
        outcome = json.loads(path.read_text())
        return Run(
            trial=trial,
            status=outcome["status"],
            metrics=outcome["metrics"],
            facts=outcome["facts"],
            records=records,
        )

    def runs(self) -> list[Run]:
        return [self.run(trial) for trial in self.trials()]
