"""Reading shards: ahead of their use, in few requests, and on through a store's failures."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flaky_store import Store, open_store
from image_files import pictures, write_folder, write_parquet

from mambaout.data.batches.makers import epoch_order
from mambaout.data.shards import encoded, files
from mambaout.data.shards.data_set import DataSet, read_data_set
from mambaout.data.shards.encoded import EncodedImages, Shard
from mambaout.data.shards.files import DataError
from mambaout.data.shards.parquet import read_footer


@pytest.fixture
def store(monkeypatch) -> Store:
    return open_store(monkeypatch)


def shard_of(path: Path, images: list[bytes], **options) -> Shard:
    write_parquet(path, images, [0] * len(images), **options)
    groups = pq.read_metadata(path)
    counts = tuple(groups.row_group(i).num_rows for i in range(groups.num_row_groups))
    size = sum(groups.row_group(i).total_byte_size for i in range(groups.num_row_groups))
    return Shard(f"flaky://{path}", counts, size)


def with_segments(path: Path, images: list[bytes], segments: list[bytes | None]) -> Path:
    """The columns in the order that leaves others between those that are read."""
    table = pa.table(
        {
            "image": pa.array([{"bytes": b, "path": f"{i}"} for i, b in enumerate(images)]),
            "label": pa.array([i % 2 for i in range(len(images))]),
            "segments": pa.array(segments, pa.binary()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=10)
    return path


# -- what a row is --------------------------------------------------------------------------------


def test_segments_come_with_the_image_where_there_are_any(tmp_path):
    images = pictures(25)
    segments = [None if i % 3 == 0 else bytes([i]) * i for i in range(25)]
    with_segments(tmp_path / "set/train-0.parquet", images, segments)
    write_parquet(tmp_path / "set/val-0.parquet", images[:2], [0, 1])
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    rows = EncodedImages(data.shards["train"])
    for row in (0, 1, 24, 13, 12, 2):
        image, found = rows[row]
        assert bytes(image) == images[row]
        assert (None if found is None else bytes(found)) == segments[row]
    assert EncodedImages(data.shards["val"])[1].segments is None


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary()])
def test_any_binary_type_of_the_column_is_read(tmp_path, kind):
    images = [*pictures(9), b""]
    values = pa.StructArray.from_arrays([pa.array(images, kind)], ["bytes"])
    path = tmp_path / "train-0.parquet"
    pq.write_table(pa.table({"image": values, "label": [0] * 10}), path, row_group_size=4)
    rows = EncodedImages([Shard(str(path), (4, 4, 2), 1000)])
    assert [bytes(rows[row].image) for row in range(10)] == images


@pytest.mark.parametrize("kinds", [files.MAPPED_FILE_SYSTEMS, set()], ids=["mapped", "read"])
def test_mapped_or_read_the_rows_are_the_same(tmp_path, monkeypatch, kinds):
    monkeypatch.setattr(files, "MAPPED_FILE_SYSTEMS", kinds)
    images, _ = write_folder(tmp_path / "set")
    rows = EncodedImages(read_data_set("set", str(tmp_path / "set"), tmp_path).shards["train"])
    kept = [rows[row].image for row in range(50)]
    rows.close()
    files._kept_open.cache_clear()
    assert [bytes(image) for image in kept] == images[:50]  # they hold what they are views of


def test_groups_says_which_row_group_a_row_is_in(tmp_path):
    write_folder(tmp_path / "set")  # two shards of 25 rows, in row groups of 7, 7, 7 and 4
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    found = EncodedImages(data.shards["train"]).groups(np.array([49, 0, 6, 7, 24, 25, 31, 32]))
    assert found.tolist() == [7, 0, 0, 1, 3, 4, 4, 5]
    assert found.dtype == np.int64


def test_shards_that_were_re_encoded_in_different_ways_are_refused(tmp_path):
    def written(name: str, lossy: str | None) -> DataSet:
        for split, way in (("train", lossy), ("val", "short side 288, quality 90")):
            path = write_parquet(tmp_path / name / f"{split}-0.parquet", pictures(4), [0, 1, 0, 1])
            table = pq.read_table(path)
            if way is not None:
                known = {**table.schema.metadata, b"mambaout.lossy": way.encode()}
                pq.write_table(table.replace_schema_metadata(known), path)
        return read_data_set(name, str(tmp_path / name), tmp_path)

    assert written("same", "short side 288, quality 90").lossy == "short side 288, quality 90"
    with pytest.raises(DataError, match=r"do not agree on how .* \(None, short side 288"):
        written("mixed", None)
    write_folder(tmp_path / "plain")
    assert read_data_set("plain", str(tmp_path / "plain"), tmp_path).lossy is None


def test_a_shard_replaced_while_it_is_in_use_is_named(tmp_path):
    shard = shard_of(tmp_path / "train-0.parquet", pictures(20))
    shard = Shard(str(tmp_path / "train-0.parquet"), shard.group_rows, shard.num_bytes)
    rows = EncodedImages([shard])
    rows[0]
    write_parquet(tmp_path / "new.parquet", pictures(20), [0] * 20, row_group_size=5)
    (tmp_path / "new.parquet").rename(tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match=r"row group 1 of .* has 5 rows and had 7: .* replaced"):
        rows[8]


# -- a store that fails ---------------------------------------------------------------------------

PASSING = (OSError("500 Internal Error"), TimeoutError(), ConnectionResetError("by peer"))


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_a_read_that_fails_for_a_while_is_tried_again(tmp_path, store, caplog, error):
    images = pictures(20)
    shard = shard_of(tmp_path / "train-0.parquet", images)
    rows = EncodedImages([shard])
    assert bytes(rows[0].image) == images[0]
    store.errors = [error] * 4
    with caplog.at_level(logging.WARNING):
        assert bytes(rows[8].image) == images[8]
    assert store.errors == []
    assert "reading row group 1 of flaky://" in caplog.messages[0]
    assert "train-0.parquet" in caplog.messages[0]
    assert "try 2 of 5" in caplog.messages[0]
    assert len(caplog.messages) == 4


def test_the_waits_double_to_a_bound_and_differ(tmp_path, store, monkeypatch):
    monkeypatch.setattr(files, "TRIES", 9)
    shard = shard_of(tmp_path / "train-0.parquet", pictures(3))
    store.errors = [OSError("no answer")] * 8
    EncodedImages([shard])[0]
    longest = [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert all(most / 2 <= wait <= most for wait, most in zip(store.slept, longest, strict=True))
    assert len(set(store.slept)) == 8


def test_a_store_that_stays_away_is_an_error_that_names_shard_and_row_group(tmp_path, store):
    images = pictures(20)
    rows = EncodedImages([shard_of(tmp_path / "train-0.parquet", images)])
    rows[0]
    store.errors = [OSError("no route to host")] * 5
    with pytest.raises(
        DataError, match=r"row group 2 of flaky://.*train-0.parquet cannot be read: no route to ho"
    ):
        rows[15]
    assert bytes(rows[15].image) == images[15]  # and who asks later may have it


def test_no_try_is_begun_after_the_time_for_them(tmp_path, store, monkeypatch):
    monkeypatch.setattr(files, "RETRY_SECONDS", -1)
    shard = shard_of(tmp_path / "train-0.parquet", pictures(3))
    store.errors = [OSError("no answer")] * 2
    with pytest.raises(DataError, match="no answer"):
        EncodedImages([shard])[0]
    assert len(store.errors) == 1


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("not yours")])
def test_what_will_not_pass_is_not_tried_again(tmp_path, store, error):
    rows = EncodedImages([shard_of(tmp_path / "train-0.parquet", pictures(20))])
    rows[0]
    store.errors = [error]
    with pytest.raises(DataError, match=r"train-0.parquet cannot be read"):
        rows[15]
    assert store.slept == []


def test_a_damaged_row_group_is_not_tried_again(tmp_path, store):
    shard = shard_of(tmp_path / "train-0.parquet", pictures(20))
    whole = bytearray((tmp_path / "train-0.parquet").read_bytes())
    whole[40:1500] = bytes(1460)
    (tmp_path / "train-0.parquet").write_bytes(whole)
    with pytest.raises(DataError, match=r"row group 0 of .*train-0.parquet is damaged"):
        EncodedImages([shard])[0]
    assert store.slept == []


def test_a_data_set_is_described_through_failures_of_any_one_request(tmp_path, store, monkeypatch):
    monkeypatch.setattr(
        "mambaout.data.shards.described_set.DESCRIBE_THREADS", 1
    )  # the requests in one order
    write_folder(tmp_path / "set")
    uri = f"flaky://{tmp_path}/set"
    store.listing_errors = [TimeoutError()]
    whole = read_data_set("set", uri, tmp_path)
    assert len(store.slept) == 1
    num_reads = len(store.reads)
    for failing in range(num_reads):
        files._kept_open.cache_clear()
        store.reads.clear()

        def fail(path: str, failing: int = failing) -> None:
            if len(store.reads) == failing + 1:
                raise ConnectionResetError("by peer")

        store.on_read = fail
        again = read_data_set("set", uri, tmp_path)
        assert again.fingerprint == whole.fingerprint
        np.testing.assert_array_equal(again.labels["train"], whole.labels["train"])
        assert len(store.reads) == num_reads + 1


def test_a_store_that_cannot_be_listed_says_so(tmp_path, store):
    store.listing_errors = [TimeoutError("nobody there")] * 5
    with pytest.raises(DataError, match=r"flaky:///no/set cannot be listed: nobody there"):
        read_data_set("set", "flaky:///no/set", tmp_path)


def test_a_row_group_is_one_request(tmp_path, store):
    images = pictures(40)
    path = with_segments(tmp_path / "train-0.parquet", images, [b"12"] * 40)
    rows = EncodedImages([Shard(f"flaky://{path}", (10, 10, 10, 10), 1000)])
    rows[0]
    store.reads.clear()
    for row in range(40):
        rows[row]
    assert len(store.reads) == 3
    assert store.opened == 1


# -- reading ahead --------------------------------------------------------------------------------


def opened(store: Store, *shards: Shard, **options) -> EncodedImages:
    """The shards' rows, their footers read: what `store` counts from here on are row groups."""
    for shard in shards:
        read_footer(shard.location)
    store.reads.clear()
    return EncodedImages(shards, **options)


def test_what_was_read_ahead_is_not_read_again(tmp_path, store):
    images = pictures(28)
    rows = opened(store, shard_of(tmp_path / "train-0.parquet", images))
    rows.prefetch([1, 3])
    rows.prefetch(np.array([3, 1]))
    assert [bytes(rows[row].image) for row in (7, 21, 27, 13)] == [
        images[row] for row in (7, 21, 27, 13)
    ]
    assert len(store.reads) == 2
    rows.close()


def test_reading_ahead_goes_on_while_other_rows_are_used(tmp_path, store):
    images = pictures(28)
    rows = EncodedImages([shard_of(tmp_path / "train-0.parquet", images)])
    rows[0]
    store.go_on.clear()
    rows.prefetch([1, 2])
    assert bytes(rows[1].image) == images[1]  # does not wait for the store
    store.go_on.set()
    assert bytes(rows[20].image) == images[20]
    rows.close()


def test_a_row_group_that_waits_its_turn_is_read_by_who_needs_it(tmp_path, store):
    images = pictures(20)
    # A shard a row group: of one Python file, pyarrow reads one part at a time.
    shards = [shard_of(tmp_path / f"{i}.parquet", images[5 * i :][:5]) for i in range(4)]
    rows = opened(store, *shards)
    busy, done = threading.Semaphore(0), threading.Event()

    def wait_in_the_background(path: str) -> None:
        if threading.current_thread().name.startswith("read-ahead"):
            busy.release()
            done.wait(60)

    store.on_read = wait_in_the_background
    rows.prefetch([0, 1, 2, 3])
    busy.acquire(timeout=60)
    busy.acquire(timeout=60)
    assert bytes(rows[17].image) == images[17]
    done.set()
    assert bytes(rows[2].image) == images[2]
    rows.close()


def test_an_error_while_reading_ahead_surfaces_where_the_row_is_asked_for(tmp_path, store):
    images = pictures(28)
    rows = EncodedImages([shard_of(tmp_path / "train-0.parquet", images)])
    rows[0]
    store.errors = [PermissionError("the key has run out")]
    rows.prefetch([2])
    assert bytes(rows[3].image) == images[3]
    with pytest.raises(DataError, match=r"row group 2 of .* the key has run out"):
        rows[14]
    assert bytes(rows[14].image) == images[14]
    rows.close()


def test_used_row_groups_go_before_those_read_ahead(tmp_path):
    images = [bytes([i]) * 1000 for i in range(80)]
    path = write_parquet(tmp_path / "x.parquet", images, [0] * 80, row_group_size=10)
    rows = EncodedImages([Shard(str(path), (10,) * 8, 80_000)], keep_bytes=45_000)
    rows[0], rows[10], rows[0]
    rows.prefetch([6, 5])
    rows[60 - 1], rows[60 + 9]  # both are there now
    rows.prefetch([4, 7])
    while rows._reading:
        pass
    assert set(rows.kept) == {4, 5, 6, 7}
    rows[25]
    assert 4 in rows.kept
    assert 7 in rows.kept
    assert rows.kept_bytes <= 45_000
    rows.close()


def test_no_more_is_read_ahead_than_is_kept(tmp_path, store):
    images = [bytes([i]) * 1000 for i in range(80)]
    shard = shard_of(tmp_path / "train-0.parquet", images, row_group_size=10, compression="none")
    rows = opened(store, shard, keep_bytes=35_000)
    rows.prefetch(range(8))
    for group in (0, 1, 2, 3):
        assert bytes(rows[10 * group].image) == images[10 * group]
    assert len(store.reads) == 4  # three ahead, one when it was asked for
    rows.close()


def test_an_epoch_of_many_windows_reads_a_row_group_once(tmp_path, monkeypatch):
    images = [row.to_bytes(2, "little") for row in range(1200)]
    path = write_parquet(tmp_path / "x.parquet", images, [0] * 1200, row_group_size=10)
    shard = Shard(str(path), (10,) * 120, 120 << 10)  # so much for each row group's size
    read, groups_read = encoded._read_group, []

    def counted(shard: Shard, group: int):
        groups_read.append(group)
        return read(shard, group)._replace(num_bytes=1 << 10)

    monkeypatch.setattr(encoded, "_read_group", counted)
    monkeypatch.setattr(encoded, "WINDOW_BYTES", 16 << 10)  # 8 windows of 16 row groups
    monkeypatch.setattr(encoded, "NEIGHBOURS_BYTES", 0)
    rows = EncodedImages([shard], encoded.needed_bytes(1))
    order = epoch_order(
        (shard,), np.arange(1200), seed=0, epoch=0, batch=24, window_bytes=encoded.WINDOW_BYTES
    )
    for batch in range(50):
        for ahead in (batch + 1, batch + 2):
            rows.prefetch(np.unique(rows.groups(order[24 * ahead :][:24])))
        for row in order[24 * batch :][:24].tolist():
            assert bytes(rows[row].image) == images[row]
    assert sorted(groups_read) == list(range(120))
    rows.close()


def test_threads_share_the_rows(tmp_path):
    images, _ = write_folder(tmp_path / "set")
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    rows = EncodedImages(data.shards["train"], keep_bytes=5_000)
    wrong = []

    def read(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(0, 50, 300).tolist():
            rows.prefetch([row % 8])
            if bytes(rows[row].image) != images[row]:
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    rows.close()


def test_closing_ends_the_threads_and_keeps_nothing(tmp_path, store):
    rows = EncodedImages([shard_of(tmp_path / "train-0.parquet", pictures(28))])
    rows[0]
    store.go_on.clear()
    others = set(threading.enumerate())  # of earlier tests, too: their readers were not closed
    rows.prefetch([1, 2, 3])
    started = set(threading.enumerate()) - others
    assert started
    rows.close()
    store.go_on.set()
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()
    assert rows.kept_bytes == len(rows.kept) == 0
