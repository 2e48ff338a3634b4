"""Promises of the layout of image folders: splits, wrappers and classes are what they seem."""

from __future__ import annotations

import itertools
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import counts, image_folder, pictures, put, refused, remark, source_of
from timm.data.readers.reader_image_folder import find_images_and_targets

from mambaout.data.packing.sources import open_data, pack
from mambaout.data.shards.files import DataError

# -- splits and wrappers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("Training", "Testing"),
        ("TRAIN", "Valid"),
        ("train", "dev"),
        ("Train", "Test"),
        ("training", "validation"),
        ("train", "eval"),
    ],
)
def test_the_usual_names_of_splits_are_known_in_any_case(tmp_path, train, val):
    root = image_folder(tmp_path / "own", train + "/{}/{}")
    image_folder(root, val + "/{}/{}", count=6, seed=1)
    assert counts(root) == (24, 6)
    assert ("is the validation set" in remark(root)) == val.lower().startswith("test")


@pytest.mark.parametrize(
    ("wrapper", "layout"),
    [
        *itertools.product(
            ("outer", "outer/inner", "ILSVRC/Data/CLS-LOC", "a/b/c/d"), ("{}/{}", "train/{}/{}")
        ),
        ("test", "train/{}/{}"),
    ],
)
def test_any_number_of_wrapping_folders_is_passed_through(tmp_path, wrapper, layout):
    root = image_folder(tmp_path / "own", f"{wrapper}/{layout}", count=60)
    put(root / "labels.csv")
    if "/" in wrapper:  # beside a wrapper, not beside the classes
        put(root / wrapper.split("/")[0] / "Annotations" / "x.xml")
    if layout != "{}/{}":
        image_folder(root, f"{wrapper}/val/{{}}/{{}}", count=6, seed=1)
    plain = image_folder(tmp_path / "plain", layout, count=60)
    source, flat = source_of(root), source_of(plain)
    assert source.class_names == flat.class_names == ("a", "b", "c")
    names = {sample.path for sample in (*flat.train, *flat.val)}
    assert names <= {sample.path for sample in (*source.train, *source.val)}


def test_a_wrapper_inside_a_split_is_passed_through(tmp_path):
    root = image_folder(tmp_path / "own", "train/train/{}/{}")
    image_folder(root, "val/val/{}/{}", count=6, seed=1)
    assert counts(root) == (24, 6)
    assert source_of(root).class_names == ("a", "b", "c")


def test_val_is_read_where_there_is_a_test_folder_too_and_that_is_said(tmp_path):
    root = image_folder(tmp_path / "own")
    image_folder(root, "val/{}/{}", count=6, seed=1)
    image_folder(root, "test/{}/{}", count=9, seed=2)
    assert counts(root) == (24, 6)
    assert "test/ (9 images; val/ is the validation set)" in remark(root)


@pytest.mark.parametrize("below", ["", "unknown/", "test/"])
def test_a_test_folder_without_classes_is_left_out(tmp_path, below):
    root = image_folder(tmp_path / "own", count=60)
    for i, image in enumerate(pictures(5, seed=7)):
        put(root / f"test/{below}{i}.png", image)
    assert sum(counts(root)) == 60
    text = remark(root)
    assert "test/ (5 images; no class folders of train are in it)" in text
    assert "one training image in five is held out" in text


def test_what_cannot_be_told_apart_is_refused(tmp_path):
    def made(*layouts: str) -> Path:
        shutil.rmtree(tmp_path / "own", ignore_errors=True)
        for layout in layouts:
            image_folder(tmp_path / "own", layout)
        return tmp_path / "own"

    message = refused(made("train/{}/{}", "Training/{}/{}"))
    assert "has Training/ and train/, which all name the train split" in message
    message = refused(made("train/{}/{}", "val/{}/{}", "dev/{}/{}"))
    assert "has dev/ and val/, which all name the val split" in message
    message = refused(made("training_set/{}/{}", "test_set/{}/{}"))
    assert "rename test_set/ to test/ and training_set/ to train/" in message
    for name in ("val", "Test"):
        message = refused(made("{}/{}", name + "/{}/{}"))
        assert f"has {name}/ but no train/; if {name} is a class, put the folders of all" in message
    assert counts(made("train/{}/{}"))  # the remedy: `train` and `Test` as classes
    image_folder(tmp_path / "own", "train/Test/x{}{}")
    assert source_of(tmp_path / "own").class_names == ("Test", "a", "b", "c")
    (made("train/{}/{}") / "Val").mkdir()
    assert "own/Val holds no image; fill it or remove it" in refused(tmp_path / "own")


def test_images_without_class_folders_are_refused(tmp_path):
    root = image_folder(tmp_path / "own", "{1}")
    assert f"{root} holds 24 images and no class folders; move each" in refused(root)
    root = image_folder(tmp_path / "beside", "{}/{}", count=60)
    for name in ("x.png", "y.png"):
        put(root / name, pictures(1)[0])
    assert "beside/x.png lies in no class folder (2 images do); move it" in refused(root)


def test_a_class_with_the_name_of_a_split_has_a_way(tmp_path):
    root = image_folder(tmp_path / "own", "{}/{}", count=60, classes=("bus", "car", "train"))
    message = refused(root)
    assert "If train is itself a class, as bus, car, put the folders of all" in message
    (root / "train").rename(tmp_path / "aside")
    (root / "train").mkdir()
    for name in ("bus", "car"):
        (root / name).rename(root / "train" / name)
    (tmp_path / "aside").rename(root / "train" / "train")
    assert source_of(root).class_names == ("bus", "car", "train")
    assert sum(counts(root)) == 60


def test_kaggles_flat_imagenet_val_is_refused_with_a_command_that_sorts_it(tmp_path):
    root = tmp_path / "set"
    data = image_folder(root, "ILSVRC/Data/CLS LOC/train/{}/{}", classes=("n01440764", "n01443537"))
    lines = ["ImageId,PredictionString"]
    for i, image in enumerate(pictures(4, seed=5)):
        name = f"ILSVRC2012_val_{i + 1:08d}"
        put(data / "ILSVRC/Data/CLS LOC/val" / f"{name}.JPEG", image)
        lines.append(f"{name},n0144{('0764', '3537')[i % 2]} 85 1 499 272 n09999999 1 2 3 4")
        put(data / "ILSVRC/Data/CLS LOC/test" / f"ILSVRC2012_test_{i + 1:08d}.JPEG", image)
    put(root / "LOC_val_solution.csv", ("\n".join(lines) + "\n").encode())
    message = refused(root)
    assert "CLS LOC/val holds 4 images and no class folders" in message
    command = message.split("`")[1]
    subprocess.run(["bash", "-euc", command], check=True, cwd="/")
    assert counts(root) == (24, 4)
    assert [sample.label for sample in source_of(root).val] == [0, 0, 1, 1]
    assert "test/ (4 images; val/ is the validation set)" in remark(root)


def test_tiny_imagenets_val_is_refused_with_a_command_that_sorts_it(tmp_path):
    classes = ("n01443537", "n01629819")
    root = image_folder(tmp_path / "own", "tiny/train/{}/images/{}", classes=classes)
    lines = []
    for i, image in enumerate(pictures(4, seed=5)):
        put(root / "tiny" / "val" / "images" / f"val_{i}.JPEG", image)
        put(root / "tiny" / "test" / "images" / f"test_{i}.JPEG", image)
        lines.append(f"val_{i}.JPEG\t{classes[i % 2]}\t0\t32\t44\t62\n")
    put(root / "tiny" / "val" / "val_annotations.txt", "".join(lines).encode())
    message = refused(root)
    assert "tiny/val holds 4 images and no class folders" in message
    subprocess.run(["bash", "-euc", message.split("`")[1]], check=True, cwd="/")
    assert [sample.label for sample in source_of(root).val] == [0, 0, 1, 1]
    assert "lie in folders of its folder (n01443537/images, ...)" in remark(root)


def test_a_folder_with_a_single_class_is_refused(tmp_path):
    root = image_folder(tmp_path / "own", "cats/{1}")
    assert "own holds one class, cats/, and telling classes apart takes two" in refused(root)


def test_classes_of_one_split_alone_are_refused_or_said(tmp_path):
    root = image_folder(tmp_path / "own")
    image_folder(root, "val/{}/{}", count=4, classes="ab", seed=1)
    assert "val/ has no image of 1 class (c)" in remark(root)
    image_folder(root, "val/{}/{}", count=4, classes=("a", "B", "d"), seed=1)
    assert "(2 such classes: B, d)" in refused(root)


def test_classes_that_differ_in_letter_case_alone_are_said(tmp_path):
    root = image_folder(tmp_path / "own", classes=("A", "b", "a"))
    assert "classes that differ in letter case alone: A, a" in remark(root)


# -- the order of the classes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes",
    [
        [str(i) for i in range(12)],
        ["class10", "class9", "Class8", "other"],
        ["Zebra", "ape", "cat"],
    ],
)
def test_the_natural_order_is_timms_and_is_offered_where_it_differs(tmp_path, classes, caplog):
    root = image_folder(tmp_path / "own", "train/{}/{}", count=5 * len(classes), classes=classes)
    image_folder(root, "val/{}/{}", count=len(classes), classes=classes, seed=1)
    data = open_data(str(root), tmp_path / "cache")
    assert data.class_names == tuple(sorted(classes))
    text = caplog.records[0].getMessage()
    assert "labels are in the order of the names as text" in text
    program, *words = shlex.split(text.split("`")[1])
    assert program == "mambaout"
    words = [str(tmp_path / "shards") if word == "OUT" else word for word in words]
    done = subprocess.run([sys.executable, "-m", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "labels are in" not in done.stderr
    packed = open_data(str(tmp_path / "shards"), tmp_path / "cache")
    _, labels = find_images_and_targets(str(root / "train"))
    assert {name: label for label, name in enumerate(packed.class_names)} == labels
    assert packed.fingerprint != data.fingerprint


def test_an_order_is_refused_for_what_has_numbers_as_labels(tmp_path):
    with pytest.raises(DataError, match="--class-order natural is for image folders and tars"):
        pack("digits", tmp_path / "out", class_order="natural")
    assert not (tmp_path / "out").exists()
