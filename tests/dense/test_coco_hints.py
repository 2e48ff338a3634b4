"""Mistakes of people who begin: each is one error that names the file or value, and the remedy."""

from __future__ import annotations

import pytest
from test_coco import annotation, written

from mambaout.data.shards.files import DataError
from mambaout.dense.coco import read_coco
from mambaout.dense.detect import require_one_set
from mambaout.errors import WrongRequest


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["train/cat/1.jpg", "val/cat/2.jpg"], "a folder for each class, which is for classificat"),
        (["data.json", "1.jpg"], "there is data.json: rename it, and put its images into train/"),
        (["mine/annotations/instances_train2017.json", "mine/train2017/1.jpg"], "/mine"),
        (["labels/train/1.txt", "images/train/1.jpg"], "its labels/ are in YOLO's format: convert"),
        (["Annotations/1.xml", "JPEGImages/1.jpg"], "are in Pascal VOC's format: convert them"),
        (["1.jpg"], "has it, or instances_train.json, in annotations/"),
    ],
)
def test_a_folder_of_another_kind_is_told_by_what_is_in_it(tmp_path, files, what):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_coco(str(tmp_path), "train")
    assert f"{tmp_path} has no annotations/instances_train2017.json" in str(caught.value)
    assert what in str(caught.value)


def test_a_path_beside_the_sets_folder_names_the_folder(tmp_path):
    root = written(tmp_path, [annotation(1)])
    file = f"{root}/annotations/instances_train2017.json"
    with pytest.raises(DataError, match=rf"is a file; give the folder that .*: {root}$"):
        read_coco(file, "train")
    with pytest.raises(DataError, match=rf"give the folder above, {root}$"):
        read_coco(f"{root}/train2017", "train")
    with pytest.raises(DataError, match=r"Write a part of the images into a file of their own"):
        read_coco(root, "val")


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"categories": None}, r"add it, with entries like {.id.: 1, .name.: .cat.}"),
        ({"categories": [{"id": "7", "name": "a"}]}, r"entry 0 has '7'; write it like"),
        (
            {
                "categories": [{"id": 7, "name": "cat"}],
                "annotations": [annotation(1) | {"category_id": "cat"}],
            },
            r"category_id 'cat' is not in the list categories; it is a name, whose id is 7: write",
        ),
        ({"annotations": [annotation(1) | {"category_id": "7"}]}, r"write 7 without quotes"),
        ({"annotations": [annotation(1) | {"category_id": [7]}]}, r"category_id \[7\] is not in"),
        ({"annotations": [annotation(1) | {"image_id": [1]}]}, r"its image is not in the list"),
        (
            {"annotations": [annotation(1, bbox=[0.1, 0.1, 0.5, 0.5])]},
            r"has no object to use; left",
        ),
        ({"annotations": []}, r"has no image to use; left out: \d images without annotations;"),
    ],
)
def test_a_mistake_in_a_file_has_its_remedy(tmp_path, parts, what):
    with pytest.raises(DataError, match=what):
        read_coco(written(tmp_path, **{"annotations": [annotation(1)]} | parts), "train")


def test_boxes_of_corners_are_noticed(tmp_path):
    root = written(tmp_path, [annotation(1, bbox=[30, 20, 55, 38])])
    said = "1 of 1 boxes reach beyond their image; is each bbox [left, top, width, height] in"
    assert said in read_coco(root, "train").report
    root = written(tmp_path / "right", [annotation(1, bbox=[30, 20, 31, 21])])  # 1 px by rounding
    assert read_coco(root, "train").warning == ""


def test_splits_with_other_classes_are_refused_with_the_remedy(tmp_path):
    categories = [{"id": n, "name": name} for n, name in ((3, "c"), (7, "g"), (90, "z"))]
    root = written(tmp_path, [annotation(1)])
    written(tmp_path, [annotation(1)], split="val", categories=[*categories, {"id": 99}])
    with pytest.raises(WrongRequest, match=r"id 99 is missing in the first and '99' in the second"):
        require_one_set(read_coco(root, "train"), read_coco(root, "val"))
