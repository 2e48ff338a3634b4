"""COCO files: mmdetection's filters, counts, errors that name the place, masks, class ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encoded, photograph
from pycocotools import mask as coco_masks

from mambaout.data.shards.files import DataError
from mambaout.dense.coco import read_coco
from mambaout.dense.coco_masks import segmentation_fault
from mambaout.dense.shapes import SHAPES, ShapesSize, write_shapes

SIZE = (40, 60)  # height, width
SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def annotation(number: int, image: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": 7,
        "bbox": [10, 10, 20, 20],
        "area": 400,
        "iscrowd": 0,
        "segmentation": SQUARE,
    } | changes


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def written(root: Path, annotations: list[Any], *, split: str = "train", **parts: Any) -> str:
    """A COCO folder with images 1 to 3, of which the third is small, and categories 3, 7 and 90."""
    images = [
        {"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]}
        for number, size in ((1, SIZE), (2, SIZE), (3, (31, 60)))
    ]
    for image in images:
        path = root / f"{split}2017" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photograph(image["height"], image["width"])))
    categories = [{"id": n, "name": name} for n, name in ((90, "z"), (3, "c"), (7, "g"))]
    body = {"images": images, "annotations": annotations, "categories": categories} | parts
    file = root / "annotations" / f"instances_{split}2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(body))
    return str(root)


def test_what_mmdetection_leaves_out_is_left_out_and_counted(tmp_path):
    root = written(
        tmp_path,
        [
            annotation(1),
            annotation(2, iscrowd=1),
            annotation(3, area=0),
            annotation(4, bbox=[10, 10, 0.5, 20]),
            annotation(5, bbox=[60, 10, 20, 20]),
            annotation(6, ignore=1),
            annotation(7, segmentation=[]),
            annotation(8, image=3),
        ],
    )
    data = read_coco(root, "train")
    assert [image.id for image in data.images] == [1]
    assert [each.annotation for each in data.images[0].objects] == [1]
    assert data.report == (
        f"{root}/annotations/instances_train2017.json: 1 image, 1 object, 3 classes; left out: "
        "1 crowd, 2 boxes without area, 1 box outside of the image, 1 box marked ignore, "
        "1 object without a mask, 1 image without annotations, 1 image under 32 px"
    )


def test_an_image_whose_annotations_are_all_left_out_stays_as_in_mmdetection(tmp_path):
    root = written(tmp_path, [annotation(1, iscrowd=1), annotation(2, image=2)])
    data = read_coco(root, "train")
    assert [(image.id, len(image.objects)) for image in data.images] == [(1, 0), (2, 1)]


def test_all_images_are_evaluated(tmp_path):
    data = read_coco(written(tmp_path, [annotation(1)], split="val"), "val")
    assert [image.id for image in data.images] == [1, 2, 3]


def test_category_ids_become_labels_and_return(tmp_path):
    root = written(tmp_path, [annotation(n, category_id=c) for n, c in enumerate((3, 7, 90))])
    data = read_coco(root, "train")
    labels = [each.label for each in data.images[0].objects]
    assert labels == [1, 2, 3]
    assert data.class_names == ("c", "g", "z")
    assert [data.labels_to_ids[label] for label in labels] == [3, 7, 90]


def test_a_missing_area_is_that_of_the_mask(tmp_path):
    data = read_coco(written(tmp_path, [without(annotation(1), "area")], split="val"), "val")
    assert data.body["annotations"][0]["area"] == 400


def rle_of(mask: np.ndarray) -> str:
    found: Any = coco_masks.encode(np.asfortranarray(mask))
    return found["counts"].decode()


RLE = {"size": [*SIZE], "counts": [0, SIZE[0] * SIZE[1]]}


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (without(annotation(5), "bbox"), "bbox is missing, not [left, top, width, height]"),
        (annotation(5, bbox=[1, 2, 3]), "bbox is [1, 2, 3], not"),
        (annotation(5, bbox=[1, 2, float("nan"), 4]), "bbox is [1, 2, nan, 4], not"),
        (annotation(5, category_id=4), "category_id 4 is not in the list categories"),
        (annotation(5, image=9), "its image is not in the list images"),
        (annotation(5, area="big"), "area is 'big', no number"),
        (annotation(5, segmentation=[[1, 2, 3, 4]]), "segmentation is no polygon: 4 numbers"),
        (annotation(5, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "no polygon: 7 numbers"),
        (annotation(5, segmentation=[["a"] * 6]), "segmentation is no polygon: ['a',"),
        (annotation(5, segmentation="abc"), "segmentation is no polygon and no RLE: 'abc'"),
        (annotation(5, segmentation=RLE | {"size": [1, 2]}), "the RLE has the size [1, 2], and"),
        (annotation(5, segmentation=RLE | {"counts": [3]}), "do not add up to the image's pixels"),
        (annotation(5, segmentation=RLE | {"counts": "00"}), "the RLE is cut off or altered"),
        (annotation(5, segmentation=RLE | {"counts": "~~"}), "the letter '~', which no RLE has"),
    ],
)
def test_a_broken_annotation_is_named_by_file_image_and_annotation(tmp_path, wrong, what):
    root = written(tmp_path, [annotation(1), wrong])
    with pytest.raises(DataError) as caught:
        read_coco(root, "train")
    text = str(caught.value)
    place = f"image {wrong['image_id']}, annotation 5: "
    assert text.startswith(f"{root}/annotations/instances_train2017.json: {place}")
    assert what in text


def test_a_file_that_is_cut_off_is_named(tmp_path):
    root = written(tmp_path, [annotation(1)])
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"instances_train2017.json is no whole JSON .*cut off"):
        read_coco(root, "train")


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"categories": None}, "has no list 'categories'"),
        ({"categories": []}, "has no categories"),
        ({"categories": [{"id": 7}, {"id": 7}]}, "has two categories with one id"),
        ({"images": [{"id": 1}]}, "image 1 has no height and width"),
        ({"annotations": [{"image_id": 1}]}, "entry 0 of annotations has no whole number as id"),
        ({"annotations": [annotation(1), annotation(1)]}, "two annotations have the id 1"),
    ],
)
def test_a_broken_list_is_named(tmp_path, parts, what):
    with pytest.raises(DataError, match=what):
        read_coco(written(tmp_path, **{"annotations": [annotation(1)]} | parts), "train")


def test_a_missing_image_file_and_a_missing_part_are_named(tmp_path):
    root = written(tmp_path, [annotation(1)])
    (tmp_path / "train2017" / "2.png").unlink()
    with pytest.raises(DataError, match=r"the file of image 2, 2.png, is not in .*train2017"):
        read_coco(root, "train")
    with pytest.raises(DataError, match=r"has no annotations/instances_val2017.json"):
        read_coco(root, "val")
    with pytest.raises(DataError, match=r"nowhere is not there; give a folder that is$"):
        read_coco(str(tmp_path / "nowhere"), "val")


def test_an_image_of_another_size_and_one_that_is_no_image_are_named(tmp_path):
    root = written(tmp_path, [annotation(1), annotation(2, image=2)])
    data = read_coco(root, "train")
    (tmp_path / "train2017" / "1.png").write_bytes(encoded(photograph(20, 20)))
    (tmp_path / "train2017" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"has 20 x 20 px, and image 1 of .* says 60 x 40"):
        data.pixels(data.images[0])
    with pytest.raises(DataError, match=r"2.png cannot be decoded"):
        data.pixels(data.images[1])


def test_a_bucket_is_read_as_a_folder(tmp_path, monkeypatch):
    """gs:// goes through the same listing and reads; here its file system is a local one."""
    import pyarrow.fs

    from mambaout.data.shards import files

    root = written(tmp_path / "coco", [annotation(1)])
    here = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(files, "_remote", lambda scheme: here)
    there, local = read_coco("gs://coco", "train"), read_coco(root, "train")
    assert there.images == local.images
    assert there.fingerprint == local.fingerprint
    assert (there.pixels(there.images[0]) == local.pixels(local.images[0])).all()


def test_polygons_and_both_kinds_of_rle_give_one_mask(tmp_path):
    polygon = annotation(1)
    mask = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(SQUARE, *SIZE)))
    assert mask.sum() == 400
    runs = np.flatnonzero(np.diff(np.concatenate([[2], mask.ravel("F"), [2]])))
    counts = np.diff(runs).tolist()
    compressed = rle_of(mask)
    rles = [{"size": [*SIZE], "counts": each} for each in (counts, compressed)]
    root = written(
        tmp_path, [polygon] + [annotation(2 + n, segmentation=r) for n, r in enumerate(rles)]
    )
    objects = read_coco(root, "train").images[0].objects
    for each in objects:
        np.testing.assert_array_equal(each.mask(SIZE, SIZE), mask)
        twice = each.mask(SIZE, (80, 120))
        np.testing.assert_array_equal(twice, mask.repeat(2, 0).repeat(2, 1))


def test_every_rle_of_pycocotools_is_accepted():
    random = np.random.default_rng(0)
    for share in (0, 0.01, 0.3, 0.9, 1):
        mask = np.asfortranarray((random.random(SIZE) < share).astype(np.uint8))
        counts = rle_of(mask)
        assert segmentation_fault({"size": [*SIZE], "counts": counts}, SIZE) is None
        if len(counts) > 4:
            assert segmentation_fault({"size": [*SIZE], "counts": counts[:-1]}, SIZE)


# -- the generated set ----------------------------------------------------------------------------

SMALL = ShapesSize(train=6, val=3, side=64)


def test_the_shapes_are_the_same_each_time_and_exact_in_both_formats(tmp_path):
    for name in ("one", "two"):
        write_shapes(tmp_path / name, SMALL)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 9 * 3 + 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    data = read_coco(str(tmp_path / "one"), "train")
    assert data.class_names == SHAPES
    assert not data.left_out
    for image in data.images:
        masks = [each.mask((64, 64), (64, 64)) for each in image.objects]
        assert np.sum(masks, 0).max() == 1  # what lies below is cut
        ade = _labels(tmp_path / "one" / "ade20k/annotations/training" / image.file_name)
        found = sum(m * (1 + each.label) for m, each in zip(masks, image.objects, strict=True))
        np.testing.assert_array_equal(np.where(found == 0, 1, found), ade)
        for each, mask in zip(image.objects, masks, strict=True):
            rows, columns = np.nonzero(mask)
            box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert each.box == box


def _labels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_an_image_that_is_replaced_by_another_is_another_fingerprint(tmp_path):
    root = written(tmp_path, [annotation(1), annotation(2, image=2)])
    before = read_coco(root, "train").fingerprint
    assert read_coco(root, "train").fingerprint == before
    path = tmp_path / "train2017" / "1.png"
    path.write_bytes(encoded(photograph(*SIZE)[::-1]))
    assert read_coco(root, "train").fingerprint != before
