"""A study and its folder: values, keys, and what is read back from disk."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from study_files import (
    DATA,
    diverge,
    finish,
    finished_study,
    mixed_study,
    record,
    scaling_study,
    sized,
    start,
    write_study,
)

from mambaout.recipe import tuned
from mambaout.study.study import Study, StudyFolder, Trial
from mambaout.study.tracking.tail import Tail


def test_a_trial_is_its_recipe_seed_and_data_whatever_its_label():
    trial = Trial(label="a", recipe=sized(8, 2), seed=0, data=DATA)
    assert replace(trial, label="b").key == trial.key
    others = [
        replace(trial, seed=1),
        replace(trial, data="another"),
        replace(trial, recipe=tuned(trial.recipe, peak_lr=2e-3)),
    ]
    assert len({trial.key, *(other.key for other in others)}) == 4


def test_every_recipe_gets_a_first_seed_before_any_gets_a_second():
    seeds = [trial.seed for trial in scaling_study(seeds=3).trials(DATA)]
    assert seeds == sorted(seeds)
    assert len(seeds) == 21


def test_seeds_can_differ_by_recipe():
    recipes = {"a": sized(8, 2), "b": sized(8, 4)}
    study = Study(name="s", question="?", recipes=recipes, seeds={"a": (0,), "b": (0, 1, 2)})
    assert [trial.name for trial in study.trials(DATA)] == ["a-s0", "b-s0", "b-s1", "b-s2"]


def test_a_study_folder_gives_back_the_trials_it_was_given(tmp_path):
    folder = write_study(tmp_path)
    assert folder.trials() == scaling_study().trials(DATA)
    assert folder.read()["question"] == scaling_study().question
    assert folder.read()["data_name"] == "digits"
    left = sorted(path.name for path in folder.path.iterdir())
    assert left == ["study.json", "trials.jsonl"], "nothing left aside"


def test_trials_jsonl_says_every_trials_key_and_takes_further_trials(tmp_path):
    folder = write_study(tmp_path)
    trials = folder.trials()
    further = replace(trials[0], seed=9)
    folder.add(further)
    lines = (folder.path / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [t.key for t in [*trials, further]]
    with (folder.path / "trials.jsonl").open("a") as file:
        file.write('{"label": "cut off by a k')
    assert folder.trials() == [*trials, further]


def test_a_folder_without_a_study_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/study\.json"):
        StudyFolder(tmp_path, "nowhere").read()


def test_a_run_is_finished_when_its_outcome_is_there_and_only_then(tmp_path):
    folder = write_study(tmp_path)
    done, cut, bad, fresh, *_ = folder.trials()
    finish(folder, done)
    start(folder, cut)
    diverge(folder, bad)
    states = {trial: folder.run(trial).status for trial in (done, cut, bad, fresh)}
    assert list(states.values()) == ["finished", "unfinished", "diverged", "unfinished"]
    assert folder.run(done).metrics["top1"] > 50
    assert len(folder.run(cut).records) == 3
    assert folder.run(bad).facts["error"] == "the loss was not finite at step 93"
    assert folder.run(fresh).records == ()


def test_a_last_record_cut_off_by_a_kill_is_left_out(tmp_path):
    folder = finished_study(tmp_path)
    trial = folder.trials()[0]
    path = folder.run_directory(trial) / "records.jsonl"
    whole = len(folder.run(trial).records)
    path.write_text(path.read_text()[:-20])
    assert len(folder.run(trial).records) == whole - 1


@pytest.mark.parametrize("name", ["outcome.json", "records.jsonl", "stopped.json"])
def test_a_damaged_file_of_a_run_is_named_with_what_to_do(name, tmp_path):
    folder = finished_study(tmp_path)
    trial = folder.trials()[0]
    directory = folder.run_directory(trial)
    if name == "stopped.json":
        (directory / "outcome.json").unlink()
    (directory / name).write_text('{"status":\n')
    with pytest.raises(ValueError, match=rf"{directory / name} cannot be read: .* its folder away"):
        folder.run(trial)
    directory.rename(tmp_path / "away")
    assert folder.run(trial).status == "unfinished"


def test_a_damaged_file_of_a_study_is_named(tmp_path):
    folder = finished_study(tmp_path)
    for name, read in (("study.json", folder.read), ("trials.jsonl", folder.trials)):
        (folder.path / name).write_text("x\n")
        with pytest.raises(ValueError, match=rf"{folder.path / name} cannot be read: "):
            read()


def test_a_stored_study_of_another_version_names_the_field_that_does_not_fit(tmp_path):
    folder = write_study(tmp_path)
    path = folder.path / "trials.jsonl"
    first, *others = path.read_text().splitlines()
    body = json.loads(first)
    body["recipe"]["optim"]["momentum"] = 0.9
    path.write_text("\n".join([json.dumps(body), *others, ""]))
    with pytest.raises(ValueError, match="momentum"):
        folder.trials()


def test_the_tail_gives_each_record_once_and_waits_for_a_whole_line(tmp_path):
    path, tail = tmp_path / "records.jsonl", Tail()
    lines = [record(step, step / 40, {"train/loss": 1.0}).to_json() + "\n" for step in (1, 2, 3)]
    assert tail.new(path) == []
    path.write_text(lines[0] + lines[1][:10])
    assert [r.step for r in tail.new(path)] == [1]
    assert [r.step for r in tail.new(path)] == [1], "given again until it is accepted"
    tail.accept()
    path.write_text("".join(lines))
    assert [r.step for r in tail.new(path)] == [2, 3]
    tail.accept()
    assert tail.new(path) == []


def test_the_tail_starts_again_where_a_resume_has_cut_the_file_back(tmp_path):
    path, tail = tmp_path / "records.jsonl", Tail()
    lines = [record(step, step / 40, {"train/loss": 1.0}).to_json() + "\n" for step in range(30)]
    path.write_text("".join(lines))
    tail.new(path)
    tail.accept()
    again = [record(step, 0.0, {"train/loss": 0.5}).to_json() + "\n" for step in range(20, 60)]
    path.write_text("".join([*lines[:20], *again]))
    assert [r.step for r in tail.new(path)][-40:] == list(range(20, 60))


def test_a_study_is_listed_priced_and_reported_without_torch_ray_or_mlflow(tmp_path):
    folder = mixed_study(tmp_path)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mambaout.study.price.plan import plan, plan_table\n"
        "from mambaout.study.report.study_report import ranked_table, write_report\n"
        "from mambaout.study.tracking.store import check_tracking\n"
        "from mambaout.study.study import StudyFolder\n"
        f"folder = StudyFolder(Path({str(folder.path.parent)!r}), {folder.path.name!r})\n"
        "print(plan_table(plan(folder.trials(), 4000, 10)), ranked_table(folder.runs()))\n"
        f"check_tracking('sqlite:///{tmp_path}/mlflow.db')\n"
        "write_report(folder)\n"
        "print({'torch', 'ray', 'mlflow', 'timm'} & set(sys.modules))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"


def test_a_finished_trial_is_taken_over_by_another_study_and_an_unfinished_one_is_not(tmp_path):
    other = mixed_study(tmp_path)
    finished = {trial for trial in other.trials() if other.run(trial).status == "finished"}
    folder = StudyFolder(tmp_path, "later")
    relabelled = [replace(trial, label="mine") for trial in other.trials()]
    taken = {trial for trial in relabelled if folder.adopt(trial) == "scale"}
    assert {trial.key for trial in taken} == {trial.key for trial in finished}
    for trial in taken:
        mine, theirs = folder.run(trial), other.run(trial)
        assert mine.metrics == theirs.metrics
        assert mine.records == theirs.records
        assert mine.facts == {**theirs.facts, "reused_from": "scale"}
    assert {folder.run(trial).status for trial in relabelled if trial not in taken} == {
        "unfinished"
    }


def test_a_trial_that_has_begun_is_not_replaced_by_a_finished_twin(tmp_path):
    other = finished_study(tmp_path)
    folder = StudyFolder(tmp_path, "later")
    trial = other.trials()[0]
    start(folder, trial)
    assert folder.adopt(trial) is None
    assert folder.run(trial).status == "unfinished"


def test_a_trial_stopped_early_is_no_result_until_it_is_finished(tmp_path):
    folder = write_study(tmp_path)
    trial = folder.trials()[0]
    start(folder, trial)
    folder.stop(trial, "behind at epoch 3")
    assert folder.run(trial).status == "stopped"
    assert folder.run(trial).facts["why"] == "behind at epoch 3"
    finish(folder, trial)
    assert folder.run(trial).status == "finished"
