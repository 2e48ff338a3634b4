"""A study of detectors on a real Ray and MLflow: trained, killed, gone on with, reported."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT

from mambaout.study.study import StudyFolder
from mambaout.study.tracking.store import default_tracking_uri

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]

NAME = "detect-smoke-shapes"
SWEEP = [sys.executable, str(ROOT / "sweeps" / "detect.py"), "--smoke"]
# Long enough to be killed in the middle.
ASKED = ["--variants", "w12-d5", "--epochs", "6", "--micro-batch", "3"]


def environment() -> dict[str, str]:
    found = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
    return found | {"PYTHONPATH": str(ROOT)}


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=300)


def killed_in_training(command: list[str], storage: Path) -> None:
    """Start the study and kill its whole process group once a checkpoint is there."""
    driver = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env=environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not list(storage.glob("*/trials/*/last.ckpt")):
        assert driver.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


def test_a_killed_study_of_detectors_goes_on_and_ends_as_its_command_alone_does(tmp_path):
    storage = tmp_path / "runs"
    command = [*SWEEP, *ASKED, "--storage", str(storage)]
    killed_in_training(command, storage)
    study = ran(*command)
    assert study.returncode == 0, study.stdout + study.stderr
    (found,) = storage.glob("detect-*")
    folder = StudyFolder(storage, found.name)
    (run,) = folder.runs()
    assert run.status == "finished"
    assert [record.epoch for record in run.records] == sorted({r.epoch for r in run.records})

    # MLflow has each step once, and the pictures.
    from mlflow.tracking import MlflowClient

    client = MlflowClient(default_tracking_uri(storage))
    experiment = client.get_experiment_by_name(f"mambaout/{found.name}")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id], "tags.`mambaout.role` = 'trial'")
    history = client.get_metric_history(tracked.info.run_id, "val/box_ap")
    assert [one.step for one in history] == [2, 4, 6, 8, 10, 12]
    assert {"macs", "params", "images_per_second", "box_ap", "mask_ap"} <= set(tracked.data.metrics)
    assert "predictions.png" in {one.path for one in client.list_artifacts(tracked.info.run_id)}

    report = (found / "report.html").read_text()
    assert "data:image/jpeg" in report, "the pictures of predictions"
    assert "box AP" in report
    told = (found / "results.md").read_text().splitlines()
    (line,) = [text for text in told if text.startswith("mambaout train")]
    words = shlex.split(line)
    again = tmp_path / "again"
    words[words.index("--out") + 1] = str(again)
    alone = ran(sys.executable, "-m", *words)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    body = json.loads((again / "outcome.json").read_text())
    assert {name: body["metrics"][name] for name in ("box_ap", "mask_ap")} == {
        name: run.metrics[name] for name in ("box_ap", "mask_ap")
    }

    more = ran(*command)
    assert more.returncode == 0
    assert "1 trial, 1 of them over" in more.stdout
    listed = ran(sys.executable, "-m", "mambaout", "list", "--storage", str(storage))
    assert "box AP" in listed.stdout, listed.stdout + listed.stderr
