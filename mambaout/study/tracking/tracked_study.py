"""A study's experiment and parent run in MLflow, and the one active run of each trial.

Somebody may have deleted or restored runs in MLflow since the last launch. The rules:

- A deleted run stays deleted, and its trial gets a new one. A deleted parent run is replaced by a
  new one, and the trials' runs are moved under it.
- If a run was restored and a trial has two active runs, the fuller run stays. The other one is
deleted.
- A deleted experiment is restored, with its runs.

A study gets an experiment of its own, `mambaout/NAME`, because MLflow's page compares the runs
of one experiment side by side.
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mambaout.study.store_uri import TrackingError, hidden, is_database, sqlite_path
from mambaout.study.study import STUDY_FILE, StudyFolder
from mambaout.study.tracking.mlflow_client import LOCAL, open_client
from mambaout.study.tracking.outage import first_line
from mambaout.study.tracking.tracked_run import KEY_TAG, PARENT_TAG, ROLE_TAG
from mambaout.study.tracking.views import (
    KIND,
    KIND_TAG,
    LAUNCHED_TAG,
    VIEW_TAG,
    experiment_name,
    trials_view,
)
from mambaout.study.training_images import training_images_text
from mambaout.train.tasks import CLASSIFY, TaskKind

log = logging.getLogger(__name__)

NOTE_TAG = "mlflow.note.content"  # the page shows it above the runs


class TrackedStudy:
    """One study in MLflow. Its calls raise what MLflow raises."""

    def __init__(
        self,
        uri: str,
        name: str,
        question: str,
        artifact_root: Path | str | None,
        kind: TaskKind = CLASSIFY,
    ) -> None:
        self.uri, self.name, self._question, self._kind = uri, name, question, kind
        if (path := sqlite_path(uri)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            artifact_root = path.parent / "mlartifacts"
        elif not is_database(uri):
            artifact_root = None  # a server chooses its own
        self._client: MlflowClient | None = None
        self.runs: dict[str, MlflowRun] = {}  # by key: the trial's one active run
        self.experiment_id = self._find_experiment(artifact_root)
        self.look_up()
        self.run_id = self._find_parent()

    @property
    def client(self) -> MlflowClient:
        if self._client is None:
            self._client = open_client(self.uri)
        return self._client

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles the callback that holds the tracker. A connection cannot be pickled.
        return self.__dict__ | {"_client": None}

    def _find_experiment(self, artifact_root: Path | str | None) -> str:
        name = experiment_name(self.name)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if artifact_root is None else _as_uri(artifact_root)
            experiment_id = self.client.create_experiment(name, artifact_location=location)
        else:
            experiment_id = found.experiment_id
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(experiment_id)
        tags = {
            NOTE_TAG: self._question,
            KIND_TAG: KIND,
            VIEW_TAG: trials_view(f"tags.`{ROLE_TAG}` = 'trial'", self._kind),
            LAUNCHED_TAG: datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        for tag, value in tags.items():
            self.client.set_experiment_tag(experiment_id, tag, value)
        return experiment_id

    def _search(self, mine: str) -> list[MlflowRun]:
        """Every active run of the experiment that matches the filter `mine`."""
        runs: list[MlflowRun] = []
        page = None
        while True:
            found = self.client.search_runs([self.experiment_id], mine, page_token=page)
            runs += found
            page = found.token
            if not page:
                return runs

    def look_up(self, key: str | None = None) -> None:
        """Read the active runs of one trial, or of all, from MLflow, and leave one for each trial.

        A trial has a second run if somebody restored a deleted one. It also has one if a request
        timed out but still made a run.
        """
        mine = f"tags.`{ROLE_TAG}` = 'trial'" + (f" and tags.`{KEY_TAG}` = '{key}'" if key else "")
        found: dict[str, list[MlflowRun]] = {}
        for run in self._search(mine):
            if KEY_TAG in run.data.tags:
                found.setdefault(run.data.tags[KEY_TAG], []).append(run)
        for each, living in found.items():
            fullest, *others = sorted(living, key=_fullness, reverse=True)
            self.runs[each] = fullest
            for other in others:
                self.client.delete_run(other.info.run_id)
                if other.data.metrics:
                    log.warning(
                        "trial %s had two runs in MLflow; %s, the one with less in it, is deleted",
                        other.info.run_name,
                        other.info.run_id,
                    )

    def _find_parent(self) -> str:
        """The parent run, with the runs of all trials under it. It is made if there is none."""
        found = self._search(f"tags.`{ROLE_TAG}` = 'study'")
        if found:
            named = Counter(run.data.tags.get(PARENT_TAG) for run in self.runs.values())
            found.sort(key=lambda run: (-named[run.info.run_id], run.info.start_time))
            run_id = found[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            for other in found[1:]:
                log.warning(
                    "study %s has a second parent run in MLflow, %s; the trials are under %s, and "
                    "you can delete the other",
                    self.name,
                    other.info.run_id,
                    run_id,
                )
        else:
            tags = {ROLE_TAG: "study", NOTE_TAG: self._question}
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=self.name)
            run_id = run.info.run_id
        for run in self.runs.values():
            if run.data.tags.get(PARENT_TAG) != run_id:
                self.client.set_tag(run.info.run_id, PARENT_TAG, run_id)
                run.data.tags[PARENT_TAG] = run_id
        return run_id

    def living(self, run_id: str) -> MlflowRun | None:
        """The run, or None if somebody has deleted it."""
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # `mlflow gc` has removed it
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def keep_parent(self) -> None:
        """Make another parent run if somebody has deleted it."""
        if self.living(self.run_id) is None:
            self.run_id = self._find_parent()

    def describe(self, folder: StudyFolder) -> None:
        """Put study.json on the parent run, and say above the trials which images the seeds see.

        Raises TrackingError if the store takes no file. Called at the start of a launch, so that a
        store without write access fails before a trial begins.
        """
        root = self.client.get_run(self.run_id).info.artifact_uri
        try:
            self.client.log_artifact(self.run_id, str(folder.path / STUDY_FILE))
        except Exception as error:  # each kind of artifact store has its own errors
            raise TrackingError(
                f"MLflow at {hidden(self.uri)} cannot keep files in {hidden(str(root))} "
                f"({hidden(first_line(error))}); let this process write there, or a server into "
                f"its --artifacts-destination, or {LOCAL}"
            ) from error
        if images := training_images_text(trial.recipe for trial in folder.trials()):
            note = f"{self._question}\n\n{images}"
            self.client.set_experiment_tag(self.experiment_id, NOTE_TAG, note)
            self.client.set_tag(self.run_id, NOTE_TAG, note)


def _fullness(run: MlflowRun) -> tuple[int, bool, int]:
    return len(run.data.metrics), run.info.status == "FINISHED", run.info.start_time


def _as_uri(root: Path | str) -> str:
    text = str(root)
    return text if "://" in text else Path(text).expanduser().resolve().as_uri()
