"""Studies on a real Ray: killed, interrupted, broken, and always the result of a quiet run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from drivers import NAME, Driver, assert_equal, mlflow_runs, trial

from mambaout.recipe import canonical_json, tuned
from mambaout.study.study import Run, StudyFolder

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    # MLflow 3.17 calls what SQLAlchemy 2.1 is about to drop.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def quiet_runs(quiet_study, digits) -> dict[str, Run]:
    return {label: quiet_study.run(trial(label, digits)) for label in ("thin", "wide")}


def outcome_times(folder: StudyFolder) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.path.glob("trials/*/outcome.json")}


def test_a_killed_worker_changes_no_result_and_a_broken_trial_stops_no_other(
    storage, digits, quiet_runs
):
    folder, thin, wide = StudyFolder(storage, NAME), trial("thin", digits), trial("wide", digits)
    thin_directory, wide_directory = folder.run_directory(thin), folder.run_directory(wide)
    wide_directory.mkdir(parents=True)
    foreign = canonical_json(tuned(wide.recipe, epochs=3))
    (wide_directory / "recipe.json").write_text(foreign)

    driver = Driver(storage, labels="thin,wide")
    driver.wait_for((thin_directory / "last.ckpt").exists)
    worker = json.loads((thin_directory / ".lock").read_text())["pid"]
    os.kill(worker, signal.SIGKILL)
    assert driver.ends() == 1, driver.text
    assert_equal(folder.run(thin), quiet_runs["thin"])
    (failure,) = map(json.loads, (thin_directory / "failures.jsonl").read_text().splitlines())
    assert failure["kind"] == "preempted"
    assert 0 < failure["step"] < thin.recipe.schedule.epochs * 16  # between two epochs' ends
    same_twice = (wide_directory / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in same_twice] == ["broken", "broken"]
    assert "1 of 2 trials did not finish" in driver.text
    assert "holds a run of another recipe" in driver.text
    expected = {NAME: ["FAILED"], "thin-s0": ["FINISHED"], "wide-s0": ["FAILED"]}
    assert mlflow_runs(storage) == expected
    assert "raylet" not in driver.text
    assert "Traceback" not in driver.text


def test_a_killed_driver_and_one_interrupted_twice_are_resumed_by_the_same_command(
    storage, digits, quiet_runs
):
    folder = StudyFolder(storage, NAME)
    thin, wide = trial("thin", digits), trial("wide", digits)
    started = [folder.run_directory(t) / "last.ckpt" for t in (thin, wide)]

    driver = Driver(storage, "--max-concurrent", "1", labels="thin,wide")
    driver.wait_for(lambda: any(path.exists() for path in started))
    os.killpg(driver.process.pid, signal.SIGKILL)
    assert driver.ends() == -signal.SIGKILL
    unfinished = [t for t in (thin, wide) if folder.run(t).status == "unfinished"]
    assert unfinished, "the kill came too late to show anything"

    driver = Driver(storage, "--max-concurrent", "1", labels="thin,wide")
    driver.wait_for(lambda: bool(driver.text) and all(path.exists() for path in started))
    os.kill(driver.process.pid, signal.SIGINT)
    driver.wait_for(lambda: "Ctrl-C again" in driver.text)
    os.kill(driver.process.pid, signal.SIGINT)  # ends it at once, and it still says how to go on
    assert driver.ends() == 130, driver.text
    assert "to go on: python" in driver.text

    driver = Driver(storage, labels="thin,wide")
    assert driver.ends() == 0, driver.text
    for mine in (thin, wide):
        assert_equal(folder.run(mine), quiet_runs[mine.label])
    expected = {name: ["FINISHED"] for name in (NAME, "thin-s0", "wide-s0")}
    assert mlflow_runs(storage) == expected

    before = outcome_times(folder)
    driver = Driver(storage, labels="thin,wide")
    assert driver.ends() == 0, driver.text
    assert "2 trials, 2 of them over" in driver.text
    assert outcome_times(folder) == before, "a finished trial ran again"
    assert mlflow_runs(storage) == expected
    assert not list(folder.path.glob(".launch/*"))
