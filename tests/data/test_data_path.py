"""From re-cut photographs to batches: whoever fills them, from wherever, they are the same."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, photograph, write_parquet
from needs import needs_c
from path_runs import RECIPE, digest
from places import PATHS, TESTS

from mambaout.data.batches.loader import TrainBatches, evaluation_batches
from mambaout.data.batches.makers import LANES, HostShare, epoch_order
from mambaout.data.packing.pack import Source, write_shards
from mambaout.data.packing.sources import open_data
from mambaout.data.packing.storing import Sample
from mambaout.data.shards.data_set import DataSet, read_data_set
from mambaout.data.shards.encoded import Shard
from mambaout.data.shards.files import DataError
from mambaout.recipe import tuned
from mambaout.train.backend import Cpu
from mambaout.train.loop import train
from mambaout.train.metrics import UNDECODABLE, read_records

PIXELS = pytest.mark.parametrize("pixels", ["exact", "fast"])


def picture(index: int) -> bytes:
    return encoded(photograph(60 + index % 23, 70 + index % 17), "jpeg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """100 photographs of many sizes to train on, 30 to validate, packed: re-cut JPEGs."""
    out = tmp_path_factory.mktemp("path") / "packed"
    samples = [Sample(f"{i}.jpg", i % 3, functools.partial(picture, i)) for i in range(130)]
    write_shards(Source("path", None, samples[:100], samples[100:]), out, progress=False)
    return out


@pytest.fixture(scope="module")
def data(folder) -> DataSet:
    return open_data(str(folder), folder.parent / "cache")


def first(data: DataSet, count: int, step: int = 0, **options) -> list[str]:
    batches = TrainBatches(data, options.pop("recipe", RECIPE), seed=7, **options)
    return [digest(batch) for batch in itertools.islice(batches.starting_at(step), count)]


@PIXELS
def test_no_one_two_and_seven_workers_give_the_same_batches(data, pixels):
    recipe = tuned(RECIPE, pixels=pixels)
    alone = first(data, 15, recipe=recipe)
    assert len(set(alone)) == 15
    for count in (1, 2, 7):
        assert first(data, 15, recipe=recipe, num_workers=count) == alone


def test_workers_evaluate_as_this_process_does(data):
    def batches(num_workers: int) -> list[tuple[str, int]]:
        found = evaluation_batches(data, "val", RECIPE, batch_size=8, num_workers=num_workers)
        return [(digest(batch), batch.num_valid) for batch in found]

    alone = batches(0)
    assert [valid for _, valid in alone] == [8, 8, 8, 6]
    assert batches(3) == alone


@PIXELS
def test_four_hosts_with_workers_fill_what_one_does(data, pixels):
    recipe = tuned(RECIPE, pixels=pixels)
    whole = TrainBatches(data, recipe, seed=7).starting_at(4)
    parts = [
        TrainBatches(
            data, recipe, seed=7, host=HostShare(rank, 4), num_workers=rank % 3
        ).starting_at(4)
        for rank in range(4)
    ]
    for batch, *shares in itertools.islice(zip(whole, *parts, strict=True), 10):
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        assert torch.equal(torch.cat([share.labels for share in shares]), batch.labels)


@pytest.mark.slow
@PIXELS
def test_killed_at_any_batch_and_started_again_the_ids_and_bytes_are_the_same(folder, pixels):
    def run(step: int, count: int) -> list[str]:
        command = [sys.executable, str(TESTS / "path_runs.py")]
        command += [str(folder), str(step), str(count), pixels]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        return done.stdout.splitlines()

    undisturbed = run(0, 20)
    pieces = [line for step, count in ((0, 3), (3, 8), (11, 9)) for line in run(step, count)]
    assert pieces == undisturbed


@needs_c
def test_a_missing_compiler_is_said_once_in_a_training_and_its_evaluations(folder, tmp_path):
    code = (
        "import itertools, test_data_path as t\n"
        f"data = t.open_data({str(folder)!r})\n"
        "assert len(t.first(data, 2, num_workers=3)) == 2\n"
        "for _ in range(2):\n"
        "    list(t.evaluation_batches(data, 'val', t.RECIPE, batch_size=8, num_workers=2))\n"
    )
    away = {"PATH": "/nowhere", "MAMBAOUT_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | away | {"PYTHONPATH": PATHS}, cwd=Path(__file__).parent,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("images take twice as long to load") == 1, done.stderr
    assert "apt install gcc libc6-dev" in done.stderr


def test_the_next_epoch_shows_the_same_images_otherwise(data):
    batches = TrainBatches(data, RECIPE, seed=7)
    epochs = batches.starting_at(0)
    one, two = ([next(epochs) for _ in range(batches.steps_per_epoch)] for _ in range(2))
    assert not {digest(batch) for batch in one} & {digest(batch) for batch in two}


# -- the order of a large split --------------------------------------------------------------------


def large_order(num_groups: int = 640, batch: int = 256) -> tuple[np.ndarray, tuple[Shard, ...]]:
    """Of 640 row groups of 16 rows, in windows of 128."""
    shards = (Shard("0", (16,) * num_groups, 1000 * num_groups),)
    rows = np.arange(16 * num_groups)
    order = epoch_order(shards, rows, seed=3, epoch=1, batch=batch, window_bytes=128_000)
    return order, shards


def test_a_large_split_still_shows_every_image_once_in_windows():
    order, _ = large_order()
    assert sorted(order.tolist()) == list(range(640 * 16))
    windows = (order // 16).reshape(5, -1)  # 128 groups are 2,048 rows, eight batches
    assert [len(set(window.tolist())) for window in windows] == [128] * 5


def test_each_of_several_hosts_reads_its_own_row_groups_of_a_large_split():
    order, _ = large_order()
    window = (order // 16)[: 128 * 16].reshape(8, 4, 64)  # batches, hosts, rows
    shares = [set(window[:, host].ravel().tolist()) for host in range(4)]
    assert all(len(share) < 128 * 0.4 for share in shares)  # 32 are its own
    whole, _ = large_order(batch=1)  # without lanes
    assert len(set((whole // 16)[: 128 * 16].reshape(8, 4, 64)[:, 0].ravel().tolist())) > 120


def test_a_lane_mixes_row_groups_drawn_anew_each_epoch():
    shards = large_order()[1]
    lanes = []
    for epoch in (0, 1):
        order = epoch_order(
            shards, np.arange(10240), seed=3, epoch=epoch, batch=256, window_bytes=128_000
        )
        partners = (order // 16).reshape(-1, 2)
        lanes.append({tuple(sorted(pair)) for pair in partners.tolist() if pair[0] != pair[1]})
        # Of four groups in a lane a pair has the same one a quarter of the time.
        assert 0.6 < np.mean(partners[:, 0] != partners[:, 1]) < 0.9
    assert LANES == 32
    assert len(lanes[0] & lanes[1]) < 0.1 * len(lanes[0])


# -- images that cannot be decoded -----------------------------------------------------------------


def with_damage(tmp_path: Path, damaged: dict[int, bytes], count: int = 1100) -> DataSet:
    """Of two sizes, so that they are decoded when their turn comes."""
    images = [encoded(photograph(12 + i % 2, 12 + i // 300)) for i in range(count)]
    for row, data in damaged.items():
        images[row] = data
    labels, paths = [i % 10 for i in range(count)], [f"{i}.png" for i in range(count)]
    write_parquet(tmp_path / "set/train-0.parquet", images, labels, paths=paths, row_group_size=200)
    write_parquet(tmp_path / "set/val-0.parquet", images[-20:], labels[-20:], paths=paths[-20:])
    return read_data_set("set", str(tmp_path / "set"), tmp_path)


SMALL = tuned(RECIPE, global_batch=64, image_size=16, minival_fraction=0.01, randaugment=0.0)


@pytest.mark.parametrize("damage", [b"", b"not an image", picture(0)[:700]])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_in_a_thousand_is_stood_in_for_and_named(tmp_path, caplog, damage, num_workers):
    data = with_damage(tmp_path, {417: damage})
    batches = TrainBatches(data, SMALL, seed=0, num_workers=num_workers)
    run = batches.starting_at(0)
    with caplog.at_level(logging.WARNING):
        made = list(itertools.islice(run, 2 * batches.steps_per_epoch))
    ((row, named),) = batches.undecodable.items()
    assert row == 417
    assert "0x" not in named  # where Pillow's file lay, which is another place each time
    assert "train-0.parquet row 417 is not an image that can be decoded" in named
    assert named.endswith("; it came from 417.png")
    assert sum("row 417" in record.getMessage() for record in caplog.records) == 1
    assert all(batch.images.flatten(1).any(1).all() for batch in made)
    rows = batches._make.train_rows
    after = int(rows[np.searchsorted(rows, 417) + 1])
    for epoch in range(2):
        order = np.concatenate(
            [
                batches._make.rows(key)
                for key in range(epoch * batches.steps_per_epoch, (epoch + 1) * len(made) // 2)
            ]
        )
        labels = torch.cat([batch.labels for batch in made[epoch * len(made) // 2 :]])
        for place in np.flatnonzero(order == 417).tolist():
            assert labels[place] == data.labels["train"][after]


def test_past_one_in_a_thousand_training_ends_and_names_them(tmp_path):
    data = with_damage(tmp_path, {row: b"" for row in (3, 500, 900)})
    batches = TrainBatches(data, SMALL, seed=0)
    with pytest.raises(DataError, match=r"2 of the 10\d\d training images of set cannot be dec"):
        list(itertools.islice(batches.starting_at(0), batches.steps_per_epoch + 1))


def test_an_evaluation_wants_every_image(tmp_path):
    data = with_damage(tmp_path, {1095: b"no image"})
    with pytest.raises(DataError, match=r"row 15 is not an image.*an evaluation needs all"):
        list(evaluation_batches(data, "val", SMALL, batch_size=8))


def test_a_run_records_what_it_could_not_decode_once_over_all_its_parts(tmp_path, tiny_recipe):
    data = with_damage(tmp_path, {417: b""})
    recipe = tuned(
        tiny_recipe, global_batch=64, image_size=16, minival_fraction=0.01, train_images=None
    )
    for steps in (20, None):
        train(recipe, data, out=tmp_path / "run", backend=Cpu(), seed=0, max_steps=steps)
    assert "row 417" in (tmp_path / "run/undecodable.txt").read_text()
    assert len((tmp_path / "run/undecodable.txt").read_text().splitlines()) == 1
    *_, last = read_records(tmp_path / "run/records.jsonl")
    assert last.values[UNDECODABLE] == 1
