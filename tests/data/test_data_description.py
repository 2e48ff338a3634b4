"""Promises of a data set's description: read once a machine, and never taken for other shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flaky_store import Store, open_store
from image_files import pictures, write_folder, write_parquet

from mambaout.data.shards import files, parquet
from mambaout.data.shards.data_set import DataSet, read_data_set
from mambaout.data.shards.encoded import EncodedImages
from mambaout.data.shards.files import DataError


@pytest.fixture
def store(monkeypatch) -> Store:
    return open_store(monkeypatch)


def aged(folder: Path, *, seconds: float = 1000.0) -> None:
    """As shards are that were there before the study."""
    for path in folder.rglob("*.parquet"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def opened(location: str, cache: Path, **columns) -> DataSet:
    """As a new process opens it, which holds no file open."""
    files._kept_open.cache_clear()
    parquet._parsed.cache_clear()
    return read_data_set("set", location, cache, **columns)


def described(cache: Path) -> list[Path]:
    return sorted((cache / "described").glob("*.npz"))


def rows_of(data: DataSet, split: str) -> list[bytes]:
    images = EncodedImages(data.shards[split], keep_bytes=0)
    return [bytes(images[row].image) for row in range(len(data.labels[split]))]


def assert_same(one: DataSet, other: DataSet) -> None:
    assert (one.name, one.fingerprint, one.class_names) == (
        *(other.name, other.fingerprint, other.class_names),
    )
    assert one.shards == other.shards
    assert one.lossy == other.lossy
    assert one.labels.keys() == other.labels.keys()
    for split, labels in one.labels.items():
        assert labels.dtype == other.labels[split].dtype == np.int64
        assert np.array_equal(labels, other.labels[split])


def test_a_second_open_reads_nothing_of_the_shards_and_finds_the_same(tmp_path, store):
    write_folder(tmp_path / "set")
    aged(tmp_path / "set")
    location, cache = f"flaky://{tmp_path}/set", tmp_path / "cache"
    first = opened(location, cache)
    assert store.reads
    assert store.opened
    store.reads.clear()
    store.opened = 0
    second = opened(location, cache)
    assert (store.reads, store.opened) == ([], 0)
    assert_same(first, second)


def test_rows_of_a_described_set_are_read_without_its_footers(tmp_path, store):
    images, _ = write_folder(tmp_path / "set")
    aged(tmp_path / "set")
    location, cache = f"flaky://{tmp_path}/set", tmp_path / "cache"
    opened(location, cache)
    data = opened(location, cache)
    store.reads.clear()
    assert rows_of(data, "train") == images[:50]
    groups = sum(len(shard.group_rows) for shard in data.shards["train"])
    assert len(store.reads) == groups  # a row group a read, and nothing else


def test_a_process_of_its_own_finds_what_another_has_described(tmp_path):
    write_folder(tmp_path / "set")
    aged(tmp_path / "set")
    data = opened(str(tmp_path / "set"), tmp_path / "cache")
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from mambaout.data.shards import data_set as shards\n"
        "shards._describe = None  # a shard that is opened is an error\n"
        "found = shards.read_data_set('set', sys.argv[1], Path(sys.argv[2]))\n"
        "print(json.dumps([found.fingerprint, found.labels['train'].tolist()]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "set"), str(tmp_path / "cache")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [data.fingerprint, data.labels["train"].tolist()]


@pytest.mark.parametrize("scheme", ["", "flaky://"], ids=["local", "remote"])
def test_a_shard_that_was_replaced_by_one_as_long_is_noticed(tmp_path, store, scheme):
    images = pictures(4)
    for split, count in (("train", 4), ("val", 2)):
        write_parquet(tmp_path / f"set/{split}-0.parquet", images[:count], [0, 1, 0, 1][:count])
    aged(tmp_path / "set")
    location, cache = f"{scheme}{tmp_path}/set", tmp_path / "cache"
    before = read_data_set("set", location, cache)
    path = tmp_path / "set/train-0.parquet"
    size = path.stat().st_size
    write_parquet(path, images, [1, 0, 1, 0])
    assert path.stat().st_size == size
    aged(tmp_path / "set", seconds=500.0)
    after = read_data_set("set", location, cache)  # of the same process
    assert after.labels["train"].tolist() == [1, 0, 1, 0]
    assert after.fingerprint != before.fingerprint
    assert len(described(cache)) == 1, "the description of what is gone goes, too"


def test_a_shard_that_was_added_or_removed_is_noticed(tmp_path):
    for name, labels in (("train-a", [0, 1] * 5), ("val-a", [0, 1])):
        write_parquet(tmp_path / f"set/{name}.parquet", pictures(len(labels)), labels)
    aged(tmp_path / "set")
    cache = tmp_path / "cache"
    before = opened(str(tmp_path / "set"), cache)
    more = write_parquet(tmp_path / "set/train-b.parquet", pictures(60)[55:], [0, 1, 0, 1, 0])
    aged(tmp_path / "set")
    assert len(opened(str(tmp_path / "set"), cache).labels["train"]) == 15
    more.unlink()
    assert_same(opened(str(tmp_path / "set"), cache), before)


def test_a_shard_replaced_after_it_was_described_gives_no_row_of_another(tmp_path):
    write_folder(tmp_path / "set")
    aged(tmp_path / "set")
    cache = tmp_path / "cache"
    opened(str(tmp_path / "set"), cache)
    data = opened(str(tmp_path / "set"), cache)
    path = Path(data.shards["train"][0].location)
    others = pictures(90)[60:]
    write_parquet(path, others[:25], [0] * 25, row_group_size=25)
    with pytest.raises(DataError, match="the shard was replaced while it was in use"):
        EncodedImages(data.shards["train"])[0]


def test_a_remote_shard_of_another_size_than_described_is_named(tmp_path, store):
    write_folder(tmp_path / "set")
    aged(tmp_path / "set")
    location, cache = f"flaky://{tmp_path}/set", tmp_path / "cache"
    opened(location, cache)
    data = opened(location, cache)
    path = Path(data.shards["train"][0].location.removeprefix("flaky://"))
    write_parquet(path, pictures(70)[60:], [0] * 10)
    with pytest.raises(DataError, match=r"replaced while it was in use: it has [\d,]+ bytes and h"):
        EncodedImages(data.shards["train"])[0]


def test_the_given_columns_are_part_of_what_is_described(tmp_path):
    for split in ("train", "val"):
        table = pa.table(
            {
                "image": pa.array([{"bytes": b, "path": None} for b in pictures(4)]),
                "label": [0, 1, 0, 1],
                "other": [1, 1, 0, 0],
            }
        )
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "set" / f"{split}-0.parquet")
    aged(tmp_path / "set")
    for _ in range(2):
        for name, labels in (("label", [0, 1, 0, 1]), ("other", [1, 1, 0, 0])):
            data = opened(str(tmp_path / "set"), tmp_path / "cache", label_column=name)
            assert data.labels["train"].tolist() == labels
    assert len(described(tmp_path / "cache")) == 2


def test_what_is_said_of_a_set_is_said_at_each_open(tmp_path, caplog):
    write_parquet(tmp_path / "set/train-0.parquet", pictures(20), [0, 1] * 10)
    (tmp_path / "set/_hidden.parquet").write_bytes(b"")
    aged(tmp_path / "set")
    said = []
    for _ in range(2):
        caplog.clear()
        opened(str(tmp_path / "set"), tmp_path / "cache")
        said.append([record.message for record in caplog.records])
    assert said[0] == said[1]
    assert len(said[0]) == 2


def test_words_as_labels_come_back_as_the_classes_they_are(tmp_path):
    words = pa.array(["b", "a", "ü", "a"])
    for split in ("train", "val"):
        path = write_parquet(tmp_path / f"set/{split}-0.parquet", pictures(4), [0, 1, 0, 1])
        table = pq.read_table(path).drop_columns("label").append_column("label", [words])
        pq.write_table(table, path)
    aged(tmp_path / "set")
    first = opened(str(tmp_path / "set"), tmp_path / "cache")
    assert first.class_names == ("a", "b", "ü")
    assert_same(first, opened(str(tmp_path / "set"), tmp_path / "cache"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_a_damaged_description_is_made_again(tmp_path, share):
    write_folder(tmp_path / "set")
    aged(tmp_path / "set")
    cache = tmp_path / "cache"
    first = opened(str(tmp_path / "set"), cache)
    (path,) = described(cache)
    whole = path.read_bytes()
    kept = int(share * len(whole))
    spoilt = whole[:kept] + b"\0" * (len(whole) - kept)
    if share == 1.0:  # a byte of the labels
        place = whole.index(b"labels-train.npy") + 150
        spoilt = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    path.write_bytes(spoilt)
    assert_same(opened(str(tmp_path / "set"), cache), first)
    assert path.read_bytes() == whole


def test_shards_that_are_only_just_there_are_not_described_yet(tmp_path):
    write_folder(tmp_path / "set")  # another file of the same second could take their place
    opened(str(tmp_path / "set"), tmp_path / "cache")
    assert described(tmp_path / "cache") == []


def test_a_cache_that_takes_no_description_is_no_error(tmp_path, caplog):
    write_folder(tmp_path / "set")
    aged(tmp_path / "set")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "described").write_text("a file where the folder would be")
    data = opened(str(tmp_path / "set"), tmp_path / "cache")
    assert len(data.labels["train"]) == 50
    assert "cannot be written" in caplog.text
