"""The main job on a folder of images that nobody prepared: on a real Ray, by its commands alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from image_files import encoded, image_folder, photograph
from places import ROOT

from mambaout.study.study import StudyFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

# `mambaout` may not be on the PATH of who runs the tests.
MAMBAOUT = [sys.executable, "-m", "mambaout"]


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240)


def test_a_folder_of_ninety_images_becomes_a_study_that_is_taken_further_by_name(tmp_path):
    folder = image_folder(tmp_path / "my photos", "{}/{}", count=90)
    (folder / ".git").mkdir()
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "a" / "000-odd.png").write_bytes(encoded(photograph(400, 300)))
    storage = ["--storage", str(tmp_path / "runs")]
    sweep = [sys.executable, str(ROOT / "sweeps" / "mine.py"), "--data", str(folder), *storage]
    asked = ["--grid", "kernel_size=3,5", "--epochs", "1", "--seeds", "1", "--dims", "8,8,16,16"]

    plan = ran(*sweep, *asked, "--plan")
    assert plan.returncode == 0, plan.stderr
    assert "what follows the data" in plan.stdout
    assert "short side 12 px (median)" in plan.stdout, "one odd image decides nothing"
    assert not (tmp_path / "runs").exists()

    study = ran(*sweep, *asked)
    assert study.returncode == 0, study.stdout + study.stderr
    assert "left out: 1 hidden folder (.git)" in study.stderr + study.stdout
    assert "\r" not in study.stdout + study.stderr
    (found,) = (tmp_path / "runs").glob("mine-*")
    assert found.name == "mine-kernel_size-my-photos-dims8-8-16-16-epochs1"
    written = json.loads((found / "study.json").read_text())
    assert written["given"] == {"dims": "8,8,16,16", "epochs": "1"}
    assert "--grid kernel_size=3,5 --epochs 1" in written["command"]
    runs = StudyFolder(tmp_path / "runs", found.name).runs()
    assert {run.status for run in runs} == {"finished"}
    assert {run.trial.recipe.model.kernel_size for run in runs} == {3, 5}
    assert {run.trial.recipe.schedule.epochs for run in runs} == {1}

    again = ran(*sweep, *asked)
    assert again.returncode == 0
    assert "2 trials, 2 of them over" in again.stdout

    name = f"{found.name}/kernel_size=3"
    weights = tmp_path / "weights.safetensors"
    assert "top-1" in ran(*MAMBAOUT, "evaluate", name, *storage).stdout
    exported = ran(*MAMBAOUT, "export", name, str(weights), *storage)
    assert exported.returncode == 0, exported.stderr
    loaded = ran(sys.executable, "-c", exported.stdout)
    assert loaded.returncode == 0, loaded.stderr
