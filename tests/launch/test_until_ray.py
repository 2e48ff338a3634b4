"""Seeds that are added until a study knows enough, on a real Ray whose driver is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from places import TESTS

from mambaout.endings import Ending
from mambaout.study.law.noise import noise_of_runs
from mambaout.study.law.shape import gain_of_shape
from mambaout.study.origin import AddedSeed
from mambaout.study.report.families import families
from mambaout.study.report.ranking import standing
from mambaout.study.study import StudyFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(590)]

NAME = "shapes-digits"


def launch(storage: Path, *options: str) -> subprocess.Popen[str]:
    """The driver, in a process group of its own; its output goes to a file."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, str(TESTS / "tiny_shapes.py"), "--data", "digits", *options]
    with (storage.parent / "driver.log").open("w") as log:
        return subprocess.Popen(
            [*command, "--storage", str(storage)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=TESTS.parent,
            env=environment,
            text=True,
            start_new_session=True,
        )


def quiet(storage: Path, options: Sequence[str]) -> str:
    status = launch(storage, *options).wait(timeout=280)
    printed = (storage.parent / "driver.log").read_text()
    assert status == 0, printed
    return printed


def half_of(folder: StudyFolder) -> float:
    (family,) = families(standing(folder.runs()).rows)
    gain = gain_of_shape(family.sizes, noise_of_runs(folder.runs(), num_images=None))
    assert gain is not None
    return gain.high - gain.value


def test_a_killed_study_goes_on_adding_seeds_until_it_knows_enough(tmp_path):
    storage = tmp_path / "runs"
    folder = StudyFolder(storage, NAME)
    quiet(storage, ["--seeds", "2"])
    before = half_of(folder)
    until = ["--seeds", "2", "--until", f"{0.8 * before:.3f}"]
    driver = launch(storage, *until)
    deadline = time.monotonic() + 200
    while not any(AddedSeed() in trial.origins for trial in folder.trials()):
        assert driver.poll() is None, (storage.parent / "driver.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    decided = [trial.name for trial in folder.trials()]
    printed = quiet(storage, until)
    trials = folder.trials()
    assert [trial.name for trial in trials][: len(decided)] == decided
    assert {run.status for run in folder.runs()} == {Ending.FINISHED}
    assert len({(trial.label, trial.seed) for trial in trials}) == len(trials)
    assert half_of(folder) <= 0.8 * before + 1e-3
    assert re.search(r"report: .*report.html", printed)
    assert "starting Ray" not in quiet(storage, until)
    # Without the option the added seeds stay a part of the study.
    quiet(storage, ["--seeds", "2"])
    assert [trial.key for trial in folder.trials()] == [trial.key for trial in trials]
