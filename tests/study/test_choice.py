"""Choices are made on minival and told in val: a study whose two splits name different winners, in
every place that shows one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from study_files import (
    DATA,
    SMALL,
    final_metrics,
    finish,
    scaling_study,
    write_outcome,
    write_records,
    write_study,
)

from mambaout.commands.list import study_table, trial_table
from mambaout.recipe import tuned
from mambaout.study.axes import LogRange, Search
from mambaout.study.report.charts import COST_AXES, accuracy
from mambaout.study.report.findings import answer
from mambaout.study.report.reading import read
from mambaout.study.report.study_report import ranked_table, summary, write_report
from mambaout.study.search.study_agenda import agenda
from mambaout.study.study import STUDY_FILE, Study, StudyFolder
from mambaout.study.tracking.views import trials_view

# label -> minival, val; MACs grow from left to right. On val w8-d6 would beat the two behind it,
# and w32-d2 would win; minival chooses w16-d6.
RESULTS = {
    "w8-d2": (80.0, 80.5),
    "w8-d6": (81.0, 87.0),
    "w16-d2": (84.0, 83.0),
    "w16-d6": (90.0, 86.0),
    "w32-d2": (85.0, 91.0),
}
CHOSEN, ON_VAL = "w16-d6", "w32-d2"
FRONT = ["w8-d2", "w8-d6", "w16-d2", "w16-d6"]  # of minival over MACs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    grid = scaling_study().recipes
    recipes = {label: grid[label] for label in RESULTS}
    study = Study(name="split", question="Which one?", recipes=recipes, seeds=(0, 1))
    folder = write_study(tmp_path_factory.mktemp("runs"), study)
    for trial in folder.trials():
        place = list(RESULTS).index(trial.label)
        minival, val = (value + 0.1 * trial.seed for value in RESULTS[trial.label])
        metrics = final_metrics(trial.recipe, trial.seed)
        metrics |= {"minival/top1": minival, "top1": val, "macs": 1e6 * 2**place}
        directory = folder.run_directory(trial)
        write_records(directory, trial.recipe, minival, num_epochs=10)
        (directory / "last.ckpt").write_bytes(b"weights")
        write_outcome(directory, "finished", metrics)
    return folder


def test_the_table_has_the_choice_of_minival_first_with_its_val(folder):
    header, _, first, *others = ranked_table(folder.runs(), folder.read()).splitlines()
    assert re.split(r" {2,}", header)[:4] == ["#", "recipe", "minival %", "val top-1 %"]
    assert re.match(rf"1  {CHOSEN} +90\.05.* +86\.05.*chosen", first)
    assert not any("chosen" in line for line in others[:4])


def test_a_launch_ends_with_the_checkpoint_that_minival_prefers(folder):
    assert f"highest trial: {CHOSEN}-s1 (minival 90.10 %)" in summary(folder)


@pytest.mark.parametrize(
    ("fields", "can_export"),
    [({}, True), ({"mixer": "conv_ssm"}, False), ({"downsampling": "patchify"}, False)],
)
def test_a_launch_names_the_export_of_a_network_that_timm_can_be(fields, can_export, tmp_path):
    study = Study(name="one", question="?", recipes={"a": tuned(SMALL, **fields)})
    folder = StudyFolder(tmp_path, "one")
    folder.write(study, study.trials(DATA), data_name="digits")
    finish(folder, study.trials(DATA)[0])
    assert ("mambaout export one/a-s0" in summary(folder)) == can_export


def test_the_page_marks_the_choice_of_minival(folder):
    write_report(folder)
    page = (folder.path / "report.html").read_text()
    (chosen,) = re.findall(r'<tr class="chosen">(.*?)</tr>', page)
    assert f">{CHOSEN}</a>" in chosen
    assert "<h2>Recipes, highest on minival first</h2>" in page
    assert "minival 90.00&nbsp;%" in page or "minival 90.00 %" in page
    assert f"Highest trial: {CHOSEN}-s1" in (folder.path / "results.md").read_text()


@pytest.mark.parametrize("name", ["accuracy_macs.png", "accuracy_throughput.png"])
def test_the_front_of_a_chart_is_chosen_on_minival_and_drawn_at_its_val(name, folder):
    found, axis = read(folder).standing, COST_AXES[name]
    (line,) = [
        line
        for line in accuracy(found, axis).axes[0].get_lines()
        if line.get_label() == "front, chosen on minival"
    ]
    drawn = {(float(x), float(y)) for x, y in np.asarray(line.get_xydata())}
    rows = {row.label: row for row in found.rows}
    place = {label: (axis.cost(row), row.mean("top1").value) for label, row in rows.items()}
    assert place[CHOSEN] in drawn
    assert place[ON_VAL] not in drawn
    if name == "accuracy_macs.png":
        assert drawn == {place[label] for label in FRONT}


def test_the_answer_names_the_front_of_minival_and_says_its_val(folder):
    said = " ".join(answer(read(folder)))
    assert f"{CHOSEN} comes out best: 86.05" in said
    assert "chosen on minival (90.05 %)" in said
    listed = re.search(
        r"a higher top-1 on minival than these \(their top-1 on val\): ([^.]*.*?)\. ", said + " "
    )
    assert listed is not None
    assert re.findall(r"w\d+-d\d", listed[1]) == FRONT
    assert f"{CHOSEN} (86.05 %)" in listed[1]
    assert f"On val {ON_VAL} is higher by" in said, "val is told, and chooses nothing"


def test_the_list_of_studies_has_the_val_of_the_choice_of_minival(folder):
    header, line = study_table([folder]).splitlines()
    assert "score on val, %  of the recipe chosen (on minival" in header
    assert f"86.05  {CHOSEN} (n=2)" in line
    assert "minival %  val top-1 %" in trial_table(folder).splitlines()[0]


def test_mlflows_page_lists_the_choice_of_minival_first(folder, empty_store, tmp_path):
    import shutil

    from mambaout.study.tracking.tracker import Tracker

    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    tracker = Tracker(uri, "split", "Which one?")
    tracker.sync(folder)
    state = json.loads(trials_view("tags.`mambaout.role` = 'trial'"))
    from mlflow.tracking import MlflowClient

    way = "ASC" if state["orderByAsc"] else "DESC"
    runs = MlflowClient(tracking_uri=uri).search_runs(
        [tracker.experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} {way}"]
    )
    assert [run.info.run_name for run in runs[:2]] == [f"{CHOSEN}-s1", f"{CHOSEN}-s0"]
    shown = state["selectedColumns"]
    assert shown.index("metrics.`minival/top1`") < shown.index("metrics.`top1`")
    assert shown[shown.index("metrics.`images_per_second`") + 1] == "tags.`device`"


def test_a_search_that_stops_early_is_chosen_on_minival_and_on_nothing_else(tmp_path: Path):
    base = tuned(next(iter(scaling_study().recipes.values())))
    search = Search(
        label="fast", base=base, axes=(LogRange("peak_lr", 1e-4, 1e-2),), num_trials=3,
        early_stop=True, goals=(("images_per_second", "max"),),
    )  # fmt: skip
    study = Study(name="x", question="?", recipes={}, searches=(search,))
    with pytest.raises(ValueError, match=r"report while they run is minival/top1; make that the"):
        agenda(study, write_study(tmp_path, study), "data", [])


def test_a_study_stored_with_an_objective_is_still_read(folder):
    path = folder.path / STUDY_FILE
    text = path.read_text()
    assert "objective" not in json.loads(text), "minival/top1 is what every study is chosen on"
    path.write_text(json.dumps(json.loads(text) | {"objective": "minival/top1"}))
    try:
        assert read(folder).standing.best is not None
        assert CHOSEN in study_table([folder])
    finally:
        path.write_text(text)
