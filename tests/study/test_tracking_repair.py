"""What MLflow holds is made to agree with the run directories, whatever was deleted in it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient
from study_files import finish, mixed_study, record, start, write_study

from mambaout.study.study import StudyFolder, Trial
from mambaout.study.tracking.store import default_tracking_uri
from mambaout.study.tracking.tracker import Tracker

QUESTION = "Does it scale?"


@pytest.fixture
def uri(empty_store, tmp_path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    """A study of which two trials have finished and one was cut off."""
    folder = write_study(tmp_path)
    one, two, cut, *_ = folder.trials()
    finish(folder, one)
    finish(folder, two)
    start(folder, cut)
    return folder


def sync(uri: str, folder: StudyFolder, *, closely: bool = True) -> int:
    tracker = Tracker(uri, "scale", QUESTION)
    missing = tracker.sync(folder, closely=closely)
    assert tracker.close()
    return missing


def living(uri: str, role: str = "trial") -> list:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mambaout/scale")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.`mambaout.role` = '{role}'"))


def run_of(uri: str, trial: Trial):
    (run,) = [run for run in living(uri) if run.data.tags["mambaout.key"] == trial.key]
    return run


def everything(uri: str) -> list[tuple]:
    """All values of all living runs: a value logged twice is in it twice."""
    client = MlflowClient(tracking_uri=uri)
    return sorted(
        (run.data.tags["mambaout.key"], name, metric.step, metric.timestamp, metric.value)
        for run in living(uri)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    )


def change(uri: str, statement: str, *values: str) -> None:
    """What MLflow itself has no call for, in its database."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection, connection:
        assert connection.execute(statement, values).rowcount > 0


def assert_one_run_a_trial(uri: str, folder: StudyFolder) -> None:
    begun = [run.trial.key for run in folder.runs() if run.records]
    assert sorted(run.data.tags["mambaout.key"] for run in living(uri)) == sorted(begun)
    (parent,) = living(uri, "study")
    assert {run.data.tags["mlflow.parentRunId"] for run in living(uri)} == {parent.info.run_id}


# -- deleted and restored -------------------------------------------------------------------------


def test_a_deleted_parent_run_leaves_one_living_run_a_trial(uri, folder):
    assert sync(uri, folder) == 3
    before = everything(uri)
    ids = sorted(run.info.run_id for run in living(uri))
    (parent,) = living(uri, "study")
    MlflowClient(tracking_uri=uri).delete_run(parent.info.run_id)
    assert sync(uri, folder) == 0
    assert_one_run_a_trial(uri, folder)
    assert sorted(run.info.run_id for run in living(uri)) == ids, "the same ones, moved"
    assert everything(uri) == before


def test_a_parent_run_that_is_restored_is_told_of_and_the_trials_stay_together(uri, folder, caplog):
    sync(uri, folder)
    client = MlflowClient(tracking_uri=uri)
    (old,) = living(uri, "study")
    client.delete_run(old.info.run_id)
    sync(uri, folder)
    (new,) = living(uri, "study")
    client.restore_run(old.info.run_id)
    assert sync(uri, folder) == 0
    assert {run.data.tags["mlflow.parentRunId"] for run in living(uri)} == {new.info.run_id}
    assert len(living(uri)) == 3
    assert f"second parent run in MLflow, {old.info.run_id}" in caplog.text


def test_a_deleted_trials_run_is_logged_anew(uri, folder):
    sync(uri, folder)
    one = folder.trials()[0]
    before = run_of(uri, one)
    MlflowClient(tracking_uri=uri).delete_run(before.info.run_id)
    assert sync(uri, folder) == 1
    after = run_of(uri, one)
    assert after.info.run_id != before.info.run_id
    assert (after.data.metrics, after.data.params) == (before.data.metrics, before.data.params)
    assert_one_run_a_trial(uri, folder)


def test_of_a_run_that_was_logged_anew_and_its_restored_one_the_fuller_stays(uri, folder, caplog):
    sync(uri, folder)
    one = folder.trials()[0]
    client = MlflowClient(tracking_uri=uri)
    old = run_of(uri, one).info.run_id
    client.delete_run(old)
    sync(uri, folder)
    client.restore_run(old)
    assert len(living(uri)) == 4
    assert sync(uri, folder) == 0
    assert_one_run_a_trial(uri, folder)
    assert "had two runs in MLflow" in caplog.text


def test_a_deleted_experiment_comes_back_with_one_living_run_a_trial(uri, folder):
    sync(uri, folder)
    before = everything(uri)
    client = MlflowClient(tracking_uri=uri)
    client.delete_run(run_of(uri, folder.trials()[0]).info.run_id)
    sync(uri, folder)
    experiment = client.get_experiment_by_name("mambaout/scale")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    sync(uri, folder)
    assert_one_run_a_trial(uri, folder)
    assert [row[:3] for row in everything(uri)] == [row[:3] for row in before]


def test_runs_deleted_while_the_study_runs_are_replaced(uri, folder, caplog):
    *_, trial = folder.trials()
    directory = folder.run_directory(trial)
    tracker = Tracker(uri, "scale", QUESTION)
    tracker.begin(trial)
    start(folder, trial, num_epochs=2)
    tracker.catch_up(trial, directory)
    client = MlflowClient(tracking_uri=uri)
    client.delete_run(run_of(uri, trial).info.run_id)
    client.delete_run(tracker.run_id)
    with (directory / "records.jsonl").open("a") as out:
        out.write(record(120, 3.0, {"minival/top1": 70.0}).to_json() + "\n")
    tracker.catch_up(trial, directory)
    tracker.end(trial, folder.run(trial), directory)
    tracker.attach([folder.path / "study.json"])
    assert tracker.close()
    assert caplog.text == ""
    (parent,) = living(uri, "study")
    run = run_of(uri, trial)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    history = client.get_metric_history(run.info.run_id, "minival/top1")
    assert [metric.step for metric in history] == [40, 80, 120]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["study.json"]


# -- what lacks, and nothing else -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["top1", "minival/top1", "images_per_second", "epoch"])
@pytest.mark.parametrize("closely", [True, False])
def test_a_metric_that_a_run_lost_is_logged_again_and_no_other_twice(uri, folder, name, closely):
    sync(uri, folder)
    before = everything(uri)
    run_id = run_of(uri, folder.trials()[1]).info.run_id
    for table in ("metrics", "latest_metrics"):
        change(uri, f"DELETE FROM {table} WHERE run_uuid = ? AND key = ?", run_id, name)
    assert everything(uri) != before
    assert sync(uri, folder, closely=closely) == 1
    assert everything(uri) == before
    assert sync(uri, folder, closely=closely) == 0
    assert everything(uri) == before


def test_a_value_lost_from_the_middle_of_a_series_is_logged_again(uri, folder):
    sync(uri, folder)
    before = everything(uri)
    run_id = run_of(uri, folder.trials()[0]).info.run_id
    lost = "DELETE FROM metrics WHERE run_uuid = ? AND key = 'train/loss' AND step = 120"
    change(uri, lost, run_id)
    assert sync(uri, folder) == 1
    assert everything(uri) == before


@pytest.mark.parametrize(
    "loss",
    [
        "DELETE FROM params WHERE run_uuid = ? AND key = 'peak_lr'",
        "DELETE FROM tags WHERE run_uuid = ? AND key = 'device'",
        "UPDATE tags SET value = 'no' WHERE run_uuid = ? AND key = 'variant'",
        "UPDATE runs SET status = 'RUNNING' WHERE run_uuid = ?",
    ],
)
@pytest.mark.parametrize("closely", [True, False])
def test_a_lost_param_tag_or_status_is_set_again(uri, folder, loss, closely):
    sync(uri, folder)
    trial = folder.trials()[0]
    before = run_of(uri, trial)
    change(uri, loss, before.info.run_id)
    assert sync(uri, folder, closely=closely) == 1
    after = run_of(uri, trial)
    assert after.data.params == before.data.params
    assert after.data.tags == before.data.tags
    assert after.info.status == before.info.status
    assert sync(uri, folder, closely=closely) == 0


def test_a_lost_file_is_put_back(uri, folder):
    sync(uri, folder)
    run = run_of(uri, folder.trials()[0])
    path = Path(urlsplit(run.info.artifact_uri).path) / "outcome.json"
    path.unlink()
    assert sync(uri, folder) == 1
    assert path.exists()
    assert sync(uri, folder) == 0


def test_a_name_that_somebody_gave_a_run_stays(uri, folder):
    sync(uri, folder)
    trial = folder.trials()[0]
    MlflowClient(tracking_uri=uri).update_run(run_of(uri, trial).info.run_id, name="the good one")
    assert sync(uri, folder) == 0
    assert run_of(uri, trial).info.run_name == "the good one"


def test_the_records_of_an_unfinished_trial_are_logged(uri, folder):
    cut = folder.trials()[2]
    sync(uri, folder)
    run = run_of(uri, cut)
    assert run.info.status == "KILLED"
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [40, 80, 120]
    with (folder.run_directory(cut) / "records.jsonl").open("a") as out:
        out.write(record(160, 4.0, {"train/loss": 0.7}).to_json() + "\n")
    assert sync(uri, folder) == 1
    assert run_of(uri, cut).data.metrics["train/loss"] == 0.7


def test_a_trial_that_never_began_has_no_run(uri, tmp_path):
    folder = mixed_study(tmp_path / "mixed")
    sync(uri, folder)
    *_, never = folder.trials()
    assert never.key not in {run.data.tags["mambaout.key"] for run in living(uri)}


def test_values_that_are_no_number_are_not_missing(uri, folder):
    one = folder.trials()[0]
    with (folder.run_directory(one) / "records.jsonl").open("a") as out:
        values = {"train/loss": float("nan"), "minival/loss": float("inf")}
        out.write(record(440, 11.0, values).to_json() + "\n")
    sync(uri, folder)
    assert sync(uri, folder, closely=False) == 0
    assert sync(uri, folder) == 0


def test_what_sync_deletes_can_be_restored(uri, folder):
    sync(uri, folder)
    client = MlflowClient(tracking_uri=uri)
    old = run_of(uri, folder.trials()[0]).info.run_id
    client.delete_run(old)
    sync(uri, folder)
    experiment = client.get_experiment_by_name("mambaout/scale")
    assert experiment is not None
    deleted = client.search_runs([experiment.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert [run.info.run_id for run in deleted] == [old]
