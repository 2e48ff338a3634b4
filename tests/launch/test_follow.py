"""What follows a running study: tracking, the live lines and the report fail alone, and for now."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from study_files import DATA, finish, sized, write_study

from mambaout.errors import WrongRequest
from mambaout.launch import follow
from mambaout.launch.ending import Problems, StudyBroke
from mambaout.launch.follow import Duty, Follower
from mambaout.launch.progress import Job, Screen
from mambaout.launch.request import Request
from mambaout.launch.tune import run_study
from mambaout.study.report import study_report as report
from mambaout.study.report.study_report import NotWritten
from mambaout.study.study import Study, StudyFolder
from mambaout.study.tracking import tracker as tracking
from mambaout.study.tracking.store import default_tracking_uri

# MLflow 3.17 calls what SQLAlchemy 2.1 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

STUDY = Study(
    name="scale",
    question="What does width buy?",
    recipes={f"w{width}": sized(width, 2) for width in (8, 16, 32)},
)


def bug(*_: Any, **__: Any) -> Any:
    return list(zip([1], [], strict=True))


class Followed:
    """A follower of three trials, which the test begins and ends."""

    def __init__(self, storage: Path) -> None:
        self.folder, self.uri = write_study(storage, STUDY), default_tracking_uri(storage)
        self.trials, self.out = self.folder.trials(), io.StringIO()
        self.follower = Follower(
            STUDY,
            self.folder,
            [Job(trial=trial, num_steps=400, train_macs=1) for trial in self.trials],
            launch="one",
            slots=2,
            num_undecided=lambda: 0,
            tracking_uri=self.uri,
            tags={},
            screen=Screen(self.out),
        )

    def begin(self) -> None:
        self.follower.start()
        self.follower.wait_for_tracking()
        for trial in self.trials:
            self.follower.began(trial.key)

    def end(self, number: int) -> None:
        finish(self.folder, self.trials[number])
        self.follower.ended(self.trials[number].key)

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert time.monotonic() < deadline, self.out.getvalue()
            time.sleep(0.02)

    def statuses(self) -> dict[str, str]:
        """Of every MLflow run, by its name."""
        client = MlflowClient(tracking_uri=self.uri)
        experiments = [each.experiment_id for each in client.search_experiments()]
        return {str(run.info.run_name): run.info.status for run in client.search_runs(experiments)}

    @property
    def said(self) -> str:
        return self.out.getvalue()


@pytest.fixture
def followed(empty_store, tmp_path, monkeypatch) -> Followed:
    """Each event is an occasion for all that a follower does."""
    for name in ("POLL_SECONDS", "CATCH_UP_SECONDS", "REPORT_SECONDS", "REPORT_PAUSE"):
        monkeypatch.setattr(follow, name, 0.05 if name == "POLL_SECONDS" else 0.0)
    monkeypatch.setattr(Screen, "_interval", lambda self, moment: 0.0)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Followed(tmp_path)


ALL_OVER = {"scale": "FINISHED", "w8-s0": "FINISHED", "w16-s0": "FINISHED", "w32-s0": "FINISHED"}


def test_a_report_that_fails_at_first_is_written_later_and_tracking_and_lines_go_on(followed):
    in_the_way = followed.folder.path / "report.html" / "in the way"
    in_the_way.mkdir(parents=True)
    followed.begin()
    followed.end(0)
    followed.wait_for(lambda: "the report: failed (NotWritten: " in followed.said)
    assert (followed.folder.path / "trials.csv").read_text().count(",finished,") == 1
    followed.end(1)
    followed.wait_for(lambda: "2/3  w16-s0" in followed.said)
    shutil.rmtree(in_the_way.parent)
    followed.end(2)
    files = followed.follower.finish("FINISHED")
    assert "w32" in (followed.folder.path / "report.html").read_text()
    assert files[-1].name == "report.html"
    assert followed.follower.problems == []
    assert followed.statuses() == ALL_OVER
    assert followed.said.count("failed") == 1, "said once"


def test_a_report_that_never_works_costs_no_other_part_and_is_a_problem_at_the_end(
    followed, monkeypatch
):
    monkeypatch.setattr(report, "drawings", bug)
    followed.begin()
    for number in range(3):
        followed.end(number)
    followed.follower.finish("FINISHED")
    (problem,) = followed.follower.problems
    assert isinstance(problem, ValueError)
    assert followed.statuses() == ALL_OVER
    assert "3/3  w32-s0" in followed.said
    assert (followed.folder.path / "trials.csv").read_text().count(",finished,") == 3


def test_a_trial_whose_end_cannot_be_tracked_costs_no_other_and_is_tried_again(
    followed, monkeypatch
):
    broken, end_tags_of = ["w8"], tracking.end_tags_of

    def sometimes(run: Any) -> Any:
        return bug() if run.trial.label in broken else end_tags_of(run)

    monkeypatch.setattr(tracking, "end_tags_of", sometimes)
    followed.begin()
    followed.end(0)
    followed.wait_for(lambda: "MLflow: failed (ValueError: " in followed.said)
    followed.end(1)
    followed.wait_for(lambda: "2/3  w16-s0" in followed.said)
    broken.clear()
    followed.end(2)
    followed.follower.finish("FINISHED")
    assert followed.follower.problems == []
    assert followed.statuses() == ALL_OVER
    assert (followed.folder.path / "report.html").exists()
    assert followed.said.count("failed") == 1


def test_a_trial_whose_end_is_never_tracked_leaves_the_others_and_the_study_ended(
    followed, monkeypatch
):
    end_tags_of = tracking.end_tags_of
    monkeypatch.setattr(
        tracking, "end_tags_of", lambda run: bug() if run.trial.label == "w8" else end_tags_of(run)
    )
    followed.begin()
    for number in range(3):
        followed.end(number)
    files = followed.follower.finish("FINISHED")
    assert {type(problem) for problem in followed.follower.problems} == {ValueError}
    assert followed.statuses() == ALL_OVER | {"w8-s0": "RUNNING"}
    assert all(path.exists() for path in files)
    assert "3/3  w32-s0" in followed.said


def test_live_lines_that_fail_cost_neither_tracking_nor_the_report(followed, monkeypatch):
    monkeypatch.setattr(follow, "status_lines", bug)
    followed.begin()
    followed.wait_for(lambda: "the live lines: failed (ValueError: " in followed.said)
    for number in range(3):
        followed.end(number)
    files = followed.follower.finish("FINISHED")
    assert [str(problem)[:5] for problem in followed.follower.problems] == ["zip()"]
    assert followed.statuses() == ALL_OVER
    assert all(path.exists() for path in files)
    assert "3/3  w32-s0" in followed.said
    assert followed.said.count("failed") == 1


def test_a_duty_says_each_type_of_error_once_and_owes_what_failed():
    out, errors = io.StringIO(), [OSError("a"), OSError("b"), KeyError("c")]
    duty = Duty("the report", Screen(out))

    def work() -> None:
        if errors:
            raise errors.pop(0)

    assert not duty.do("files", work)
    assert [str(error) for error in duty.problems] == ["a"]
    duty.try_again()
    duty.try_again()
    assert out.getvalue().count("the report: failed") == 2
    duty.try_again()
    assert duty.problems == []


# -- the end of a launch --------------------------------------------------------------------------


def finished_request(storage: Path, empty_store: Path) -> tuple[Request, StudyFolder]:
    """Of a study whose trials are over: it starts no Ray, and reports."""
    folder = write_study(storage, STUDY)
    for trial in folder.trials():
        finish(folder, trial)
    shutil.copy(empty_store, storage / "mlflow.db")
    request = Request(
        study=STUDY,
        trials=folder.trials(),
        job=lambda trial: Job(trial=trial, num_steps=400, train_macs=1),
        num_images=lambda split, recipe: 1000,
        fingerprint=DATA,
        data="digits",
        data_name="digits",
        storage=storage,
        name="scale",
        tracking_uri=default_tracking_uri(storage),
        accelerator="cpu",
    )
    return request, folder


@pytest.mark.parametrize("name", ["ranked_cells", "drawings", "terminal_text"])
def test_a_bug_in_the_summary_or_the_report_is_raised_once_all_is_saved(
    name, empty_store, tmp_path, monkeypatch, capsys
):
    request, folder = finished_request(tmp_path, empty_store)
    monkeypatch.setattr(report, name, bug)
    with pytest.raises((ValueError, ExceptionGroup)) as raised:
        run_study(request)
    assert not isinstance(raised.value, WrongRequest)
    assert (folder.path / "trials.csv").read_text().count(",finished,") == 3
    client = MlflowClient(tracking_uri=request.tracking_uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    assert {run.info.status for run in client.search_runs(experiments)} == {"FINISHED"}
    assert "MLflow: " in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_said_after_the_results(empty_store, tmp_path, capsys):
    request, folder = finished_request(tmp_path, empty_store)
    (folder.path / "report.html" / "in the way").mkdir(parents=True)
    with pytest.raises(NotWritten, match="the report cannot be written to"):
        run_study(request)
    assert "w32" in capsys.readouterr().out


def test_what_a_user_can_mend_is_no_wrong_request_once_trials_began():
    found = Problems()
    assert found.tried(lambda: 3, 0) == 3
    found.raise_all("scale", began=True)

    def vanished() -> int:
        raise WrongRequest("the shard is gone")

    assert found.tried(vanished, 0) == 0
    with pytest.raises(WrongRequest, match="the shard is gone"):
        found.raise_all("scale", began=False)
    with pytest.raises(StudyBroke, match=r"the shard is gone; once .* the same command goes on"):
        found.raise_all("scale", began=True)
    found.tried(bug, None)
    with pytest.raises(ValueError, match="zip"):  # a bug comes first: it keeps its traceback
        found.raise_all("scale", began=True)
    found.tried(bug, None)
    with pytest.raises(ExceptionGroup, match="study scale: 2 failures"):
        found.raise_all("scale", began=True)
