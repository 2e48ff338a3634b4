"""What is done on the device: timm's mixing and erasing, drawn by nothing but seed, step, place."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import functional

from mambaout.data.batches.device_augment import (
    draw_step,
    normal_noise,
    prepare_eval,
    prepare_train,
)
from mambaout.data.draws import draw
from mambaout.recipe import BASELINE, tuned

RECIPE = tuned(BASELINE, global_batch=64, image_size=24)
PLAIN = tuned(
    RECIPE, hflip=0.0, randaugment=0.0, mixup=0.0, cutmix=0.0, erasing=0.0, label_smoothing=0.0
)


def batch(count: int, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


def prepared(recipe, images, labels, *, seed=3, step=7, first=0, fixed_shapes=False):
    places = np.arange(first, first + len(images))
    drawn = draw_step(recipe, seed=seed, step=step, places=places, fixed_shapes=fixed_shapes)
    return prepare_train(images, labels, drawn, recipe=recipe, num_classes=10)


def test_normalisation_is_imagenets():
    images, _ = batch(4)
    wanted = functional.normalize(
        images.permute(0, 3, 1, 2) / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(prepare_eval(images), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("micro_batch", [2, 16, 32])
@pytest.mark.parametrize("step", range(4))  # both mixup and cutmix come up
def test_one_micro_batch_of_64_equals_many_of_fewer(micro_batch, step):
    images, labels = batch(64)
    x, targets = prepared(RECIPE, images, labels, step=step)
    for first in range(0, 64, micro_batch):
        part = slice(first, first + micro_batch)
        x_part, targets_part = prepared(RECIPE, images[part], labels[part], step=step, first=first)
        assert torch.equal(x_part, x[part])
        assert torch.equal(targets_part, targets[part])


@pytest.mark.parametrize("step", range(6))
def test_mixing_is_timms_on_the_whole_batch(step):
    recipe = tuned(RECIPE, erasing=0.0)
    images, labels = batch(64)
    x, targets = prepared(recipe, images, labels, step=step)
    timms = Mixup(0.8, 1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=10)
    apart = [*range(0, 64, 2), *range(63, 0, -2)]  # where timm's flip of the batch pairs 2k, 2k+1
    np.random.seed(draw("mixup", 3, step) & 0xFFFFFFFF)
    wanted, wanted_targets = timms(prepare_eval(images)[apart], labels[apart])
    torch.testing.assert_close(x[apart], wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(targets[apart], wanted_targets, rtol=1e-5, atol=1e-6)


def test_erased_boxes_are_distributed_as_timms():
    size, count = 32, 4000
    drawn = draw_step(
        tuned(PLAIN, erasing=1.0, image_size=size), seed=0, step=0, places=np.arange(count)
    )
    assert drawn.erase is not None
    ours = drawn.erase[:, :4].numpy()
    assert len(ours) > 0.99 * count
    timms = np.zeros((count, 4))
    erase = RandomErasing(probability=1.0, mode="pixel", device="cpu")
    random.seed(0)
    torch.manual_seed(0)
    for i in range(count):
        ys, xs = torch.nonzero(erase(torch.zeros(1, size, size))[0], as_tuple=True)
        if len(ys):
            timms[i] = int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1
    timms = timms[timms[:, 1] > 0]
    for quantity in (
        lambda box: (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]),  # area
        lambda box: (box[:, 1] - box[:, 0]) / (box[:, 3] - box[:, 2]),  # aspect
        lambda box: box[:, 0],
        lambda box: box[:, 2],
    ):
        # The largest difference of two distributions' cumulative shares, Kolmogorov and Smirnov's:
        # above 0.0365 once in a hundred times where they are the same.
        values = np.unique(np.concatenate([quantity(ours), quantity(timms)]))
        shares = [
            np.searchsorted(np.sort(quantity(b)), values, "right") / len(b) for b in (ours, timms)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 0.0365


def test_a_backend_that_compiles_gets_the_same_from_tensors_of_fixed_shapes():
    images, labels = batch(64)
    for step in range(4):
        usual = prepared(RECIPE, images, labels, step=step)
        fixed = prepared(RECIPE, images, labels, step=step, fixed_shapes=True)
        assert all(map(torch.equal, usual, fixed))


def test_noise_is_normal_and_each_image_has_its_own():
    keys = torch.arange(100, dtype=torch.int32)
    noise = normal_noise(keys, (3, 31, 31)).flatten(1)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert float((noise**power).mean()) == pytest.approx(moment, abs=0.05)
    beside = torch.corrcoef(noise) - torch.eye(100)
    assert float(beside.abs().max()) < 0.1
    assert float((noise[:, 1:] * noise[:, :-1]).mean()) == pytest.approx(0, abs=0.02)


def test_neighbours_are_mixed_with_each_other():
    images, labels = batch(8)
    _, targets = prepared(tuned(RECIPE, label_smoothing=0.0), images, labels)
    for place in range(8):
        classes = {int(labels[place]), int(labels[place ^ 1])}
        assert set(torch.nonzero(targets[place]).flatten().tolist()) == classes


def test_mixed_targets_are_smoothed_distributions():
    _, targets = prepared(RECIPE, *batch(64))
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    assert targets.min() == pytest.approx(0.1 / 10, abs=1e-6)
    _, plain = prepared(tuned(PLAIN, label_smoothing=0.1), *batch(64))
    assert plain.max() == pytest.approx(0.91, abs=1e-6)


def test_without_mixing_an_odd_micro_batch_will_do_and_with_it_not():
    images, labels = batch(5)
    x, targets = prepared(PLAIN, images, labels)
    assert torch.equal(x, prepare_eval(images))
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, 10).float())
    with pytest.raises(ValueError, match="micro-batch of 5 images splits a pair"):
        prepared(RECIPE, images, labels)


def test_erasing_fills_rectangles_of_a_quarter_of_the_images_with_noise():
    recipe = tuned(PLAIN, erasing=0.25)
    images, labels = batch(2000, size=16)
    x, _ = prepared(recipe, images, labels)
    changed = (x != prepare_eval(images)).any(1)  # (B, H, W)
    erased = changed.flatten(1).any(1)
    assert float(erased.float().mean()) == pytest.approx(0.25, abs=0.03)
    for one in changed[erased][:50]:
        ys, xs = torch.nonzero(one, as_tuple=True)
        assert one[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
    noise = x.permute(0, 2, 3, 1)[changed]
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("recipe", [tuned(PLAIN, erasing=1.0), tuned(RECIPE, erasing=0.0)])
def test_draws_follow_seed_and_step(recipe):
    images, labels = batch(8)
    first = prepared(recipe, images, labels)[0]
    assert torch.equal(first, prepared(recipe, images, labels)[0])
    assert not torch.equal(first, prepared(recipe, images, labels, seed=4)[0])
    assert not torch.equal(first, prepared(recipe, images, labels, step=8)[0])


def test_the_global_generators_are_left_as_they_were():
    state = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    prepared(RECIPE, *batch(64))
    assert random.getstate() == state[0]
    assert str(np.random.get_state()) == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])


def test_the_input_images_are_left_as_they_were():
    images, labels = batch(8)
    before = images.clone()
    prepared(RECIPE, images, labels)
    assert torch.equal(images, before)
