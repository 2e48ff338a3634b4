"""Promises of the walk over a folder: what is met is read, or refused by name, or listed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from image_files import (
    counts,
    encoded,
    image_folder,
    nobody,
    open_folder,
    photograph,
    pictures,
    put,
    refused,
    remark,
    source_of,
)

from mambaout.data.packing.image_tree import read_image_folder
from mambaout.data.packing.pack import Source
from mambaout.data.packing.sources import open_data
from mambaout.data.shards.files import DataError


def read_all(source: Source) -> None:
    for sample in (*source.train, *source.val):
        sample.read()


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


# -- identity -------------------------------------------------------------------------------------


def test_the_key_of_a_folder_is_that_of_the_images_in_the_order_of_os_walk(tmp_path):
    root = image_folder(tmp_path / "own", "train/{}/{}", classes=("a", "B", "a b", "a.x"))
    image_folder(root, "train/{}/deeper/{}", classes=("a", "a.x"), count=4, seed=1)
    image_folder(root, "test/{}/{}", classes=("a",), count=2, seed=2)
    put(root / "cover.png", pictures(1)[0])
    put(root / "train" / "a" / "notes.txt")
    digest = sha256()
    for folder, below, names in os.walk(root):
        below.sort()
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".png")):
            facts = path.stat()
            line = f"{path.relative_to(root).as_posix()} {facts.st_size} {facts.st_mtime_ns}\n"
            digest.update(line.encode())
    assert read_image_folder(root)[1] == digest.hexdigest()[:12]  # as packed caches have it
