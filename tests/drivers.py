"""Launches of the tiny sweep in processes of their own, and what is compared of their results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from places import ROOT, TESTS
from tiny_sweep import recipe

from mambaout.study.study import Run, Trial
from mambaout.train import metrics

SCRIPT = TESTS / "tiny_sweep.py"
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


def trial(label: str, data: Any) -> Trial:
    return Trial(label=label, recipe=recipe(label), seed=0, data=data.fingerprint)


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
