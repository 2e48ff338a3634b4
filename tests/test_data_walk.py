"""Promises of the walk over a folder: what is met is read, or refused by name, or listed."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, image_folder, photograph, pictures
from timm.data.readers.reader_image_folder import find_images_and_targets

from mambaout.data.files import DataError
from mambaout.data.image_tree import read_image_folder
from mambaout.data.pack import Source
from mambaout.data.sources import open_data, pack

NOBODY = 65534


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def remark(root: Path) -> str:
    return read_image_folder(root)[0].remark


def refused(root: Path) -> str:
    with pytest.raises(DataError) as raised:
        source_of(root)
    message = str(raised.value)
    assert "\n" not in message
    return message


def source_of(root: Path) -> Source:
    return read_image_folder(root)[0].source()


def counts(root: Path) -> tuple[int, int]:
    source = source_of(root)
    return len(source.train), len(source.val)


def read_all(source: Source) -> None:
    for sample in (*source.train, *source.val):
        sample.read()


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """No permission goes beyond its bits here, which root's would."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


# -- what is left out -----------------------------------------------------------------------------


def test_what_is_no_class_and_no_image_is_left_out_and_listed_with_its_number(tmp_path):
    clean = image_folder(tmp_path / "clean", "train/{}/{}")
    root = image_folder(tmp_path / "own", "train/{}/{}")
    image = pictures(1, seed=3)[0]
    for name in (
        ".git/x.jpg",
        "train/.ipynb_checkpoints/x.jpg",
        "train/a/.ipynb_checkpoints/y.png",
    ):
        put(root / name, image)
    for name in ("__MACOSX/train/a/._000.png", "train/a/@eaDir/000.png", "lost+found/x.png"):
        put(root / name, image)
    for name in (
        "train/a/._000.png",
        "train/.DS_Store",
        "train/a/Thumbs.db",
        "train/b/desktop.ini",
    ):
        put(root / name)
    for name in ("notes.txt", "train/labels.csv", "train/b/README", "train/b/x.heic", "a.jp2"):
        put(root / name)
    put(root / "cover.png", image)
    (root / "annotations" / "deep").mkdir(parents=True)
    put(root / "extra" / "x.png", image)
    os.mkfifo(root / "train" / "c" / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(root):
        listening.bind("socket")  # whose path is at most 108 bytes long
    text = remark(root)
    assert text.startswith(f"{root}: read 24 images of 3 classes; left out: ")
    for part in (
        "extra/ (1 image; beside train/)",
        "3 hidden folders (.git, .ipynb_checkpoints)",
        "3 system folders (__MACOSX, lost+found, @eaDir)",
        "2 hidden files (.DS_Store, ._000.png)",
        "5 files that are no images (.txt 1, .csv 1, .db 1, no ending 1, .ini 1)",
        "2 images of kinds that are not read (.jp2 1, .heic 1)",
        "1 image outside the class folders (cover.png)",
        "2 special files (socket, train/c/pipe.jpg)",
        "1 folder without images (annotations)",
    ):
        assert part in text
    prints = {open_data(str(place), tmp_path / "cache").fingerprint for place in (clean, root)}
    assert len(prints) == 1


def test_what_was_left_out_is_said_at_each_open_and_by_pack(tmp_path, caplog):
    root = image_folder(tmp_path / "own", "{}/{}", count=60)
    open_data(str(root), tmp_path / "cache")
    assert not caplog.records  # nothing to say
    put(root / "notes.txt")
    for _ in range(2):
        caplog.clear()
        open_data(str(root), tmp_path / "cache")
        assert [record.getMessage() for record in caplog.records] == [
            f"{root}: read 60 images of 3 classes; left out: 1 file that is no image (.txt 1)"
        ]
    command = [sys.executable, "-m", "mambaout", "pack", str(root), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.count("left out: 1 file that is no image (.txt 1)") == 1


def test_a_folder_without_any_image_says_what_it_holds(tmp_path):
    put(tmp_path / "own" / "a" / "x.heic")
    put(tmp_path / "own" / "train.zip")
    message = refused(tmp_path / "own")
    assert "holds no images: wanted train/CLASS/*" in message
    assert "1 image of a kind that is not read (.heic 1); convert those images to .png" in message
    assert "(.zip 1)" in message
    assert "unpack the archives among them first" in message


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
    "wrapper", ["outer", "outer/inner", "ILSVRC/Data/CLS-LOC", "test", "a/b/c/d"]
)
@pytest.mark.parametrize("layout", ["{}/{}", "train/{}/{}"])
def test_any_number_of_wrapping_folders_is_passed_through(tmp_path, wrapper, layout):
    if wrapper == "test" and layout == "{}/{}":
        pytest.skip("test/CLASS is a split without a train")
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
    assert "test/ (5 images; no class folders of train are in it)" in remark(root)


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


# -- links ----------------------------------------------------------------------------------------


def test_links_are_followed_and_loops_are_left_out(tmp_path):
    plain = image_folder(tmp_path / "plain", count=60)
    root = tmp_path / "own"
    (root / "train").mkdir(parents=True)
    for name in "abc":
        (root / "train" / name).symlink_to(plain / "train" / name)
    files = image_folder(tmp_path / "files", count=60)
    for path in list((files / "train" / "a").iterdir()):
        path.unlink()
        path.symlink_to(plain / "train" / "a" / path.name)
    prints = {
        open_data(str(place), tmp_path / "cache").fingerprint for place in (plain, root, files)
    }
    assert len(prints) == 1
    (plain / "train" / "a" / "loop").symlink_to("..")
    (plain / "train" / "b" / "out").symlink_to(tmp_path)
    (plain / "self").symlink_to(plain)
    assert sum(counts(plain)) == 60
    assert "3 links to folders that they lie in (self, train/a/loop, train/b/out)" in remark(plain)


@pytest.mark.parametrize("target", ["gone.png", "x.png", "/gone/too"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, target):
    root = image_folder(tmp_path / "own")
    (root / "train" / "a" / "x.png").symlink_to(target)
    (root / "train" / "d").symlink_to("gone")
    message = refused(root)
    assert f"train/a/x.png is a link to {target}, which cannot be reached" in message or (
        "train/d is a link to gone" in message
    )
    assert "; 1 more like it" in message


def test_what_links_put_into_two_places_is_said_or_refused(tmp_path):
    root = image_folder(tmp_path / "own")
    image_folder(root, "val/{}/{}", count=6, seed=1)
    (root / "train" / "a" / "again.png").symlink_to("000.png")
    os.link(root / "train" / "a" / "003.png", root / "train" / "b" / "also.png")
    (root / "val" / "c" / "leak.png").symlink_to("../../train/c/002.png")
    text = remark(root)
    assert "1 file is in a class more than once, by links" in text
    assert "1 file is in more than one class, by links" in text
    assert "1 file is in train and in the validation set, by links" in text
    (root / "train" / "d").symlink_to("a")
    assert "train/d is the same folder as a/, by a link" in refused(root)


# -- what cannot be read --------------------------------------------------------------------------


def test_a_class_folder_that_cannot_be_listed_is_refused(tmp_path):
    with open_folder() as folder:
        root = image_folder(folder / "own")
        (root / "train" / "b").chmod(0)
        with nobody():
            message = refused(root)
        assert "own/train/b cannot be listed (Permission denied); make it readable" in message
        (root / "train" / "b").chmod(0o444)  # listed, but nothing in it can be looked at
        with nobody():
            message = refused(root)
        assert "cannot be read (Permission denied)" in message
        assert "; 7 more like it" in message
        (root / "train" / "b").chmod(0o755)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    with open_folder() as folder:
        root = image_folder(folder / "own", "{}/{}", count=60)
        (root / "b" / "001.png").chmod(0)
        source = source_of(root)
        with nobody(), pytest.raises(DataError, match=r"b/001.png cannot be read \(Permission den"):
            read_all(source)


def test_a_file_that_went_away_is_refused_by_name(tmp_path):
    root = image_folder(tmp_path / "own", "{}/{}", count=60)
    source = source_of(root)
    (root / "a" / "000.png").unlink()
    with pytest.raises(DataError, match=r"a/000.png cannot be read \(No such file"):
        read_all(source)


def test_an_empty_file_is_refused_by_name(tmp_path):
    root = image_folder(tmp_path / "own")
    put(root / "train" / "b" / "cut.jpg", b"")
    assert "own/train/b/cut.jpg is not an image: it is empty; get it again" in refused(root)


def test_names_of_any_bytes_are_read_and_shown_in_one_line(tmp_path):
    root = image_folder(tmp_path / "own", "{}/{}", count=60)
    image = encoded(photograph(20, 30))
    odd = os.fsdecode("two\nlines é 中 ".encode() + b"caf\xe9.png")
    put(root / "a" / odd, image)
    put(root / os.fsdecode(b"caf\xe9") / "x.png", image)
    put(root / os.fsdecode(b"caf\xe9") / "y.png", np.random.default_rng(0).bytes(9))
    source = source_of(root)
    assert source.class_names == ("a", "b", "c", r"caf\xe9")
    assert "a/two\nlines é 中 caf\\xe9.png" in {s.path for s in (*source.train, *source.val)}
    with pytest.raises(DataError) as raised:
        open_data(str(root), tmp_path / "cache")
    assert str(raised.value).startswith(rf"{root}/caf\xe9/y.png is not an image")
    put(root / os.fsdecode(b"caf\xe9") / "y.png", image)
    data = open_data(str(root), tmp_path / "cache")
    assert sum(map(len, data.labels.values())) == 63
    put(root / "a" / odd, b"")
    assert r"a/two\nlines é 中 caf\xe9.png is not an image: it is empty" in refused(root)


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
