"""What a trial of a detector costs is forecast from finished trials of its task and device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mambaout.accounting import Cost
from mambaout.detect_recipe import DetectRecipe
from mambaout.endings import Ending
from mambaout.study.price.dense_price import DenseForecast, DenseWork
from mambaout.study.price.rates import EVAL_SHARE
from mambaout.study.study import REUSED_FILE, Run, Trial
from mambaout.train.metrics import DEVICE, IMAGES_PER_SECOND, MACS, Record
from mambaout.train.tasks import DETECT, SEGMENT

HERE = "AMD EPYC (1 thread)"


def finished(storage: Path, key: str, macs: float, rate: float, **facts: str) -> Path:
    """A finished trial's outcome.json."""
    path = storage / "study" / "trials" / key / "outcome.json"
    path.parent.mkdir(parents=True)
    body = {
        "status": Ending.FINISHED,
        "metrics": {MACS: macs, IMAGES_PER_SECOND: rate},
        "facts": {"task": "detect", DEVICE: HERE, "precision": "fp32"} | facts,
    }
    path.write_text(json.dumps(body))
    return path


def forecast(storage: Path) -> DenseForecast:
    return DenseForecast(storage, DETECT, HERE)


def work(macs: int = 10**9, steps: int = 100) -> DenseWork:
    cost = Cost(macs=macs, params=10**6)
    return DenseWork(cost=cost, num_steps=steps, images=200, evaluated=30, num_evaluations=1)


TRIAL = Trial(label="a", recipe=DetectRecipe(), seed=0, data="d")


def test_a_network_that_was_trained_is_forecast_at_its_own_speed(tmp_path):
    finished(tmp_path, "one", 1e9, rate=4.0)
    assert forecast(tmp_path).train_image_seconds(10**9, "fp32") == pytest.approx(0.25)
    row = forecast(tmp_path).row(TRIAL, work(), None, ())
    assert row.seconds == pytest.approx((200 + EVAL_SHARE * 30) / 4)
    assert row.kind == "measured"


def test_networks_of_about_the_same_macs_count_more_than_far_ones(tmp_path):
    finished(tmp_path, "near", 1e9, rate=4.0)
    for key in ("far", "far2"):
        finished(tmp_path, key, 1e12, rate=4.0)
    assert forecast(tmp_path).train_image_seconds(10**9, "fp32") == pytest.approx(0.25)


@pytest.mark.parametrize(
    "facts", [{"task": "segment"}, {DEVICE: "another chip"}, {"precision": "bf16"}]
)
def test_another_task_device_or_precision_measures_nothing(tmp_path, facts):
    finished(tmp_path, "one", 1e9, rate=4.0, **facts)
    row = forecast(tmp_path).row(TRIAL, work(), None, ())
    assert row.kind == "assumed"
    assert "nothing has been measured" in forecast(tmp_path).basis([row])[0]


def test_a_trial_that_was_taken_over_is_not_measured_twice(tmp_path):
    path = finished(tmp_path, "one", 1e9, rate=4.0)
    (path.parent / REUSED_FILE).write_text("{}")
    assert not forecast(tmp_path).ratios


@pytest.mark.parametrize("content", ["", "\0\0"])
def test_an_outcome_that_a_power_loss_emptied_stops_no_plan(tmp_path, content):
    finished(tmp_path, "one", 1e9, rate=4.0).write_text(content)
    assert not forecast(tmp_path).ratios


def test_a_diverged_or_unmeasured_trial_measures_nothing(tmp_path):
    for key, rate, status in (("a", 4.0, Ending.DIVERGED), ("b", float("nan"), Ending.FINISHED)):
        path = finished(tmp_path, key, 1e9, rate)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status}))
    assert not forecast(tmp_path).ratios


def test_a_forecast_far_beyond_what_was_trained_says_so(tmp_path):
    finished(tmp_path, "one", 1e9, rate=4.0)
    near, far = (forecast(tmp_path).row(TRIAL, work(macs), None, ()) for macs in (10**9, 10**11))
    assert "extrapolated" not in forecast(tmp_path).basis([near])[0]
    text = forecast(tmp_path).basis([near, far])[0]
    assert "measured: from 1 finished trial on AMD EPYC" in text
    assert "the largest network here has 100 times the MACs of the largest" in text


def test_a_trial_that_has_begun_costs_what_is_left_and_a_finished_one_nothing(tmp_path):
    whole = forecast(tmp_path).row(TRIAL, work(), None, ())
    record = Record(step=75, epoch=0.0, images_seen=150, seconds=1.0, values={})
    begun = forecast(tmp_path).row(
        TRIAL, work(), Run(trial=TRIAL, status=Ending.UNFINISHED, records=[record]), ()
    )
    assert (begun.state, begun.seconds) == ("begun", pytest.approx(whole.seconds / 4))
    over = Run(trial=TRIAL, status=Ending.DIVERGED)
    rows = [
        forecast(tmp_path).row(TRIAL, work(), over, ()),
        forecast(tmp_path).row(TRIAL, work(), None, {TRIAL.key}),
    ]
    assert [(row.state, row.seconds) for row in rows] == [("finished", 0.0)] * 2


def test_a_segmentation_is_forecast_from_segmentations(tmp_path):
    finished(tmp_path, "one", 1e9, rate=4.0, task="segment")
    assert DenseForecast(tmp_path, SEGMENT, HERE).ratios
