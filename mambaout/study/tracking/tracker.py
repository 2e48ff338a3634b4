"""A study in MLflow: one parent run, one child run a trial, found again by the trial's key.

The run directories are the source and MLflow is a view of them. Records that are not logged yet are
read from records.jsonl at the next call. So MLflow always ends with the same runs, each exactly
once: also after a killed driver, a resumed trial, a server that was down for an hour, or runs that
somebody deleted in MLflow.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from mambaout.endings import Ending
from mambaout.study.store_uri import TrackingError, hidden
from mambaout.study.study import (
    CHECKPOINT_FILE,
    OUTCOME_FILE,
    RECIPE_FILE,
    RECORDS_FILE,
    Run,
    StudyFolder,
    Trial,
)
from mambaout.study.tracking.mlflow_client import LOCAL
from mambaout.study.tracking.outage import Patience, first_line
from mambaout.study.tracking.store import check_tracking, default_tracking_uri
from mambaout.study.tracking.tail import Tail
from mambaout.study.tracking.tracked_run import (
    MLFLOW_STATUSES,
    NAME_TAG,
    MlflowStatus,
    batches,
    end_tags_of,
    finals_of,
    lacking,
    last_values,
    params_of,
    same,
    tags_of,
    values_of,
)
from mambaout.study.tracking.tracked_study import TrackedStudy
from mambaout.study.tracking.views import compare_url, ui_command
from mambaout.train.tasks import CLASSIFY, SHEET, TaskKind

__all__ = ["Tracker", "check_tracking", "compare_url", "default_tracking_uri", "ui_command"]

log = logging.getLogger(__name__)

MAX_METRICS_A_BATCH = 1000  # MLflow's own bound on log_batch
ERRORS = (MlflowException, OSError, sqlite3.Error, SQLAlchemyError)  # of a store that is down

T = TypeVar("T")


@dataclass
class _FollowedTrial:
    """What the tracker knows about one trial's run."""

    trial: Trial
    tags: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None  # None until MLflow has the run
    asked_for: bool = False  # MLflow was asked to make the run and has not confirmed it
    start_ms: int = 0
    steps: dict[str, set[int]] = field(default_factory=dict)  # by metric name, as MLflow has them
    reached: tuple[int, int] = (0, 0)  # the last step that MLflow has, and the latest time
    tail: Tail = field(default_factory=Tail)  # the part of records.jsonl that is logged
    latest: tuple[int, int] = (0, 0)  # step and time of the last record, for the final metrics
    ending: tuple[Run, Path] | None = None  # an end that MLflow has not stored yet

    def reach(self, points: Iterable[tuple[int, int]]) -> None:
        """Note the steps and times of values that MLflow has."""
        for step, stamp in points:
            self.reached = (max(self.reached[0], step), max(self.reached[1], stamp))

    def forget(self) -> None:
        """Start again with another run."""
        self.run_id, self.asked_for = None, False
        self.steps, self.reached, self.tail = {}, (0, 0), Tail()


class Tracker:
    """Writes one study to MLflow.

    The constructor and `describe` raise a TrackingError if MLflow cannot keep the study. After
    that, no call raises an error if the store is down. The outage is reported once, and a later
    call or launch logs what is missing. So an outage of MLflow never stops a trial.
    """

    def __init__(
        self,
        uri: str,
        study_name: str,
        question: str,
        artifact_root: Path | str | None = None,
        kind: TaskKind = CLASSIFY,
    ) -> None:
        """`artifact_root` is only for a database. `kind` decides the columns of the page.

        For a sqlite file it is `mlartifacts` beside the file. A server chooses its own.
        """
        self.uri = uri
        self.study_name = study_name
        self._followed: dict[str, _FollowedTrial] = {}
        self._patience = Patience(f"MLflow at {uri}", ERRORS)
        with self._or_refused():
            self._study = TrackedStudy(uri, study_name, question, artifact_root, kind)

    @contextmanager
    def _or_refused(self) -> Iterator[None]:
        """Raise a TrackingError if MLflow fails inside the context."""
        try:
            yield
        except ERRORS as error:
            raise TrackingError(
                f"MLflow at {hidden(self.uri)} does not take the study "
                f"({hidden(first_line(error))}); correct --tracking-uri, or {LOCAL}"
            ) from error

    @property
    def _client(self) -> MlflowClient:
        return self._study.client

    @property
    def _known(self) -> dict[str, MlflowRun]:
        """By key, the one active run of each trial in MLflow."""
        return self._study.runs

    @property
    def experiment_id(self) -> str:
        return self._study.experiment_id

    @property
    def run_id(self) -> str:
        """The id of the study's parent run."""
        return self._study.run_id

    # -- one trial

    def begin(self, trial: Trial, tags: Mapping[str, str] | None = None) -> None:
        """Find the trial's run by its key, or create it. `tags` are set in both cases.

        A run that is found gets the status RUNNING again, and its series continue.
        """
        followed = self._followed.setdefault(trial.key, _FollowedTrial(trial))
        followed.tags |= {name: str(value) for name, value in (tags or {}).items()}
        followed.run_id = followed.ending = None  # an end that is not logged yet is dropped
        self._patience.guarded(lambda: self._begin(followed))

    def _begin(self, followed: _FollowedTrial, *, reopen: bool = True) -> int:
        """Find or create the trial's run. Returns how many params and tags were missing."""
        trial = followed.trial
        if followed.asked_for:
            self._study.look_up(trial.key)
        known = self._known.get(trial.key)
        run = None if known is None else self._study.living(known.info.run_id)
        tags = tags_of(trial, self.run_id) | followed.tags
        if run is None:
            followed.forget()
            followed.asked_for = True
            run = self._client.create_run(self.experiment_id, tags=tags, run_name=trial.name)
        else:
            if reopen:
                self._client.update_run(run.info.run_id, status="RUNNING", name=trial.name)
            for name in run.data.metrics:
                history = self._client.get_metric_history(run.info.run_id, name)
                followed.steps[name] = {metric.step for metric in history}
                followed.reach((metric.step, metric.timestamp) for metric in history)
        # MLflow allows no change of a param. The name is changed if the trial continues.
        params = [(k, v) for k, v in params_of(trial).items() if k not in run.data.params]
        stale = lacking(tags, run.data.tags, but=() if reopen else [NAME_TAG])
        if params or stale:
            self._client.log_batch(
                run.info.run_id,
                params=[Param(*each) for each in params],
                tags=[RunTag(*each) for each in stale],
            )
        self._known[trial.key] = run
        followed.start_ms = run.info.start_time
        followed.latest = (0, run.info.start_time)
        followed.tail = Tail()
        followed.run_id, followed.asked_for = run.info.run_id, False
        return len(params) + len(stale)

    def _in_its_run(self, followed: _FollowedTrial, act: Callable[[str], T]) -> T:
        """Call `act` with the trial's run; once more with a new run if somebody has deleted it."""
        if followed.run_id is None:
            self._begin(followed)
        assert followed.run_id is not None
        try:
            return act(followed.run_id)
        except MlflowException:
            if self._study.living(followed.run_id) is not None:
                raise
            followed.forget()
            self._begin(followed)
            return act(followed.run_id)

    def catch_up(self, trial: Trial, run_directory: Path) -> int:
        """Log the records that MLflow does not have yet. Returns the number of values."""
        followed = self._followed.setdefault(trial.key, _FollowedTrial(trial))
        path = Path(run_directory) / RECORDS_FILE
        done = self._patience.guarded(
            lambda: self._in_its_run(followed, lambda run_id: self._catch_up(followed, path))
        )
        if done is not None:
            self._make_good(but=followed)
        return done or 0

    def _catch_up(self, followed: _FollowedTrial, path: Path) -> int:
        assert followed.run_id is not None
        new: dict[str, set[int]] = {}
        metrics = []
        for record in followed.tail.new(path):
            stamp = followed.start_ms + int(record.seconds * 1000)
            if record.step > followed.reached[0]:
                # A resumed run may train the steps since its checkpoint in less time than the
                # killed one. MLflow orders a series by time, so time must not go back.
                stamp = max(stamp, followed.reached[1])
            followed.latest = max(followed.latest, (record.step, stamp))
            for name, value in values_of(record).items():
                # After a kill, the steps since the checkpoint are trained again. They are logged
                # once.
                steps = new.setdefault(name, set())
                if record.step not in steps | followed.steps.get(name, set()):
                    # The time axis is training time without pauses. So a value that is logged twice
                    # is the same row for MLflow, which keeps one.
                    metrics.append(Metric(name, value, stamp, record.step))
                    steps.add(record.step)
        for batch in batches(metrics, MAX_METRICS_A_BATCH):
            self._client.log_batch(followed.run_id, metrics=batch)
        followed.reach((metric.step, metric.timestamp) for metric in metrics)
        for name, steps in new.items():
            followed.steps[name] = followed.steps.get(name, set()) | steps
        followed.tail.accept()
        return len(metrics)

    def end(self, trial: Trial, run: Run, run_directory: Path) -> None:
        """Log the trial's final metrics and files and close its run.

        The status is FINISHED if the trial finished, KILLED if it can go on, else FAILED.
        """
        followed = self._followed.setdefault(trial.key, _FollowedTrial(trial))
        followed.ending = (run, Path(run_directory))
        if self._patience.guarded(lambda: self._end(followed)) is not None:
            self._make_good(but=followed)

    def _end(self, followed: _FollowedTrial, *, anew: bool = True) -> int:
        """Log the end. Returns how many things were missing. Only `anew` replaces files."""
        return self._in_its_run(followed, lambda run_id: self._log_end(followed, run_id, anew))

    def _log_end(self, followed: _FollowedTrial, run_id: str, anew: bool) -> int:
        assert followed.ending is not None
        run, directory = followed.ending
        num_new = self._catch_up(followed, directory / RECORDS_FILE)
        there = self._client.get_run(run_id)
        step, stamp = followed.latest
        # One millisecond later, so that a metric which is also a series ends on its final value.
        finals = [
            Metric(name, value, stamp + 1, step)
            for name, value in finals_of(run).items()
            if not same(value, there.data.metrics.get(name))
        ]
        tags = lacking(end_tags_of(run), there.data.tags)
        if finals or tags:
            self._client.log_batch(run_id, metrics=finals, tags=[RunTag(*each) for each in tags])
        status, before = MLFLOW_STATUSES[run.status], there.info.status
        files = [RECIPE_FILE, OUTCOME_FILE, CHECKPOINT_FILE, SHEET]
        if run.status is Ending.UNFINISHED and not anew:
            files = [RECIPE_FILE]  # the others change after every epoch
        sizes = {} if anew or before != status else self._sizes(run_id)
        paths = [directory / name for name in files if (directory / name).exists()]
        paths = [path for path in paths if sizes.get(path.name) != path.stat().st_size]
        for path in paths:
            self._client.log_artifact(run_id, str(path))
        if before != status:
            self._client.set_terminated(run_id, status)
        followed.ending = None
        if run.status is Ending.UNFINISHED:  # it has not ended, so only its records can be missing
            return num_new
        return num_new + len(finals) + len(tags) + len(paths) + (before != status)

    def _sizes(self, run_id: str) -> dict[str, int | None]:
        """The files of a run, with their sizes in bytes."""
        return {file.path: file.file_size for file in self._client.list_artifacts(run_id)}

    # -- the study

    def describe(self, folder: StudyFolder) -> None:
        """Put study.json on the parent run. TrackingError if the store takes no file.

        Called at the start of a launch, so that a store without write access fails before a trial
        begins.
        """
        with self._or_refused():
            self._study.describe(folder)

    def attach(self, files: Iterable[Path]) -> None:
        """Put the files on the parent run. They replace earlier files of the same name."""
        paths = [str(path) for path in files]

        def put() -> bool:
            self._study.keep_parent()
            for path in paths:
                self._client.log_artifact(self.run_id, path)
            return True

        self._patience.guarded(put)

    def sync(self, folder: StudyFolder, *, closely: bool = True) -> int:
        """Log every begun trial to MLflow. Returns how many were missing or incomplete.

        MLflow's content is compared with the run directory: params, tags, each value of each
        series, final metrics, files, status. Only what is missing is logged. Without `closely`,
        only the last value of each series is compared, which saves one request for each series.
        """
        missing = 0
        for run in folder.runs():
            known = self._known.get(run.trial.key)
            begun = bool(run.records) or run.status is not Ending.UNFINISHED or known is not None
            if begun and (closely or known is None or not self._whole(known, run)):
                followed = self._followed.setdefault(run.trial.key, _FollowedTrial(run.trial))
                followed.ending = (run, folder.run_directory(run.trial))
                missing += bool(self._patience.guarded(lambda each=followed: self._mend(each)))
        return missing

    def _mend(self, followed: _FollowedTrial) -> int:
        return self._begin(followed, reopen=False) + self._end(followed, anew=False)

    def _whole(self, known: MlflowRun, run: Run) -> bool:
        """Whether the run looks complete, as far as one search request shows."""
        tags = tags_of(run.trial, self.run_id) | end_tags_of(run)
        return (
            known.info.status == MLFLOW_STATUSES[run.status]
            and params_of(run.trial).keys() <= known.data.params.keys()
            and not lacking(tags, known.data.tags, but=[NAME_TAG])
            and all(same(v, known.data.metrics.get(k)) for k, v in last_values(run).items())
        )

    def set_aside(self, keys: Iterable[str]) -> None:
        """Delete the runs of these trials, because they will be trained anew.

        MLflow keeps a deleted run, hidden, until `mlflow gc`. TrackingError if MLflow does not
        answer.
        """
        with self._or_refused():
            for key in keys:
                if key in self._known:
                    self._client.delete_run(self._known[key].info.run_id)
                    del self._known[key]
                self._followed.pop(key, None)

    def close(self, status: MlflowStatus = "FINISHED") -> bool:
        """End the parent run. If MLflow still lacks something, report it and return False."""

        def finish() -> bool:
            self._study.keep_parent()
            self._client.set_terminated(self.run_id, status)
            return True

        self._patience.end_pause()
        try:
            self._make_good()
        finally:  # the study ends even if a trial's end cannot be logged
            closed = self._patience.guarded(finish)
        owed = [f.trial.name for f in self._followed.values() if f.ending]
        if owed or not closed:
            log.warning(
                "MLflow at %s lacks the end of %s; launch the study again to log it "
                "(nothing that has finished is trained again)",
                hidden(self.uri),
                ", ".join(owed) or "the study",
            )
        return bool(closed) and not owed

    def _make_good(self, but: _FollowedTrial | None = None) -> None:
        """Log the ends that are still missing. An error is raised after all were tried."""
        failed: list[Exception] = []
        for followed in self._followed.values():
            if followed.ending and followed is not but:
                try:
                    self._patience.guarded(lambda followed=followed: self._end(followed))
                except Exception as error:
                    failed.append(error)
        if failed:
            raise failed[0]
