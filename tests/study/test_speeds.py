"""Speed is a measurement of a recipe on a device: what another device measured is compared nowhere,
and what was learned there counts everywhere."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from searches import search, study
from study_files import (
    DATA,
    final_metrics,
    finish,
    finished_study,
    scaling_study,
    write_outcome,
    write_study,
)

from mambaout.launch.request import Request, hello
from mambaout.study.price.rates import measured
from mambaout.study.report.charts import COST_AXES, accuracy, is_drawn
from mambaout.study.report.findings import answer
from mambaout.study.report.ranking import standing
from mambaout.study.report.reading import read
from mambaout.study.report.study_report import ranked_table, write_report
from mambaout.study.search.best import best
from mambaout.study.search.study_agenda import agenda
from mambaout.study.speeds import own_speeds, study_device
from mambaout.study.study import Run, Study, StudyFolder, Trial
from mambaout.train.backend import Cpu
from mambaout.train.loop import train
from mambaout.train.metrics import (
    EARLIER_DEVICES,
    IMAGES_PER_SECOND,
    MACS,
    MINIVAL_TOP1,
    SPEEDS,
    TOP1,
)
from mambaout.train.outcomes import Finished, Preempted

HERE, THERE = "Xeon (1 thread)", "NVIDIA H200"
THROUGHPUT, TIME = COST_AXES["accuracy_throughput.png"], COST_AXES["accuracy_device_hours.png"]


def on_device(folder: StudyFolder, trial: Trial, device: str, **facts: Any) -> None:
    """The trial's outcome, as the device would have written it."""
    finish(folder, trial)
    metrics = final_metrics(trial.recipe, trial.seed)
    metrics[IMAGES_PER_SECOND] *= 50 if device == THERE else 1
    write_outcome(
        folder.run_directory(trial), "finished", metrics, {"device": device, "host": device} | facts
    )


def taken_over(storage: Path, labels: tuple[str, ...] = ("w8-d2", "w32-d6")) -> StudyFolder:
    """A study here that has the trials of some recipes from one that ran on a GPU."""
    whole = scaling_study()
    there = Study(
        name="gpu", question="?", recipes={n: whole.recipes[n] for n in labels}, seeds=(0, 1)
    )
    other = write_study(storage, there)
    for trial in other.trials():
        on_device(other, trial, THERE)
    folder = write_study(storage, whole)
    for trial in folder.trials():
        if folder.adopt(trial) is None:
            on_device(folder, trial, HERE)
    return folder


def speeds_of(runs: tuple[Run, ...]) -> set[str]:
    return {run.trial.label for run in runs if set(SPEEDS) & run.metrics.keys()}


# -- which device is the study's ------------------------------------------------------------------


def test_a_studys_device_is_the_one_that_most_of_its_own_trials_trained_on(tmp_path):
    folder = taken_over(tmp_path, labels=("w8-d2", "w8-d6", "w16-d2", "w16-d6", "w32-d2", "w32-d6"))
    runs = folder.runs()
    assert sum(run.facts["device"] == THERE for run in runs) > len(runs) / 2
    assert study_device(runs) == HERE, "trials that were taken over do not decide"
    assert study_device([run for run in runs if "reused_from" in run.facts]) == THERE


def test_of_two_devices_with_as_many_trials_the_study_is_on_the_later_one(tmp_path):
    folder = write_study(tmp_path)
    first, second = folder.trials()[:2]
    on_device(folder, first, HERE, ended="2026-01-02T00:00:00Z")
    on_device(folder, second, THERE, ended="2026-01-03T00:00:00Z")
    assert study_device(folder.runs()) == THERE


def test_another_number_of_devices_is_another_device(tmp_path):
    folder = write_study(tmp_path)
    first, second, third = folder.trials()[:3]
    for trial in (first, second):
        on_device(folder, trial, "TPU v3", num_devices=8)
    on_device(folder, third, "TPU v3", num_devices=2)
    found = own_speeds(folder.runs())
    assert found.device == "8 x TPU v3"
    assert found.elsewhere == {third.key: "2 x TPU v3"}


def test_runs_that_name_no_device_keep_their_speeds(tmp_path):
    folder = finished_study(tmp_path)
    for path in folder.path.glob("trials/*/outcome.json"):
        body = json.loads(path.read_text())
        body["facts"] = {k: v for k, v in body["facts"].items() if "device" not in k}
        path.write_text(json.dumps(body))
    found = own_speeds(folder.runs())
    assert (found.device, found.note) == (None, "")
    assert list(found.runs) == folder.runs()


# -- what is compared -----------------------------------------------------------------------------


def test_a_trial_of_another_device_keeps_its_accuracy_and_has_no_speed(tmp_path):
    folder = taken_over(tmp_path)
    found = standing(folder.runs(), folder.read())
    for row in found.rows:
        there = row.label in ("w8-d2", "w32-d6")
        assert len(row.mean(TOP1).values) == len(row.mean(MACS).values) == 2
        assert len(row.mean(IMAGES_PER_SECOND).values) == (0 if there else 2)
    assert found.best is not None
    assert found.best.label == "w32-d6", "what was learned on the GPU is not left out"


def test_trials_of_two_devices_in_one_study_follow_the_same_rule(tmp_path):
    folder = write_study(tmp_path)
    for trial in folder.trials():
        on_device(folder, trial, THERE if trial.seed else HERE, ended=f"2026-01-0{trial.seed + 1}")
    found = standing(folder.runs(), folder.read())
    assert found.speeds.device == THERE
    for row in found.rows:
        (speed,) = row.mean(IMAGES_PER_SECOND).values
        assert speed == final_metrics(row.recipe, 1)[IMAGES_PER_SECOND] * 50
    assert "7 on Xeon (1 thread)." in found.speeds.note


def test_the_table_names_the_other_device_and_what_to_do(tmp_path):
    folder = taken_over(tmp_path)
    text = " ".join(ranked_table(folder.runs(), folder.read()).split())
    assert text.count(" other device") == 3  # two recipes, and the line that explains
    assert (
        "other device: Images/s and time are those of Xeon (1 thread). 4 of 14 finished trials "
        "have none here, since they were trained on another device: 4 on NVIDIA H200 (taken over "
        "from gpu). Their accuracy counts. To have all on one device, run the study again with "
        "--rerun."
    ) in text


def test_a_study_on_one_device_says_nothing_of_devices(tmp_path):
    folder = finished_study(tmp_path)
    assert "device" not in ranked_table(folder.runs(), folder.read())


@pytest.mark.parametrize("axis", [THROUGHPUT, TIME])
def test_a_chart_over_speed_has_the_recipes_of_one_device_alone(axis, tmp_path):
    folder = taken_over(tmp_path)
    found = read(folder).standing
    assert is_drawn(found.rows, axis)
    shown = {text.get_text() for text in accuracy(found, axis).axes[0].texts}
    assert shown & {"w16-d2", "w16-d6", "w32-d2"}
    assert not shown & {"w8-d2", "w32-d6"}
    whole = {t.get_text() for t in accuracy(found, COST_AXES["accuracy_macs.png"]).axes[0].texts}
    assert "w32-d6" in whole


def test_one_recipe_on_the_studys_device_makes_no_chart_over_speed(tmp_path):
    labels = tuple(scaling_study().recipes)[:-1]
    table = read(taken_over(tmp_path, labels)).table
    assert not is_drawn(table, THROUGHPUT)
    assert not is_drawn(table, TIME)
    assert is_drawn(table, COST_AXES["accuracy_macs.png"])


def test_the_report_says_no_speed_of_a_best_recipe_from_another_device(tmp_path):
    folder = taken_over(tmp_path)
    said = " ".join(answer(read(folder)))
    assert "w32-d6" in said
    assert "nan" not in said
    assert "images/s" not in said
    write_report(folder)
    page = (folder.path / "report.html").read_text()
    assert "trained on NVIDIA H200" in page
    assert "4 on NVIDIA H200 (taken over from gpu)" in page


def test_the_files_for_other_programs_have_every_speed_beside_its_device(tmp_path):
    folder = taken_over(tmp_path)
    write_report(folder)
    lines = list(csv.DictReader((folder.path / "trials.csv").read_text().splitlines()))
    devices = {line["label"]: line["device"] for line in lines}
    assert devices["w8-d2"] == THERE
    assert devices["w16-d2"] == HERE
    assert all(line[IMAGES_PER_SECOND] for line in lines)


# -- searches that look for speed -----------------------------------------------------------------

FAST = search(
    goals=((MINIVAL_TOP1, "max"), (IMAGES_PER_SECOND, "max")), sampler="nsga2", num_trials=6
)


def launched(
    folder: StudyFolder, wanted: Study, device: str, most: int = 100
) -> tuple[list[Trial], list[str]]:
    """Launch the study on a device, one trial at a time; the trials it started, its notices."""
    folder.write(wanted, folder.trials())
    found = agenda(wanted, folder, DATA, [])
    started: list[Trial] = []
    while len(started) < most and (trial := found.next()) is not None:
        started.append(trial)
        on_device(folder, trial, device)
        found.ended(folder.run(trial))
    return started, found.notices


def test_a_study_that_looks_for_speed_takes_nothing_over_and_says_so():
    def request(**changes: Any) -> Request:
        unused: dict[str, Any] = dict.fromkeys(
            ["job", "num_images", "fingerprint", "data", "data_name"]
        )
        unused |= dict.fromkeys(["storage", "name", "tracking_uri"])
        return Request(**{"study": study(FAST), "trials": []} | unused | changes)

    assert not request().reuse
    assert hello(request()) == [
        "search femto looks for images_per_second, which is measured on this device: no trial is "
        "taken over from another study"
    ]
    accurate = request(study=study(search()))
    assert accurate.reuse
    assert hello(accurate) == []
    assert not request(study=study(search()), rerun=True).reuse


def test_what_is_not_to_be_taken_over_is_not_planned_as_finished(tmp_path):
    other = finished_study(tmp_path)
    trials = other.trials()
    assert StudyFolder(tmp_path, "x").finished_elsewhere(trials) == {t.key for t in trials}
    assert StudyFolder(tmp_path, "x", reuse=False).finished_elsewhere(trials) == set()


def test_a_search_for_speed_on_another_device_ends_at_its_first_trial_and_goes_on_at_home(tmp_path):
    folder, wanted = StudyFolder(tmp_path, "x"), study(FAST)
    assert len(launched(folder, wanted, HERE, most=3)[0]) == 3
    (stranger,), (notice,) = launched(folder, wanted, THERE)
    assert f"compares images_per_second on {HERE}, and {stranger.name} was trained on" in notice
    assert "no more recipes are tried here" in notice
    assert "--name" in notice

    started, notices = launched(folder, wanted, HERE)
    assert (len(started), notices) == (FAST.num_trials - 4, [])
    known = own_speeds(folder.runs())
    assert known.elsewhere == {stranger.key: THERE}
    found = best(FAST, known.runs)
    assert found is not None
    assert found.label != stranger.label


def test_a_search_for_accuracy_goes_on_on_any_device(tmp_path):
    folder, wanted = StudyFolder(tmp_path, "x"), study(search(num_trials=6))
    assert len(launched(folder, wanted, HERE, most=3)[0]) == 3
    assert len(launched(folder, wanted, THERE)[0]) == 3


def test_a_trial_that_was_taken_over_earlier_has_no_score_in_a_search_for_speed(tmp_path):
    other = write_study(tmp_path, study(name="gpu"))
    base = Trial(label="base", recipe=FAST.base, seed=0, data=DATA)
    other.add(base)
    on_device(other, base, THERE)
    folder, wanted = StudyFolder(tmp_path, "x"), study(FAST)
    folder.write(wanted, [base])
    assert folder.adopt(base) == "gpu"
    folder.reuse = False
    started, (notice,) = launched(folder, wanted, HERE)
    assert len(started) == FAST.num_trials - 1
    assert "base-s0 was trained on NVIDIA H200 by another study" in notice
    assert speeds_of(own_speeds(folder.runs()).runs).isdisjoint({"base"})


# -- a run that began on another device -----------------------------------------------------------


class OtherCpu(Cpu):
    @property
    def device_name(self) -> str:
        return THERE


def test_a_run_that_began_on_another_device_names_both_and_has_no_speed(
    digits, tmp_path, tiny_recipe
):
    folder = StudyFolder(tmp_path, "moved")
    moved, whole = (Trial(label="t", recipe=tiny_recipe, seed=s, data="d") for s in (0, 1))
    folder.write(study(name="moved"), [moved, whole])

    def trained(trial: Trial, backend: Cpu, **options: Any) -> object:
        out = folder.run_directory(trial)
        return train(trial.recipe, digits, out=out, backend=backend, seed=trial.seed, **options)

    assert isinstance(trained(moved, OtherCpu(), max_steps=3), Preempted)
    assert isinstance(trained(moved, Cpu()), Finished)
    assert isinstance(trained(whole, Cpu()), Finished)
    run, quiet = folder.runs()
    assert run.facts[EARLIER_DEVICES] == [THERE]
    assert EARLIER_DEVICES not in quiet.facts
    here = str(quiet.facts["device"])
    found = own_speeds([run, quiet, replace(quiet, trial=replace(whole, seed=2))])
    assert found.device == here
    assert found.elsewhere == {moved.key: f"{THERE}, then {here}"}
    assert {rate.source for rate in measured(tmp_path, here)} == {"moved"}
    assert len(measured(tmp_path, here)) == 1, "no forecast is made from a speed of two devices"
