"""Which columns are the image and the label, and what a label may be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import pictures, write_parquet

from mambaout.data.batches.loader import TrainBatches, evaluation_batches
from mambaout.data.packing.sources import open_data, pack
from mambaout.data.shards.columns import _numbers
from mambaout.data.shards.data_set import DataSet
from mambaout.data.shards.encoded import EncodedImages
from mambaout.data.shards.files import DataError
from mambaout.recipe import BASELINE, tuned

IMAGES = pictures(60)
NUMBERS = [row % 3 for row in range(60)]
WORDS = [("rose", "aster", "lily")[row % 3] for row in range(60)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RECIPE = tuned(BASELINE, global_batch=8, image_size=16, minival_fraction=0.2)


def structs(paths: Sequence[Any] = (None,) * 60, kind: pa.DataType = STRUCT) -> pa.Array:
    rows = [{"bytes": image, "path": path} for image, path in zip(IMAGES, paths, strict=True)]
    return pa.array(rows, kind)


def write(folder: Path, columns: dict[str, Any], features: Any = None, raw: Any = None) -> str:
    """50 rows of the columns as train, 10 as validation, with that much of Hugging Face's word."""
    table = pa.table(columns)
    text = raw if raw is not None else json.dumps({"info": {"features": features}})
    if features is not None or raw is not None:
        table = table.replace_schema_metadata({"huggingface": text})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table[:50], folder / "train-00000-of-00001.parquet", row_group_size=7)
    pq.write_table(table[50:], folder / "validation-00000-of-00001.parquet", row_group_size=7)
    return str(folder)


def opened(tmp_path: Path, location: str, **columns: Any) -> DataSet:
    return open_data(location, tmp_path / "cache", **columns)


def check_read(data: DataSet, labels: list[int] = NUMBERS) -> None:
    """Every image and label, row by row, and through the loader and the evaluation."""
    assert data.labels["train"].tolist() + data.labels["val"].tolist() == labels
    assert {values.dtype for values in data.labels.values()} == {np.dtype(np.int64)}
    for split, first in (("train", 0), ("val", 50)):
        rows = EncodedImages(data.shards[split])
        for row in range(len(data.labels[split])):
            assert bytes(rows[row].image) == IMAGES[first + row]
    assert len(data.sample_ids) == len(set(data.sample_ids.tolist())) == 50
    assert next(TrainBatches(data, RECIPE, seed=0).starting_at(0)).images.shape == (8, 16, 16, 3)
    batches = evaluation_batches(data, "val", RECIPE, batch_size=4)
    assert sum(batch.num_valid for batch in batches) == 10


# -- found ----------------------------------------------------------------------------------------

LARGE = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])


@pytest.mark.parametrize(
    ("columns", "image", "label"),
    [
        ({"image": structs(), "label": NUMBERS}, "image", "label"),
        ({"label": NUMBERS, "id": NUMBERS, "img": structs()}, "img", "label"),
        ({"jpg": pa.array(IMAGES), "cls": NUMBERS, "__key__": WORDS}, "jpg", "cls"),
        ({"image": pa.array(IMAGES, pa.large_binary()), "y": NUMBERS}, "image", "y"),
        ({"x": pa.array(IMAGES), "target": NUMBERS}, "x", "target"),
        ({"Image": structs(), "Label": NUMBERS}, "Image", "Label"),
        ({"shots": structs(kind=LARGE), "class": NUMBERS}, "shots", "class"),
        ({"a.b": pa.array(IMAGES), "label": NUMBERS}, "a.b", "label"),
        ({"image": structs(), "mask": structs(), "label": NUMBERS, "y": WORDS}, "image", "label"),
        ({"img": structs(), "mask": pa.array(IMAGES), "fine_label": NUMBERS}, "img", "fine_label"),
        (
            {"img": pa.array(IMAGES).dictionary_encode(), "label": NUMBERS},
            "img",
            "label",
        ),
    ],
)  # fmt: skip
def test_the_columns_are_found_by_name_and_type(tmp_path, columns, image, label):
    data = opened(tmp_path, write(tmp_path / "set", columns))
    assert data.shards["train"][0].image.name == image
    check_read(data)
    assert label in columns


def test_hugging_faces_features_decide_between_columns(tmp_path):
    features = {
        "scan": {"_type": "Image"},
        "thumb": {"dtype": "binary", "_type": "Value"},
        "kind": {"names": ["x", "y", "z"], "_type": "ClassLabel"},
        "count": {"dtype": "int64", "_type": "Value"},
    }
    columns = {"thumb": structs(), "scan": structs(), "count": [5] * 60, "kind": NUMBERS}
    data = opened(tmp_path, write(tmp_path / "set", columns, features))
    assert data.shards["val"][0].image.name == "scan"
    assert data.class_names == ("x", "y", "z")
    check_read(data)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"img": structs(), "fine_label": NUMBERS, "coarse_label": NUMBERS},
            r"2 columns that may be the label: fine_label, coarse_label; name one, for example "
            r"--label-column fine_label",
        ),
        (
            {"left": structs(), "right": structs(), "label": NUMBERS},
            r"2 columns that may be the image: left, right; .* --image-column left",
        ),
        (
            {"image": structs(), "species": WORDS, "id": NUMBERS},
            r"none is known as the label: .*; if one of species, id is it, name it: --label-column",
        ),
        (
            {"image": structs(), "label": [0.5] * 60},
            r"has the columns image: .*, label: double, and none is known as the label: wanted "
            r"whole numbers or words$",
        ),
        (
            {"pixels": [[1, 2]] * 60, "label": NUMBERS},
            r"none is known as the image: wanted struct<bytes, path>.*lists of pixels are not read",
        ),
    ],
)
def test_where_two_columns_or_none_could_be_meant_the_options_are_named(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        opened(tmp_path, write(tmp_path / "set", columns))


def test_named_columns_are_read_and_are_another_data_set(tmp_path):
    columns = {"left": structs(), "right": pa.array(IMAGES), "fine": NUMBERS, "coarse": WORDS}
    location = write(tmp_path / "set", columns)
    fine = opened(tmp_path, location, image_column="left", label_column="fine")
    coarse = opened(tmp_path, location, image_column="right", label_column="coarse")
    check_read(fine)
    assert coarse.class_names == ("aster", "lily", "rose")
    assert coarse.shards["train"][0].image.name == "right"
    assert coarse.fingerprint != fine.fingerprint


def test_naming_what_would_be_found_is_the_same_data_set(tmp_path):
    location = write(tmp_path / "set", {"image": structs(), "label": NUMBERS})
    named = opened(tmp_path, location, image_column="image", label_column="label")
    assert named.fingerprint == opened(tmp_path, location).fingerprint


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_column": "photo"}, r"--image-column photo: .* has the columns image: struct"),
        ({"image_column": "label"}, r"--image-column label: .* has int64 in it; wanted struct"),
        ({"label_column": "image"}, r"--label-column image: .*; wanted whole numbers or words"),
    ],
)
def test_a_named_column_that_will_not_do_is_refused(tmp_path, columns, message):
    location = write(tmp_path / "set", {"image": structs(), "label": NUMBERS})
    with pytest.raises(DataError, match=message):
        opened(tmp_path, location, **columns)
    with pytest.raises(DataError, match="digits is no set of Parquet shards"):
        open_data("digits", tmp_path / "cache", **columns)


def test_shards_that_lack_the_columns_of_the_first_are_named(tmp_path):
    folder = tmp_path / "set"
    write(folder, {"image": structs(), "label": NUMBERS})
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    second = folder / "train-00001-of-00002.parquet"
    for columns in ({"image": structs()}, {"img": structs(), "label": NUMBERS}):
        pq.write_table(pa.table(columns), second)
        with pytest.raises(
            DataError, match=rf"{second} has the columns .*; wanted image and label"
        ):
            opened(tmp_path, str(folder))


def test_a_column_called_segments_that_pack_did_not_write_is_not_taken_for_an_index(tmp_path):
    for name, column in (("numbers", NUMBERS), ("masks", IMAGES), ("words", WORDS)):
        columns = {"image": structs(), "label": NUMBERS, "segments": column}
        check_read(opened(tmp_path, write(tmp_path / name, columns)))


# -- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        *(pa.array(NUMBERS, kind) for kind in (pa.int8(), pa.uint16(), pa.uint64(), pa.int32())),
        pa.array(NUMBERS).dictionary_encode(),
    ],
)
def test_labels_are_whole_numbers_of_any_width(tmp_path, labels):
    check_read(opened(tmp_path, write(tmp_path / "set", {"image": structs(), "label": labels})))


def test_yes_and_no_are_two_classes(tmp_path):
    flags = [row % 2 == 1 for row in range(60)]
    data = opened(tmp_path, write(tmp_path / "set", {"image": structs(), "label": flags}))
    check_read(data, [int(flag) for flag in flags])


@pytest.mark.parametrize(
    "labels",
    [pa.array(WORDS), pa.array(WORDS, pa.large_string()), pa.array(WORDS).dictionary_encode()],
)
def test_words_become_classes_in_their_sorted_order(tmp_path, labels):
    data = opened(tmp_path, write(tmp_path / "set", {"image": structs(), "label": labels}))
    assert data.class_names == ("aster", "lily", "rose")
    check_read(data, [data.class_names.index(word) for word in WORDS])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([*WORDS[:53], "moss", "moss", *WORDS[55:]], r"row 3 has the label 'moss', which no "
         r"training image has; 2 rows of val are like it"),
        ([*WORDS[:7], None, *WORDS[8:]], r"train-00000-of-00001.parquet row 7 has no label"),
        ([*WORDS[:7], "", *WORDS[8:]], r"train-00000-of-00001.parquet row 7 has no label"),
        ([-1] * 60, r"training images of .*set have no labels: label is empty or -1 in every row"),
        ([None] * 60, r"training images of .*set have no labels"),
        (pa.array([*NUMBERS[:59], 2**64 - 1], pa.uint64()), r"label holds no labels: .*184467"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_classes_are_refused(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        opened(tmp_path, write(tmp_path / "set", {"image": structs(), "label": labels}))


def test_words_beside_numbers_and_other_class_names_are_refused_by_file(tmp_path):
    folder = tmp_path / "set"
    write(folder, {"image": structs(), "label": WORDS})
    other = folder / "validation-00000-of-00001.parquet"
    write_parquet(other, IMAGES[:4], [0, 1, 2, 0])
    with pytest.raises(DataError, match=r"train-0.* are words, and those of .*validation-0"):
        opened(tmp_path, str(folder))
    write(folder, {"image": structs(), "label": NUMBERS}, {
        "label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}})  # fmt: skip
    write_parquet(other, IMAGES[:4], [0, 1, 2, 0], names=["c", "b", "a"])
    with pytest.raises(
        DataError, match=r"train-0.* and .*validation-0.* do not agree on the names"
    ):
        opened(tmp_path, str(folder))


def test_a_test_split_without_a_label_column_is_not_taken_for_val(tmp_path, caplog):
    pq.write_table(pa.table({"image": structs(), "label": NUMBERS}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"image": structs(), "id": NUMBERS}), tmp_path / "test.parquet")
    data = opened(tmp_path, str(tmp_path))
    assert "left out: test (1 shard), without labels" in caplog.text
    assert 0 < data.num_images("val", RECIPE) < 60


# -- Hugging Face's metadata ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ({"_type": "ClassLabel", "names": ["a", "b", "c"], "id": None}, ("a", "b", "c")),
        ({"_type": "ClassLabel", "names": {"1": "b", "0": "a", "2": "c"}}, ("a", "b", "c")),
        ({"_type": "ClassLabel", "num_classes": 4}, ("0", "1", "2", "3")),
        ({"_type": "ClassLabel", "names": [1, 2, 3]}, ("1", "2", "3")),
        ({"_type": "ClassLabel", "names": None}, ("0", "1", "2")),
        ({"_type": "ClassLabel", "names": []}, ("0", "1", "2")),
        ({"_type": "Value", "dtype": "int64"}, ("0", "1", "2")),
        ("int64", ("0", "1", "2")),
        (None, ("0", "1", "2")),
    ],
)
def test_class_names_are_read_however_they_are_written(tmp_path, label, names):
    features = {"image": {"_type": "Image"}, "label": label}
    columns = {"image": structs(), "label": NUMBERS}
    data = opened(tmp_path, write(tmp_path / "set", columns, features))
    assert data.class_names == names
    check_read(data)


@pytest.mark.parametrize(
    "raw",
    ["{not json", "[]", "3", '"text"', '{"info": []}', '{"info": {"features": ["image", "label"]}}',
     '{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"a": "x", "b": "y"}}}}}',
     '{"info": {"features": {"label": {"_type": "ClassLabel", "names": "abc"}}}}', b"\xff\xfe"],
)  # fmt: skip
def test_metadata_that_cannot_be_read_costs_the_names_alone_and_is_said(tmp_path, caplog, raw):
    columns = {"image": structs(), "label": NUMBERS}
    data = opened(tmp_path, write(tmp_path / "set", columns, raw=raw))
    check_read(data)
    assert data.class_names == ("0", "1", "2")
    assert "train-00000-of-00001.parquet" in caplog.text
    assert "its classes are named by number" in caplog.text


@pytest.mark.parametrize("raw", ["null", "{}", '{"info": null}', '{"info": {"features": null}}'])
def test_metadata_that_says_nothing_is_none(tmp_path, caplog, raw):
    columns = {"image": structs(), "label": NUMBERS}
    check_read(opened(tmp_path, write(tmp_path / "set", columns, raw=raw)))
    assert not caplog.records


# -- ids, packing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["", None, "1.png"])
def test_a_path_that_is_no_identity_leaves_it_to_the_bytes(tmp_path, odd):
    paths: list[str | None] = [f"{i}.png" for i in range(60)]
    paths[7] = odd
    data = opened(tmp_path, write(tmp_path / "set", {"image": structs(paths), "label": NUMBERS}))
    plain = {"image": pa.array(IMAGES), "label": NUMBERS}
    by_bytes = opened(tmp_path, write(tmp_path / "plain", plain))
    np.testing.assert_array_equal(data.sample_ids, by_bytes.sample_ids)
    check_read(data)


def test_paths_that_are_no_text_leave_it_to_the_bytes(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.binary())])
    paths: list[Any] = [b"%d" % i for i in range(60)]
    columns = {"image": structs(paths, kind), "label": NUMBERS}
    check_read(opened(tmp_path, write(tmp_path / "set", columns)))
    pack(str(tmp_path / "set"), tmp_path / "packed", progress=False)
    check_read(opened(tmp_path, str(tmp_path / "packed")))


def test_packing_writes_the_standard_columns(tmp_path):
    location = write(tmp_path / "set", {"jpg": pa.array(IMAGES), "kind": WORDS, "id": NUMBERS})
    pack(location, tmp_path / "packed", progress=False, label_column="kind")
    data = opened(tmp_path, str(tmp_path / "packed"))
    assert data.class_names == ("aster", "lily", "rose")
    check_read(data, [data.class_names.index(word) for word in WORDS])
    schema = pq.read_schema(tmp_path / "packed" / "train-00000-of-00001.parquet")
    assert schema.names == ["image", "label", "segments"]


def test_labels_in_several_chunks_and_from_the_middle_of_a_buffer_are_read_whole():
    column = pa.chunked_array([[0, 1, 2, 3], [], [4, 5, 6]], pa.int64())
    assert _numbers(column.slice(2, 3)).tolist() == [2, 3, 4]
    assert _numbers(column.slice(0, 0)).tolist() == []
    assert _numbers(column).dtype == np.int64


def test_labels_of_one_class_alone_are_refused(tmp_path):
    write_parquet(tmp_path / "set/data.parquet", pictures(20), [0] * 20)
    with pytest.raises(DataError, match="every training image has label 0, and telling classes"):
        open_data(str(tmp_path / "set"), tmp_path / "cache")
