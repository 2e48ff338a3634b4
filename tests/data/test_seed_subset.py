"""With subset=seed each seed draws its own training images; everything else stays as it was."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from image_files import pictures, write_parquet
from same_runs import assert_same_checkpoint, measured, run
from starts import start_of
from sweep_scripts import FUNCTIONS

from mambaout.data.batches.loader import TrainBatches
from mambaout.data.batches.makers import TrainMaker
from mambaout.data.packing.sources import open_data
from mambaout.data.shards.data_set import read_data_set
from mambaout.recipe import BASELINE, canonical_json, recipe_from_json, tuned
from mambaout.rules import fitted

mine, recipe_study, scale = (FUNCTIONS[name] for name in ("mine", "recipe", "scale"))

SHARED = tuned(BASELINE, global_batch=16, image_size=20, train_images=1000, minival_fraction=0.1)
OWN = tuned(SHARED, subset="seed")


def chosen(data, recipe, seed: int) -> set[int]:
    return set(data.rows("train", recipe, seed=seed).tolist())


def test_two_seeds_share_as_many_images_as_chance_says(digits):
    num_images = digits.num_images("train", tuned(SHARED, train_images=None))
    num_drawn = 1000
    share = num_drawn / num_images
    # The overlap of two draws without replacement: a hypergeometric number.
    expected = num_drawn * share
    spread = math.sqrt(expected * (1 - share) ** 2 * num_images / (num_images - 1))
    draws = [chosen(digits, OWN, seed) for seed in range(12)]
    assert all(len(one) == num_drawn for one in draws)
    pairs = [len(a & b) for i, a in enumerate(draws) for b in draws[:i]]
    assert all(abs(found - expected) < 5 * spread for found in pairs)
    assert abs(np.mean(pairs) - expected) < 4 * spread / math.sqrt(len(draws))
    assert len(set(map(frozenset, draws))) == 12
    assert all(one != chosen(digits, SHARED, 0) for one in draws)


def test_a_seed_draws_the_same_images_whoever_asks(digits):
    again = open_data("digits")
    assert again is not digits
    for seed in (0, 1, 2**31):
        assert chosen(digits, OWN, seed) == chosen(again, OWN, seed)
    larger = tuned(OWN, train_images=2000)
    assert chosen(digits, OWN, 3) < chosen(digits, larger, 3)


def test_minival_and_val_are_the_same_for_all_seeds_and_no_seed_trains_on_them(digits):
    for split in ("minival", "val"):
        kept = digits.rows(split, SHARED)
        for seed in (None, 0, 7):
            np.testing.assert_array_equal(kept, digits.rows(split, OWN, seed=seed))
    minival = set(digits.rows("minival", OWN).tolist())
    assert not any(minival & chosen(digits, OWN, seed) for seed in range(12))


def test_a_set_without_a_val_of_its_own_holds_it_out_of_every_seeds_images(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", pictures(200), [i % 4 for i in range(200)])
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    recipe = tuned(OWN, train_images=100)
    val = set(data.rows("val", recipe).tolist())
    assert val
    assert not any(val & chosen(data, recipe, seed) for seed in range(12))


def test_with_a_shared_subset_the_seed_changes_no_image(digits):
    assert chosen(digits, SHARED, 0) == chosen(digits, SHARED, 1)
    np.testing.assert_array_equal(
        digits.rows("train", SHARED), digits.rows("train", SHARED, seed=5)
    )


def test_the_images_of_a_seed_are_not_given_without_the_seed(digits):
    assert digits.num_images("train", OWN) == 1000
    with pytest.raises(ValueError, match="need the seed"):
        digits.rows("train", OWN)


def test_batches_hold_the_images_of_their_seed_and_no_others(digits):
    for seed in (0, 1):
        make = TrainBatches(digits, OWN, seed=seed)._make
        assert isinstance(make, TrainMaker)
        seen = [row for key in range(2 * make.steps_per_epoch) for row in make.rows(key).tolist()]
        assert set(seen) <= chosen(digits, OWN, seed)
        assert len(set(seen)) > 980, "the images that fill no batch differ from epoch to epoch"


def test_a_recipe_with_a_shared_subset_is_written_as_it_was_before(digits):
    assert "subset" not in json.loads(canonical_json(SHARED))
    assert recipe_from_json(canonical_json(SHARED)).subset == "shared"
    assert recipe_from_json(canonical_json(OWN)) == OWN


def test_a_stopped_run_goes_on_with_the_images_of_its_seed(digits, tiny_recipe, tmp_path):
    torch.set_num_threads(1)
    recipe = tuned(tiny_recipe, subset="seed")
    run(recipe, digits, tmp_path / "whole", seed=3)
    run(recipe, digits, tmp_path / "parts", seed=3, max_steps=5)
    run(recipe, digits, tmp_path / "parts", seed=3)
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")
    assert measured(tmp_path / "whole") == measured(tmp_path / "parts")


# -- who turns it on ------------------------------------------------------------------------------


def test_a_study_of_small_data_draws_by_the_seed_where_it_takes_a_part():
    part = start_of(60_000, 28)
    for study in (scale(part), mine(part, grid=["kernel_size=3,5"])):
        assert {recipe.subset for recipe in study.recipes.values()} == {"seed"}
        assert {recipe.train_images for recipe in study.recipes.values()} == {6000}
    (search, *_) = recipe_study(start_of(60_000, 28)).searches
    assert (search.base.subset, search.base.train_images) == ("seed", 6000)
    few = scale(start_of(1_281_167, 500, given={"train_images": 2000}))
    assert {recipe.subset for recipe in few.recipes.values()} == {"seed"}


@pytest.mark.parametrize(
    ("num_train", "side", "given"),
    [
        (60_000, 28, {"train_images": None}),
        (60_000, 28, {"subset": "shared"}),
        (5000, 28, {}),  # all of them
        (1_281_167, 500, {}),
        (1_281_167, 500, {"train_images": 100_000}),
    ],
)
def test_other_studies_share_their_images(num_train, side, given):
    study = scale(start_of(num_train, side, given=given))
    assert {recipe.subset for recipe in study.recipes.values()} == {"shared"}


def test_a_large_set_is_drawn_by_the_seed_if_that_is_asked_for():
    given = {"train_images": 100_000, "subset": "seed"}
    study = scale(start_of(1_281_167, 500, given=given))
    assert {recipe.subset for recipe in study.recipes.values()} == {"seed"}


def test_one_training_shares_its_images_unless_it_is_asked_for():
    facts = start_of(60_000, 28).facts
    assert fitted(facts, given={"train_images": 6000}).recipe.subset == "shared"
    given = {"train_images": 6000, "subset": "seed"}
    assert fitted(facts, given=given).recipe.subset == "seed"
