"""Sources: named sets, folders and archives become data sets, or an error that says the way."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from image_files import image_folder, photograph, pictures, write_folder
from PIL import Image

from mambaout.cache import default_cache
from mambaout.data.images.decode import Images
from mambaout.data.packing import image_tree, named_sets, sources
from mambaout.data.packing.idx import find_idx_files, read_idx
from mambaout.data.packing.sources import open_data, pack
from mambaout.data.shards.files import DataError
from mambaout.recipe import BASELINE, tuned

RECIPE = tuned(BASELINE, global_batch=4, image_size=16, minival_fraction=0.2)


def pixels(data, split: str) -> list[tuple[bytes, int]]:
    images = Images(data, split).pixels
    assert images is not None
    return sorted((i.tobytes(), int(n)) for i, n in zip(images, data.labels[split], strict=True))


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def idx_folder(root: Path, *, zipped: bool = True) -> Path:
    root.mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 10)):
        grey = np.stack([photograph(12, 12 + i)[:, i:, i % 3] for i in range(count)])
        for name, array in (
            (f"{split}-images-idx3-ubyte", grey),
            (f"{split}-labels-idx1-ubyte", np.arange(count) % 10),
        ):
            data = idx(array)
            path = root / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(data) if zipped else data)
    return root


# -- named sets -----------------------------------------------------------------------------------


def test_digits_are_5000_pictures_of_ten_classes_one_in_five_held_out(digits):
    labels = np.concatenate([digits.labels["train"], digits.labels["val"]])
    assert np.bincount(labels).tolist() == [500] * 10
    assert len(digits.labels["val"]) == pytest.approx(1000, abs=100)
    assert digits.class_names == tuple("0123456789")
    images = Images(digits, "train")
    assert images.pixels is not None
    assert images.pixels.shape == (len(digits.labels["train"]), 28, 28)


@pytest.mark.skipif(
    not named_sets.DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)
def test_fashion_mnist_is_found_where_debian_puts_it():
    files = find_idx_files(named_sets.DEBIAN_FASHION_MNIST)
    assert files is not None
    assert read_idx(files["val"][0], 3).shape == (10_000, 28, 28)
    assert np.bincount(read_idx(files["train"][1], 1)).tolist() == [6000] * 10


def test_fashion_mnist_is_read_from_idx_files_with_its_class_names(tmp_path, monkeypatch):
    folder = idx_folder(tmp_path / "debian")
    monkeypatch.setattr(named_sets, "DEBIAN_FASHION_MNIST", folder)
    named = open_data("fashion-mnist", tmp_path / "cache")
    assert named.class_names[9] == "Ankle boot"
    assert (len(named.labels["train"]), len(named.labels["val"])) == (40, 10)
    unpacked = idx_folder(tmp_path / "mnist", zipped=False)
    by_folder = open_data(str(unpacked), tmp_path / "cache")
    assert by_folder.class_names == tuple("0123456789")
    assert by_folder.fingerprint == named.fingerprint
    assert pixels(by_folder, "train") == pixels(named, "train")


def test_without_fashion_mnist_three_ways_to_it_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(named_sets, "DEBIAN_FASHION_MNIST", tmp_path / "not-installed")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no network: refused at once
    # urlopen keeps the proxies of its first call for good; later tests must not get these.
    monkeypatch.setattr(urllib.request, "_opener", None)
    with pytest.raises(DataError) as raised:
        open_data("fashion-mnist", tmp_path / "cache")
    message = str(raised.value)
    assert "apt install dataset-fashion-mnist" in message
    assert "--data DIR" in message
    assert "torchvision" in message


def test_a_broken_idx_file_is_named(tmp_path):
    folder = idx_folder(tmp_path / "set")
    labels = folder / "train-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    damaged = whole[:12] + b"\xff" * 8 + whole[20:]
    short = gzip.compress(bytes([0, 0, 8, 1, 0, 0]))
    wrong = gzip.compress(idx(np.zeros((2, 2))))
    for broken in (whole[:-20], wrong, short, damaged, b"no gzip", b""):
        labels.write_bytes(broken)
        with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz is not a whole idx file"):
            open_data(str(folder), tmp_path / "cache")
    labels.write_bytes(gzip.compress(idx(np.zeros(39))))
    with pytest.raises(DataError, match=r"has 40 images, .* 39 labels"):
        open_data(str(folder), tmp_path / "cache")
    labels.unlink()
    with pytest.raises(DataError, match=r"set lacks train-labels-idx1-ubyte of the four idx files"):
        open_data(str(folder), tmp_path / "cache")


def test_a_folder_with_the_name_of_a_named_set_is_not_passed_over_in_silence(
    tmp_path, monkeypatch, caplog
):
    image_folder(tmp_path / "digits", "{}/{}", count=60)
    monkeypatch.chdir(tmp_path)
    assert open_data("digits", tmp_path / "cache").num_classes == 10
    assert "digits is the named set; for the folder that lies here, give ./digits" in caplog.text
    assert open_data("./digits", tmp_path / "cache").class_names == ("a", "b", "c")


# -- folders of images ----------------------------------------------------------------------------


def test_a_folder_of_images_is_read_with_the_classes_of_its_folders(tmp_path):
    root = image_folder(tmp_path / "own")
    image_folder(root, "val/{}/{}", count=6, seed=1)
    (root / "train" / "a" / "notes.txt").write_text("not an image")
    (root / "README").write_text("nor is this")
    data = open_data(str(root), tmp_path / "cache")
    assert (data.name, data.class_names) == ("own", ("a", "b", "c"))
    wanted = [
        (np.asarray(Image.open(path).convert("RGB")).tobytes(), "abc".index(path.parent.name))
        for path in (root / "train").rglob("*.png")
    ]
    assert pixels(data, "train") == sorted(wanted)
    assert len(data.labels["val"]) == 6


@pytest.mark.parametrize("layout", ["{}/{}", "train/{}/{}", "train/{}/deeper/{}"])
def test_without_a_validation_folder_one_image_in_five_is_held_out(tmp_path, layout):
    root = image_folder(tmp_path / "own", layout, count=100)
    data = open_data(str(root), tmp_path / "cache")
    train, val = pixels(data, "train"), pixels(data, "val")
    assert len(train) + len(val) == 100
    assert 10 <= len(val) <= 30
    assert not {image for image, _ in train} & {image for image, _ in val}


def test_a_tar_of_a_folder_is_the_same_data_as_the_folder(tmp_path):
    root = image_folder(tmp_path / "own")
    image_folder(root, "val/{}/{}", count=6, seed=1)
    for name, inside in (("flat.tar", "."), ("nested.tar", "flowers")):
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.add(root, arcname=inside)
    prints = {
        open_data(str(tmp_path / name), tmp_path / "cache").fingerprint
        for name in ("own", "flat.tar", "nested.tar")
    }
    assert len(prints) == 1


def test_a_folder_is_packed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    root = image_folder(tmp_path / "own", "{}/{}", count=60)
    first = open_data(str(root), tmp_path / "cache")
    with monkeypatch.context() as closed:
        closed.setattr(sources, "write_shards", None)  # would fail if it were called
        assert open_data(str(root), tmp_path / "cache").fingerprint == first.fingerprint
    (root / "a" / "more.png").write_bytes(pictures(1, seed=5)[0])
    assert open_data(str(root), tmp_path / "cache").fingerprint != first.fingerprint


def test_two_processes_pack_one_set_at_once(tmp_path):
    code = (
        "from mambaout.data.packing.sources import open_data; from pathlib import Path; "
        f"print(open_data('digits', Path({str(tmp_path)!r})).fingerprint)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    prints = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert prints[0] == prints[1] != b""
    assert [p.name for p in (tmp_path / "packed").iterdir() if not p.name.startswith(".")] == [
        next((tmp_path / "packed").glob("digits-*")).name
    ]


def test_what_a_killed_packing_left_is_cleared(tmp_path):
    root = image_folder(tmp_path / "own", "{}/{}", count=60)
    _, key = image_tree.read_image_folder(root)
    left = tmp_path / "cache" / "packed" / f".own-{key}.77-0badcafe.part"
    left.mkdir(parents=True)
    (left / "train-0").write_bytes(b"half")
    open_data(str(root), tmp_path / "cache")
    assert not left.exists()


def test_pack_writes_a_folder_that_is_then_read_as_it_is(tmp_path):
    root = image_folder(tmp_path / "own", "{}/{}", count=60)
    pack(str(root), tmp_path / "shards")
    packed = open_data(str(tmp_path / "shards"), tmp_path / "cache")
    assert packed.fingerprint == open_data(str(root), tmp_path / "cache").fingerprint
    with pytest.raises(DataError, match="not an empty folder"):
        pack(str(root), tmp_path / "shards")


def test_a_uri_of_another_kind_says_what_is_read(tmp_path):
    with pytest.raises(DataError, match="http:// is not read; use a path, gs:// or s3://"):
        open_data("http://example.org/set", tmp_path)


# -- bad input ------------------------------------------------------------------------------------


def test_a_missing_folder_is_named_with_the_sets_there_are(tmp_path):
    with pytest.raises(DataError, match=r"/none is not there, nor .* digits, fashion-mnist"):
        open_data("/none", tmp_path)
    (tmp_path / "file.csv").write_text("x")
    with pytest.raises(DataError, match=r"file.csv is not a folder or a .tar"):
        open_data(str(tmp_path / "file.csv"), tmp_path)


def test_a_folder_without_images_says_what_was_wanted(tmp_path):
    (tmp_path / "own" / "train" / "a").mkdir(parents=True)
    (tmp_path / "own" / "train" / "a" / "x.txt").write_text("x")
    for path in (tmp_path / "own", tmp_path / "own.tar"):
        if path.suffix:
            with tarfile.open(path, "w") as tar:
                tar.add(tmp_path / "own", arcname="own")
        with pytest.raises(DataError, match=r"holds no images: wanted train/CLASS/\*"):
            open_data(str(path), tmp_path / "cache")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_is_named(tmp_path, split):
    root = image_folder(tmp_path / "own")
    image_folder(root, "val/{}/{}", count=6)
    (root / split / "empty").mkdir()
    with pytest.raises(DataError, match=rf"own/{split}/empty holds no image"):
        open_data(str(root), tmp_path / "cache")
    with tarfile.open(tmp_path / "own.tar", "w") as tar:
        tar.add(root, arcname="own")
    with pytest.raises(DataError, match=rf"{split}/empty holds no image"):
        open_data(str(tmp_path / "own.tar"), tmp_path / "cache")


def test_a_misplaced_image_is_named(tmp_path):
    root = image_folder(tmp_path / "own")
    image_folder(root, "val/{}/{}", count=8, classes="abcd")
    with pytest.raises(
        DataError, match=r"own/val/d/003.png is of class 'd', which has no training"
    ):
        open_data(str(root), tmp_path / "cache")
    stray = root / "train" / "stray.png"
    stray.write_bytes(pictures(1)[0])
    with pytest.raises(DataError, match=r"own/train/stray.png lies in no class folder"):
        open_data(str(root), tmp_path / "cache")
    other = image_folder(tmp_path / "other", "val/{}/{}")
    with pytest.raises(DataError, match="has val/ but no train/"):
        open_data(str(other), tmp_path / "cache")


def test_a_file_that_is_no_image_is_named_before_training(tmp_path):
    root = image_folder(tmp_path / "own", "{}/{}")
    (root / "b" / "broken.jpg").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"own/b/broken.jpg is not an image"):
        open_data(str(root), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "packed").glob("own*"))


def test_a_class_of_few_images_is_never_held_out_whole(tmp_path):
    root = image_folder(tmp_path / "own", "{}/{}", count=78, classes="abcdefghijklmnopqrstuvwxyz")
    data = open_data(str(root), tmp_path / "cache")
    assert set(data.labels["train"]) == set(range(26))
    assert len(data.labels["train"]) + len(data.labels["val"]) == 78
    assert 0 < len(data.labels["val"]) < 26


def test_a_folder_too_small_to_hold_images_out_says_how_to_split_it(tmp_path):
    root = image_folder(tmp_path / "own", "{}/{}", count=2)
    with pytest.raises(
        DataError, match=r"own has no validation images, and its 2 images .* val/CLASS/"
    ):
        open_data(str(root), tmp_path / "cache")
    for name, split in (("a", "train"), ("b", "train")):
        shutil.copytree(root / name, tmp_path / "split" / split / name)
        shutil.copytree(root / name, tmp_path / "split" / "val" / name)
    assert len(open_data(str(tmp_path / "split"), tmp_path / "cache").labels["val"]) == 2


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="set MAMBAOUT_CACHE"):
        open_data("digits", tmp_path / "file" / "cache")


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBAOUT_CACHE", str(tmp_path / "there"))
    write_folder(tmp_path / "set")
    assert open_data(str(tmp_path / "set")).cache == tmp_path / "there"
    monkeypatch.delenv("MAMBAOUT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "mambaout"


def test_packing_more_than_the_disk_holds_is_refused_before_it_starts(tmp_path, monkeypatch):
    root = image_folder(tmp_path / "own", "{}/{}", count=60)
    disk = os.statvfs(tmp_path)
    tree, key = image_tree.read_image_folder(root)
    full = tree.source()
    huge = type(full)(full.name, full.class_names, full.train, full.val, disk.f_bavail * 2**30)
    monkeypatch.setattr(
        sources, "read_image_folder", lambda *_: (tree._replace(source=lambda: huge), key)
    )
    with pytest.raises(DataError, match=r" takes .*B, .* has .*B left; `mambaout pack SOURCE"):
        open_data(str(root), tmp_path / "cache")


def test_opening_data_imports_no_torch():
    code = "import sys, mambaout.data.packing.sources; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert io.StringIO(done.stderr).read() == ""


def test_damaged_images_of_a_small_folder_are_all_named_before_a_study_starts(tmp_path):
    root = image_folder(tmp_path / "own", "{}/{}", count=60)
    (whole,) = pictures(1, size=64)
    for name in ("cut", "short"):
        (root / "b" / f"{name}.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2 of 62 images cannot be decoded: ") as told:
        open_data(str(root), tmp_path / "cache")
    assert "b/cut.png" in str(told.value)
    assert "b/short.png" in str(told.value)
    assert str(told.value).endswith("; remove or replace them")
    assert not list((tmp_path / "cache").glob("packed/own-*"))
    for name in ("cut", "short"):
        (root / "b" / f"{name}.png").unlink()
    open_data(str(root), tmp_path / "cache")
