"""The price of a study before it starts."""

from __future__ import annotations

import pytest
from study_files import finish, scaling_study, write_outcome, write_study

from mambaout.accounting import cost, train_macs
from mambaout.study.pareto import front
from mambaout.study.plan import CPU_CORE_MACS_PER_SECOND, CPU_SECONDS_PER_IMAGE, plan, plan_table
from mambaout.study.study import StudyFolder

TRAIN, CLASSES = 4000, 10


def finish_at(folder: StudyFolder, index: int, macs_per_second: float) -> None:
    """Let a trial have finished at this rate of training MACs."""
    trial = folder.trials()[index]
    finish(folder, trial)
    metrics = dict(folder.run(trial).metrics)
    metrics["macs"] = cost(trial.recipe.model, trial.recipe.image_size, CLASSES).macs
    seconds = train_macs(trial.recipe, TRAIN, CLASSES) / macs_per_second
    metrics["train_device_hours"] = seconds / 3600
    write_outcome(folder.run_directory(trial), "finished", metrics)


def test_a_plan_counts_what_accounting_counts(tmp_path):
    trials = write_study(tmp_path).trials()
    for row in plan(trials, TRAIN, CLASSES).rows:
        recipe = row.trial.recipe
        price = cost(recipe.model, recipe.image_size, CLASSES)
        assert (row.params, row.macs) == (price.params, price.macs)
        assert row.train_macs == train_macs(recipe, TRAIN, CLASSES)


def test_nothing_measured_means_an_assumption_that_is_named(tmp_path):
    found = plan(write_study(tmp_path).trials(), TRAIN, CLASSES)
    row = found.rows[0]
    images = row.train_macs / row.macs / 3
    assert row.seconds == pytest.approx(
        row.train_macs / CPU_CORE_MACS_PER_SECOND + images * CPU_SECONDS_PER_IMAGE
    )
    assert "assumed" in found.basis
    assert "nothing has been measured" in plan_table(found)


def test_a_given_rate_is_used_as_it_is(tmp_path):
    found = plan(write_study(tmp_path).trials(), TRAIN, CLASSES, macs_per_second=1e10)
    assert found.rows[0].seconds == pytest.approx(found.rows[0].train_macs / 1e10)
    assert "given" in found.basis


def test_a_chip_is_priced_by_its_peak_and_an_unknown_one_refused(tmp_path):
    trials = write_study(tmp_path).trials()
    found = plan(trials, TRAIN, CLASSES, device="NVIDIA H100 80GB HBM3")
    assert "H100" in found.basis
    assert found.device_seconds < plan(trials, TRAIN, CLASSES).device_seconds
    with pytest.raises(ValueError, match="abacus"):
        plan(trials, TRAIN, CLASSES, device="abacus")


def test_a_finished_trial_costs_nothing_and_prices_the_others(tmp_path):
    folder = write_study(tmp_path)
    finish_at(folder, 0, macs_per_second=2e9)
    found = plan(folder.trials(), TRAIN, CLASSES, runs=folder.runs())
    assert found.rows[0].finished
    assert found.rows[0].seconds == 0
    assert found.rows[1].seconds == pytest.approx(found.rows[1].train_macs / 2e9)
    assert "the measured rate of 1 finished trial" in found.basis
    assert "13 of 14 trials to run" in plan_table(found)


def test_the_rate_of_a_size_between_two_measured_ones_lies_between_theirs(tmp_path):
    folder = write_study(tmp_path)
    finish_at(folder, 0, macs_per_second=1e9)  # the smallest
    finish_at(folder, 5, macs_per_second=4e9)  # the largest
    found = plan(folder.trials(), TRAIN, CLASSES, runs=folder.runs())
    rates = [row.train_macs / row.seconds for row in found.rows if not row.finished]
    macs = [row.macs for row in found.rows if not row.finished]
    assert all(0.999e9 <= rate <= 4.001e9 for rate in rates)
    ordered = [rate for _, rate in sorted(zip(macs, rates, strict=True))]
    assert ordered == sorted(ordered)


def test_trials_side_by_side_take_the_time_of_the_fullest_share(tmp_path):
    trials = write_study(tmp_path).trials()
    alone = plan(trials, TRAIN, CLASSES, concurrency=1)
    pair = plan(trials, TRAIN, CLASSES, concurrency=2)
    crowd = plan(trials, TRAIN, CLASSES, concurrency=100)
    assert alone.wall_seconds == pytest.approx(alone.device_seconds)
    assert alone.device_seconds / 2 <= pair.wall_seconds < alone.wall_seconds
    assert crowd.wall_seconds == max(row.seconds for row in crowd.rows)
    with pytest.raises(ValueError, match="concurrency=0"):
        plan(trials, TRAIN, CLASSES, concurrency=0)


def test_the_table_has_a_line_a_trial_and_the_sums(tmp_path):
    text = plan_table(plan(write_study(tmp_path).trials(), TRAIN, CLASSES, concurrency=2))
    for trial in scaling_study().trials("any"):
        assert trial.name in text
    assert "with 2 at a time" in text
    assert max(map(len, text.splitlines()[:-1])) <= 100


def test_the_front_holds_what_nothing_beats():
    points = [(1.0, 70.0), (2.0, 69.0), (2.0, 80.0), (3.0, 80.0), (4.0, 85.0), (4.0, 84.0)]
    assert front(points) == [0, 2, 4]
    assert front([]) == []
    assert front([(1.0, 5.0), (1.0, 5.0)]) == [0], "of equal points one is enough"
