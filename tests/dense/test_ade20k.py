"""The reader of ADE20K's format: what it reads, and that broken data are named with a remedy."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mambaout.data.shards.files import DataError
from mambaout.dense.ade20k import IGNORED, SegmentData, read_ade20k
from mambaout.dense.shapes import SHAPES, ShapesSize, write_shapes

TABLE = "Idx\tRatio\tTrain\tVal\tName\n1\t0.15\t11664\t1172\twall\n2\t0.1\t9\t8\tsky, air\n"


def written(root: Path, values: np.ndarray, names: str | None = "wall\nsky\n") -> Path:
    """A set whose annotations all have the same values."""
    for split in ("training", "validation"):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for name in ("b", "a"):
            size = (*values.shape, 3)
            pixels = np.random.default_rng(len(name)).integers(0, 255, size, dtype=np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{name}.jpg"), pixels)
            cv2.imwrite(str(root / "annotations" / split / f"{name}.png"), values)
    if names is not None:
        (root / "objectInfo150.txt").write_text(names)
    return root


VALUES = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def train_of(root: Path) -> SegmentData:
    return read_ade20k(str(root))[0]


def test_zero_is_not_evaluated_and_labels_begin_at_0(tmp_path):
    data = train_of(written(tmp_path, VALUES))
    assert data.names == ("a.jpg", "b.jpg")
    assert data.class_names == ("wall", "sky")
    pixels, labels = data.pair(0)
    assert pixels.shape == (2, 3, 3)
    assert labels.tolist() == [[IGNORED, 0, 1], [1, 0, IGNORED]]
    assert "2 images, 2 classes" in data.report


def test_the_places_of_a_palette_are_read_and_not_its_colours(tmp_path):
    root = written(tmp_path, VALUES)
    image = Image.fromarray(VALUES)
    image.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9] + [7] * 759)
    image.save(root / "annotations/training/a.png")
    with Image.open(root / "annotations/training/a.png") as read:
        assert read.mode == "P"
    assert train_of(root).pair(0)[1].tolist() == [[IGNORED, 0, 1], [1, 0, IGNORED]]


def test_names_come_from_ade20ks_table_or_one_a_line_or_are_numbers(tmp_path):
    assert train_of(written(tmp_path / "table", VALUES, TABLE)).class_names == ("wall", "sky, air")
    assert train_of(written(tmp_path / "none", VALUES, None)).class_names == ("1", "2")
    write_shapes(tmp_path / "shapes", ShapesSize(train=2, val=1, side=32))
    shapes = train_of(tmp_path / "shapes")  # ade20k/ lies below
    assert shapes.class_names == ("ground", *SHAPES)
    assert shapes.pair(0)[1].max() < 4


def test_other_files_are_left_out_and_counted(tmp_path):
    root = written(tmp_path, VALUES)
    (root / "images/training/Thumbs.db").write_text("")
    assert "left out: 1 files that are no JPEG or PNG" in train_of(root).report


def test_other_files_are_another_fingerprint(tmp_path):
    root = written(tmp_path, VALUES)
    before = train_of(root).fingerprint
    assert train_of(root).fingerprint == before
    (root / "objectInfo150.txt").write_text("wall\nair\n")
    renamed = train_of(root).fingerprint
    for part, ending in (("images", "jpg"), ("annotations", "png")):
        (root / part / "training" / f"b.{ending}").unlink()
    assert len({before, renamed, train_of(root).fingerprint}) == 3


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda r: (r / "annotations/training/a.png").unlink(), "a.jpg has no annotation"),
        (lambda r: (r / "images/validation/b.jpg").unlink(), "b.png has no image in"),
        (
            lambda r: (r / "images/training/a.png").write_bytes(b""),
            "have one annotation, annotations/training/a.png; rename",
        ),
        (lambda r: (r / "objectInfo150.txt").write_text(""), "names 0 classes; give 1 to 254"),
        (lambda r: (r / "objectInfo150.txt").write_bytes(b"\xff\xfe"), "is no text in UTF-8"),
        (lambda r: (r / "images/training").rename(r / "x"), "has no images/training and"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(tmp_path, harm, what):
    root = written(tmp_path / "set", VALUES)
    harm(root)
    with pytest.raises(DataError, match=what):
        read_ade20k(str(root))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.zeros((2, 4), np.uint8), "a.png has 4 x 2 px, and its image has 3 x 2; mend"),
        (VALUES + 1, "a.png has the value 3, and there are 2 classes; mend it, or name all"),
        (np.zeros((2, 3, 3), np.uint8), "a.png: it is a RGB image, not one of 8 bits a pixel"),
        (np.zeros((2, 3), np.uint16), "a.png: it is a I;16 image, not one of 8 bits a pixel"),
    ],
)
def test_a_wrong_annotation_is_named_when_it_is_read(tmp_path, values, what):
    root = written(tmp_path, VALUES)
    cv2.imwrite(str(root / "annotations/training/a.png"), values)
    with pytest.raises(DataError, match=what):
        train_of(root).pair(0)


def test_a_file_that_is_cut_off_is_named(tmp_path):
    root = written(tmp_path, VALUES)
    for file in ("images/training/a.jpg", "annotations/training/b.png"):
        (root / file).write_bytes((root / file).read_bytes()[:40])
    for index, name in ((0, "a.jpg"), (1, "b.png")):
        with pytest.raises(DataError, match=rf"{name} cannot be decoded: .*; replace it"):
            train_of(root).pair(index)
