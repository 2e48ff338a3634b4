"""The report of a study of detectors or segmenters: what it says of scores, seeds and failures."""

from __future__ import annotations

import csv
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from mambaout.detect_recipe import DetectRecipe
from mambaout.endings import Ending
from mambaout.study.pairing import Pair, PairedGroup, Pairing
from mambaout.study.report.dense_report import PICTURES, dense_content, dense_summary
from mambaout.study.report.page import page
from mambaout.study.report.trial_files import csv_text, trial_lines
from mambaout.study.study import Run, StudyFolder, Trial
from mambaout.train.metrics import MACS, PARAMS
from mambaout.train.tasks import SHEET

STUDY = {"name": "boxes", "question": "Which?", "task": "detect"}


def run(label: str, seed: int, ap: float | None, status: Ending = Ending.FINISHED, **facts) -> Run:
    # Noise is pooled by recipe, so each label has its own.
    recipe = DetectRecipe(peak_lr=1e-4 * (1 + ord(label[0]) % 2))
    trial = Trial(label=label, recipe=recipe, seed=seed, data="d")
    metrics = {} if ap is None else {"box_ap": ap, "box_ap50": 2 * ap, MACS: 1e9, PARAMS: 1e6}
    return Run(trial=trial, status=status, metrics=metrics, facts=facts)


def content(tmp_path: Path, *runs: Run):
    return dense_content(StudyFolder(tmp_path, "boxes"), runs, STUDY)


def test_recipes_are_ranked_by_the_mean_of_their_seeds(tmp_path):
    runs = [run("a", 0, 9.0), run("a", 1, 1.0), run("b", 0, 6.0), run("b", 1, 6.5)]
    said = content(tmp_path, *runs)
    assert [row.label for row in said.table] == ["b", "a"]
    assert said.said[0].startswith("b reaches box AP 6.25")
    assert said.said[0].endswith("the highest here.")
    assert "Bars" in said.captions["score_macs.png"]


def test_one_seed_a_recipe_is_said_not_to_tell_luck(tmp_path):
    said = content(tmp_path, run("a", 0, 9.0), run("b", 0, 6.0))
    assert said.said[-1].endswith("this does not tell a better one from luck.")
    assert "n: the number of seeds." in said.ranked.legend[0]


def test_val_is_said_to_choose_and_score(tmp_path):
    assert "Val both ranks and scores here" in content(tmp_path, run("a", 0, 9.0)).notes[0]


def test_a_diverged_trial_is_named_so_and_not_said_to_go_on(tmp_path):
    said = content(tmp_path, run("a", 0, 9.0), run("b", 0, None, Ending.DIVERGED)).said
    assert said[0] == "Provisional: 1 diverged (b-s0); they are not in these numbers."
    assert said[1].startswith("a reaches box AP 9")


def test_a_seed_that_has_not_finished_is_counted_beside_one_that_has(tmp_path):
    said = content(tmp_path, run("a", 0, 9.0), run("a", 1, None, Ending.UNFINISHED)).said
    assert said[0].startswith("Provisional: 1 of 2 trials have not finished")


def test_a_study_without_a_result_says_so_and_has_no_best_trial(tmp_path):
    said = content(tmp_path, run("a", 0, None, Ending.UNFINISHED))
    assert said.said[-1] == "No trial has a result yet."
    assert said.best_run is None
    assert "mambaout export" not in dense_summary(StudyFolder(tmp_path, "boxes"), [], STUDY)


def test_detectors_that_are_compared_within_a_seed_have_the_gate_first(tmp_path):
    pairing = Pairing(
        what="mixers",
        groups=(PairedGroup(labels={"identity": "a", "gated_conv": "b"}),),
        pairs=(),
        gate=Pair("identity", "gated_conv"),
    )
    runs = [run("a", seed, 2.0 + seed / 9) for seed in range(3)]
    runs += [run("b", seed, 6.0 + seed / 10) for seed in range(3)]
    study = STUDY | {"pairing": pairing.to_json()}
    folder = StudyFolder(tmp_path, "boxes")
    found = dense_content(folder, runs, study)
    assert found.said[0].startswith("The gate is open: identity loses to gated_conv by 3.99 points")
    assert found.sections[0].title == "The mixers"
    assert "paired.png" in found.pictures
    assert "the gate is open" in dense_summary(folder, runs, study).lower()


def test_scores_of_zero_are_no_answer(tmp_path):
    said = content(tmp_path, run("a", 0, 0.0), run("b", 0, 0.0)).said
    assert said == ["No recipe has found anything yet: train longer."]


def test_a_set_without_masks_has_no_column_of_masks(tmp_path):
    header = content(tmp_path, run("a", 0, 9.0)).ranked.header
    assert "box AP50 %" in header
    assert "mask AP %" not in header


def test_the_pictures_are_of_the_highest_trial_and_missing_ones_are_left_out(tmp_path):
    runs = [run("a", 0, 9.0), run("b", 0, 6.0)]
    assert PICTURES not in content(tmp_path, *runs).pictures
    folder = StudyFolder(tmp_path, "boxes")
    folder.run_directory(runs[0].trial).mkdir(parents=True)
    (folder.run_directory(runs[0].trial) / SHEET).write_bytes(b"")
    said = content(tmp_path, *runs)
    assert PICTURES in said.pictures
    assert said.captions[PICTURES].startswith("a-s0: ")
    assert "What the best trial sees" in [section.title for section in said.sections]


def test_tags_in_names_are_text_on_the_page(tmp_path):
    one = run("<b>cat</b>", 0, 9.0, data_name="<i>photos</i>, 猫", error="<script>")
    said = content(tmp_path, one)
    html = page(said, {name: b"" for name in said.pictures}, {one.trial.key: "a <b>"}, {})
    assert "&lt;b&gt;cat&lt;/b&gt;" in html
    assert "&lt;i&gt;photos&lt;/i&gt;, 猫" in html
    assert not any(tag in html for tag in ("<b>cat", "<i>photos", "<script>", "a <b>"))
    assert "<li>1 trial</li>" in html


def test_what_is_left_out_of_the_training_is_json_in_the_table(tmp_path):
    one = run("a", 0, 9.0, left_out={"crowds": 4}, macs_image_size=[64, 96])
    lines = trial_lines(StudyFolder(tmp_path, "boxes"), [one], {one.trial.key: "train, 'it'"})
    (row,) = csv.DictReader(io.StringIO(csv_text(lines)))
    assert json.loads(row["left_out"]) == {"crowds": 4}
    assert json.loads(row["macs_image_size"]) == [64, 96]
    assert row["command"] == "train, 'it'"


@pytest.mark.parametrize("macs", [7_940_000, 239_483_488, 1e9])
def test_recipes_of_one_network_are_drawn_without_a_warning(macs, tmp_path):
    runs = [run(label, seed, 9.0 + seed) for label in "ab" for seed in (0, 1)]
    runs = [replace(one, metrics={**one.metrics, MACS: macs}) for one in runs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert content(tmp_path, *runs).pictures["score_macs.png"]().startswith(b"\x89PNG")
