"""sweeps/scale.py and sweeps/baseline.py: which shapes are trained, for how long, beside what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from starts import start_of
from sweep_scripts import FUNCTIONS, start_on

from mambaout.accounting import cost
from mambaout.recipe import BASELINE
from mambaout.variants import VARIANTS

scale, baseline = FUNCTIONS["scale"], FUNCTIONS["baseline"]


@pytest.mark.parametrize("num_train", [4000, 60_000])
def test_scale_spans_fifteen_fold_in_macs_with_the_baseline_beside_it(num_train):
    study = scale(start_of(num_train, 28))
    points = {label: r for label, r in study.recipes.items() if label != "baseline"}
    macs = [cost(r.model, r.image_size, 10).macs for r in points.values()]
    assert len(points) >= 8
    assert max(macs) / min(macs) >= 15
    assert study.question.startswith("How should")
    predicted = scale(start_of(num_train, 28), predict=True)
    largest = [predicted.recipes[label] for label in predicted.predicted]
    beyond = [cost(one.model, one.image_size, 10).macs for one in largest]
    assert len(beyond) == 2
    assert min(beyond) > 1.5 * max(macs)
    assert max(beyond) > 3.5 * max(macs)
    trials = study.trials("d")
    assert len({trial.key for trial in trials}) == len(trials)
    base = study.recipes["baseline"]
    assert base.optim.peak_lr == next(iter(points.values())).optim.peak_lr
    assert base.augment == BASELINE.augment


def test_scale_smoke_is_small_and_large_images_get_the_published_networks():
    smoke = scale(start_of(4000, 28, smoke=True))
    assert 5 <= len(smoke.trials("d")) <= 6
    large = scale(start_of(1_281_167, 500))
    published = {n: replace(BASELINE, model=shape) for n, shape in VARIANTS.items()}
    assert {n: r for n, r in large.recipes.items() if n in VARIANTS} == published
    others = [r.model for n, r in large.recipes.items() if n not in VARIANTS]
    femto = cost(VARIANTS["femto"]).macs
    assert len(others) == 3
    assert all(cost(shape).macs == pytest.approx(femto, rel=0.01) for shape in others)
    large.trials("d")


def test_tuned_sizes_get_the_same_search_each_from_the_smallest_up():
    for side in (28, 224):
        study = scale(start_of(60_000, side), tune_per_size=5)
        assert {(s.axes, s.num_trials) for s in study.searches} == {(study.searches[0].axes, 5)}
        macs = [cost(s.base.model, s.base.image_size).macs for s in study.searches]
        assert macs == sorted(macs)
        assert [s.follows for s in study.searches[1:]] == [s.label for s in study.searches[:-1]]


@pytest.mark.parametrize("smoke", [False, True])
def test_baseline_is_the_papers_recipe_at_the_datas_size(smoke):
    (large,) = baseline(start_of(1_281_167, 500)).recipes.values()
    assert large == BASELINE
    (small,) = baseline(start_of(4000, 28, smoke=smoke)).recipes.values()
    assert small.global_batch == 64
    assert small.optim == replace(BASELINE.optim, peak_lr=1e-3)
    assert small.augment == BASELINE.augment
    assert smoke or small.schedule.epochs == 300


def test_a_part_of_imagenet_is_a_study_of_small_data():
    few = scale(start_on("ImageNet", given={"train_images": 2000}))
    assert "w8-d4-e12" in few.recipes
    many = scale(start_on("ImageNet", given={"train_images": 100_000}))
    assert "femto" in many.recipes
