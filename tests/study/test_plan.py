"""The price of a study before it starts."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from study_files import (
    DATA,
    SMALL,
    finish,
    scaling_study,
    sized,
    start,
    suggested_trial,
    write_study,
)

from mambaout.accounting import cost, train_macs
from mambaout.errors import WrongRequest
from mambaout.recipe import Recipe, steps_per_epoch, tuned
from mambaout.study.axes import Choice, LinearRange, LogRange, Search, WholeRange
from mambaout.study.law.pareto import front
from mambaout.study.price.plan import LAUNCH_SECONDS, TRIAL_SECONDS, plan, plan_table
from mambaout.study.price.rates import (
    CHIP_SECONDS_PER_IMAGE,
    CPU_CORE_MACS_PER_SECOND,
    CPU_SECONDS_PER_IMAGE,
    EVAL_SHARE,
    Forecast,
    Kind,
    Rate,
    add_calibrated,
    assumption,
    calibrated,
    known_rates,
    measured,
    num_evaluated,
)
from mambaout.study.price.trial_price import checkpoint_bytes
from mambaout.study.study import OUTCOME_FILE, StudyFolder, Trial

TRAIN, MINIVAL, VAL, CLASSES = 4000, 400, 1000, 10
CORE = "Some Xeon (1 thread)"
SPLITS = {"train": TRAIN, "minival": MINIVAL, "val": VAL}


def trials_of(**recipes: Recipe) -> list[Trial]:
    return [Trial(label=k, recipe=r, seed=0, data=DATA) for k, r in recipes.items()]


def splits(split: str, recipe: Recipe) -> int:
    return SPLITS[split]


def rate(recipe: Recipe, seconds: float, kind: Kind = "measured", **fields) -> Rate:
    fields = {"device": CORE, "eval_image_seconds": 0.3 * seconds} | fields
    return Rate(
        kind=kind, recipe=recipe, num_classes=CLASSES, train_image_seconds=seconds, **fields
    )


def priced(recipe: Recipe, *rates: Rate) -> tuple[float, str]:
    """Seconds of a training image, and where from."""
    found = Forecast(rates, CORE).of(recipe, CLASSES)
    return found.train_image_seconds, found.kind


# -- counts ----------------------------------------------------------------------------------------


def test_four_hosts_of_a_slice_are_taken_to_be_four_times_as_fast_as_one():
    speed = assumption("TPU v3", "bf16")
    host, slice_ = (speed.train_image_seconds(4.47e9, devices) for devices in (8, 32))
    assert host == pytest.approx(4 * slice_)
    assert host < speed.train_image_seconds(4.47e9, 2)


def test_a_tpu_makes_one_fp32_product_of_six_in_bf16():
    speeds = [assumption("TPU v3", precision).macs_per_second for precision in ("bf16", "fp32")]
    assert speeds[0] == pytest.approx(6 * speeds[1])


def test_the_basis_of_a_plan_counts_the_rates_of_its_own_precision():
    here = tuned(SMALL, precision="bf16")
    rates = [rate(here, 1e-3), *[rate(sized(8 * n, 2), 1e-3) for n in range(1, 6)]]
    found = plan(trials_of(x=here), TRAIN, CLASSES, rates=rates, device=CORE)
    (said,) = found.basis
    assert said.startswith(f"measured: from 1 finished trial on {CORE} in bf16")
    assert "off by" not in said


def test_a_plan_counts_what_accounting_counts(tmp_path):
    for row in plan(write_study(tmp_path).trials(), TRAIN, CLASSES).rows:
        price = cost(row.recipe.model, row.recipe.image_size, CLASSES)
        assert (row.params, row.macs) == (price.params, price.macs)
        assert row.train_macs == train_macs(row.recipe, TRAIN, CLASSES)
        steps = steps_per_epoch(row.recipe, TRAIN) * row.recipe.schedule.total_epochs
        assert row.images == steps * row.recipe.global_batch


def test_every_recipe_is_priced_on_its_own_splits():
    large = tuned(SMALL, minival_fraction=0.4)
    sizes = {0.1: {"train": 3600, "minival": 400}, 0.4: {"train": 2400, "minival": 1600}}

    def own(split: str, recipe: Recipe) -> int:
        return VAL if split == "val" else sizes[recipe.minival_fraction][split]

    rows = plan(trials_of(a=SMALL, b=large), TRAIN, CLASSES, num_images=own).rows
    assert [row.images for row in rows] == [10 * 3584, 10 * 2304]
    fraction = (10 * 3584 + EVAL_SHARE * (10 * 400 + VAL)) / (
        10 * 2304 + EVAL_SHARE * (10 * 1600 + VAL)
    )
    assert rows[0].seconds / rows[1].seconds == pytest.approx(fraction)


def test_evaluations_are_counted_as_the_loop_makes_them():
    """After every second epoch and after the last, val after the last alone."""
    recipe = tuned(SMALL, epochs=5, eval_every_epochs=2)
    assert num_evaluated(recipe, MINIVAL, VAL) == 3 * MINIVAL + VAL


# -- where the time comes from ---------------------------------------------------------------------


def test_nothing_measured_means_an_assumption_that_is_named(tmp_path):
    found = plan(write_study(tmp_path).trials(), TRAIN, CLASSES, num_images=splits)
    row = found.rows[0]
    each = CPU_SECONDS_PER_IMAGE + 3 * row.macs / CPU_CORE_MACS_PER_SECOND
    evaluated = EVAL_SHARE * num_evaluated(row.recipe, MINIVAL, VAL)
    assert row.seconds == pytest.approx((row.images + evaluated) * each)
    assert {row.kind for row in found.rows} == {"assumed"}
    assert "nothing has been measured on cpu" in found.basis[0]


def test_a_chip_is_priced_by_its_peak_and_an_unknown_one_refused(tmp_path):
    trials = write_study(tmp_path).trials()
    found = plan(trials, TRAIN, CLASSES, device="NVIDIA H100 80GB HBM3")
    assert "25% of the peak of H100" in plan_table(found)
    assert found.device_seconds < plan(trials, TRAIN, CLASSES).device_seconds
    with pytest.raises(ValueError, match=r"abacus.*calibrate"):
        plan(trials, TRAIN, CLASSES, device="abacus")


def test_devices_that_share_a_batch_share_its_macs():
    large = sized(512, 6)
    alone, four = (
        Forecast([], "TPU v3", num_devices=n).of(large, CLASSES).train_image_seconds for n in (1, 4)
    )
    each = CHIP_SECONDS_PER_IMAGE
    assert (alone - each) / (four - each) == pytest.approx(4)
    pair = rate(large, 1.0, num_devices=2), rate(large, 2.0)
    assert Forecast(pair, CORE, num_devices=2).of(large, CLASSES).train_image_seconds < 1.5


def test_a_measured_recipe_takes_what_it_took():
    """Within the noise that is allowed for between two runs."""
    recipe = sized(16, 6)
    seconds, kind = priced(recipe, rate(recipe, 0.004))
    assert (seconds, kind) == (pytest.approx(0.004, rel=0.01), "measured")
    hot = tuned(recipe, peak_lr=1e-2, epochs=99, warmup_epochs=3)
    assert priced(hot, rate(recipe, 0.004))[0] == seconds, "a schedule takes no time"


def test_one_measurement_scales_every_assumption():
    assumed = priced(sized(32, 6))[0]
    twice_as_slow = 2 * priced(sized(8, 2))[0]
    assert priced(sized(32, 6), rate(sized(8, 2), twice_as_slow))[0] == pytest.approx(
        2 * assumed, rel=0.05
    )


def test_a_size_between_two_measured_ones_lies_between_them():
    low, high = rate(sized(8, 4), 1e-3), rate(sized(32, 4), 8e-3)
    ratios = []
    for width in (8, 12, 16, 24, 32):
        seconds = priced(sized(width, 4), low, high)[0]
        ratios.append(seconds / priced(sized(width, 4))[0])
    assert ratios == sorted(ratios)
    assert 1e-3 * 0.9 < priced(sized(16, 4), low, high)[0] < 8e-3


def test_repeats_are_averaged():
    recipe = sized(16, 4)
    seconds, _ = priced(recipe, *[rate(recipe, t) for t in (2e-3, 2e-3, 4e-3, 4e-3)])
    assert seconds == pytest.approx(math.sqrt(8) * 1e-3, rel=0.01)


def test_measured_counts_before_calibrated_before_measured_far_away():
    here, far = sized(8, 2), sized(512, 2)
    assert priced(here, rate(here, 1e-3), rate(here, 9e-3, "calibrated"))[1] == "measured"
    assert priced(here, rate(far, 1e-3), rate(here, 9e-3, "calibrated"))[1] == "calibrated"
    assert priced(here, rate(far, 1e-3))[1] == "measured"
    bf16 = tuned(here, precision="bf16")
    assert priced(here, rate(bf16, 1e-3))[1] == "assumed", "bf16 says nothing of fp32"


def test_the_plan_says_for_every_recipe_where_its_time_comes_from():
    rates = [rate(sized(8, 2), 1e-3, source="scale"), rate(sized(512, 2), 0.5, "calibrated")]
    trials = trials_of(small=sized(8, 2), large=sized(400, 2), bf16=tuned(SMALL, precision="bf16"))
    found = plan(trials, TRAIN, CLASSES, rates=rates, device=CORE)
    assert [row.kind for row in found.rows] == ["measured", "calibrated", "assumed"]
    assert [line.partition(":")[0] for line in found.basis] == ["measured", "calibrated", "assumed"]
    assert "1 finished trial on Some Xeon (1 thread) (scale)" in plan_table(found)


def test_a_plan_says_how_far_beyond_the_measured_networks_it_goes():
    small, large = sized(8, 1), sized(64, 1)
    macs = [cost(recipe.model, recipe.image_size, CLASSES).macs for recipe in (large, small)]
    times = macs[0] / macs[1]
    basis = plan(trials_of(x=large), TRAIN, CLASSES, rates=[rate(small, 1e-3)], device=CORE).basis
    assert any(f"extrapolated: the largest network here has {times:.0f} times" in b for b in basis)
    basis = plan(trials_of(x=small), TRAIN, CLASSES, rates=[rate(small, 1e-3)], device=CORE).basis
    assert not any("extrapolated" in line for line in basis)


def test_a_device_that_no_table_knows_is_priced_once_it_has_been_calibrated():
    recipe = sized(16, 2)
    known = rate(recipe, 2e-3, "calibrated", device="Abacus 9000")
    trials = trials_of(a=recipe, b=sized(24, 2))
    rows = plan(trials, TRAIN, CLASSES, rates=[known], device="Abacus 9000").rows
    assert rows[0].seconds == pytest.approx(rows[0].images * 2e-3, rel=0.2)
    assert {row.kind for row in rows} == {"calibrated"}
    bf16 = trials_of(c=tuned(recipe, precision="bf16"))
    with pytest.raises(ValueError, match=r"Abacus.*calibrate"):
        plan(bf16, TRAIN, CLASSES, rates=[known], device="Abacus 9000")


def test_two_mixers_of_equal_macs_have_rates_of_their_own():
    conv, ssm = SMALL, tuned(SMALL, mixer="conv_ssm")
    known = rate(conv, 1e-3), rate(ssm, 2e-3)
    found = [priced(recipe, *known)[0] for recipe in (conv, ssm)]
    assert found == pytest.approx([1e-3, 2e-3], rel=0.15)
    # One that was never measured counts as no nearer than a calibration of its own.
    other = tuned(SMALL, mixer="identity")
    seconds, kind = priced(other, *known, rate(other, 3e-3, "calibrated"))
    assert kind == "calibrated"
    assert seconds == pytest.approx(3e-3, rel=0.1)


def test_the_error_of_the_rates_is_that_of_leaving_each_out():
    """Rates that follow the assumption are forecast well, scattered ones badly, and it says so."""

    def error(*factors: float) -> float:
        shapes = [sized(width, 4) for width in (8, 16, 24, 32)]
        rates = [rate(r, f * priced(r)[0]) for r, f in zip(shapes, factors, strict=True)]
        found = Forecast(rates, CORE).error("measured", "fp32")
        assert found is not None
        return found

    assert error(2, 2, 2, 2) < 0.01
    assert 0.2 < error(1, 2, 1, 2) < 1.5
    assert Forecast([rate(SMALL, 1e-3)], CORE).error("measured", "fp32") is None


@pytest.mark.parametrize(("chip", "precision"), [("T4", "bf16"), ("V100 PCIe 16GB", "tf32")])
def test_no_other_precisions_peak_stands_in_for_one_that_a_chip_has_no_units_for(chip, precision):
    with pytest.raises(WrongRequest, match=f"{chip} has no units for {precision}, .* fp32"):
        assumption(chip, precision)


# -- rates from files ------------------------------------------------------------------------------


def test_finished_trials_of_any_study_on_the_device_are_rates(tmp_path):
    first, second = write_study(tmp_path), write_study(tmp_path, replace(scaling_study(), name="b"))
    for folder in (first, second):
        finish(folder, folder.trials()[0])
    other = second.trials()[1]
    finish(second, other)
    facts = {"device": CORE, "num_minival": MINIVAL, "num_val": VAL, "step": 310}
    for day, folder in ((2, first), (1, second)):
        ended = {"ended": f"2026-01-0{day}T00:00:00Z"}
        took(
            folder,
            folder.trials()[0],
            facts | ended,
            images_per_second=500.0,
            train_device_hours=0.025,
        )
    found = measured(tmp_path, CORE)
    assert [rate.source for rate in found] == ["b", "scale"], "the device's own, the latest last"
    assert found[0].recipe == first.trials()[0].recipe
    assert found[0].train_image_seconds == pytest.approx(1 / 500)
    rest = 0.025 * 3600 - 310 * 128 / 500  # what is not training is evaluation
    assert found[0].eval_image_seconds == pytest.approx(rest / (10 * MINIVAL + VAL))


def took(folder: StudyFolder, trial: Trial, facts: dict, **metrics: float) -> None:
    path = folder.run_directory(trial) / OUTCOME_FILE
    body = json.loads(path.read_text())
    path.write_text(
        json.dumps(body | {"facts": body["facts"] | facts, "metrics": body["metrics"] | metrics})
    )


def test_calibrations_are_kept_and_the_equally_loaded_ones_preferred(tmp_path):
    rates = [rate(SMALL, 1e-3 * slots, "calibrated", slots=slots) for slots in (1, 2)]
    add_calibrated(tmp_path, rates[:1])
    add_calibrated(tmp_path, [*rates[1:], rate(SMALL, 9.0, "calibrated", device="other")])
    with (tmp_path / "rates.jsonl").open("a") as file:
        file.write('{"kind": "calibr')  # a kill
    assert calibrated(tmp_path, CORE, slots=2) == [rates[1]]
    assert calibrated(tmp_path, CORE, slots=7) == rates
    assert calibrated(tmp_path / "none", CORE) == []


def test_rates_of_halves_of_a_gpu_serve_halves_alone(tmp_path):
    half, whole, two = (
        rate(SMALL, seconds, "calibrated", device="NVIDIA L4", num_devices=count)
        for seconds, count in ((3e-3, 0.5), (2e-3, 1), (1e-3, 2))
    )
    add_calibrated(tmp_path, [half, whole, two])
    assert known_rates(tmp_path, "NVIDIA L4", num_devices=0.5) == [half]
    assert known_rates(tmp_path, "NVIDIA L4") == [whole, two]


def test_half_of_a_gpu_costs_half_of_its_hours_and_money():
    def priced_on(num_devices: float):
        return plan(
            trials_of(a=SMALL),
            TRAIN,
            CLASSES,
            rates=[rate(SMALL, 1e-3, device="NVIDIA L4", num_devices=num_devices)],
            device="NVIDIA L4",
            num_devices=num_devices,
            price_per_hour=1.0,
        )

    whole, half = priced_on(1), priced_on(0.5)
    assert half.rows[0].seconds == pytest.approx(whole.rows[0].seconds, rel=0.01)
    assert half.money == pytest.approx((whole.money or 0) / 2, rel=0.01)
    assert "0.5 of a device a trial" in plan_table(half)


# -- what is left to pay ---------------------------------------------------------------------------


def test_what_has_been_done_is_not_paid_for_again(tmp_path):
    folder = write_study(tmp_path)
    trials = folder.trials()
    finish(folder, trials[0])
    start(folder, trials[1], num_epochs=4)  # of 10, 40 steps of 128 each
    found = plan(trials, TRAIN, CLASSES, runs=folder.runs(), finished={trials[2].key})
    whole = plan(trials, TRAIN, CLASSES)
    states = [row.state for row in found.rows[:4]]
    assert states == ["finished", "begun", "finished", "new"]
    left = 1 - 4 * 40 * 128 / found.rows[1].images
    assert found.rows[1].seconds == pytest.approx(left * whole.rows[1].seconds)
    assert found.num_trials == 12
    assert found.images == sum(row.images for row in found.rows if not row.finished)
    assert "12 trials (2 finished, 1 begun)" in plan_table(found)
    over = plan(trials, TRAIN, CLASSES, finished={trial.key for trial in trials})
    assert (over.device_seconds, over.wall_seconds, over.disk_bytes) == (0, 0, 0)


def test_trials_side_by_side_take_the_time_of_the_fullest_share(tmp_path):
    trials = write_study(tmp_path).trials()
    alone = plan(trials, TRAIN, CLASSES, concurrency=1)
    pair = plan(trials, TRAIN, CLASSES, concurrency=2)
    crowd = plan(trials, TRAIN, CLASSES, concurrency=100)
    beside = LAUNCH_SECONDS + TRIAL_SECONDS * len(trials)
    assert alone.wall_seconds == pytest.approx(alone.device_seconds + beside)
    assert alone.device_seconds / 2 <= pair.wall_seconds < alone.wall_seconds
    longest = max(row.seconds for row in crowd.rows)
    assert crowd.wall_seconds == pytest.approx(LAUNCH_SECONDS + TRIAL_SECONDS + longest)
    with pytest.raises(ValueError, match="concurrency=0"):
        plan(trials, TRAIN, CLASSES, concurrency=0)


def test_device_hours_become_money_and_a_share_of_a_grant(tmp_path):
    trials = write_study(tmp_path).trials()
    found = plan(trials, TRAIN, CLASSES, num_devices=8, price_per_hour=3.0, grant_hours=100)
    hours = 8 * sum(row.seconds for row in found.rows) / 3600
    assert found.device_seconds == pytest.approx(hours * 3600)
    assert found.money == pytest.approx(3 * hours)
    assert found.grant_share == pytest.approx(hours / 100)
    text = plan_table(found)
    assert "at 3 a device-hour" in text
    assert "of the 100 device-hours" in text
    assert "8 devices a trial" in text
    with pytest.raises(ValueError, match="price_per_hour=0"):
        plan(trials, TRAIN, CLASSES, price_per_hour=0)


def test_the_size_of_a_checkpoint_is_that_of_one_that_was_written(tmp_path):
    import torch

    from mambaout.model.network import build
    from mambaout.train import checkpoint
    from mambaout.train.backend import Cpu
    from mambaout.train.optim import optimizer

    recipe = sized(16, 3)
    model = build(recipe.model, CLASSES)
    steps = optimizer(model, recipe, Cpu())
    model(torch.rand(2, 3, 28, 28)).sum().backward()
    steps.step()
    checkpoint.save(tmp_path, {"model": model.state_dict(), "optimizer": steps.state_dict()})
    size = (tmp_path / checkpoint.LAST).stat().st_size
    params = sum(p.numel() for p in model.parameters())
    assert checkpoint_bytes(recipe, params) == pytest.approx(size, rel=0.05)


# -- searches --------------------------------------------------------------------------------------

SEARCH = Search(
    label="find",
    base=sized(16, 2),
    num_trials=20,
    axes=(
        LogRange("peak_lr", 5e-4, 8e-3),
        LinearRange("width", 0.5, 2.0, 0.5),
        WholeRange("blocks", 0, 8),
    ),
    seeds=(0, 1, 2),
    num_confirmed=2,
)


def test_a_search_costs_its_trials_and_at_most_its_dearest(tmp_path):
    found = plan([], TRAIN, CLASSES, searches=[SEARCH])
    (row,) = found.rows
    assert row.num_trials == 20 + 2 * 2, "the best two get the other two seeds"
    assert found.device_seconds == pytest.approx(24 * row.seconds)
    dearest = plan(trials_of(a=sized(32, 10)), TRAIN, CLASSES).rows[0]
    assert row.most_seconds == pytest.approx(dearest.seconds, rel=0.05), "w32 with 8 more blocks"
    assert found.most_device_seconds == pytest.approx(24 * row.most_seconds)
    assert "at most" in plan_table(found)
    assert "to run       24 trials (4 of them are further seeds of the best)" in plan_table(found)
    assert "early stopping" not in plan_table(found)


def test_early_stopping_makes_a_search_cheaper_than_its_price():
    early = replace(SEARCH, early_stop=True, axes=SEARCH.axes[:1])
    found = plan([], TRAIN, CLASSES, searches=[early])
    assert "up to 24" in plan_table(found)
    assert "or less" in plan_table(found)
    assert "early stopping makes it less" in plan_table(found)


def test_axes_that_do_not_go_together_are_priced_by_what_does():
    bound = Search(
        label="ratios",
        base=SMALL,
        num_trials=5,
        axes=(LinearRange("expansion", 1.0, 4.0), Choice("conv_ratio", (0.5, 1.0, 4.0))),
    )
    (row,) = plan([], TRAIN, CLASSES, searches=[bound]).rows
    assert row.most_seconds >= row.seconds > 0


def test_trials_that_a_search_has_had_are_not_priced_again(tmp_path):
    study = replace(scaling_study(), recipes={}, searches=(SEARCH,))
    folder = write_study(tmp_path, study)
    for i in range(3):
        recipe = tuned(SEARCH.base, peak_lr=1e-3 * (i + 1.5))
        trial = suggested_trial(SEARCH, i, recipe)
        folder.add(trial)
        finish(folder, trial)
    (row,) = plan([], TRAIN, CLASSES, searches=[SEARCH], runs=folder.runs()).rows
    assert row.num_trials == 24 - 3


# -- the table -------------------------------------------------------------------------------------


def test_the_table_has_a_line_a_recipe_and_the_sums(tmp_path):
    text = plan_table(plan(write_study(tmp_path).trials(), TRAIN, CLASSES, concurrency=2))
    for label in scaling_study().recipes:
        assert text.count(f"\n{label} ") == 1, "seeds share a line"
    for word in ("to run", "device-hours", "wall time", "disk", "time from", "with 2 at a time"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("subset", "said"),
    [("seed", "Each seed draws its own 6,000 training"), ("shared", "train on the same 6,000")],
)
def test_the_table_says_which_images_the_seeds_see(subset, said):
    part = tuned(SMALL, train_images=6000, subset=subset)
    assert said in plan_table(plan(trials_of(part=part), 60_000, CLASSES))
    assert "images: intervals" not in plan_table(plan(trials_of(all=SMALL), 60_000, CLASSES))


def test_a_table_of_thousands_is_cut_and_says_so():
    trials = trials_of(**{f"t{i}": tuned(SMALL, peak_lr=1e-3 + 1e-6 * i) for i in range(500)})
    text = plan_table(plan(trials, TRAIN, CLASSES))
    assert len(text.splitlines()) < 80
    assert "... and 440 more recipes" in text
    assert "500 trials" in text


def test_the_front_holds_what_nothing_beats():
    points = [(1.0, 70.0), (2.0, 69.0), (2.0, 80.0), (3.0, 80.0), (4.0, 85.0), (4.0, 84.0)]
    assert front(points) == [0, 2, 4]
    assert front([]) == []
    assert front([(1.0, 5.0), (1.0, 5.0)]) == [0], "of equal points one is enough"
