"""A study in MLflow: one parent run, one child run a trial, found again by the trial's key.

The run directories are the truth and MLflow is a view of them: whatever is not logged yet is
read from records.jsonl at the next call. So a killed driver, a resumed trial and a tracking
server that was away for an hour all end in the same runs, each exactly once.

A study gets an experiment of its own, `mambaout/NAME`, because MLflow's page compares the runs
of one experiment side by side. This file is the home of mlflow.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# MLflow reports usage to its makers unless told not to; a study says nothing about itself.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With a server it prints two lines a run, into the middle of the study's table.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mambaout.recipe import flat_fields
from mambaout.study.outage import Patience
from mambaout.study.store import check_tracking, default_tracking_uri, sqlite_path
from mambaout.study.study import (
    CHECKPOINT_FILE,
    OUTCOME_FILE,
    RECIPE_FILE,
    RECORDS_FILE,
    Run,
    StudyFolder,
    Trial,
)
from mambaout.study.tail import Tail
from mambaout.study.views import KIND, KIND_TAG, VIEW_TAG, page_address, trials_view, ui_command

__all__ = ["Tracker", "check_tracking", "compare_url", "default_tracking_uri", "ui_command"]

log = logging.getLogger(__name__)

KEY_TAG = "mambaout.key"
ROLE_TAG = "mambaout.role"  # "study" on the parent run, "trial" on its children
LAUNCHED_TAG = "mambaout.launched"  # on the experiment: when a driver last took the study up
EPOCH = "epoch"  # series: how far a running trial is
MAX_METRICS_A_BATCH = 1000  # MLflow's own bound on log_batch
MAX_TEXT = 4000  # characters of a tag or a param, below MLflow's bounds

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


def _quiet_client(uri: str) -> MlflowClient:
    # The first touch of a sqlite store makes its tables, step by step and aloud.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _experiment_name(study_name: str) -> str:
    return f"mambaout/{study_name}"


def _be_brief() -> None:
    # MLflow's own patience is 7 retries of up to 120 s each, during which nobody would serve the
    # trials; and a retried request to make a run makes two. A value from outside stands.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")


# -- the tracker ----------------------------------------------------------------------------------


@dataclass
class _Followed:
    """What the tracker knows of one trial's run."""

    trial: Trial
    tags: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None  # None until MLflow has the run
    asked_for: bool = False  # MLflow was asked to make the run and has not said that it did
    start_ms: int = 0
    last_step: dict[str, int] = field(default_factory=dict)  # by metric name, as MLflow has it
    tail: Tail = field(default_factory=Tail)  # what of records.jsonl is logged
    latest: tuple[int, int] = (0, 0)  # step and time of the last record, for the final metrics
    ending: tuple[Run, Path] | None = None  # an end that MLflow has not taken yet


class Tracker:
    """Writes one study to MLflow.

    The constructor raises where the store cannot be used. After it no call raises for a store
    that is away: it is reported once, and made good at a later call or a later launch, so that
    tracking never costs a trial.
    """

    def __init__(
        self,
        uri: str,
        study_name: str,
        question: str,
        artifact_root: Path | str | None = None,
    ) -> None:
        _be_brief()
        self.uri = uri
        self.study_name = study_name
        path = sqlite_path(uri)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            artifact_root = artifact_root or path.parent / "mlartifacts"
        self._followed: dict[str, _Followed] = {}
        self._patience = Patience(f"MLflow at {uri}", (MlflowException, OSError, sqlite3.Error))
        self._mlflow: MlflowClient | None = None
        self.experiment_id = self._find_experiment(question, artifact_root)
        self.run_id = self._find_parent(question)

    @property
    def _client(self) -> MlflowClient:
        if self._mlflow is None:
            self._mlflow = _quiet_client(self.uri)
        return self._mlflow

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles the callback that holds the tracker; a connection does not travel.
        return self.__dict__ | {"_mlflow": None}

    def _find_experiment(self, question: str, artifact_root: Path | str | None) -> str:
        name = _experiment_name(self.study_name)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = None if artifact_root is None else _as_uri(artifact_root)
            experiment_id = self._client.create_experiment(name, artifact_location=location)
        else:
            experiment_id = found.experiment_id
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(experiment_id)
        tags = {
            "mlflow.note.content": question,  # the page shows it above the runs
            KIND_TAG: KIND,
            VIEW_TAG: trials_view(f"tags.`{ROLE_TAG}` = 'trial'"),
            LAUNCHED_TAG: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        for tag, value in tags.items():
            self._client.set_experiment_tag(experiment_id, tag, value)
        return experiment_id

    def _find_parent(self, question: str) -> str:
        mine = f"tags.`{ROLE_TAG}` = 'study'"
        found = self._client.search_runs([self.experiment_id], mine, order_by=["start_time ASC"])
        if found:
            run_id = found[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            tags = {ROLE_TAG: "study", "mlflow.note.content": question}
            run_id = self._client.create_run(
                self.experiment_id, tags=tags, run_name=self.study_name
            ).info.run_id
        self._known: dict[str, tuple[str, str]] = {}  # key -> run id and status in MLflow
        self._look_up(run_id)
        return run_id

    def _look_up(self, parent_id: str, key: str | None = None) -> None:
        """Learn the runs of one trial, or of all, from MLflow.

        A request that timed out may have made a run all the same, and a second one then exists
        for its key: the empty one of the two is deleted.
        """
        mine = f"tags.`{ROLE_TAG}` = 'trial' and tags.`mlflow.parentRunId` = '{parent_id}'"
        mine += f" and tags.`{KEY_TAG}` = '{key}'" if key else ""
        found: dict[str, list[MlflowRun]] = {}
        page = None
        while True:
            runs = self._client.search_runs([self.experiment_id], mine, page_token=page)
            for run in runs:
                found.setdefault(run.data.tags[KEY_TAG], []).append(run)
            page = runs.token
            if not page:
                break
        for each, same in found.items():
            first, *others = sorted(same, key=lambda run: -len(run.data.metrics))
            self._known[each] = (first.info.run_id, first.info.status)
            for other in others:
                if not other.data.metrics:
                    self._client.delete_run(other.info.run_id)

    # -- one trial

    def begin(self, trial: Trial, tags: Mapping[str, str] | None = None) -> None:
        """Find the trial's run by its key, or create it; `tags` are set on it either way.

        A run that is found goes on: back to RUNNING, its series continued.
        """
        followed = self._followed.setdefault(trial.key, _Followed(trial))
        followed.tags |= {name: str(value) for name, value in (tags or {}).items()}
        followed.run_id = followed.ending = None  # an end not logged yet was not the end
        self._patience.guarded(lambda: self._begin(followed))

    def _begin(self, followed: _Followed) -> None:
        trial = followed.trial
        tags = {
            KEY_TAG: trial.key,
            ROLE_TAG: "trial",
            "mlflow.parentRunId": self.run_id,
            "mlflow.runName": trial.name,
            "variant": trial.label,
            "data": trial.data,
        } | followed.tags
        params = {name: _text(value) for name, value in flat_fields(trial.recipe).items()}
        params["seed"] = str(trial.seed)
        if followed.asked_for:
            self._look_up(self.run_id, trial.key)
        if trial.key not in self._known:
            followed.asked_for = True
            run = self._client.create_run(self.experiment_id, tags=tags, run_name=trial.name)
        else:
            run_id, _ = self._known[trial.key]
            self._client.update_run(run_id, status="RUNNING", name=trial.name)
            run = self._client.get_run(run_id)
            for name in run.data.metrics:
                history = self._client.get_metric_history(run.info.run_id, name)
                followed.last_step[name] = max(metric.step for metric in history)
        missing = [Param(k, v) for k, v in params.items() if k not in run.data.params]
        stale = [RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v]
        if missing or stale:
            self._client.log_batch(run.info.run_id, params=missing, tags=stale)
        self._known[trial.key] = (run.info.run_id, "RUNNING")
        followed.start_ms = run.info.start_time
        followed.latest = (0, run.info.start_time)
        followed.tail = Tail()
        followed.run_id, followed.asked_for = run.info.run_id, False

    def catch_up(self, trial: Trial, run_directory: Path) -> int:
        """Log what the trial's records.jsonl holds beyond what MLflow has; the number of values."""
        followed = self._followed.setdefault(trial.key, _Followed(trial))
        done = self._patience.guarded(lambda: self._catch_up(followed, Path(run_directory)))
        if done is not None:
            self._make_good(but=followed)
        return done or 0

    def _catch_up(self, followed: _Followed, run_directory: Path) -> int:
        if followed.run_id is None:
            self._begin(followed)
        assert followed.run_id is not None
        last = dict(followed.last_step)
        metrics = []
        for record in followed.tail.new(run_directory / RECORDS_FILE):
            stamp = followed.start_ms + int(record.seconds * 1000)
            followed.latest = max(followed.latest, (record.step, stamp))
            for name, value in {EPOCH: record.epoch, **record.values}.items():
                # After a kill the steps since the checkpoint are trained again: once is enough.
                if record.step > last.get(name, -1):
                    # The time axis is training time, pauses left out; and a value logged twice
                    # is the same row to MLflow, which keeps one.
                    metrics.append(Metric(name, float(value), stamp, record.step))
                    last[name] = record.step
        for first in range(0, len(metrics), MAX_METRICS_A_BATCH):
            batch = metrics[first : first + MAX_METRICS_A_BATCH]
            self._client.log_batch(followed.run_id, metrics=batch)
        followed.last_step = last
        followed.tail.accept()
        return len(metrics)

    def end(self, trial: Trial, run: Run, run_directory: Path) -> None:
        """Log the trial's final metrics and files and close its run.

        FINISHED where the trial finished, KILLED where it can go on, FAILED otherwise.
        """
        followed = self._followed.setdefault(trial.key, _Followed(trial))
        followed.ending = (run, Path(run_directory))
        if self._patience.guarded(lambda: self._end(followed)) is not None:
            self._make_good(but=followed)

    def _end(self, followed: _Followed) -> bool:
        assert followed.ending is not None
        run, directory = followed.ending
        self._catch_up(followed, directory)
        assert followed.run_id is not None
        step, stamp = followed.latest
        # One millisecond on, so that a name which is a series too ends on its final value.
        final = [
            Metric(name, float(value), stamp + 1, step)
            for name, value in run.metrics.items()
            if "/" not in name  # minival/top1 is in its series already
        ]
        tags = [RunTag("outcome", run.status)]
        tags += [RunTag(name, _text(value)) for name, value in run.facts.items()]
        if commit := run.facts.get("git_commit"):
            tags.append(RunTag("mlflow.source.git.commit", _text(commit)))  # the page's Version
        self._client.log_batch(followed.run_id, metrics=final, tags=tags)
        for name in (RECIPE_FILE, OUTCOME_FILE, CHECKPOINT_FILE):
            if (directory / name).exists():
                self._client.log_artifact(followed.run_id, str(directory / name))
        self._client.set_terminated(followed.run_id, _status(run))
        self._known[followed.trial.key] = (followed.run_id, _status(run))
        followed.ending = None
        return True

    # -- the study

    def attach(self, files: Iterable[Path]) -> None:
        """Put the files on the parent run, in place of earlier ones of the same name."""
        paths = [str(path) for path in files]

        def put() -> bool:
            for path in paths:
                self._client.log_artifact(self.run_id, path)
            return True

        self._patience.guarded(put)

    def sync(self, folder: StudyFolder) -> int:
        """Bring every trial of the folder that has ended into MLflow; how many were missing.

        For the start of a launch: a driver killed between a trial's end and its logging, or a
        store that was away, leaves runs behind that nobody would close.
        """
        missing = 0
        for run in folder.runs():
            _, logged = self._known.get(run.trial.key, ("", ""))
            if run.status == "unfinished" or logged == _status(run):
                continue
            self.begin(run.trial)
            self.end(run.trial, run, folder.run_directory(run.trial))
            missing += 1
        return missing

    def set_aside(self, keys: Iterable[str]) -> None:
        """Delete the runs of these trials, which are to be trained anew; raises where it cannot.

        MLflow keeps a deleted run, out of sight, until `mlflow gc`.
        """
        for key in keys:
            if key in self._known:
                self._client.delete_run(self._known[key][0])
                del self._known[key]
            self._followed.pop(key, None)

    def close(self, status: RunStatus = "FINISHED") -> bool:
        """End the parent run; False, and a report, where MLflow still lacks something."""
        self._patience.end_pause()
        self._make_good()
        closed = self._patience.guarded(
            lambda: self._client.set_terminated(self.run_id, status) or True
        )
        owed = [f.trial.name for f in self._followed.values() if f.ending]
        if owed or not closed:
            log.warning(
                "MLflow at %s lacks the end of %s; launch the study again to log it "
                "(nothing that has finished is trained again)",
                self.uri,
                ", ".join(owed) or "the study",
            )
        return bool(closed) and not owed

    def _make_good(self, but: _Followed | None = None) -> None:
        for followed in self._followed.values():
            if followed.ending and followed is not but:
                self._patience.guarded(lambda followed=followed: self._end(followed))


def _status(run: Run) -> RunStatus:
    """What MLflow calls the way a trial ended; KILLED is one that can go on."""
    if run.status == "finished":
        return "FINISHED"
    return "KILLED" if run.status in ("unfinished", "stopped") else "FAILED"


def _text(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return text[:MAX_TEXT]


def _as_uri(root: Path | str) -> str:
    text = str(root)
    return text if "://" in text else Path(text).expanduser().resolve().as_uri()


def compare_url(uri: str, port: int = 5000, study_name: str | None = None) -> str:
    """The page that shows a study's trials side by side: accuracy, MACs, throughput.

    `port` is where `ui_command` serves a store that is a file; a server's own address is in
    `uri`. Without a name it is the study launched last; no such study is a ValueError.
    """
    check_tracking(uri)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise ValueError(f"there is no tracking store {path}; run a study first")
    client = _quiet_client(uri)
    if study_name is not None:
        experiment = client.get_experiment_by_name(_experiment_name(study_name))
        found = [] if experiment is None else [experiment]
    else:
        found = [
            experiment
            for experiment in client.search_experiments(
                filter_string=f"name LIKE '{_experiment_name('%')}'"
            )
            if LAUNCHED_TAG in experiment.tags
        ]
        found.sort(key=lambda experiment: experiment.tags[LAUNCHED_TAG])
    if not found:
        what = "study" if study_name is None else f"study {study_name!r}"
        raise ValueError(f"there is no {what} in {uri}; run one first")
    return page_address(uri, port, found[-1].experiment_id)
