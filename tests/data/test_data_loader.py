"""Batches: the same from any step, any number of workers, decoded beforehand or not."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_files import encoded, photograph, pictures, write_folder, write_parquet

from mambaout.data.batches.loader import (
    Batch,
    Position,
    TrainBatches,
    evaluation_batches,
)
from mambaout.data.batches.makers import HostShare, epoch_order
from mambaout.data.images import decode
from mambaout.data.packing.sources import open_data
from mambaout.data.shards.data_set import read_data_set
from mambaout.data.shards.encoded import Shard
from mambaout.data.shards.files import DataError
from mambaout.recipe import BASELINE, tuned

RECIPE = tuned(BASELINE, global_batch=16, image_size=20, train_images=100, minival_fraction=0.05)


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and a.num_valid == b.num_valid
    )


@pytest.fixture
def photographs(tmp_path):
    """30 JPEGs of many sizes, which are decoded as they are asked for; 7 to validate."""
    images = [encoded(photograph(30 + i % 7, 30 + i % 5), "jpeg") for i in range(37)]
    labels = [i % 3 for i in range(37)]
    paths = [f"{i}.jpg" for i in range(37)]
    folder = tmp_path / "photographs"
    for name, part in (("train-0", slice(0, 30)), ("validation-0", slice(30, None))):
        write_parquet(folder / f"{name}.parquet", images[part], labels[part], paths=paths[part])
    return read_data_set("photographs", str(folder), tmp_path)


# -- training -------------------------------------------------------------------------------------


def test_a_batch_has_the_global_batch_in_rgb(digits):
    batch = next(TrainBatches(digits, RECIPE, seed=0).starting_at(0))
    assert batch.images.shape == (16, 20, 20, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    assert batch.num_valid == 16


def test_starting_at_any_step_equals_running_to_it(digits):
    batches = TrainBatches(digits, RECIPE, seed=1)
    assert batches.steps_per_epoch == 6
    run = list(itertools.islice(batches.starting_at(0), 15))
    for step in (0, 1, 5, 6, 7, 14):  # 6 opens the second epoch
        assert same(run[step], next(batches.starting_at(step)))
        assert same(run[step], next(TrainBatches(digits, RECIPE, seed=1).starting_at(step)))
    assert not same(run[0], run[6])
    assert batches.position(14) == Position(epoch=2, batch=2)


@pytest.mark.slow
def test_no_one_and_two_workers_give_the_same_batches(digits, photographs):
    recipe = tuned(RECIPE, global_batch=4, train_images=24)
    for data, count in ((digits, 2), (photographs, 1)):
        alone = list(itertools.islice(TrainBatches(data, recipe, seed=0).starting_at(3), 8))
        helped = TrainBatches(data, recipe, seed=0, num_workers=count).starting_at(3)
        assert all(same(a, next(helped)) for a in alone)
        del helped  # ends its workers


@pytest.mark.slow
def test_a_killed_trainer_leaves_no_worker_behind(digits, tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(
        "import os\n"
        "from mambaout.data.batches.loader import TrainBatches\n"
        "from mambaout.data.packing.sources import open_data\n"
        "from mambaout.recipe import BASELINE, tuned\n"
        "if __name__ == '__main__':\n"
        "    recipe = tuned(BASELINE, global_batch=16, image_size=16)\n"
        "    batches = TrainBatches(open_data('digits'), recipe, seed=0, num_workers=1)\n"
        "    next(running := batches.starting_at(0))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    # Whoever is left holds the pipe's end open, and reading it to the end would not return.
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_an_epoch_visits_every_training_image_at_most_once(digits):
    recipe = tuned(RECIPE, global_batch=64, train_images=None)
    batches = TrainBatches(digits, recipe, seed=0)
    make, seen = batches._make, []
    for epoch in range(2):
        order = epoch_order(digits.shards["train"], make.train_rows, seed=0, epoch=epoch, batch=64)
        seen.append(order[: batches.steps_per_epoch * 64])
    train = digits.rows("train", recipe)
    for visited in seen:
        assert len(set(visited.tolist())) == len(visited) == len(train) // 64 * 64
        assert set(visited.tolist()) <= set(train.tolist())
    assert seen[0].tolist() != seen[1].tolist()
    assert not set(seen[0].tolist()) & set(digits.rows("minival", recipe).tolist())
    whole_epoch = itertools.islice(batches.starting_at(0), batches.steps_per_epoch)
    labels = torch.cat([b.labels for b in whole_epoch])
    np.testing.assert_array_equal(labels, digits.labels["train"][seen[0]])


def test_the_order_follows_seed_and_epoch_alone(digits):
    shards, rows = digits.shards["train"], digits.rows("train", RECIPE)
    order = epoch_order(shards, rows, seed=0, epoch=0, batch=8)
    assert order.tolist() == epoch_order(shards, rows, seed=0, epoch=0, batch=8).tolist()
    assert sorted(order.tolist()) == rows.tolist()
    for seed, epoch in ((1, 0), (0, 1)):
        assert order.tolist() != epoch_order(shards, rows, seed=seed, epoch=epoch, batch=8).tolist()


def test_a_large_split_is_shuffled_in_windows_of_row_groups():
    shards = tuple(Shard(f"{i}", (10,) * 6, 600) for i in range(5))  # 30 groups of 100 bytes
    rows = np.delete(np.arange(300), [3, 77, 78, 200])
    order = epoch_order(shards, rows, seed=0, epoch=0, batch=1, window_bytes=400)
    assert sorted(order.tolist()) == rows.tolist()
    groups, at = [], 0
    while at < len(order):  # a window ends where its four row groups are used up
        window = {int(order[at]) // 10}
        while at < len(order) and len(window | {int(order[at]) // 10}) <= 4:
            window.add(int(order[at]) // 10)
            at += 1
        groups.append(window)
    assert sorted(map(len, groups)) == [2, 4, 4, 4, 4, 4, 4, 4]
    assert sorted(group for window in groups for group in window) == list(range(30))
    assert sorted(order[:40].tolist()) != order[:40].tolist()


def test_augmentation_follows_seed_epoch_and_sample_not_the_batch(digits):
    one = TrainBatches(digits, RECIPE, seed=0)
    two = TrainBatches(digits, tuned(RECIPE, global_batch=32), seed=0)
    first = list(itertools.islice(one.starting_at(0), 2))
    assert torch.equal(torch.cat([b.images for b in first]), next(two.starting_at(0)).images)


def test_decoded_beforehand_or_as_asked_for_the_batches_are_the_same(tmp_path, monkeypatch):
    write_folder(tmp_path / "set")
    recipe = tuned(RECIPE, global_batch=8, train_images=None, eval_crop=0.9)
    got = []
    for bound in (decode.PIXEL_BYTES, 0):
        monkeypatch.setattr(decode, "PIXEL_BYTES", bound)
        data = read_data_set("set", str(tmp_path / "set"), tmp_path / f"cache{bound}")
        batches = TrainBatches(data, recipe, seed=0)
        assert (batches._make.open().pixels is None) == (bound == 0)
        got.append(
            [
                *itertools.islice(batches.starting_at(0), 9),
                *evaluation_batches(data, "val", recipe, batch_size=4),
                *evaluation_batches(data, "val", tuned(recipe, image_size=16), batch_size=4),
            ]
        )
    assert all(same(a, b) for a, b in zip(*got, strict=True))


def test_two_batches_share_no_memory(digits):
    first, second = itertools.islice(TrainBatches(digits, RECIPE, seed=0).starting_at(0), 2)
    before = first.images.clone()
    second.images.zero_()
    assert torch.equal(first.images, before)


def test_making_batches_leaves_the_global_generators_as_they_were(digits):
    state = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    next(TrainBatches(digits, tuned(RECIPE, color_jitter=0.4), seed=0).starting_at(0))
    assert random.getstate() == state[0]
    assert str(np.random.get_state()) == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])


# -- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["minival", "val"])
@pytest.mark.parametrize("image_size", [28, 20])
def test_evaluation_shows_every_image_once_and_pads_the_last_batch(digits, split, image_size):
    recipe = tuned(RECIPE, image_size=image_size, train_images=None)
    batches = list(evaluation_batches(digits, split, recipe, batch_size=100))
    num_images = digits.num_images(split, recipe)
    assert [b.num_valid for b in batches[:-1]] == [100] * (len(batches) - 1)
    assert sum(b.num_valid for b in batches) == num_images
    assert all(b.images.shape == (100, image_size, image_size, 3) for b in batches)
    last = batches[-1]
    assert last.num_valid < 100
    assert not last.images[last.num_valid :].any()
    assert last.images[: last.num_valid].flatten(1).any(1).all()
    labels = torch.cat([b.labels[: b.num_valid] for b in batches])
    source = "val" if split == "val" else "train"
    np.testing.assert_array_equal(labels, digits.labels[source][digits.rows(split, recipe)])


def test_an_image_of_the_right_size_is_evaluated_as_it_is(digits):
    recipe = tuned(RECIPE, image_size=28, train_images=None)
    pixels = decode.Images(digits, "val").pixels
    assert pixels is not None
    got = torch.cat([b.images for b in evaluation_batches(digits, "val", recipe, batch_size=1029)])
    np.testing.assert_array_equal(got[: len(pixels)], pixels[..., None].repeat(3, axis=3))


# -- bad input ------------------------------------------------------------------------------------


def test_a_batch_larger_than_the_training_set_is_refused(digits):
    with pytest.raises(ValueError, match="global_batch=4096 is more than the"):
        TrainBatches(digits, tuned(RECIPE, global_batch=4096, train_images=None), seed=0)


def test_a_damaged_image_is_named_when_its_turn_comes(tmp_path):
    images = [encoded(photograph(30 + i, 30), "jpeg") for i in range(12)]
    images[7] = images[7][:500]
    write_parquet(tmp_path / "set/train-0.parquet", images, [0, 1] * 6, row_group_size=4)
    write_parquet(tmp_path / "set/val-0.parquet", images[:2], [0, 1])
    data = open_data(str(tmp_path / "set"), tmp_path / "cache")
    recipe = tuned(RECIPE, global_batch=2, train_images=None, minival_fraction=0.2)
    with pytest.raises(DataError, match=r"train-0.parquet row 7 is not an image that can be dec"):
        list(itertools.islice(TrainBatches(data, recipe, seed=0).starting_at(0), 6)) + list(
            evaluation_batches(data, "minival", recipe, batch_size=4)
        )


def test_pictures_of_the_tests_are_all_different():
    assert len(set(pictures(200))) == 200


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_have_every_row_of_every_batch_between_them(digits, num_hosts):
    whole = TrainBatches(digits, RECIPE, seed=5).starting_at(3)
    parts = [
        TrainBatches(digits, RECIPE, seed=5, host=HostShare(rank, num_hosts)).starting_at(3)
        for rank in range(num_hosts)
    ]
    for _ in range(2):
        batch, shares = next(whole), [next(part) for part in parts]
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        assert torch.equal(torch.cat([share.labels for share in shares]), batch.labels)
        size = len(batch.labels) // num_hosts
        assert [share.first for share in shares] == [rank * size for rank in range(num_hosts)]


def test_hosts_evaluate_every_image_once_and_as_many_batches_each(digits):
    def batches(host: HostShare) -> list[Batch]:
        found = evaluation_batches(digits, "val", RECIPE, batch_size=32, host=host)
        return list(found)

    whole, parts = batches(HostShare()), [batches(HostShare(rank, 4)) for rank in range(4)]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sum(share.num_valid for share in shares) == batch.num_valid
        valid = torch.cat([share.labels[: share.num_valid] for share in shares])
        assert torch.equal(valid, batch.labels[: batch.num_valid])
        assert {share.images.shape for share in shares} == {(8, *batch.images.shape[1:])}
    with pytest.raises(ValueError, match="a batch of 30 does not split over 4 hosts"):
        evaluation_batches(digits, "val", RECIPE, batch_size=30, host=HostShare(1, 4))
