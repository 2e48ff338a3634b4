"""A training that goes on from a shorter one ends with the bits that it has alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import tiny_sweep
import torch
from same_runs import TIMING, assert_same_checkpoint, measured, run

from mambaout.endings import Ending
from mambaout.launch.cli import _in_order, _job
from mambaout.launch.progress import done_fraction
from mambaout.launch.trial import begin_branch
from mambaout.recipe import Recipe, steps_per_epoch, tuned
from mambaout.study.branches import branch_points, is_start_of, shared_device_hours
from mambaout.study.price.plan import plan, plan_table
from mambaout.study.search.study_agenda import agenda
from mambaout.study.study import Study, StudyFolder, Trial
from mambaout.train import checkpoint
from mambaout.train.metrics import TRAIN_DEVICE_HOURS
from mambaout.train.outcomes import Finished

PER_EPOCH = 4  # steps of the recipe below
SHARE = 0.4
BRANCHES = {2: 5, 3: 7, 4: 10}  # epochs -> the step where the decay begins


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trial_of(recipe: Recipe, epochs: int, **fields) -> Trial:
    late = tuned(recipe, epochs=epochs, lr_decay_share=SHARE, subset="seed")
    return Trial(label=f"e{epochs}", **{"recipe": late, "seed": 3, "data": "d"} | fields)


def trained(folder: StudyFolder, trial: Trial, data, **options):
    begin_branch(folder, trial)
    options = {"log_every_steps": 3, "seed": trial.seed} | options
    return run(trial.recipe, data, folder.run_directory(trial), **options)


def assert_same_run(folder: StudyFolder, alone: StudyFolder, trial: Trial) -> None:
    one, other = folder.run_directory(trial), alone.run_directory(trial)
    assert_same_checkpoint(one, other)
    assert measured(one) == measured(other)
    timing = {*TIMING, TRAIN_DEVICE_HOURS}
    final, expected = (
        {name: value for name, value in one.run(trial).metrics.items() if name not in timing}
        for one in (folder, alone)
    )
    assert final == expected
    assert final["top1"] > 0


@pytest.fixture(scope="module")
def alone(digits, recipe, tmp_path_factory) -> StudyFolder:
    """Each length trained from step 0."""
    torch.set_num_threads(1)
    folder = StudyFolder(tmp_path_factory.mktemp("alone"), "alone")
    for epochs in BRANCHES:
        trial = trial_of(recipe, epochs)
        run(
            *(trial.recipe, digits, folder.run_directory(trial)),
            seed=trial.seed,
            log_every_steps=3,
        )
    return folder


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Everything random is on; 4 steps an epoch."""
    return tuned(tiny_sweep.recipe("thin"), train_images=128, warmup_epochs=0.5)


def test_branches_equal_the_same_recipes_trained_alone_to_the_bit(digits, recipe, alone, tmp_path):
    folder = StudyFolder(tmp_path, "lengths")
    trials = {epochs: trial_of(recipe, epochs) for epochs in BRANCHES}
    for epochs, trial in trials.items():
        assert isinstance(trained(folder, trial, digits), Finished)
        assert_same_run(folder, alone, trial)
        kept = folder.run_directory(trial) / f"branch-{BRANCHES[epochs]}.ckpt"
        assert checkpoint.load(kept)["step"] == BRANCHES[epochs]
    begun = {
        epochs: json.loads((folder.run_directory(trials[epochs]) / "branch.json").read_text())
        for epochs in (3, 4)
    }
    assert begun == {
        3: {"branch_of": trials[2].key, "branch_step": 5},
        4: {"branch_of": trials[3].key, "branch_step": 7},
    }
    assert not (folder.run_directory(trials[2]) / "branch.json").exists()
    # The curve of a branch begins at step 0, and hours that were shared are known.
    assert [step for step, _ in measured(folder.run_directory(trials[4]))][:3] == [3, 4, 6]
    long = folder.run(trials[4])
    assert 0 < shared_device_hours(long) < long.metrics[TRAIN_DEVICE_HOURS]
    assert shared_device_hours(folder.run(trials[2])) == 0


@pytest.mark.parametrize("stop_at", [4, 5, 6])
def test_a_stop_around_the_branch_point_changes_no_bit(digits, recipe, alone, tmp_path, stop_at):
    folder = StudyFolder(tmp_path, "lengths")
    short, long = trial_of(recipe, 2), trial_of(recipe, 4)
    trained(folder, short, digits, max_steps=stop_at)
    trained(folder, short, digits)
    trained(folder, long, digits, max_steps=8)
    assert folder.run(long).status is Ending.UNFINISHED
    trained(folder, long, digits)
    assert_same_run(folder, alone, long)
    assert folder.run(long).facts["branch_step"] == 5


def test_a_branch_point_that_is_missing_or_damaged_only_costs_time(digits, recipe, alone, tmp_path):
    folder = StudyFolder(tmp_path, "lengths")
    for epochs in (2, 3):
        trial = trial_of(recipe, epochs)
        shutil.copytree(alone.run_directory(trial), folder.run_directory(trial))
    damaged = folder.run_directory(trial_of(recipe, 3)) / "branch-7.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    long = trial_of(recipe, 4)
    begin_branch(folder, long)
    body = json.loads((folder.run_directory(long) / "branch.json").read_text())
    assert body["branch_step"] == 5, "the one before it is whole"
    shutil.rmtree(folder.run_directory(long))
    records = folder.run_directory(trial_of(recipe, 2)) / "records.jsonl"
    records.write_text("{\n" + records.read_text())
    begin_branch(folder, long)
    assert not (folder.run_directory(long) / "last.ckpt").exists()
    begin_branch(folder, trial_of(recipe, 4, seed=4))
    assert not folder.run_directory(trial_of(recipe, 4, seed=4)).exists()


def test_a_kill_before_the_checkpoint_is_copied_leaves_a_run_from_step_0(
    digits, recipe, alone, tmp_path
):
    folder = StudyFolder(tmp_path, "lengths")
    short, long = trial_of(recipe, 2), trial_of(recipe, 4)
    shutil.copytree(alone.run_directory(short), folder.run_directory(short))
    begin_branch(folder, long)
    (folder.run_directory(long) / "last.ckpt").unlink()
    shutil.rmtree(folder.run_directory(short))
    trained(folder, long, digits)
    assert_same_run(folder, alone, long)
    assert "branch_of" not in folder.run(long).facts


def test_branch_points_of_other_studies_count_unless_reuse_is_off(recipe, alone):
    long = trial_of(recipe, 12)
    beside = StudyFolder(alone.path.parent, "beside")
    assert [point.step for point in branch_points(beside, long)] == [10, 7, 5]
    beside.reuse = False
    assert list(branch_points(beside, long)) == []


def test_only_a_recipe_that_is_the_same_but_for_its_epochs_is_a_start(recipe):
    short, long = trial_of(recipe, 2), trial_of(recipe, 4)
    assert is_start_of(short, long)
    assert not is_start_of(long, short)
    assert not is_start_of(long, long)
    share_1 = {"lr_decay_share": 1.0, "warmup_epochs": 0}
    falling = [replace(one, recipe=tuned(one.recipe, **share_1)) for one in (short, long)]
    assert not is_start_of(*falling), "a rate that falls from the start shares no step"
    cosine = replace(long, recipe=tuned(long.recipe, lr_decay_share=None))
    others = [
        cosine,
        trial_of(recipe, 4, seed=1),
        trial_of(recipe, 4, data="other"),
        *(
            replace(long, recipe=tuned(long.recipe, **{name: value}))
            for name, value in {
                "warmup_epochs": 1,
                "eval_every_epochs": 2,
                "peak_lr": 1e-3,
                "lr_decay_share": 0.3,
                "drop_path": 0.1,
            }.items()
        ),
    ]
    assert not any(is_start_of(short, other) for other in others)


# -- in a study -----------------------------------------------------------------------------------


def lengths(recipe: Recipe, data: str) -> list[Trial]:
    recipes = {
        f"{name}-e{epochs}": tuned(trial_of(recipe, epochs).recipe, peak_lr=rate)
        for epochs in (2, 3, 4)
        for name, rate in (("low", 1e-3), ("high", 2e-3))
    }
    return Study(name="lengths", question="?", recipes=recipes, seeds=(0, 1)).trials(data)


def test_a_trial_comes_after_those_it_goes_on_from_and_waits_for_a_running_one(
    digits, recipe, alone, tmp_path
):
    trials = _in_order(lengths(recipe, "d"), digits)
    assert [trial.name for trial in trials[:6]] == [
        *("low-e2-s0", "high-e2-s0"),
        *("low-e3-s0", "high-e3-s0"),
        *("low-e4-s0", "high-e4-s0"),
    ]
    folder = StudyFolder(tmp_path, "lengths")
    study = Study(name="lengths", question="?", recipes={})
    chain = agenda(study, folder, "d", [trial for trial in trials if trial.seed == 0])
    first, second = chain.next(), chain.next()
    assert first is not None
    assert second is not None
    assert (first.name, second.name) == ("low-e2-s0", "high-e2-s0")
    assert chain.next() is None, "all others wait for these two"
    assert not chain.over
    folder.run_directory(second).mkdir(parents=True)
    (folder.run_directory(second) / "branch-5.ckpt").write_bytes(b"")
    third = chain.next()
    assert third is not None
    assert third.name == "high-e3-s0", "it need not wait for the end of high-e2"
    chain.ended(replace(folder.run(first), status=Ending.BROKEN))
    fourth = chain.next()
    assert fourth is not None
    assert fourth.name == "low-e3-s0", "what was given up holds nobody back"


def test_the_progress_of_a_trial_is_that_of_its_own_steps(digits, recipe, alone):
    trials = [trial_of(recipe, epochs) for epochs in BRANCHES]
    jobs = {trial.label: _job(digits, trial, trials) for trial in trials}
    assert [job.shared_steps for job in jobs.values()] == [0, 5, 7]
    whole = _job(digits, trials[2])
    assert jobs["e4"].train_macs == pytest.approx(whole.train_macs * (16 - 7) / 16)
    long = alone.run(trials[2])
    at_6, at_12 = (
        replace(long, status=Ending.UNFINISHED, records=[r for r in long.records if r.step <= step])
        for step in (6, 12)
    )
    assert done_fraction(jobs["e4"], at_6) == 0
    assert done_fraction(jobs["e4"], at_12) == pytest.approx((12 - 7) / (16 - 7))
    assert done_fraction(jobs["e4"], long) == 1


def test_a_plan_counts_the_steps_that_lengths_share_once(digits, recipe):
    trials = [trial_of(recipe, epochs, seed=seed) for epochs in BRANCHES for seed in (0, 1)]
    options = {"num_train": 3000, "num_classes": 10, "num_images": digits.num_images}
    found = plan(trials, **options)
    batch = recipe.global_batch
    assert steps_per_epoch(recipe, 128) == PER_EPOCH
    # 8 steps; 12 less the first 5; 16 less the first 7.
    assert found.images == 2 * batch * (8 + (12 - 5) + (16 - 7))
    assert found.saved_images == 2 * batch * (5 + 7)
    each = {row.name: row for row in found.rows}
    single = {row.name: row for trial in trials for row in plan([trial], **options).rows}
    assert each["e2-s0"].seconds == single["e2-s0"].seconds
    assert each["e3-s0"].seconds < 0.8 * single["e3-s0"].seconds
    assert each["e4-s0"].train_macs == single["e4-s0"].train_macs, "what its result has cost"
    assert found.train_macs < sum(row.train_macs for row in found.rows)
    assert "saved        768 images (33%): longer trials go on" in plan_table(found)
    assert "saved " not in plan_table(plan(trials[:2], **options))
