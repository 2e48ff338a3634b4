"""Predict, then run: what is written down, when, and what it is made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from study_files import SMALL, finish, scaling_study, sized, start, write_study

from mambaout.endings import Ending
from mambaout.study.law.prediction import PREDICTION_FILE, family, predict, read_predictions
from mambaout.study.report.findings import answer
from mambaout.study.report.reading import read
from mambaout.study.study import Study, StudyFolder


def study_with(predicted: str, study: Study) -> Study:
    largest = {predicted: sized(48, 6)}
    return replace(study, recipes={**study.recipes, **largest}, predicted=(predicted,))


def all_but(folder: StudyFolder, label: str, noise: float = 0.1) -> None:
    for trial in folder.trials():
        if trial.label != label:
            finish(folder, trial, noise)


def written(folder: StudyFolder) -> dict:
    (one,) = json.loads((folder.path / PREDICTION_FILE).read_text())["predictions"]
    return one


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return write_study(tmp_path, study_with("w48-d6", scaling_study()))


def test_the_largest_is_predicted_from_the_sizes_that_differ_in_the_network_alone(folder):
    all_but(folder, "w48-d6")
    said = predict(folder)
    found = written(folder)
    assert set(found["sizes"]) == {f"w{w}-d{d}" for w in (8, 16, 32) for d in (2, 6)}
    one, two = found["intervals"]
    assert one["low"] < two["low"] < found["predicted"] < two["high"] < one["high"]
    assert "for the mean of 2 seeds" in said
    assert f"{found['predicted']:.2f} %" in said
    assert found["label"] == "w48-d6"
    assert "begun" not in found


def test_a_prediction_is_not_made_again_once_its_trial_has_begun(folder):
    all_but(folder, "w48-d6")
    predict(folder)
    before = written(folder)
    small, *_ = folder.trials()
    outcome = folder.run_directory(small) / "outcome.json"
    outcome.write_text(outcome.read_text().replace('"top1": ', '"top1": 1'))
    (largest, *_) = (trial for trial in folder.trials() if trial.label == "w48-d6")
    start(folder, largest)
    predict(folder)
    assert written(folder) == before


def test_two_sizes_are_predicted_from_the_others_alone_before_either_is_trained(tmp_path):
    study = scaling_study()
    largest = {"w48-d6": sized(48, 6), "w64-d6": sized(64, 6)}
    both = replace(study, recipes={**study.recipes, **largest}, predicted=tuple(largest))
    folder = write_study(tmp_path, both)
    for trial in folder.trials():
        if not trial.is_predicted:
            finish(folder, trial, 0.1)
    said = predict(folder)
    found = read_predictions(folder)
    assert [one["label"] for one in found] == list(largest)
    assert found[0]["sizes"] == found[1]["sizes"]
    assert not set(largest) & set(found[0]["sizes"])
    assert found[0]["cost"] < found[1]["cost"]
    assert said.count("predicted before it is trained") == 2
    told = "\n".join(answer(read(folder)))
    assert told.count("it has not finished yet") == 2


def test_a_prediction_that_came_after_the_training_began_says_so(folder):
    all_but(folder, "w48-d6")
    (largest, *_) = (trial for trial in folder.trials() if trial.label == "w48-d6")
    start(folder, largest)
    predict(folder)
    assert written(folder)["begun"] is True


def test_too_few_sizes_give_no_prediction_and_the_reason(tmp_path):
    few = Study(name="few", question="?", recipes={"a": sized(8, 2), "b": sized(16, 2)})
    folder = write_study(tmp_path, study_with("w48-d6", few))
    all_but(folder, "w48-d6")
    assert "at least 4" in predict(folder)
    assert "predicted" not in written(folder)
    assert "at least 4" in written(folder)["refused"]


def test_a_diverged_or_unfinished_size_is_no_part_of_the_family(folder):
    all_but(folder, "w48-d6")
    runs = folder.runs()
    diverged = {"w8-d2": Ending.DIVERGED}
    spoilt = [replace(run, status=diverged.get(run.trial.label, run.status)) for run in runs]
    labels = {size.label for size in family(SMALL, spoilt)}
    assert labels == {"w8-d6", "w16-d2", "w16-d6", "w32-d2", "w32-d6"}
