"""Studies on a real Ray: a rerun that is interrupted goes on, and a bug costs no result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from drivers import NAME, Driver, assert_equal, mlflow_runs, trial
from places import PATHS

from mambaout.launch.rerun import RERUN_FILE
from mambaout.study.study import StudyFolder

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # MLflow 3.17 calls what SQLAlchemy 2.1 is about to drop.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


def test_an_interrupted_rerun_goes_on_by_the_command_it_prints_and_by_the_same_one(
    tmp_path, digits, quiet_study
):
    storage = tmp_path / "runs"
    folder, labels = StudyFolder(storage, NAME), "thin,wide"
    trials = [trial(label, digits) for label in labels.split(",")]
    shutil.copytree(quiet_study.path, folder.path)  # finished trials, without a launch of their own
    first = Driver(storage, labels=labels)
    assert first.ends() == 0, first.text
    # The same trials, finished in a study beside this one, which a rerun leaves alone.
    other = Driver(storage, "--name", "other", labels=labels)
    assert other.ends() == 0, other.text
    assert "taken from there" in other.text
    assert "starting Ray" not in first.text + other.text

    rerun = ("--rerun", "--max-concurrent", "1")
    driver = Driver(storage, *rerun, labels=labels)
    driver.wait_for(
        lambda: (
            "starting Ray" in driver.text
            and any((folder.run_directory(each) / "last.ckpt").exists() for each in trials)
        )
    )
    os.kill(driver.process.pid, signal.SIGINT)
    assert driver.ends() == 130, driver.text
    assert "did not finish" in driver.text
    (line,) = [line for line in driver.text.splitlines() if line.startswith("to go on: ")]
    assert "--rerun" not in line
    assert "--max-concurrent 1" in line
    assert "--rerun" not in json.loads((folder.path / "study.json").read_text())["command"]
    assert (folder.path / RERUN_FILE).exists()
    begun = {
        each.key: (folder.run_directory(each) / "records.jsonl").read_text().splitlines()
        for each in trials
        if (folder.run_directory(each) / "records.jsonl").exists()
    }

    # The very same command, as a job that is submitted again gives it.
    driver = Driver(storage, *rerun, labels=labels)
    assert driver.ends() == 0, driver.text
    assert "--rerun: the rerun of" in driver.text
    assert "taken from there" not in driver.text
    assert len(list((folder.path / "aside").iterdir())) == 1
    assert not (folder.path / RERUN_FILE).exists()
    for each in trials:
        assert_equal(folder.run(each), quiet_study.run(each))
        assert not (folder.run_directory(each) / "reused.json").exists()
        lines = (folder.run_directory(each) / "records.jsonl").read_text().splitlines()
        kept = begun.get(each.key, [])
        assert lines[: len(kept)] == kept, "it went on from there"
    assert mlflow_runs(storage) | {"other": ["FINISHED"]} == mlflow_runs(storage)


# What is broken in the driver's process, and the launch of tests/tiny_sweep.py in it.
BROKEN = """
import sys
from mambaout.errors import WrongRequest
from mambaout.launch.cli import main
from mambaout.study.report import study_report as report
from mambaout.study.search.chain import Chain
from tiny_sweep import tiny

def broken(*_, **__):
    list(zip([1], [], strict=True))

def refused(*_, **__):
    raise WrongRequest("the search's database is gone")

sys.argv[0] = "tiny_sweep.py"
what = sys.argv.pop(1)
if what == "summary":
    report.terminal_text = broken
if what == "agenda":
    Chain.ended = broken
if what == "request":
    Chain.ended = refused
sys.exit(main(tiny))
"""


def launched(what: str, storage: Path) -> subprocess.CompletedProcess[str]:
    """Launch the sweep with something broken."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    words = ["--data", "digits", "--storage", str(storage), "--max-concurrent", "1"]
    return subprocess.run(
        [sys.executable, "-c", BROKEN, what, *words],
        env=environment | {"PYTHONPATH": PATHS, "TINY_LABELS": "thin,wide", "TINY_EPOCHS": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_bug_in_the_table_is_raised_once_the_results_are_saved(tmp_path, digits):
    storage = tmp_path / "runs"
    done = launched("summary", storage)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" in done.stderr
    assert "in broken" in done.stderr
    assert "in all; report: " in done.stdout
    assert (storage / NAME / "trials.csv").read_text().count(",finished,") == 2
    assert set(map(tuple, mlflow_runs(storage).values())) == {("FINISHED",)}


def test_a_bug_in_the_event_loop_stops_the_study_which_says_how_to_go_on(tmp_path, digits):
    storage = tmp_path / "runs"
    done = launched("agenda", storage)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" in done.stderr
    assert "in broken" in done.stderr
    assert "the study cannot go on (ValueError: zip()" in done.stdout
    assert "to go on: python" in done.stdout
    assert (storage / NAME / "trials.csv").read_text().count(",finished,") >= 1
    assert mlflow_runs(storage)[NAME] == ["FAILED"]


def test_a_wrong_request_that_comes_out_after_trials_began_is_one_line_and_status_1(
    tmp_path, digits
):
    storage = tmp_path / "runs"
    done = launched("request", storage)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("tiny_sweep.py: the search's database is gone;")
    assert "the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert "to go on: python" in done.stdout
