"""Staging: copies that are whole or not there, made once a machine, the same data set."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flaky_store import Store, open_store
from image_files import write_folder

from mambaout.data.packing import stage as staging
from mambaout.data.packing.stage import stage
from mambaout.data.shards.data_set import DataSet, read_data_set
from mambaout.data.shards.encoded import EncodedImages
from mambaout.data.shards.files import DataError


@pytest.fixture
def store(monkeypatch) -> Store:
    return open_store(monkeypatch)


@pytest.fixture
def remote(tmp_path, store) -> DataSet:
    write_folder(tmp_path / "pictures")
    data = read_data_set("pictures", f"flaky://{tmp_path}/pictures", tmp_path)
    store.reads.clear()
    return data


def images(data: DataSet) -> list[bytes]:
    return [
        bytes(rows[row].image)
        for split in ("train", "val")
        for rows in (EncodedImages(data.shards[split]),)
        for row in range(len(data.labels[split]))
    ]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def home_in(folder: Path, data: DataSet) -> Path:
    (home,) = folder.glob(f"{data.name}-{data.fingerprint}-*")
    return home


WHOLE = [
    "train-00000-of-00002.parquet",
    "train-00001-of-00002.parquet",
    "validation-00000-of-00001.parquet",
]


def test_a_staged_data_set_is_the_same_read_from_the_folder(tmp_path, store, remote):
    staged = stage(remote, tmp_path / "fast", progress=False)
    home = home_in(tmp_path / "fast", remote)
    assert files_in(home) == WHOLE
    store.reads.clear()
    assert images(staged) == images(read_data_set("set", str(tmp_path / "pictures"), tmp_path))
    assert store.reads == []
    assert staged.fingerprint == remote.fingerprint
    np.testing.assert_array_equal(staged.sample_ids, remote.sample_ids)
    assert read_data_set("pictures", str(home), tmp_path).fingerprint == remote.fingerprint


def test_what_is_staged_is_not_copied_again(tmp_path, store, remote):
    stage(remote, tmp_path, progress=False)
    num_copied = len(store.reads)
    (home_in(tmp_path, remote) / WHOLE[1]).unlink()
    stage(remote, tmp_path, progress=False)
    assert [name for name, _, _ in store.reads[num_copied:]] == [WHOLE[1]]
    staged = stage(stage(remote, tmp_path, progress=False), tmp_path, progress=False)
    assert len(store.reads) == num_copied + 1
    assert len(images(staged)) == 60


@pytest.mark.parametrize(
    ("split", "read"), [("val", WHOLE[2:]), ("minival", WHOLE[:2]), ("train", WHOLE[:2])]
)
def test_only_the_shards_of_a_split_are_copied_and_training_copies_the_others(
    tmp_path, store, remote, split, read
):
    part = stage(remote, tmp_path / "fast", split=split, progress=False)
    home = home_in(tmp_path / "fast", remote)
    assert files_in(home) == read
    left, source = ("train", "val") if split == "val" else ("val", "train")
    assert part.shards[left] == remote.shards[left]
    assert {Path(shard.location).parent for shard in part.shards[source]} == {home}
    assert images(part) == images(remote)
    store.reads.clear()
    stage(remote, tmp_path / "fast", progress=False)
    assert sorted(name for name, _, _ in store.reads) == sorted(set(WHOLE) - set(read))
    assert files_in(home) == WHOLE


def test_the_same_images_in_other_shards_get_copies_of_their_own(tmp_path, remote):
    first = stage(remote, tmp_path, progress=False)
    write_folder(tmp_path / "again", row_group_size=5)
    packed_again = read_data_set("pictures", str(tmp_path / "again"), tmp_path)
    second = stage(replace(packed_again, fingerprint=remote.fingerprint), tmp_path, progress=False)
    assert images(first) == images(second)
    assert len({shard.location for data in (first, second) for shard in data.shards["val"]}) == 2


def test_processes_that_stage_at_once_copy_once(tmp_path, store, remote):
    store.go_on.clear()
    staged: list[DataSet] = []
    asking = [
        threading.Thread(
            target=lambda: staged.append(stage(remote, tmp_path / "fast", progress=False))
        )
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    store.go_on.set()
    for thread in asking:
        thread.join()
    assert len(staged) == 4
    assert sorted(name for name, _, _ in store.reads) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "validation-00000-of-00001.parquet",
    ]


def test_staging_goes_on_through_a_stores_failures(tmp_path, store, remote):
    store.errors = [OSError("503 slow down"), TimeoutError(), ConnectionResetError("by peer")]
    assert len(images(stage(remote, tmp_path / "fast", progress=False))) == 60
    assert len(store.slept) == 3


def test_a_shard_that_cannot_be_had_is_named_and_the_whole_ones_stay(
    tmp_path, store, remote, monkeypatch
):
    monkeypatch.setattr(staging, "STAGE_THREADS", 1)
    monkeypatch.setattr(staging, "PIECE_BYTES", 2000)

    def lose_the_second(path: str) -> None:
        if path == WHOLE[1] and store.reads[-1][1] > 2000:
            raise PermissionError("the key has run out")

    store.on_read = lose_the_second
    with pytest.raises(DataError, match=rf"{WHOLE[1]} cannot be read: the key has run out"):
        stage(remote, tmp_path / "fast", progress=False)
    home = home_in(tmp_path / "fast", remote)
    assert set(files_in(home)) <= {WHOLE[0], WHOLE[2]}
    assert WHOLE[0] in files_in(home)
    store.on_read = lambda path: None
    store.reads.clear()
    assert len(images(stage(remote, tmp_path / "fast", progress=False))) == 60
    assert WHOLE[0] not in [name for name, _, _ in store.reads]


def test_a_kill_leaves_nothing_that_is_taken_for_whole(tmp_path):
    write_folder(tmp_path / "pictures")
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from mambaout.data.packing import stage as staging\n"
        "from mambaout.data.shards.data_set import read_data_set\n"
        "here = Path(sys.argv[1])\n"
        "data = read_data_set('pictures', str(here / 'pictures'), here)\n"
        "read, staging.PIECE_BYTES = staging.read_range, 2000\n"
        "def killed(location, start, length):\n"
        "    if start == 4000 and 'train-00001' in location:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return read(location, start, length)\n"
        "staging.read_range = killed\n"
        "staging.stage(data, here / 'fast', progress=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    (home,) = (tmp_path / "fast").glob("pictures-*")
    assert [name for name in files_in(home) if name.endswith(".part")]
    data = read_data_set("pictures", str(tmp_path / "pictures"), tmp_path)
    assert images(stage(data, tmp_path / "fast", progress=False)) == images(data)
    assert files_in(home) == WHOLE


def test_no_room_is_told_before_a_byte_is_copied(tmp_path, store, remote, monkeypatch):
    usage = namedtuple("usage", "total used free")(1 << 30, 1 << 30, 4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"staging takes 4[0-9.]+ kB, and .*fast.* has 4.1 kB left"):
        stage(remote, tmp_path / "fast", progress=False)
    assert store.reads == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, remote):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"pictures cannot be staged in .*file"):
        stage(remote, tmp_path / "file", progress=False)


def test_a_named_set_is_staged_too(tmp_path, digits):
    staged = stage(digits, tmp_path)
    assert images(staged) == images(digits)
