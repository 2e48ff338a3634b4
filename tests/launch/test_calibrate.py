"""A short calibration tells what trials will take, and a plan made from it says so."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_sweep
from places import TESTS
from study_files import SMALL, sized

import mambaout.train.calibrate as calibration
from mambaout.data.batches.loader import evaluation_batches
from mambaout.launch import cli
from mambaout.launch.calibrate import (
    _recipes,
    _shortened,
    device_of,
    most_different,
    run_calibration,
)
from mambaout.launch.resources import Share
from mambaout.launch.sweep_options import sweep_parser
from mambaout.recipe import tuned, with_global_batch
from mambaout.study.axes import LogRange, Search, WholeRange
from mambaout.study.price.plan import Plan, plan
from mambaout.study.price.rates import Rate, calibrated, known_rates
from mambaout.study.start import Start
from mambaout.study.study import Run, Study, StudyFolder
from mambaout.train.backend import backend
from mambaout.train.calibrate import calibrate
from mambaout.train.metrics import TRAIN_DEVICE_HOURS

CORE = Share(accelerator="cpu", cpus=1)


def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a second later every time one looks."""
    now = iter(range(1000))
    monkeypatch.setattr(calibration, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


def test_the_first_step_is_left_out_and_every_later_image_counted(monkeypatch, tiny_recipe, digits):
    ticking(monkeypatch)
    found = calibrate(tiny_recipe, digits, backend("cpu"), seconds=5.0)
    # Looks: made, first step over, then one a step while under 5 s, one more when it is over.
    assert found.first_step_seconds == 1.0
    assert found.images_per_second == pytest.approx(5 * tiny_recipe.global_batch / 6)
    assert found.eval_images_per_second > 0
    assert (found.peak_memory_bytes or 0) > 0
    assert found.num_devices == 1


def test_a_calibration_outlives_the_recipes_own_length_and_leaves_nothing(
    tmp_path, monkeypatch, tiny_recipe, digits
):
    """Two epochs of four steps, and fewer evaluation images than a batch: it goes on and on."""
    ticking(monkeypatch)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    short = tuned(tiny_recipe, epochs=1, warmup_epochs=0)
    found = calibrate(short, digits, backend("cpu"), seconds=20.0)
    assert found.images_per_second == pytest.approx(20 * short.global_batch / 21)
    assert list(tmp_path.iterdir()) == []


def test_evaluation_is_calibrated_with_the_loading_workers_of_the_trial(
    monkeypatch, tiny_recipe, digits
):
    ticking(monkeypatch)
    asked: list[int] = []

    def batches(*args, num_workers=0, **more):
        asked.append(num_workers)
        return evaluation_batches(*args, num_workers=num_workers, **more)

    monkeypatch.setattr(calibration, "evaluation_batches", batches)
    calibrate(tiny_recipe, digits, backend("cpu"), seconds=3.0, num_workers=1)
    assert set(asked) == {1}


def test_a_calibration_is_of_the_device_that_trials_name():
    assert device_of(CORE).endswith("(1 thread)")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert device_of(CORE) == backend("cpu").device_name
    finally:
        torch.set_num_threads(threads)


def test_the_recipes_that_differ_most_are_calibrated():
    grid = {f"w{w}-d{d}": sized(w, d) for w in (8, 12, 16, 20, 24, 28, 32) for d in (2, 4, 6)}
    plain = tuned(grid["w16-d4"], randaugment=0.0, mixup=0.0, cutmix=0.0)
    found = most_different(grid | {"plain": plain}, 10, slots=2)
    assert len(found) == 6
    assert {"w8-d2", "w32-d6", "plain"} <= found.keys()
    assert len(most_different(grid, 10, slots=4)) == 8, "no slot stays empty"
    same = {f"lr{i}": tuned(SMALL, peak_lr=1e-3 * (i + 1)) for i in range(9)}
    assert list(most_different(same, 10, slots=2)) == ["lr0"], "a learning rate takes no time"


def test_a_batch_too_large_for_the_seconds_is_cut_and_a_fitting_one_kept():
    large = with_global_batch(sized(512, 6), 4096)
    cut = _shortened(large, 10, "cpu", 10.0)
    assert cut.global_batch < 4096
    assert 4096 % cut.global_batch == 0
    assert cut.model == large.model
    assert _shortened(SMALL, 10, "cpu", 10.0) == SMALL
    assert _shortened(large, 10, "cuda", 10.0) == large


def test_the_recipes_of_a_search_are_calibrated_too(digits, tmp_path):
    search = Search(
        label="find",
        base=tiny_sweep.recipe("thin"),
        num_trials=5,
        axes=(LogRange("peak_lr", 1e-3, 4e-3), WholeRange("blocks", 0, 6)),
    )

    wide = tiny_sweep.recipe("wide")  # of the search's name, and not hidden by it

    def study(start: Start) -> Study:
        return Study(name="tiny", question="?", recipes={"find": wide}, searches=(search,))

    recipes = _recipes(request_of(tmp_path, study))
    blocks = {recipe.model.num_blocks for recipe in recipes.values() if recipe != wide}
    assert {4, 7, 10} <= blocks, "its base, its middle and its dearest"
    assert wide in recipes.values()


# -- forecast against actual -----------------------------------------------------------------------


def request_of(storage: Path, study=tiny_sweep.tiny):
    options = sweep_parser(study).parse_args(["--data", "digits", "--storage", str(storage)])
    return cli._request(study, options, "test")


def grown(start: Start) -> Study:
    """What does a small study take?"""
    plain = tuned(tiny_sweep.recipe("thin"), train_images=1536, image_size=28, epochs=3)
    shapes = {f"w{w}-d{d}": (w, d) for w in (8, 16, 24) for d in (1, 5)}
    recipes = {
        label: tuned(plain, dims=(w, 2 * w, 3 * w, 4 * w), depths=(1, 1, d, 1))
        for label, (w, d) in shapes.items()
    }
    return Study(name="grown", question="?", recipes=recipes)


def forecast(request, rates: list[Rate], runs: list[Run] | None = None) -> Plan:
    from mambaout.data.packing.sources import open_data

    return plan(
        request.trials,
        request.facts["num_train"],
        request.facts["num_classes"],
        num_images=open_data(request.data).num_images,
        runs=runs or [],
        rates=rates,
        device=device_of(CORE),
        concurrency=2,
    )


def report(what: str, priced: Plan, runs: list[Run]) -> None:
    """Print the ratio of forecast to actual over the trials that were priced."""
    took = {run.trial.name: run.metrics[TRAIN_DEVICE_HOURS] * 3600 for run in runs}
    rows = [row for row in priced.rows if not row.finished]
    ratios = sorted(row.seconds / took[row.name] for row in rows)
    total = sum(row.seconds for row in rows) / sum(took[row.name] for row in rows)
    median = ratios[len(ratios) // 2]
    print(
        f"\nforecast / actual, {what}: {total:.2f} in sum, {median:.2f} in the middle, "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} over {len(rows)} trials"
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(500)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_forecast_from_a_trial_is_what_that_trial_took(tmp_path, monkeypatch, capfd, data_cache):
    """Six sizes on the digits, two at a time, priced before, after half of them and at the end.

    A forecast is a measured speed times the images that a trial trains on and evaluates. From a
    trial's own speed it is what that trial took, unless a unit or a count is wrong; the forecast
    gives the assumed speed half a percent of the say. How near a forecast from other trials comes
    is the machine's affair: those ratios are printed.
    """
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    request = request_of(tmp_path, grown)
    rates = run_calibration(request, seconds=3.0)
    said = capfd.readouterr().out
    assert re.search(r"calibrating 6 recipes on cpu, \d+ at a time.*about \d+", said)
    assert calibrated(tmp_path, device_of(CORE)) == rates
    assert len(rates) >= 6
    assert {rate.slots for rate in rates} == {rates[0].slots}

    before = forecast(request, known_rates(tmp_path, device_of(CORE)))
    assert {row.kind for row in before.rows} == {"calibrated"}
    options = ["--data", "digits", "--storage", str(tmp_path), "--max-concurrent", "2"]
    began = time.monotonic()
    assert cli.main(grown, options) == 0
    wall = time.monotonic() - began
    runs = StudyFolder(tmp_path, request.name).runs()
    halves = runs[::2], runs[1::2]
    known = known_rates(tmp_path, device_of(CORE))
    assert sum(rate.kind == "measured" for rate in known) == len(runs)
    keys = {tuple(run.trial.recipe.model.depths + run.trial.recipe.model.dims) for run in halves[0]}
    first = [
        rate
        for rate in known
        if rate.kind == "measured"
        and tuple(rate.recipe.model.depths + rate.recipe.model.dims) in keys
    ]
    after = forecast(request, first, [*halves[0]])
    assert {row.kind for row in after.rows if not row.finished} == {"measured"}
    for run in runs:
        own = [rate for rate in known if rate.recipe == run.trial.recipe]
        own = [rate for rate in own if rate.kind == "measured"]
        rows = {row.name: row for row in forecast(request, own).rows}
        seconds = run.metrics[TRAIN_DEVICE_HOURS] * 3600
        assert rows[run.trial.name].seconds == pytest.approx(seconds, rel=0.02)
    with capfd.disabled():
        report("assumed", forecast(request, []), runs)
        print(f"\nforecast / actual wall time, calibrated: {before.wall_seconds / wall:.2f}")
        report("calibrated", before, runs)
        report("measured", after, runs)
