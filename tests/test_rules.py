"""The recipe follows the data, by rules that keep what the user gave."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaout.applied_rules import rule_lines
from mambaout.fields import flat_fields
from mambaout.recipe import BASELINE, steps_per_epoch, tuned
from mambaout.rules import (
    LARGEST_MINIVAL_SHARE,
    LEAST_MINIVAL,
    SMALL_DATA,
    DataFacts,
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


def test_a_shape_keeps_everything_but_its_stem():
    shape = widen(FEMTO, 0.5)
    found = fitted(facts(786, 28), shape)
    assert found.recipe.model == tuned(tuned(BASELINE, **flat_fields(shape)), stem_stride=2).model
