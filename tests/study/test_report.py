"""What a study says: tables, the answer in words, charts and the page."""

from __future__ import annotations

import argparse
import csv
import io
import math
import random
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from study_files import (
    SMALL,
    finish,
    finished_study,
    mixed_study,
    rough_macs,
    scaling_study,
    sized,
    start,
    write_outcome,
    write_study,
)

from mambaout.commands.train import add_train, recipe_choice
from mambaout.numbers import hours_text
from mambaout.recipe import BASELINE, RELEASED_CODE, tuned, with_global_batch
from mambaout.study.law.noise import noise_of_runs
from mambaout.study.report.charts import COST_AXES, accuracy
from mambaout.study.report.curves import learning_curves, training_loss
from mambaout.study.report.families import families
from mambaout.study.report.findings import answer, gain_per_doubling, rank_correlation
from mambaout.study.report.picture import log_ticks, new, png
from mambaout.study.report.ranking import standing
from mambaout.study.report.reading import read
from mambaout.study.report.rows import rows
from mambaout.study.report.study_report import write_report
from mambaout.study.report.tables import ranked_cells, ranked_table
from mambaout.study.report.trial_files import reproduce_command
from mambaout.study.study import Study, StudyFolder, Trial

MACS_AXIS = COST_AXES["accuracy_macs.png"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> StudyFolder:
    return finished_study(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> StudyFolder:
    return mixed_study(tmp_path_factory.mktemp("mixed"))


def study_with(tmp_path: Path, top1: dict[str, list[float]], name: str = "scale") -> StudyFolder:
    """A finished study whose recipes ended at these values of top-1, one a seed; minival agrees."""
    grid = scaling_study().recipes
    seeds = {label: range(len(values)) for label, values in top1.items()}
    recipes = {label: grid[label] for label in top1}
    folder = write_study(tmp_path, Study(name=name, question="?", recipes=recipes, seeds=seeds))
    for trial in folder.trials():
        finish(folder, trial)
        value = top1[trial.label][trial.seed]
        metrics = dict(folder.run(trial).metrics) | {"top1": value, "minival/top1": value}
        write_outcome(folder.run_directory(trial), "finished", metrics)
    return folder


def said(folder: StudyFolder) -> str:
    return " ".join(answer(read(folder)))


# -- tables ---------------------------------------------------------------------------------------


def table_of(folder: StudyFolder) -> list[dict[str, str]]:
    """The ranked table, a row a recipe, by column."""
    table = ranked_cells(standing(folder.runs(), folder.read()))
    return [dict(zip(table.header, cells, strict=True)) for cells in table.cells]


def test_recipes_are_ranked_on_minival_less_half_the_interval_over_seeds(finished):
    found = standing(finished.runs())
    values = [found.score(row) for row in found.rows]
    assert values == sorted(values, reverse=True)
    assert all(len(row.mean("top1").values) == 2 for row in found.rows)
    first = ranked_table(finished.runs()).splitlines()[2]
    number = r"\d\d\.\d\d ± \d\.\d\d"
    assert re.match(rf"1  w32-d6 +{number}  {number} \(n=2\)", first)


def test_a_single_seed_has_no_spread(tmp_path):
    text = ranked_table(study_with(tmp_path, {"w8-d2": [81.0]}).runs())
    assert "81.00 (n=1)" in text
    assert "±" not in text


def test_the_table_marks_the_baseline_and_the_choice_of_minival(finished):
    first, *others = table_of(finished)
    assert (first["#"], first["note"]) == ("1", "chosen")
    base = next(line for line in others if line["recipe"] == "baseline")
    assert base["note"].startswith("baseline recipe, after 10 of its 300 epochs")


def test_what_has_not_finished_stands_last_and_says_where_it_is(tmp_path):
    folder = write_study(tmp_path)
    *_, other, last = folder.trials()
    finish(folder, last)
    start(folder, other, num_epochs=3)
    first, *lines = table_of(folder)
    assert first["#"] == "1"
    below = {line["recipe"]: line["note"] for line in lines}
    assert below.pop(other.label).endswith("s0 at epoch 0 of 10, s1 at epoch 3 of 10")
    assert all(note.endswith("not begun") for note in below.values())


def test_a_diverged_seed_is_named_and_left_out_of_the_numbers(mixed):
    row = next(row for row in rows(mixed.runs()) if row.label == "w32-d6")
    assert len(row.mean("top1").values) == 1
    assert "s1 diverged" in row.state


# -- commands -------------------------------------------------------------------------------------


def parsed(command: str, digits):
    parser = argparse.ArgumentParser()
    add_train(parser.add_subparsers())
    options = parser.parse_args(shlex.split(command)[1:])
    return options, recipe_choice(options)(digits).recipe


@pytest.mark.parametrize(
    "recipe",
    [
        SMALL,
        sized(32, 6),
        RELEASED_CODE,
        with_global_batch(SMALL, 256),
        tuned(SMALL, global_batch=2048),  # the learning rate stays, against the linear rule
        tuned(SMALL, epochs=100),  # the warm-up stays, against the rule of its share
        tuned(BASELINE, epochs=100),
        tuned(SMALL, clip_norm=1.0, train_images=3000, precision="bf16", lr_steps="epoch"),
    ],
)
def test_the_reproduce_command_gives_the_trials_recipe_back(recipe, digits):
    trial = Trial(label="it's", recipe=recipe, seed=3, data="0123456789ab")
    options, found = parsed(reproduce_command(trial, "some data", storage=Path("runs")), digits)
    assert found == recipe
    assert (options.seed, options.data) == (3, "some data")


def test_the_csv_has_a_line_a_trial_with_recipe_metrics_facts_and_command(tmp_path, digits):
    folder = mixed_study(tmp_path)
    write_report(folder)
    lines = list(csv.DictReader(io.StringIO((folder.path / "trials.csv").read_text())))
    assert [line["key"] for line in lines] == [trial.key for trial in folder.trials()]
    first = folder.run(folder.trials()[0])
    assert float(lines[0]["top1"]) == first.metrics["top1"], "unrounded"
    assert lines[0]["dims"] == "8,16,32,48"
    assert lines[0]["git_commit"] == "abcdef123456"
    _, found = parsed(lines[0]["command"], digits)
    assert found == folder.trials()[0].recipe
    assert {line["status"] for line in lines} == {"finished", "unfinished", "diverged"}


# -- the answer -----------------------------------------------------------------------------------


def test_the_slope_of_a_law_it_was_given_is_recovered(tmp_path):
    rng = random.Random(0)
    law = {
        label: [70 + 1.7 * math.log2(rough_macs(recipe) / 1e5) + rng.gauss(0, 0.05)] * 2
        for label, recipe in scaling_study().recipes.items()
        if label != "baseline"
    }
    folder = study_with(tmp_path, law)
    assert gain_per_doubling(read(folder).families[0].rows) == pytest.approx(1.7, abs=0.05)
    assert "Bigger was better at every step" in said(folder)


def test_a_difference_smaller_than_the_noise_is_called_within_it(tmp_path):
    folder = study_with(tmp_path, {"w8-d2": [80.0, 81.0, 82.0], "w32-d6": [80.2, 81.2, 82.2]})
    assert "0.20 points, within seed noise" in said(folder)
    assert "Between the ends the difference is within seed noise" in said(folder)


def test_a_difference_larger_than_the_noise_is_called_beyond_it(tmp_path):
    folder = study_with(tmp_path, {"w8-d2": [80.0, 80.1, 80.2], "w32-d6": [85.0, 85.1, 85.2]})
    assert "5.00 points, beyond seed noise" in said(folder)


def test_the_noise_is_pooled_over_recipes_with_more_than_one_seed(tmp_path):
    folder = study_with(tmp_path, {"w8-d2": [80.0, 82.0], "w8-d6": [81.0, 81.0], "w16-d2": [83.0]})
    spread = noise_of_runs(folder.runs()).all_lengths
    assert spread is not None
    assert (spread.degrees, spread.num_recipes) == (2, 2)
    assert spread.points == pytest.approx(1.0)  # sqrt((2 + 0) / 2)


def test_without_a_second_seed_nothing_is_said_of_noise(tmp_path):
    text = said(study_with(tmp_path, {"w8-d2": [80.0], "w32-d6": [85.0]}))
    assert text.startswith("No verdict: no recipe has finished with two seeds")
    assert "--seeds 3" in text
    assert "comes out best" not in text
    assert "Bigger was" not in text
    assert not re.search(r"points, (beyond|within) seed noise", text)


def test_bigger_being_no_better_is_said(tmp_path):
    folder = study_with(
        tmp_path,
        {"w8-d2": [85.0, 85.1], "w16-d2": [82.0, 82.1], "w32-d2": [81.0, 81.1]},
    )
    assert "Bigger was worse" in said(folder)
    assert "w8-d2 comes out best" in said(folder)


def test_a_step_down_among_steps_up_is_named(tmp_path):
    folder = study_with(
        tmp_path,
        {
            "w8-d2": [80.0, 80.1],
            "w8-d6": [82.0, 82.1],
            "w16-d2": [81.5, 81.6],
            "w16-d6": [84.0, 84.1],
            "w32-d6": [86.0, 86.1],
        },
    )
    assert "Bigger was better on the whole" in said(folder)
    assert "step down is from w8-d6 to w16-d2: 0.50 points, beyond seed noise" in said(folder)


def test_the_choice_is_made_on_minival_and_a_higher_val_is_admitted(tmp_path):
    folder = study_with(tmp_path, {"w8-d2": [80.0, 80.2], "w8-d6": [81.0, 81.2]})
    for trial in folder.trials():
        if trial.label == "w8-d2":
            metrics = dict(folder.run(trial).metrics) | {"minival/top1": 95.0}
            write_outcome(folder.run_directory(trial), "finished", metrics)
    # Half the 95 % interval: 4.303 (t, 2 degrees of freedom) * 0.141 / sqrt(2).
    assert "w8-d2 comes out best: 80.10 ± 0.43 % (n=2)" in said(folder)
    assert "On val w8-d6 is higher by 1.00 points" in said(folder)


def test_depth_and_width_are_priced_apart(tmp_path):
    # Four times the MACs by width bring nothing, the blocks bring points.
    flat = {"w8-d2": 80.0, "w8-d6": 84.0, "w16-d2": 80.0, "w16-d6": 84.0}
    flat = {label: [value - 0.1, value + 0.1] for label, value in flat.items()}
    text = said(study_with(tmp_path, flat))
    pattern = r"([+-][\d.]+) \([^)]*\) points by depth and ([+-][\d.]+) \([^)]*\) points by width"
    match = re.search(pattern, text)
    assert match, text
    assert float(match[1]) > 3
    assert abs(float(match[2])) < 0.1


def test_the_baseline_is_held_against_its_nearest_in_macs_and_no_part_of_the_ladder(finished):
    table = rows(finished.runs())
    assert "baseline" not in [row.label for row in families(table)[0].rows]
    assert re.search(r"The baseline recipe reaches .* w16-d6, the nearest in MACs", said(finished))


def test_unfinished_and_diverged_trials_make_the_answer_provisional(mixed):
    first = answer(read(mixed))[0]
    assert first == (
        "Provisional: 2 of 14 trials have not finished and 1 diverged (w32-d6-s1); "
        "they are not in these numbers."
    )


def test_no_run_no_answer(tmp_path):
    assert said(write_study(tmp_path)) == "No trial has finished yet, so there is no answer yet."


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 31]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 3, 2]) == pytest.approx(1 / 3)
    assert rank_correlation([1, 2], [5, 5]) == 0


# -- charts ---------------------------------------------------------------------------------------


def test_labels_of_a_crowded_chart_cover_neither_each_other_nor_the_points(tmp_path):
    grid = {f"w{w}-d{d}": sized(w, d) for w in (16, 24, 32, 40) for d in (2, 4, 6, 8)}
    study = Study(name="many", question="?", recipes=grid, seeds=(0, 1))
    found = standing(finished_study(tmp_path, study, noise=0.6).runs())
    figure = accuracy(found, MACS_AXIS)
    (axes,) = figure.axes
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) >= 14, "nearly all of the 16 find a place"
    points = [(row.mean("macs").value, row.mean("top1").value) for row in found.rows]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*axes.transData.transform(point)) for point in points)


def test_one_recipe_that_failed_to_learn_does_not_flatten_the_others(tmp_path):
    top1 = {"w8-d2": [88.0], "w8-d6": [90.0], "w16-d2": [91.0], "w16-d6": [92.0], "w32-d2": [11.0]}
    (axes,) = accuracy(standing(study_with(tmp_path, top1).runs()), MACS_AXIS).axes
    low, high = axes.get_ylim()
    assert low > 80
    assert high < 100
    assert "w32-d2 11.0 %" in [text.get_text() for text in axes.texts]


def test_no_two_ticks_of_a_short_axis_have_the_same_text():
    _, axes = new("title", "device time", "top-1")
    axes.set_xscale("log")
    axes.set_xlim(14.5 / 3600, 19.4 / 3600)
    log_ticks(axes, hours_text)
    texts = axes.xaxis.get_major_formatter().format_ticks(list(axes.get_xticks()))
    shown = [text for text in texts if text]
    assert len(shown) > 2
    assert len(set(shown)) == len(shown)


def test_charts_are_drawn_before_anything_has_finished(tmp_path):
    runs = write_study(tmp_path).runs()
    found, table = standing(runs), rows(runs)
    figures = [accuracy(found, axis) for axis in COST_AXES.values()]
    for figure in (*figures, learning_curves(table), training_loss(table)):
        assert [text.get_text() for text in figure.axes[0].texts] == ["nothing to draw yet"]


def test_equal_runs_draw_equal_pictures(mixed):
    found = standing(mixed.runs())
    assert png(accuracy(found, MACS_AXIS)) == png(accuracy(found, MACS_AXIS))


def test_a_loss_that_is_not_finite_and_an_error_of_nothing_are_no_trouble(tmp_path):
    folder = write_study(tmp_path)
    trial = folder.trials()[0]
    finish(folder, trial)
    path = folder.run_directory(trial) / "records.jsonl"
    path.write_text(
        path.read_text()
        .replace('"minival/top5": 99.0', '"minival/top5": NaN')
        .replace('"micro_batch": 128', '"train/loss": NaN, "minival/top1": 100.0')
    )
    for draw in (learning_curves, training_loss):
        png(draw(rows(folder.runs())))


# -- the page -------------------------------------------------------------------------------------


def test_the_report_is_one_small_offline_page_beside_its_tables_and_charts(mixed):
    names = {path.name for path in write_report(mixed)}
    assert {"report.html", "trials.csv", "trials.parquet", "results.md"} < names
    assert set(COST_AXES) | {"law.png", "contrast.png", "learning_curves.png"} < names
    assert {path.name for path in mixed.path.iterdir()} == names | {
        "study.json",
        "trials.jsonl",
        "trials",
    }
    html = (mixed.path / "report.html").read_text()
    assert len(html) < 1_000_000
    assert not re.search(r"https?://|<script|<link|url\(", html), "nothing is fetched"
    assert html.count("data:image/png;base64,") == sum(name.endswith(".png") for name in names)
    for trial in mixed.trials():
        assert f"<b>{trial.name}</b>" in html
        assert f"--out again/{trial.name}" in html


def test_the_page_and_the_markdown_carry_the_question_and_the_answer(mixed):
    write_report(mixed)
    html = (mixed.path / "report.html").read_text().replace("&nbsp;", " ")
    text = (mixed.path / "results.md").read_text()
    for sentence in (scaling_study().question, *answer(read(mixed))):
        assert sentence in html
        assert sentence in text


def test_a_report_is_written_before_anything_has_finished(tmp_path):
    folder = write_study(tmp_path)
    assert all(path.stat().st_size for path in write_report(folder))
    assert "no answer yet" in (folder.path / "report.html").read_text()


def test_names_and_questions_are_text_on_the_page_not_markup(tmp_path):
    study = replace(scaling_study(seeds=1), question="Is a < b & c > d?")
    recipes = {"<script>alert(1)</script>": SMALL}
    folder = finished_study(tmp_path, replace(study, recipes=recipes))
    write_report(folder)
    html = (folder.path / "report.html").read_text()
    assert "<script" not in html
    assert "Is a &lt; b &amp; c &gt; d?" in html
