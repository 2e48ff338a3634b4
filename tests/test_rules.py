"""The recipe follows the data, by rules that keep what the user gave."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaout.applied_rules import rule_lines
from mambaout.fields import flat_fields
from mambaout.recipe import BASELINE, FINE_TUNING, steps_per_epoch, tuned
from mambaout.rules import (
    LARGEST_MINIVAL_SHARE,
    LEAST_MINIVAL,
    SMALL_DATA,
    SMALL_MODEL,
    DataFacts,
    WeightsFacts,
    fitted,
)
from mambaout.variants import FEMTO, VARIANTS, widen

MOST_IMAGES = 14_000_000


def facts(num_train: int, image_side: int, num_classes: int = 10) -> DataFacts:
    return DataFacts(num_train=num_train, num_classes=num_classes, image_side=image_side)


@settings(max_examples=200)
@given(
    num_train=st.integers(20, MOST_IMAGES),
    side=st.integers(8, 4000),
    paper=st.booleans(),
    study=st.booleans(),
    smoke=st.booleans(),
)
def test_a_recipe_fits_any_number_of_images_of_any_size(num_train, side, paper, study, smoke):
    found = fitted(facts(num_train, side), paper=paper, study=study, smoke=smoke).recipe
    left = int(num_train * (1 - found.minival_fraction))
    assert steps_per_epoch(found, left) >= 1
    assert 28 <= found.image_size <= 224
    assert found.model.stem_stride == (2 if found.image_size <= 64 else 4)
    assert 0 < found.optim.peak_lr <= BASELINE.optim.peak_lr
    assert found.schedule.warmup_epochs < found.schedule.epochs
    assert found.minival_fraction <= LARGEST_MINIVAL_SHARE
    assert found.minival_fraction * num_train >= LEAST_MINIVAL or num_train < 480


def test_imagenet_gets_the_papers_recipe_for_every_variant():
    for shape in VARIANTS.values():
        found = fitted(facts(1_281_167, 375, 1000), shape)
        assert found.recipe == fitted(facts(1_281_167, 375, 1000), shape, paper=True).recipe
        assert flat_fields(found.recipe) | flat_fields(shape) == flat_fields(found.recipe)
        assert found.recipe.optim == BASELINE.optim
        assert found.recipe.schedule == BASELINE.schedule
        assert found.recipe.augment == BASELINE.augment
        assert found.recipe.global_batch == BASELINE.global_batch
        assert not found.rules


def test_small_data_get_a_recipe_that_takes_enough_steps():
    for num_train in (200, 786, 1432, 6000, SMALL_DATA - 1):
        found = fitted(facts(num_train, 28)).recipe
        left = int(num_train * (1 - found.minival_fraction))
        assert steps_per_epoch(found, left) * found.schedule.epochs >= 1000
        assert found.augment.mixup == found.augment.cutmix == found.augment.randaugment == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("global_batch", 24),
        ("peak_lr", 2e-3),
        ("epochs", 7),
        ("warmup_epochs", 2.0),
        ("image_size", 96),
        ("minival_fraction", 0.2),
        ("train_images", 300),
        ("stem_stride", 2),
        ("mixup", 0.8),
        ("precision", "bf16"),
        ("kernel_size", 5),
    ],
)
@pytest.mark.parametrize("paper", [False, True])
def test_a_field_that_the_user_gave_is_kept_and_the_rules_start_from_it(name, value, paper):
    found = fitted(facts(786, 375), given={name: value}, defaults={name: value}, paper=paper)
    assert flat_fields(found.recipe)[name] == value
    assert name not in {rule.name for rule in found.rules}


def test_the_rate_follows_a_given_batch_and_the_stem_a_given_size():
    plain = fitted(facts(6000, 28)).recipe
    wide = fitted(facts(6000, 28), given={"global_batch": 4 * plain.global_batch}).recipe
    assert wide.optim.peak_lr == pytest.approx(2 * plain.optim.peak_lr)
    assert fitted(facts(600, 375), FEMTO, given={"image_size": 64}).recipe.model.stem_stride == 2
    assert fitted(facts(600, 28), FEMTO, given={"image_size": 96}).recipe.model.stem_stride == 4


def test_a_given_field_comes_before_what_the_study_wants_and_that_before_a_rule():
    wants = {"epochs": 9, "global_batch": 32}
    found = fitted(facts(6000, 28), given={"epochs": 5}, defaults=wants).recipe
    assert (found.schedule.epochs, found.global_batch) == (5, 32)


def test_every_rule_that_changes_a_field_of_the_paper_is_told():
    found = fitted(facts(786, 375))
    told = {rule.name for rule in found.rules}
    base = flat_fields(tuned(BASELINE))
    changed = {name for name, value in flat_fields(found.recipe).items() if value != base[name]}
    shape = set(flat_fields(FEMTO))
    assert changed - told <= shape | {"eval_every_epochs"}
    text = "\n".join(rule_lines(found.rules))
    assert "global_batch 16 (paper: 4096)" in text
    assert "(default: 0.02)" in text  # the paper has no minival
    assert "randaugment, mixup, cutmix, erasing 0" in text


@pytest.mark.parametrize("paper", [False, True])
def test_images_whose_label_is_an_arrangement_are_trained_on_whole_and_unmixed(paper):
    arranged = replace(facts(20_000, 64), is_arrangement=True)
    found = fitted(arranged, paper=paper)
    augment = found.recipe.augment
    assert augment.crop_scale_min == augment.crop_ratio_min == 1
    assert augment.hflip == augment.randaugment == augment.erasing == 0
    assert not augment.mixes
    assert "the label depends on where things lie" in "\n".join(rule_lines(found.rules))
    kept = fitted(arranged, given={"crop_scale_min": 0.5}, paper=paper).recipe.augment
    assert kept.crop_scale_min == 0.5


def test_a_shape_keeps_everything_but_its_stem():
    shape = widen(FEMTO, 0.5)
    found = fitted(facts(786, 28), shape)
    assert found.recipe.model == tuned(tuned(BASELINE, **flat_fields(shape)), stem_stride=2).model


# -- fine-tuning ----------------------------------------------------------------------------------

TINY_WEIGHTS = WeightsFacts(digest="0123456789ab", model=VARIANTS["tiny"])
OUR_WEIGHTS = WeightsFacts(digest="0123456789ac", model=SMALL_MODEL)


def test_trained_weights_get_the_fine_tuning_recipe_on_imagenet():
    found = fitted(facts(1_281_167, 375, 1000), weights=TINY_WEIGHTS)
    model = replace(VARIANTS["tiny"], drop_path=FINE_TUNING.model.drop_path)
    expected = replace(FINE_TUNING, model=model, init="0123456789ab")
    fields, wanted = flat_fields(found.recipe), flat_fields(expected)
    rates = {name for name, value in wanted.items() if isinstance(value, float)}
    assert {n: v for n, v in fields.items() if n not in rates} == {
        n: v for n, v in wanted.items() if n not in rates
    }
    assert [fields[name] for name in sorted(rates)] == pytest.approx(
        [wanted[name] for name in sorted(rates)]
    )
    told = {rule.name for rule in found.rules}
    assert told == {"peak_lr", "epochs", "warmup_epochs", "mixup", "cutmix", "drop_path"}


def test_fine_tuning_is_shorter_and_gentler_than_a_training_from_scratch():
    for num_train, side in ((300, 28), (6000, 28), (900, 375), (200_000, 375)):
        weights = OUR_WEIGHTS if side == 28 else TINY_WEIGHTS
        tunes = fitted(facts(num_train, side), weights=weights).recipe
        scratch = fitted(facts(num_train, side), weights.model).recipe
        assert tunes.optim.peak_lr < scratch.optim.peak_lr
        assert tunes.schedule.epochs < scratch.schedule.epochs
        assert tunes.schedule.warmup_epochs < tunes.schedule.epochs
        assert not tunes.augment.mixes
        assert tunes.model.drop_path == FINE_TUNING.model.drop_path
        assert tunes.global_batch == scratch.global_batch
        assert tunes.minival_fraction == scratch.minival_fraction


def test_the_network_and_its_stem_are_those_of_the_weights():
    ours = fitted(facts(6000, 28), weights=OUR_WEIGHTS).recipe
    assert (ours.model.dims, ours.model.stem_stride) == (SMALL_MODEL.dims, 2)
    assert ours.image_size == 28
    tiny = fitted(facts(6000, 28), weights=TINY_WEIGHTS).recipe
    assert (tiny.model.dims, tiny.model.stem_stride) == (VARIANTS["tiny"].dims, 4)
    assert tiny.image_size == 128
    given = {"stem_stride": 2}
    assert fitted(facts(6000, 28), weights=TINY_WEIGHTS, given=given).recipe.image_size == 28
    named = fitted(facts(600, 375), VARIANTS["kobe"], weights=OUR_WEIGHTS).recipe
    assert named.model.depths == VARIANTS["kobe"].depths  # and the launch refuses it
    assert named.model.stem_stride == 2


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 77), ("peak_lr", 5e-3), ("mixup", 0.3), ("drop_path", 0.0)]
)
@pytest.mark.parametrize("num_train", [600, 1_281_167])
def test_a_given_field_overrides_the_fine_tuning_recipe(name, value, num_train):
    found = fitted(facts(num_train, 375), weights=TINY_WEIGHTS, given={name: value})
    assert flat_fields(found.recipe)[name] == value
    assert name not in {rule.name for rule in found.rules}


def test_the_papers_recipe_stays_the_papers_with_weights():
    with_weights = fitted(facts(1_281_167, 375), weights=TINY_WEIGHTS, paper=True).recipe
    plain = fitted(facts(1_281_167, 375), VARIANTS["tiny"], paper=True).recipe
    assert with_weights == replace(plain, init="0123456789ab")


@pytest.mark.parametrize("init", ["tiny.pth", "", "0123456789AB", "0123456789abc"])
def test_a_text_that_is_no_digest_is_refused_with_the_option(init):
    with pytest.raises(ValueError, match=r"is no digest of weights; .* --init FILE"):
        tuned(BASELINE, init=init)
