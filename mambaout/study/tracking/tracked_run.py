"""What MLflow must hold for a trial: the params, tags, values and status of its run."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from mambaout.endings import Ending
from mambaout.recipe import flat_fields
from mambaout.study.origin import searches_of
from mambaout.study.study import Run, Trial
from mambaout.train.metrics import Record

KEY_TAG = "mambaout.key"
ROLE_TAG = "mambaout.role"  # "study" on the parent run, "trial" on its children
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"
EPOCH = "epoch"  # a series: the progress of a running trial
MAX_TEXT = 4000  # characters of a tag or a param; MLflow allows more

MlflowStatus = Literal["FINISHED", "FAILED", "KILLED"]
MLFLOW_STATUSES: Mapping[Ending, MlflowStatus] = {  # KILLED means that it can go on
    Ending.FINISHED: "FINISHED",
    Ending.STOPPED: "KILLED",
    Ending.UNFINISHED: "KILLED",
    Ending.DIVERGED: "FAILED",
    Ending.PREEMPTED: "FAILED",
    Ending.OUT_OF_MEMORY: "FAILED",
    Ending.BROKEN: "FAILED",
}


def params_of(trial: Trial) -> dict[str, str]:
    return {k: _text(v) for k, v in flat_fields(trial.recipe).items()} | {"seed": str(trial.seed)}


def tags_of(trial: Trial, parent_id: str) -> dict[str, str]:
    """The tags by which a run is found and shown. A run has them from its beginning."""
    searches = searches_of(trial.origins)
    return {
        KEY_TAG: trial.key,
        ROLE_TAG: "trial",
        PARENT_TAG: parent_id,
        NAME_TAG: trial.name,
        "variant": trial.label,
        "data": trial.data,
        "origin": trial.origins[0].kind,
    } | ({"search": ", ".join(searches)} if searches else {})


def end_tags_of(run: Run) -> dict[str, str]:
    """How a run ended and what it ran on."""
    tags = {"outcome": run.status} | {name: _text(value) for name, value in run.facts.items()}
    if commit := run.facts.get("git_commit"):
        tags["mlflow.source.git.commit"] = _text(commit)  # the page's Version
    return tags


def values_of(record: Record) -> dict[str, float]:
    return {EPOCH: float(record.epoch)} | {k: float(v) for k, v in record.values.items()}


def finals_of(run: Run) -> dict[str, float]:
    """The final metrics, without those like minival/top1 that are already in a series."""
    return {name: float(value) for name, value in run.metrics.items() if "/" not in name}


def last_values(run: Run) -> dict[str, float]:
    """The last value of each metric, which MLflow shows when everything is logged."""
    last: dict[str, float] = {}
    for record in run.records:
        last |= values_of(record)
    return last | finals_of(run)


def same(one: float, other: float | None) -> bool:
    """Whether MLflow returns the value that was logged. Its databases cannot hold infinity."""
    if other is None or math.isnan(one) or math.isnan(other):
        return other is not None and math.isnan(one) and math.isnan(other)
    largest = sys.float_info.max
    return math.isclose(max(-largest, min(one, largest)), other, rel_tol=1e-12)


def batches(values: list, size: int) -> Iterator[list]:
    for first in range(0, len(values), size):
        yield values[first : first + size]


def lacking(expected: dict[str, str], there: dict[str, str], *, but: Iterable[str] = ()) -> list:
    """The items of `expected` that `there` lacks or holds with another text."""
    return [(k, v) for k, v in expected.items() if there.get(k) != v and k not in but]


def _text(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return text[:MAX_TEXT]
