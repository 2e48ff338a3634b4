"""Which Parquet files are read: the layouts that others write, whole sets, each shard once."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from flaky_store import open_store
from image_files import pictures, write_folder, write_parquet

from mambaout.data.draws import hash64
from mambaout.data.images.decode import Images
from mambaout.data.packing.sizes import facts_of
from mambaout.data.packing.sources import open_data, pack
from mambaout.data.packing.stage import stage
from mambaout.data.shards.data_set import DataSet, Split
from mambaout.data.shards.encoded import EncodedImages
from mambaout.data.shards.files import DataError
from mambaout.recipe import BASELINE, tuned

SPLITS: tuple[Split, ...] = ("train", "minival", "val")
RECIPE = tuned(BASELINE, minival_fraction=0.2)
IMAGES = pictures(60)


def write(root: Path, *names: str, rows: int = 6, **options) -> str:
    """A folder with a shard of that name each, no two alike."""
    for i, name in enumerate(names):
        own = [IMAGES[(rows * i + row) % len(IMAGES)] for row in range(rows)]
        write_parquet(root / name, own, [row % 3 for row in range(rows)], **options)
    return str(root)


def opened(tmp_path: Path, location: str) -> DataSet:
    return open_data(location, tmp_path / "cache")


def read(data: DataSet, split: Split) -> list[bytes]:
    """The encoded images of a split."""
    rows = EncodedImages(data.shards[data.source(split)])
    return [bytes(rows[row].image) for row in data.rows(split, RECIPE).tolist()]


def files_of(data: DataSet, root: Path, source: str) -> list[str]:
    return [str(Path(s.location).relative_to(root)) for s in data.shards[source]]


# -- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (["default/train/0000.parquet", "default/train/0001.parquet"], "default/test/0000.parquet"),
        (["default/partial-train/0000.parquet"], "default/validation/0000.parquet"),
        (["default/partial-train/0000.parquet"], "default/partial-test/0000.parquet"),
        (["data/train-00000-of-00001-b42b775f407cee45.parquet"], "data/test-0.parquet"),
        (["train-00001-of-00002.parquet", "train-00002-of-00002.parquet"], "val.parquet"),
        (["Train/0000.parquet"], "Valid/0000.parquet"),
        (["TRAINING/a.parquet"], "Testing/a.parquet"),
        (["train-00000-of-00001.PARQUET"], "dev-00000-of-00001.parquet"),
        (["train-00000-of-00001.parquet"], "evaluation-00000-of-00001.parquet"),
        (["cifar10-train.parquet"], "cifar10-test.parquet"),
        (["train.parquet/part-00000-8f.c000.snappy.parquet"], "val.parquet/part-0.parquet"),
        (["train/part-00000-8f.parquet", "train/part-00002-8f.parquet"], "val/part-0.parquet"),
        (["train/a/0.parquet", "train/b/0.parquet"], "val/a/0.parquet"),
        (["train-00000-of-00001 (1).parquet"], "test-00000-of-00001.parquet"),
    ],
)  # fmt: skip
def test_every_layout_that_others_write_is_read(tmp_path, train, val):
    root = tmp_path / "set"
    data = opened(tmp_path, write(root, *train, val))
    assert files_of(data, root, "train") == train
    assert files_of(data, root, "val") == [val]


def test_sparks_and_notebooks_own_files_are_no_shards(tmp_path, caplog):
    root = tmp_path / "set"
    write(root, "train/part-00000.snappy.parquet", "val/part-00000.snappy.parquet")
    for name in ("_SUCCESS", "_metadata", ".part-00000.snappy.parquet.crc"):
        (root / "train" / name).write_bytes(b"PAR1")
    for name in (".ipynb_checkpoints/part-00000-checkpoint.parquet", "_temporary/0.parquet"):
        write(root, f"train/{name}")
    data = opened(tmp_path, str(root))
    assert len(read(data, "train") + read(data, "minival")) == len(read(data, "val")) == 6
    assert "left out: 2 hidden or metadata files (train/.ipynb_checkpoints/part" in caplog.text


@pytest.mark.parametrize(
    ("others", "taken", "said"),
    [
        ([], "validation", ["left out: test (1 shard)"]),
        (["extra-00000-of-00001.parquet"], "validation", ["1 file of no known split (extra-00000"]),
    ],
)
def test_other_splits_are_left_out_and_named(tmp_path, caplog, others, taken, said):
    names = [f"{split}-00000-of-00001.parquet" for split in ("train", "test", "validation")]
    data = opened(tmp_path, write(tmp_path / "set", *names, *others))
    assert files_of(data, tmp_path / "set", "val") == [f"{taken}-00000-of-00001.parquet"]
    assert all(text in caplog.text for text in said)


def test_a_part_of_a_split_and_a_test_split_in_vals_place_are_said(tmp_path, caplog):
    write(tmp_path / "set", "default/partial-train/0000.parquet", "default/test/0000.parquet")
    opened(tmp_path, str(tmp_path / "set"))
    assert "the val split is its test shards" in caplog.text
    assert "what partial-train lacks of the split" in caplog.text


@pytest.mark.parametrize("labels", [[-1] * 6, [None] * 6])
@pytest.mark.parametrize("hidden", ["test", "validation"])
def test_a_split_without_labels_is_never_taken_for_val(tmp_path, caplog, labels, hidden):
    root = tmp_path / "set"
    write(root, "train-0.parquet", "test-0.parquet", "validation-0.parquet")
    write_parquet(root / f"{hidden}-0.parquet", IMAGES[:6], labels)
    data = opened(tmp_path, str(root))
    shown = {"test": "validation", "validation": "test"}[hidden]
    assert files_of(data, root, "val") == [f"{shown}-0.parquet"]
    assert f"left out: {hidden} (1 shard)" in caplog.text


def test_the_same_folder_is_read_once_however_many_links_lead_to_it(tmp_path, caplog):
    root = tmp_path / "set"
    write(root, "data/train-0.parquet", "data/val-0.parquet")
    (root / "data" / "up").symlink_to("..")
    (root / "again").symlink_to("data")
    (tmp_path / "elsewhere").symlink_to(root)
    for location in (root, tmp_path / "elsewhere"):
        data = opened(tmp_path, str(location))
        assert [len(data.shards[split]) for split in ("train", "val")] == [1, 1]
    assert "again (the same folder as " in caplog.text


def test_a_linked_folder_is_read(tmp_path):
    write(tmp_path / "disk", "0000.parquet")
    write(tmp_path / "set", "val/0000.parquet")
    (tmp_path / "set" / "train").symlink_to(tmp_path / "disk")
    assert len(opened(tmp_path, str(tmp_path / "set")).labels["train"]) == 6


def test_images_by_class_with_hugging_faces_metadata_beside_are_a_folder_of_images(tmp_path):
    for i, image in enumerate(IMAGES[:20]):
        path = tmp_path / "set" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    write(tmp_path / "set", "metadata.parquet")
    assert opened(tmp_path, str(tmp_path / "set")).class_names == ("class0", "class1")


# -- no validation split --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["default/train/0000.parquet", "default/train/0001.parquet"],
        ["0000.parquet", "0001.parquet"],
        ["part-00000-8f.snappy.parquet", "part-00001-8f.snappy.parquet"],
        ["photos.parquet"],
    ],
)
def test_where_only_train_came_one_in_five_images_is_held_out(tmp_path, caplog, names):
    location = write(tmp_path / "set", *names, rows=60 // len(names))
    data = opened(tmp_path, location)
    train, minival, val = (read(data, split) for split in SPLITS)
    assert sorted(train + minival + val) == sorted(IMAGES)
    assert len(val) == pytest.approx(12, abs=7)
    assert "one in five training images is held out" in caplog.text
    sizes = [data.num_images(split, RECIPE) for split in SPLITS]
    assert sizes == [len(train), len(minival), len(val)]


def test_what_a_recipe_follows_from_is_without_the_images_held_out(tmp_path):
    data = opened(tmp_path, write(tmp_path / "set", "photos.parquet", rows=60))
    num_train = data.num_images("train", RECIPE) + data.num_images("minival", RECIPE)
    assert facts_of(data, Images(data, "train")).num_train == num_train < 60


def test_one_parquet_file_is_a_data_set(tmp_path):
    write(tmp_path, "Photos.parquet", rows=60)
    data = opened(tmp_path, str(tmp_path / "Photos.parquet"))
    assert data.name == "Photos"
    assert data.num_images("val", RECIPE) + data.num_images("train", RECIPE) < 60
    by_uri = opened(tmp_path, f"file://{tmp_path}/Photos.parquet")
    assert by_uri.fingerprint == data.fingerprint


def test_what_is_held_out_is_the_same_packed_staged_and_read_where_it_lies(tmp_path):
    paths = [f"{i}.png" for i in range(60)]
    write_parquet(tmp_path / "set/train.parquet", IMAGES, [i % 3 for i in range(60)], paths=paths)
    data = opened(tmp_path, str(tmp_path / "set"))
    pack(str(tmp_path / "set"), tmp_path / "packed", progress=False)
    packed = opened(tmp_path, str(tmp_path / "packed"))
    staged = stage(data, tmp_path / "staged", progress=False)
    val_alone = stage(data, tmp_path / "alone", split="val", progress=False)
    for split in SPLITS:
        assert read(packed, split) == read(staged, split) == read(data, split)
    assert packed.labels["val"].tolist() == data.labels["train"][data.held_out].tolist()
    assert read(val_alone, "val") == read(data, "val")
    again = opened(tmp_path, str(next((tmp_path / "staged").glob("set-*"))))
    assert again.fingerprint == data.fingerprint


def test_the_same_image_twice_is_on_one_side_of_every_cut(tmp_path):
    write_parquet(tmp_path / "set/train.parquet", IMAGES[:30] * 2, [i % 3 for i in range(30)] * 2)
    data = opened(tmp_path, str(tmp_path / "set"))
    parts = [set(read(data, split)) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 30


def test_too_few_images_to_hold_some_out_say_so(tmp_path):
    data = opened(tmp_path, write(tmp_path / "set", "train.parquet", rows=1))
    with pytest.raises(DataError, match="no validation split, and its 1 images are too few"):
        data.num_images("train", RECIPE)


# -- sets that are not whole ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"],
            r"set/data lacks 1 of 3 train shards: train-00001-of-00003.parquet",
        ),
        (
            ["train-00001-of-00020.parquet"],
            r"lacks 19 of 20 train shards: train-00000-of-00020.* and 15 more",
        ),
        (
            ["train-00000-of-00001.parquet", "test-00001-of-00002.parquet"],
            r"lacks 1 of 2 test shards: test-00000-of-00002",
        ),
        (
            ["default/train/0000.parquet", "default/train/0002.parquet"],
            r"set/default/train lacks 1 train shards: 0001.parquet",
        ),
        (
            ["train-00000-of-00001.parquet", "train-00000-of-00001 (1).parquet"],
            r"train-00000-of-00001 \(1\).parquet and train-.* two copies of one shard; remove one",
        ),
        (
            ["train.parquet", "Copy of train.parquet"],
            r"Copy of train.parquet and train.parquet look like two copies",
        ),
        (
            ["train-00000-of-00001-aaaaaa.parquet", "train-00000-of-00001-bbbbbb.parquet"],
            r"has shard 0 of train twice, .*aaaaaa.parquet and .*bbbbbb.parquet: two versions",
        ),
        (
            ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet",
             "train-00001-of-00002.parquet"],
            r"holds train shards of more than one set, train-00000-of-00001.* and train-00000-of-",
        ),
        (
            ["train-00000-of-00001.parquet", "train.parquet"],
            r"holds train shards of more than one set",
        ),
        (
            ["cropped/train-0.parquet", "full/train-0.parquet", "full/test-0.parquet"],
            r"holds train shards of 2 data sets: (.*/set)/cropped, \1/full; give one, for example "
            r"--data \1/cropped$",
        ),
        (
            ["default/train/0000.parquet", "extra/train/0000.parquet"],
            r"train shards of 2 data sets: .*/set/default, .*/set/extra",
        ),
        (
            ["train-0.parquet", "backup/train-0.parquet"],
            r"2 data sets: .*/set/backup, .*/set; give one, for example --data .*/set/backup, or "
            r"move it out to read the rest$",
        ),
        (["cats/0.parquet", "dogs/0.parquet"], r"train shards of 2 data sets: "),
        (["test-0.parquet", "dev.parquet"], r"has no train shards, only dev, test; give the"),
    ],
)  # fmt: skip
def test_a_set_that_is_not_whole_or_not_one_is_refused(tmp_path, names, message):
    location = write(tmp_path / "set", *names)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, location)


def test_a_configuration_is_read_by_its_folder(tmp_path):
    root = tmp_path / "set"
    write(root, *(f"{c}/{s}-0.parquet" for c in ("cropped", "full") for s in ("train", "test")))
    data = opened(tmp_path, str(root / "cropped"))
    assert files_of(data, root, "train") == ["cropped/train-0.parquet"]


def test_copies_are_found_by_their_content_too(tmp_path):
    root = tmp_path / "set"
    write(root, "train/one.parquet", "val/one.parquet")
    (root / "train/other.parquet").write_bytes((root / "train/one.parquet").read_bytes())
    with pytest.raises(DataError, match=r"one.parquet and .*other.parquet hold the same rows"):
        opened(tmp_path, str(root))
    for name in ("a", "b"):  # that Spark wrote for partitions without a row
        write(root, f"val/empty-{name}.parquet", rows=0)
    (root / "train/other.parquet").unlink()
    assert len(opened(tmp_path, str(root)).labels["val"]) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"", "it is empty; download it again"),
        (lambda whole: whole[: len(whole) // 2], r"it is cut off or damaged \([\d,]+ bytes.*again"),
        (lambda whole: whole[:-3], "it is cut off or damaged"),
        (
            lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "it is the pointer that Git LFS keeps for it; run `git lfs pull`",
        ),
        (lambda whole: b"\n<!DOCTYPE html><title>404</title>", "it is a web page, not the file"),
        (lambda whole: b"PK\x03\x04 something else", "download it again"),
    ],
)
def test_a_file_that_is_no_parquet_is_named_with_what_it_is(tmp_path, content, message):
    root = tmp_path / "set"
    write(root, "train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "val-0.parquet")
    path = root / "train-00001-of-00002.parquet"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path} cannot be read as a Parquet file: .*{message}"):
        opened(tmp_path, str(root))


def test_a_link_to_nothing_is_named(tmp_path):
    write(tmp_path / "set", "train-0.parquet")
    (tmp_path / "set" / "val-0.parquet").symlink_to(tmp_path / "not-downloaded")
    with pytest.raises(DataError, match=r"set/val-0.parquet cannot be read"):
        opened(tmp_path, str(tmp_path / "set"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    root = tmp_path / "set"
    write(root, "train/0.parquet", "val/0.parquet")
    (root / "val").chmod(0)
    try:
        with pytest.raises(DataError, match=r"set/val cannot be listed"):
            opened(tmp_path, str(root))
    finally:
        (root / "val").chmod(0o755)


def test_a_store_is_checked_as_a_folder_is(tmp_path, monkeypatch):
    open_store(monkeypatch)
    write(tmp_path / "set", "default/train/0000.parquet", "default/test/0000.parquet")
    data = opened(tmp_path, f"flaky://{tmp_path}/set")
    assert [len(labels) for labels in data.labels.values()] == [6, 6]
    write(tmp_path / "set", "default/train/0002.parquet")
    with pytest.raises(DataError, match=r"flaky://.*default/train lacks 1 train shards: 0001"):
        opened(tmp_path, f"flaky://{tmp_path}/set")


def test_what_was_read_before_keeps_its_fingerprint_and_ids(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    write_folder(tmp_path / "set", paths=[f"{i}.png" for i in range(60)], names=list("abcde"))
    data = opened(tmp_path, str(tmp_path / "set"))
    assert not caplog.records
    assert data.sample_ids.tolist() == [hash64(f"{i}.png".encode()) for i in range(50)]
    np.testing.assert_array_equal(data.rows("val", RECIPE), np.arange(10))
