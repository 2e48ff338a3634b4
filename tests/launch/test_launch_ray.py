"""Studies on a real Ray: killed, interrupted, broken, and always the result of a quiet run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import TESTS
from tiny_sweep import recipe

from mambaout.recipe import canonical_json, tuned
from mambaout.study.study import Run, StudyFolder, Trial
from mambaout.train import metrics

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    # MLflow 3.17 calls what SQLAlchemy 2.1 is about to drop.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]

SCRIPT = TESTS / "tiny_sweep.py"
ROOT = SCRIPT.parent.parent
NAME = "tiny-digits"


class Driver:
    """The tiny sweep in a process group of its own."""

    def __init__(self, storage: Path, *options: str, labels: str) -> None:
        self.log = storage.parent / f"driver-{time.monotonic_ns()}.log"
        command = [sys.executable, str(SCRIPT), "--data", "digits", "--storage", str(storage)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment | {"TINY_LABELS": labels},
                start_new_session=True,
            )

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert self.process.poll() is None, f"the driver ended early:\n{self.text}"
            assert time.monotonic() < deadline, f"not within 120 s:\n{self.text}"
            time.sleep(0.02)

    def ends(self) -> int:
        try:
            return self.process.wait(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"the driver did not end:\n{self.text}") from None

    @property
    def text(self) -> str:
        return self.log.read_text()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def trial(label: str, data: Any) -> Trial:
    return Trial(label=label, recipe=recipe(label), seed=0, data=data.fingerprint)


@pytest.fixture(scope="module")
def quiet_runs(digits, tmp_path_factory) -> dict[str, Run]:
    """What the trials come to where nothing disturbs them: trained here, without Ray."""
    from mambaout.train.backend import backend
    from mambaout.train.loop import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = StudyFolder(tmp_path_factory.mktemp("quiet"), NAME)
    found = {}
    for label in ("thin", "wide"):
        mine = trial(label, digits)
        train(mine.recipe, digits, out=folder.run_directory(mine), backend=backend("cpu"))
        found[label] = folder.run(mine)
    torch.set_num_threads(threads)
    return found


def learned(run: Run) -> list[tuple[int, int, dict[str, float]]]:
    """The part of a run's records that does not depend on how fast the machine was."""
    names = [metrics.TRAIN_LOSS, metrics.TRAIN_LR]
    names += [
        f"{split}/{what}" for split in ("minival", "val") for what in ("top1", "top5", "loss")
    ]
    return [
        (r.step, r.images_seen, {n: r.values[n] for n in names if n in r.values})
        for r in run.records
    ]


def assert_equal(run: Run, quiet: Run) -> None:
    assert run.status == quiet.status == "finished"
    for name in (metrics.TOP1, metrics.TOP5, metrics.MINIVAL_TOP1, metrics.MACS, metrics.PARAMS):
        assert run.metrics[name] == quiet.metrics[name], name
    assert learned(run) == learned(quiet)


def mlflow_runs(storage: Path) -> dict[str, list[str]]:
    """Trial name -> the statuses of its MLflow runs."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    statuses: dict[str, list[str]] = {}
    for run in client.search_runs(experiments):
        statuses.setdefault(str(run.info.run_name), []).append(run.info.status)
    return statuses


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


def test_a_second_signal_ends_the_launch_at_once_and_it_still_says_how_to_go_on(storage, digits):
    folder = StudyFolder(storage, NAME)
    driver = Driver(storage, "--max-concurrent", "1", labels="thin,wide")
    started = [folder.run_directory(trial(name, digits)) / "last.ckpt" for name in ("thin", "wide")]
    driver.wait_for(lambda: any(path.exists() for path in started))
    os.kill(driver.process.pid, signal.SIGINT)
    driver.wait_for(lambda: "Ctrl-C again" in driver.text)
    os.kill(driver.process.pid, signal.SIGINT)
    assert driver.ends() == 130, driver.text
    assert "to go on: python" in driver.text


def test_a_killed_driver_and_an_interrupted_one_are_resumed_by_the_same_command(
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
    assert driver.ends() == 130, driver.text
    assert "to go on: python" in driver.text
    assert "did not finish" in driver.text

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
