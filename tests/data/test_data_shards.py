"""Shards: Hugging Face's folders read as they are, splits that depend on the sample alone."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, photograph, pictures, write_folder, write_parquet
from PIL import Image

from mambaout.data.draws import draw, draws, uniforms
from mambaout.data.images.decode import Images
from mambaout.data.packing import pack as packing
from mambaout.data.packing.pack import Sample, Source, write_shards
from mambaout.data.shards import described_set
from mambaout.data.shards.data_set import read_data_set
from mambaout.data.shards.encoded import EncodedImages
from mambaout.data.shards.files import DataError
from mambaout.recipe import BASELINE, tuned

SMALL = tuned(BASELINE, global_batch=4, image_size=16, minival_fraction=0.2)


def rgb(data, split, row):
    picture = Images(data, split)[row]
    return np.asarray(Image.fromarray(picture.crop((0, 0, *picture.size))).convert("RGB"))


@pytest.mark.parametrize(
    ("compression", "label_type", "with_paths"),
    [
        ("snappy", pa.int64(), True),
        ("snappy", pa.int64(), False),
        ("zstd", pa.int32(), True),
        ("none", pa.uint8(), False),
    ],
)
def test_a_hugging_face_folder_is_read_as_it_is(tmp_path, compression, label_type, with_paths):
    images, labels = write_folder(
        tmp_path / "pictures",
        names=["rose", "lily", "daisy", "tulip", "poppy"],
        compression=compression,
        label_type=label_type,
        paths=[f"{i}.png" for i in range(60)] if with_paths else None,
    )
    data = read_data_set("pictures", str(tmp_path / "pictures"), tmp_path)
    assert data.class_names == ("rose", "lily", "daisy", "tulip", "poppy")
    assert data.labels["train"].tolist() == labels[:50]
    assert data.labels["val"].tolist() == labels[50:]
    for split, first, rows in (("train", 0, (0, 6, 7, 24, 25, 49)), ("val", 50, (0, 9))):
        for row in rows:
            wanted = np.asarray(Image.open(io.BytesIO(images[first + row])))
            np.testing.assert_array_equal(rgb(data, split, row), wanted)


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("train/0000.parquet", "val/0000.parquet"),
        ("train.parquet", "valid.parquet"),
    ],
)
def test_splits_are_found_by_the_names_hugging_face_gives(tmp_path, names):
    for name in names:
        write_parquet(tmp_path / "set" / name, pictures(6), [0, 1, 2, 0, 1, 2])
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    assert [s.num_rows for split in ("train", "val") for s in data.shards[split]] == [6, 6]
    assert data.class_names == ("0", "1", "2")


def test_validation_is_taken_before_test_whose_labels_hugging_face_hides(tmp_path):
    folder = tmp_path / "set"
    write_folder(folder)
    write_parquet(folder / "data/test-00000-of-00001.parquet", pictures(3), [-1, -1, -1])
    assert len(read_data_set("set", str(folder), tmp_path).labels["val"]) == 10


@pytest.mark.parametrize("keep_bytes", [0, 5_000, 1 << 30])
def test_any_row_is_read_whatever_is_kept(tmp_path, keep_bytes):
    images, _ = write_folder(tmp_path / "set")
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    encoded_images = EncodedImages(data.shards["train"], keep_bytes)
    for row in np.random.default_rng(0).integers(0, 50, 200).tolist():
        assert bytes(encoded_images[row].image) == images[row]
    assert encoded_images.kept_bytes <= keep_bytes or len(encoded_images.kept) == 1


# -- what a split is ------------------------------------------------------------------------------


def test_train_and_minival_are_disjoint_and_together_everything(digits):
    for fraction in (0.02, 0.1, 0.4):
        recipe = tuned(SMALL, minival_fraction=fraction)
        train, minival = digits.rows("train", recipe), digits.rows("minival", recipe)
        together = np.concatenate([train, minival])
        assert sorted(together.tolist()) == list(range(len(digits.labels["train"])))
        assert len(minival) == pytest.approx(fraction * len(together), rel=0.3)


def test_a_smaller_choice_lies_within_a_larger_one(digits):
    for split, field, values in (
        ("minival", "minival_fraction", (0.02, 0.1, 0.3)),
        ("train", "train_images", (64, 500, 3000)),
    ):
        chosen = [
            set(digits.rows(split, tuned(SMALL, **{field: value})).tolist()) for value in values
        ]
        assert chosen[0] < chosen[1] < chosen[2]
    assert [len(c) for c in chosen] == [64, 500, 3000]


def test_a_samples_split_depends_on_the_sample_alone(tmp_path):
    images = pictures(40)
    samples = [
        Sample(f"{i}.png", i % 4, lambda image=image: image) for i, image in enumerate(images)
    ]
    chosen = []
    for name, part in (("all", samples), ("some", samples[5:35][::-1])):
        write_shards(Source(name, None, part, samples[:4]), tmp_path / name, progress=False)
        data = read_data_set(name, str(tmp_path / name), tmp_path)
        encoded_images = EncodedImages(data.shards["train"])
        rows = data.rows("minival", tuned(SMALL, minival_fraction=0.4))
        chosen.append({bytes(encoded_images[row].image) for row in rows.tolist()})
    assert chosen[1] == chosen[0] & set(images[5:35])


@pytest.mark.parametrize(
    "paths", [None, ["same.png"] * 60, [None if i == 7 else f"{i}.png" for i in range(60)]]
)
def test_without_paths_of_their_own_samples_are_told_apart_by_their_bytes(tmp_path, paths):
    write_folder(tmp_path / "set", paths=paths)
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    assert len(set(data.sample_ids.tolist())) == 50
    write_folder(tmp_path / "plain")
    plain = read_data_set("plain", str(tmp_path / "plain"), tmp_path)
    np.testing.assert_array_equal(data.sample_ids, plain.sample_ids)


def test_an_empty_minival_or_too_few_training_images_say_so(tmp_path):
    write_folder(tmp_path / "set")
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    with pytest.raises(DataError, match=r"minival_fraction=0.0001 .* leaves no image"):
        data.rows("minival", tuned(SMALL, minival_fraction=0.0001))
    with pytest.raises(DataError, match="train_images=900 is more than the"):
        data.rows("train", tuned(SMALL, train_images=900))


# -- packing and identity -------------------------------------------------------------------------


def source(images, *, names=None):
    samples = [
        Sample(f"{i}.png", i % 4, lambda image=image: image) for i, image in enumerate(images)
    ]
    return Source("pictures", names, samples[8:], samples[:8])


def test_packing_twice_gives_the_same_bytes_and_readable_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_BYTES", 4_000)
    monkeypatch.setattr(packing, "GROUP_ROWS", 3)
    images = pictures(40)
    for name in ("one", "two"):
        write_shards(source(images), tmp_path / name, progress=False)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files[0] == f"train-00000-of-{len(files) - 2:05d}.parquet" or len(files) > 3
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    data = read_data_set("one", str(tmp_path / "one"), tmp_path)
    kept = EncodedImages(data.shards["train"])
    assert {bytes(kept[row].image) for row in range(32)} == set(images[8:])


def test_packed_rows_are_in_no_order_of_the_source(tmp_path):
    write_shards(source(pictures(60)), tmp_path / "set", progress=False)
    labels = read_data_set("set", str(tmp_path / "set"), tmp_path).labels["train"]
    assert labels.tolist() != [(i + 8) % 4 for i in range(52)]


def test_the_fingerprint_is_the_contents_wherever_and_however_it_was_packed(tmp_path, monkeypatch):
    images = pictures(30)
    write_shards(source(images), tmp_path / "set", progress=False)
    write_shards(source(images, names=("a", "b", "c", "d")), tmp_path / "named", progress=False)
    shutil.copytree(tmp_path / "set", tmp_path / "elsewhere" / "copy")
    write_shards(source([*images[:-1], pictures(1, seed=9)[0]]), tmp_path / "new", progress=False)
    write_folder(tmp_path / "foreign")
    write_folder(tmp_path / "foreign_copy")
    prints = {
        name: read_data_set(name, str(tmp_path / name), tmp_path).fingerprint
        for name in ("set", "elsewhere/copy", "named", "new", "foreign", "foreign_copy")
    }
    assert prints["set"] == prints["elsewhere/copy"] == prints["named"]
    assert prints["foreign"] == prints["foreign_copy"]
    assert len({prints["set"], prints["new"], prints["foreign"]}) == 3
    assert all(len(p) == 12 and int(p, 16) >= 0 for p in prints.values())


@pytest.mark.parametrize("whole_file_bytes", [0, 1 << 20])
def test_the_fingerprint_of_others_shards_follows_their_content(
    tmp_path, monkeypatch, whole_file_bytes
):
    monkeypatch.setattr(described_set, "WHOLE_FILE_BYTES", whole_file_bytes)
    images = pictures(10)
    prints = set()
    for name, train in (("one", images), ("two", [*images[:-1], images[-1] + b"0"])):
        for folder in (name, f"copy/{name}"):
            write_parquet(tmp_path / folder / "train-0.parquet", train, [0, 1] * 5)
            write_parquet(tmp_path / folder / "val-0.parquet", images[:2], [0, 1])
            prints.add(read_data_set("set", str(tmp_path / folder), tmp_path).fingerprint)
    assert len(prints) == 2


def test_shards_are_read_by_uri(tmp_path):
    write_folder(tmp_path / "set")
    by_uri = read_data_set("set", f"file://{tmp_path}/set", tmp_path)
    by_path = read_data_set("set", str(tmp_path / "set"), tmp_path)
    assert by_uri.shards["train"][0].location == f"file://{tmp_path}/set/data/" + (
        "train-00000-of-00002.parquet"
    )
    assert by_uri.fingerprint == by_path.fingerprint
    np.testing.assert_array_equal(rgb(by_uri, "val", 3), rgb(by_path, "val", 3))


def test_pixels_of_arrays_survive_packing(tmp_path):
    pixels = [photograph(20 + i, 17) for i in range(6)] + [photograph(9, 9)[..., 0]] * 2
    samples = [
        Sample(f"{i}.png", i % 2, lambda array=array: array) for i, array in enumerate(pixels)
    ]
    write_shards(Source("set", None, samples, samples), tmp_path / "set", progress=False)
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    order = sorted(range(8), key=lambda i: packing.hash64(f"{i}.png".encode()))
    for row, index in enumerate(order):
        wanted = np.asarray(Image.fromarray(pixels[index]).convert("RGB"))
        np.testing.assert_array_equal(rgb(data, "val", row), wanted)


def test_a_failed_packing_leaves_nothing(tmp_path):
    def broken():
        raise OSError("the disk is gone")

    samples = [Sample("0.png", 0, lambda: encoded(photograph(8, 8))), Sample("1.png", 0, broken)]
    with pytest.raises(OSError, match="the disk is gone"):
        write_shards(Source("set", None, samples, samples), tmp_path / "set", progress=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DataError, match="not an empty folder"):
        write_shards(Source("set", None, samples, samples), tmp_path / "full", progress=False)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            [0, 1, 2, 3, 4, 5, 6, 7, 12, 9],
            list("abcdefghij"),
            r"row 8 has label 12, outside 0 to 9",
        ),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, -1], None, r"row 9 has label -1, outside 0 to 8"),
        ([0, 1, 2, 3, 4, None, 6, 7, 8, 9], None, r"row 5 has no label"),
        ([1, 1, 2, 3, 4, 5, 6, 7, 8, 9], None, r"no training image has label 0"),
    ],
)
def test_a_wrong_label_is_named_by_shard_and_row(tmp_path, labels, names, message):
    write_parquet(tmp_path / "set/train-0.parquet", pictures(10), labels, names=names)
    write_parquet(tmp_path / "set/val-0.parquet", pictures(2), [1, 2], names=names)
    with pytest.raises(DataError, match=message) as raised:
        read_data_set("set", str(tmp_path / "set"), tmp_path)
    if "row" in message:
        assert "train-0.parquet" in str(raised.value)


def test_a_validation_label_that_training_never_had_is_named(tmp_path):
    write_parquet(tmp_path / "set/train-0.parquet", pictures(4), [0, 1, 0, 1])
    write_parquet(tmp_path / "set/val-0.parquet", pictures(3), [0, 1, 2])
    with pytest.raises(DataError, match=r"val-0.parquet row 2 has label 2, outside 0 to 1"):
        read_data_set("set", str(tmp_path / "set"), tmp_path)


def test_other_columns_and_other_files_are_named(tmp_path):
    folder = tmp_path / "set"
    write_parquet(folder / "train-0.parquet", pictures(4), [0, 1, 0, 1])
    (folder / "val-0.parquet").write_bytes(b"PAR1 this is not one")
    with pytest.raises(DataError, match=r"val-0.parquet cannot be read as a Parquet file"):
        read_data_set("set", str(folder), tmp_path)
    pq.write_table(pa.table({"img": [b""], "label": [0]}), folder / "val-0.parquet")
    with pytest.raises(DataError, match=r"val-0.parquet has the columns img: binary, label: int64"):
        read_data_set("set", str(folder), tmp_path)
    with pytest.raises(DataError, match="has no train shards"):
        read_data_set("none", str(tmp_path / "none"), tmp_path)


def test_an_image_that_is_not_there_is_named_by_shard_and_row(tmp_path):
    images = pictures(10)
    folder = tmp_path / "set"
    write_parquet(
        folder / "train-0.parquet", [*images[:4], None, *images[5:]], [0, 1] * 5, row_group_size=3
    )
    write_parquet(folder / "val-0.parquet", images[:2], [0, 1])
    rows = EncodedImages(read_data_set("set", str(folder), tmp_path).shards["train"])
    with pytest.raises(DataError, match=r"train-0.parquet row 4 has no image.bytes"):
        rows[4]
    assert bytes(rows[5].image) == images[5]


def test_a_damaged_row_group_is_named(tmp_path):
    write_folder(tmp_path / "set")
    data = read_data_set("set", str(tmp_path / "set"), tmp_path)
    path = tmp_path / "set/data/train-00001-of-00002.parquet"
    whole = bytearray(path.read_bytes())
    whole[40:2000] = bytes(1960)  # of the first row group; the footer is at the end
    path.write_bytes(whole)
    with pytest.raises(
        DataError, match=r"row group 0 of .*train-00001-of-00002.parquet is damaged"
    ):
        [EncodedImages(data.shards["train"])[row] for row in range(50)]


# -- draws ----------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(0, 2**64 - 1))
def test_one_draw_is_the_same_alone_and_among_many(seed, last):
    each = np.array([last, 0, 7], np.uint64)
    assert draws("purpose", seed, 3, each=each)[0] == draw("purpose", seed, 3, last)


def test_draws_are_uniform_and_differ_by_every_key():
    values = uniforms("purpose", 0, 1, each=np.arange(100_000))
    assert values.min() >= 0
    assert values.max() < 1
    counts, _ = np.histogram(values, 100)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 160  # 99 degrees of freedom: exceeded by chance once in 10,000
    others = (uniforms(*keys, each=np.arange(100_000)) for keys in (
        ("other", 0, 1), ("purpose", 1, 1), ("purpose", 0, 2), ("purpose", 1, 0),
    ))  # fmt: skip
    for other in others:
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.02
