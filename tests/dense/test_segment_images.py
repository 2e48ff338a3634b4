"""The samples of a segmentation training: pure functions, mmsegmentation's rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mambaout.dense.ade20k import IGNORED, SegmentData, read_ade20k
from mambaout.dense.loading import loaded
from mambaout.dense.segment_images import (
    SegmentTraining,
    batch_places,
    crop_place,
    distorted,
    evaluation_sample,
    resized_size,
    training_sample,
)
from mambaout.dense.shapes import ShapesSize, write_shapes
from mambaout.segment_recipe import SEGMENT_BASELINE, SegmentRecipe, tuned_segment

RECIPE = tuned_segment(
    SEGMENT_BASELINE,
    {"crop_size": 64, "shorter_side": 48, "longer_side": 96, "global_batch": 4},
)
STILL = replace(RECIPE, scale_min=1.0, scale_max=1.0, hflip=0.0, photometric=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SegmentData:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, ShapesSize(train=6, val=2, side=48))
    return read_ade20k(str(root))[0]


@pytest.mark.parametrize(
    ("size", "new"),
    [((480, 640), (512, 683)), ((300, 1500), (410, 2048)), ((512, 512), (512, 512))],
)
def test_an_image_is_resized_as_in_mmcv(size, new):
    assert resized_size(size, 512, 2048) == new


def test_a_sample_is_a_pure_function_of_seed_epoch_and_image(data):
    def sample(index: int = 0, epoch: int = 0, seed: int = 0):
        np.random.seed(seed + epoch)  # what others draw must not matter
        return training_sample(data, index, epoch, seed, RECIPE)

    one, again = sample(), sample()
    assert torch.equal(one.pixels, again.pixels)
    assert torch.equal(one.labels, again.labels)
    others = [sample(1), sample(epoch=1), sample(seed=1)]
    assert not any(torch.equal(one.pixels, other.pixels) for other in others)
    assert one.pixels.shape == (64, 64, 3)
    assert one.labels.shape == (64, 64)


def test_padding_is_at_the_right_and_the_bottom_and_is_not_evaluated(data):
    sample = training_sample(data, 0, 0, 0, STILL)
    pixels, labels = data.pair(0)
    assert sample.inside == (48, 48)
    assert np.array_equal(sample.pixels[:48, :48], pixels)
    assert np.array_equal(sample.labels[:48, :48], labels)
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[:48, :48] = False
    assert (sample.labels[outside] == IGNORED).all()


def test_image_and_labels_are_mirrored_together_half_of_the_time(data):
    plain = training_sample(data, 0, 0, 0, STILL)
    mirrored = training_sample(data, 0, 0, 0, replace(STILL, hflip=1.0))
    assert torch.equal(plain.pixels[:48, :48].flip(1), mirrored.pixels[:48, :48])
    assert torch.equal(plain.labels[:48, :48].flip(1), mirrored.labels[:48, :48])
    half = replace(STILL, hflip=0.5)
    same = [
        torch.equal(training_sample(data, 0, epoch, 0, half).pixels, plain.pixels)
        for epoch in range(40)
    ]
    assert 10 < sum(same) < 30


def numbers(seed: int):
    return iter(np.random.default_rng(seed).random(40).tolist())


def test_no_class_has_three_quarters_of_a_crop_if_ten_tries_find_one():
    labels = np.zeros((200, 200), np.uint8)
    labels[:, 100:] = 1
    labels[50:60] = IGNORED

    def share_of_right_crops(recipe: SegmentRecipe) -> float:
        right = 0
        for seed in range(200):
            top, left = crop_place(labels, numbers(seed), recipe)
            crop = labels[top : top + 64, left : left + 64]
            evaluated = crop[crop != IGNORED]
            right += max(np.bincount(evaluated)) < 0.75 * len(evaluated)
        return right / 200

    # A random crop is right by a chance of 0.23, and one of ten of them by 0.93.
    assert share_of_right_crops(RECIPE) > 0.85
    assert share_of_right_crops(replace(RECIPE, max_class_share=1.0)) < 0.35


def test_an_image_of_one_class_is_cropped_all_the_same():
    labels = np.zeros((100, 100), np.uint8)
    top, left = crop_place(labels, numbers(0), RECIPE)
    assert 0 <= top <= 36
    assert 0 <= left <= 36


def test_distortion_changes_what_it_says():
    grey = np.full((4, 4, 3), 100, np.uint8)
    colours = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(distorted(colours, numbers(0), 0.0), colours)
    means = [distorted(grey, numbers(seed), 1.0).mean() for seed in range(200)]
    # Brightness moves by at most 32, contrast by a half; grey has no saturation and no hue.
    assert min(means) >= 68 * 0.5 - 1
    assert max(means) <= 132 * 1.5 + 1
    assert len({round(mean) for mean in means}) > 50
    assert distorted(colours, numbers(3), 1.0).dtype == np.uint8


def test_epochs_follow_one_another_without_a_gap():
    places = [place for batch in batch_places(6, 0, RECIPE, 0, 9) for place in batch]
    assert [epoch for epoch, _ in places] == sorted([*range(6)] * 6)
    for epoch in range(6):
        assert sorted(index for of, index in places if of == epoch) == list(range(6))
    later = [place for batch in batch_places(6, 0, RECIPE, 4, 9) for place in batch]
    assert later == places[16:]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_make_the_same_samples(data):
    samples, places = SegmentTraining(data, 0, RECIPE), list(batch_places(6, 0, RECIPE, 0, 2))
    for one, other in zip(loaded(samples, places, 0), loaded(samples, places, 1), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert torch.equal(mine.pixels, theirs.pixels)
            assert torch.equal(mine.labels, theirs.labels)


def test_a_whole_image_keeps_its_labels_and_has_each_scale(data):
    recipe: SegmentRecipe = replace(RECIPE, shorter_side=96, longer_side=384)
    sample = evaluation_sample(data, 1, recipe, (0.5, 1.0, 1.75))
    assert [tuple(each.shape) for each in sample.scaled] == [(s, s, 3) for s in (48, 96, 168)]
    assert np.array_equal(sample.labels, data.pair(1)[1])
