"""What a ranking is worth: chance, small minivals, single seeds, confirmed recipes."""

from __future__ import annotations

import csv
import io
import random
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_files import (
    SMALL,
    final_metrics,
    finish,
    finished_study,
    mixed_study,
    scaling_study,
    searched_study,
    sized,
    write_outcome,
    write_study,
)

from mambaout.numbers import count_text
from mambaout.recipe import tuned
from mambaout.study.report.charts import COST_AXES
from mambaout.study.report.findings import answer
from mambaout.study.report.ranking import half_width, standing
from mambaout.study.report.reading import read
from mambaout.study.report.study_report import ranked_table, summary, write_report
from mambaout.study.report.tables import ranked_cells
from mambaout.study.study import Study, StudyFolder

GRID = scaling_study().recipes


def study_at(
    storage: Path,
    top1: Mapping[str, Sequence[float]],
    facts: dict[str, Any],
    study_facts: dict[str, Any] | None = None,
) -> StudyFolder:
    """A finished study whose recipes ended at these values of top-1, one a seed, on minival and
    val, with these facts of the data in its runs and in study.json."""
    seeds = {label: range(len(values)) for label, values in top1.items()}
    recipes = {label: GRID[label] for label in top1}
    study = Study(name="scale", question="?", recipes=recipes, seeds=seeds)
    folder = write_study(storage, study, **(study_facts or {}))
    for trial in folder.trials():
        finish(folder, trial)
        value = top1[trial.label][trial.seed]
        metrics = final_metrics(trial.recipe, trial.seed) | {"top1": value, "minival/top1": value}
        write_outcome(folder.run_directory(trial), "finished", metrics, facts)
    return folder


def told(folder: StudyFolder) -> str:
    """The terminal's text in one line."""
    return " ".join(ranked_table(folder.runs(), folder.read()).split())


THREE_CLASSES: dict[str, Any] = {"num_classes": 3, "num_minival": 100, "num_val": 100}


# -- chance ---------------------------------------------------------------------------------------


def test_near_chance_there_is_a_warning_and_no_verdict(tmp_path):
    top1 = {"w8-d2": [34.0, 36.0], "w16-d2": [38.0, 37.0], "w32-d2": [39.0, 40.0]}
    folder = study_at(tmp_path, top1, THREE_CLASSES)
    text = told(folder)
    assert text.count("near chance") >= 4, "each recipe is marked"
    assert "guessing among 3 classes gives 33.3 %" in text
    for remedy in ("more than 10 epochs", "a higher learning rate than 0.001", "--mixup 0"):
        assert remedy in text
    assert "chosen" not in re.findall(r"\w+", text)
    first, *others = answer(read(folder))
    assert first.startswith("No verdict: the study is near chance. No recipe is clearly better")
    assert others == []
    names = {path.name for path in write_report(folder)}
    assert not names & {"law.png", "contrast.png", "iso_mac.png", "accuracy_macs.png"}
    page = (folder.path / "report.html").read_text()
    assert '<p class="lead">No verdict' in page
    assert "comes out best" not in page
    assert "Grow " not in page


def test_a_study_that_has_learned_is_not_called_near_chance(tmp_path):
    top1 = {"w8-d2": [60.0, 61.0], "w16-d2": [64.0, 65.0]}
    text = told(study_at(tmp_path, top1, THREE_CLASSES))
    assert "near chance" not in text
    assert "warning" not in text


def test_one_recipe_near_chance_is_named_and_takes_no_verdict_from_the_others(tmp_path):
    top1 = {"w8-d2": [34.0, 36.0], "w16-d2": [80.0, 80.2], "w32-d2": [90.0, 90.2]}
    folder = study_at(tmp_path, top1, THREE_CLASSES)
    assert "1 of 3 recipes is near chance (w8-d2)" in told(folder)
    assert "w32-d2 comes out best" in " ".join(answer(read(folder)))


def test_chance_is_the_share_of_the_most_frequent_class_where_it_is_known(tmp_path):
    top1 = {"w8-d2": [70.0, 71.0], "w16-d2": [72.0, 71.0]}
    equal = study_at(tmp_path / "equal", top1, THREE_CLASSES)
    assert "near chance" not in told(equal)
    share = {"chance_top1": 70.0}
    of_runs = study_at(tmp_path / "runs", top1, THREE_CLASSES | share)
    of_study = study_at(tmp_path / "study", top1, THREE_CLASSES, share)
    for folder in (of_runs, of_study):
        assert "always naming the most frequent class gives 70.0 %" in told(folder)


@pytest.mark.parametrize(("num_classes", "num_images"), [(2, 40), (3, 113), (10, 411), (100, 5000)])
def test_of_studies_that_only_guess_at_least_19_in_20_are_called_near_chance(
    tmp_path, num_classes, num_images
):
    rng, called, studies = random.Random(0), 0, 60
    facts = {"num_classes": num_classes, "num_minival": num_images, "num_val": 0}
    folder = study_at(tmp_path, {label: [0.0] for label in GRID}, facts)
    runs = folder.runs()
    for _ in range(studies):
        drawn = []
        for run in runs:
            hits = sum(rng.random() < 1 / num_classes for _ in range(num_images))
            value = 100 * hits / num_images
            drawn.append(replace(run, metrics={"minival/top1": value, "top1": value}))
        called += standing(drawn).guessing
    assert called >= 0.95 * studies


def test_a_stored_study_without_facts_of_its_data_is_ranked_without_a_word_on_chance(tmp_path):
    folder = study_at(tmp_path, {"w8-d2": [34.0, 35.0], "w16-d2": [36.0, 36.0]}, {})
    runs = [replace(run, facts={}) for run in folder.runs()]
    assert "near chance" not in ranked_table(runs)


# -- a small minival ------------------------------------------------------------------------------


def test_a_minival_of_under_100_images_says_what_it_cannot_choose_between(tmp_path):
    top1 = {"w8-d2": [80.0, 81.0], "w16-d2": [88.0, 88.5], "w32-d2": [12.0, 12.0]}
    facts = {"num_classes": 10, "num_minival": 40, "num_val": 400}
    folder = study_at(tmp_path, top1, facts)
    text = told(folder)
    points = half_width(88.25, 40)
    assert points == pytest.approx(10.1, abs=0.05)  # Wilson's interval
    assert "Minival has 40 images, fewer than 100: it cannot choose between recipes that are "
    assert f"closer than {points:.0f} points" in text
    assert "A larger one: --minival-fraction 0.25." in text
    assert "88 ± " in text, "one image is 2.5 points, so there are no decimals"
    table = ranked_cells(standing(folder.runs()))
    notes = {cells[1]: cells[-1] for cells in table.cells}
    assert notes == {
        "w16-d2": "chosen",
        "w8-d2": "within noise of #1",
        "w32-d2": "near chance",
    }
    assert "Minival has 40 images" in " ".join(answer(read(folder)))


def test_where_the_data_is_too_small_for_100_images_no_option_is_advised(tmp_path):
    facts = {"num_classes": 3, "num_minival": 13, "num_val": 60}
    text = told(study_at(tmp_path, {"w8-d2": [80.0, 81.0], "w16-d2": [88.0, 88.5]}, facts))
    assert "Minival has 13 images" in text
    assert "--minival-fraction" not in text
    assert "too few images for a minival of 100" in text


# -- seeds ----------------------------------------------------------------------------------------


def test_without_a_second_seed_the_headline_is_that_there_is_no_verdict(tmp_path):
    top1 = {"w8-d2": [80.0], "w8-d6": [81.0], "w32-d2": [88.0], "w32-d6": [89.5]}
    folder = study_at(tmp_path, top1, {"num_minival": 500, "num_val": 1000})
    first, *others = answer(read(folder))
    assert first.startswith("No verdict: no recipe has finished with two seeds")
    assert "--seeds 3" in first
    assert "chosen" not in re.findall(r"\w+", told(folder))
    text = " ".join(others)
    assert not re.search(r"Grow |comes out best|Bigger was|significant", text)
    assert "A doubling of MACs bought, not told from luck:" in text
    write_report(folder)
    page = (folder.path / "report.html").read_text()
    assert '<p class="lead">No verdict' in page


def test_the_text_under_the_table_says_what_the_interval_and_the_rank_are(tmp_path):
    text = told(study_at(tmp_path, {"w8-d2": [80.0, 80.4], "w16-d2": [85.0, 85.4]}, {}))
    assert "±: half the 95 % interval of the mean over n seeds" in text
    assert "#: the order on minival, less half its interval, best first" in text
    assert "Minival is training images that are held out to choose on" in text


def test_recipes_that_minival_cannot_tell_apart_share_a_rank(tmp_path):
    folder = study_at(tmp_path, {"w8-d2": [80.0], "w16-d2": [80.0], "w8-d6": [70.0]}, {})
    found = standing(folder.runs())
    assert found.ranks == [1, 1, 3]
    assert found.rows[0].label == "w8-d2", "the cheaper one first"


# -- searches -------------------------------------------------------------------------------------


def test_the_confirmed_recipes_of_a_search_come_first_and_the_best_is_one_of_them(tmp_path):
    folder = searched_study(tmp_path, num_trials=9)
    confirmed = {t.label for t in folder.trials() if t.seed == 2}
    for trial in folder.trials():  # a lucky seed above every confirmed mean
        if trial.seed == 0 and trial.label == "w8-t000":
            metrics = final_metrics(trial.recipe, 0) | {"top1": 99.0, "minival/top1": 99.0}
            write_outcome(folder.run_directory(trial), "finished", metrics)
    assert "w8-t000" not in confirmed
    found = standing(folder.runs(), folder.read())
    assert {row.label for row in found.rows[:2]} == confirmed
    assert found.best is not None
    assert found.best.label in confirmed
    cells = ranked_cells(found).cells
    assert all(line[-1].startswith("confirmed") for line in cells[:2])
    assert not any("confirmed" in line[-1] for line in cells[2:])
    assert "confirmed: trained with all seeds of its search; these recipes come first" in told(
        folder
    )


def test_the_axes_of_a_search_are_columns_and_its_fixed_costs_are_not(tmp_path):
    folder = searched_study(tmp_path, num_trials=9)
    header = ranked_table(folder.runs(), folder.read()).splitlines()[0].split()
    assert {"peak_lr", "kernel_size"} < set(header)
    assert "epochs" not in header


def test_a_grid_shows_the_fields_that_differ_and_not_those_that_follow_them(tmp_path):
    recipes = {
        f"r{epochs}-{kernel}": tuned(
            SMALL, epochs=epochs, warmup_epochs=epochs / 10, kernel_size=kernel
        )
        for epochs in (10, 20)
        for kernel in (3, 7)
    } | {"baseline": sized(24, 2, tuned(SMALL, peak_lr=4e-3, mixup=0.5))}
    one = Study(name="grid", question="?", recipes=recipes, baseline="baseline")
    folder = write_study(tmp_path, one)
    header = ranked_table(folder.runs()).splitlines()[0].split()
    assert {"epochs", "kernel_size"} < set(header)
    assert not {"warmup_epochs", "peak_lr", "mixup"} & set(header)


def test_what_all_recipes_have_in_common_stands_once_under_the_table(tmp_path):
    recipes = {f"r{rate}": tuned(SMALL, peak_lr=rate / 1000) for rate in (1, 2, 4)}
    folder = finished_study(tmp_path, Study(name="rates", question="?", recipes=recipes))
    lines = ranked_table(folder.runs(), folder.read()).splitlines()
    assert lines[0].split()[:2] == ["#", "recipe"]
    assert "peak_lr" in lines[0]
    assert not {"MACs", "params", "epochs"} & set(lines[0].split())
    macs, params = (final_metrics(SMALL, 0)[name] for name in ("macs", "params"))
    assert f"all: {count_text(macs)} MACs, {count_text(params)} parameters, 10 epochs" in lines
    assert {cells[4] for cells in ranked_cells(standing(folder.runs())).cells} == {
        "0.001",
        "0.002",
        "0.004",
    }


def test_trainings_of_equal_cost_have_no_chart_of_cost_but_one_of_what_was_varied(tmp_path):
    recipes = {f"r{rate}": tuned(SMALL, peak_lr=rate / 1000) for rate in (1, 2, 4)}
    folder = finished_study(tmp_path, Study(name="rates", question="?", recipes=recipes))
    for number, trial in enumerate(folder.trials()):  # equal trainings are not equally fast
        metrics = dict(folder.run(trial).metrics)
        metrics |= {name: metrics[name] * (1 + number) for name in MEASURED}
        write_outcome(folder.run_directory(trial), "finished", metrics)
    names = {path.name for path in write_report(folder)}
    assert "varied.png" in names
    assert not names & set(COST_AXES)


MEASURED = ("images_per_second", "train_device_hours")


# -- where the files are --------------------------------------------------------------------------


def test_a_launch_ends_with_the_checkpoint_of_the_best_trial_and_the_next_command(tmp_path):
    folder = study_at(tmp_path, {"w8-d2": [80.0, 80.4], "w16-d2": [85.0, 85.4]}, {})
    best = next(t for t in folder.trials() if t.name == "w16-d2-s1")
    text = summary(folder)
    (line,) = [line for line in text.splitlines() if "checkpoint:" in line]
    assert Path(line.split()[-1]) == folder.run_directory(best) / "last.ckpt"
    assert Path(line.split()[-1]).exists()
    (line,) = [line for line in text.splitlines() if "mambaout export" in line]
    words = shlex.split(line[line.index("mambaout") :])
    assert words[:4] == ["mambaout", "export", "scale/w16-d2-s1", "best.safetensors"]
    assert words[4:] == ["--storage", str(tmp_path)]


def test_the_csv_and_the_page_name_checkpoints_that_are_there(tmp_path):
    folder = mixed_study(tmp_path)
    write_report(folder)
    lines = list(csv.DictReader(io.StringIO((folder.path / "trials.csv").read_text())))
    page = (folder.path / "report.html").read_text()
    kept = 0
    for line, trial in zip(lines, folder.trials(), strict=True):
        assert folder.path / line["run_directory"] == folder.run_directory(trial)
        there = (folder.run_directory(trial) / "last.ckpt").exists()
        assert bool(line["checkpoint"]) == there
        if there:
            kept += 1
            assert (folder.path / line["checkpoint"]).exists()
            assert line["checkpoint"] in page
    assert kept == 11
