"""The worker's set-up, which trials and calibrations share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mambaout.errors import WrongRequest
from mambaout.launch import calibrate
from mambaout.launch.task import Task
from mambaout.launch.trial import train_trial
from mambaout.launch.worker import WorkerSetup
from mambaout.recipe import Recipe, canonical_json
from mambaout.study.study import Trial

PLACE = {"data": "digits", "backend": "cpu", "cpus": 1, "num_workers": 0}


def refused_by_a_trial(storage: Path, recipe: Recipe, fingerprint: str) -> None:
    task = Task(
        **PLACE, storage=str(storage), study="s", launch="a", stop_file=str(storage / "stop"),
        commit="c", trainer="",
    )  # fmt: skip
    trial = Trial(label="thin", recipe=recipe, seed=0, data=fingerprint)
    train_trial(task, trial, storage / "run", lambda record: None, lambda: False)


def refused_by_a_calibration(storage: Path, recipe: Recipe, fingerprint: str) -> None:
    setup = WorkerSetup(**PLACE, storage=str(storage))
    calibrate._calibrate(setup, canonical_json(recipe), fingerprint, 0.1)


@pytest.mark.parametrize("begin", [refused_by_a_trial, refused_by_a_calibration])
def test_a_worker_refuses_data_that_are_not_those_of_the_study(
    digits, tmp_path, tiny_recipe, begin
):
    with pytest.raises(WrongRequest, match=f"digits here is {digits.fingerprint}, and the study"):
        begin(tmp_path, tiny_recipe, "other")
    assert list(tmp_path.iterdir()) == []
