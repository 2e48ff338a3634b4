"""Promises of a tar of images: the same data as its folder, or an error with a way that works."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from image_files import image_folder, nobody, open_folder, pictures

from mambaout.data.packing.image_tree import read_image_folder, read_image_tar
from mambaout.data.packing.sources import REMARK, open_data, pack
from mambaout.data.shards.files import DataError


def packed_tar(root: Path, archive: Path, *options: str) -> Path:
    subprocess.run(["tar", "-c", *options, "-f", archive, "-C", root, "."], check=True)
    return archive


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **facts: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for fact, value in facts.items():
        setattr(member, fact, value)
    tar.addfile(member, io.BytesIO(content))


def contents(source) -> dict[str, tuple[int, bytes]]:
    return {sample.path: (sample.label, sample.read()) for sample in (*source.train, *source.val)}


def refused(archive: Path) -> str:
    with pytest.raises(DataError) as raised:
        read_image_tar(archive)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_links_in_a_tar_are_read_as_what_they_point_at(tmp_path):
    images = pictures(6)
    with tarfile.open(tmp_path / "own.tar", "w") as tar:
        for i, image in enumerate(images):
            add(tar, f"pool/{'ab'[i % 2]}/{i}.png", image)
        add(tar, "set/train/a", type=tarfile.SYMTYPE, linkname="../../pool/a")
        add(tar, "set/train/b/hard.png", type=tarfile.LNKTYPE, linkname="./pool/b/1.png")
        add(tar, "set/train/b/soft.png", type=tarfile.SYMTYPE, linkname="../../../pool/b/./3.png")
        add(tar, "set/train/b/chain.png", type=tarfile.SYMTYPE, linkname="../a/4.png")
        add(tar, "set/train/a/loop", type=tarfile.SYMTYPE, linkname="../../set")
        add(tar, "set/all", type=tarfile.SYMTYPE, linkname="..")
    read = read_image_tar(tmp_path / "own.tar")
    assert read.class_names == ("pool", "set")  # two folders of images at the top
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for i, image in enumerate(images):
            add(tar, f"train/{'ab'[i % 2]}/{i}.png", image)
        add(tar, "train/b/hard.png", type=tarfile.LNKTYPE, linkname="train/b/1.png")
        add(tar, "train/b/soft.png", type=tarfile.SYMTYPE, linkname="../../train/b/./3.png")
        add(tar, "train/b/chain.png", type=tarfile.SYMTYPE, linkname="soft.png")
        add(tar, "train/a/loop", type=tarfile.SYMTYPE, linkname="..")
        add(tar, "val", type=tarfile.SYMTYPE, linkname="train")
    source = read_image_tar(tmp_path / "set.tar")
    found = contents(source)
    assert found["b/hard.png"] == (1, images[1])
    assert found["b/soft.png"] == found["b/chain.png"] == (1, images[3])
    assert (len(source.train), len(source.val)) == (9, 9)
    assert "2 links to folders that they lie in (train/a/loop, val/a/loop)" in source.remark
    assert "6 files are in train and in the validation set, by links" in source.remark


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_links_of_a_real_tar_are_those_of_its_folder(tmp_path, kind):
    root = image_folder(tmp_path / "own", "w/train/{}/{}")
    image_folder(root, "w/val/{}/{}", count=6, seed=1)
    here, there = root / "w/train/a/000.png", root / "w/train/b/linked.png"
    there.hardlink_to(here) if kind == "hard" else there.symlink_to("../a/000.png")
    packed_tar(root, tmp_path / "own.tar")
    read = read_image_tar(tmp_path / "own.tar")
    assert contents(read) == contents(read_image_folder(root)[0].source())
    assert "b/linked.png" in contents(read)


@pytest.mark.parametrize(
    ("kind", "target", "remedy"),
    [
        (tarfile.SYMTYPE, "../gone.png", "tar --dereference"),
        (tarfile.SYMTYPE, "/etc/passwd", "tar --dereference"),
        (tarfile.SYMTYPE, "../../../outside", "tar --dereference"),
        (tarfile.SYMTYPE, "link.png", "tar --dereference"),
        (tarfile.LNKTYPE, "a/gone.png", "tar --hard-dereference"),
    ],
)
def test_a_link_to_what_is_not_in_the_tar_is_refused(tmp_path, kind, target, remedy):
    with tarfile.open(tmp_path / "own.tar", "w") as tar:
        for i, image in enumerate(pictures(6)):
            add(tar, f"{'ab'[i % 2]}/{i}.png", image)
        add(tar, "a/link.png", type=kind, linkname=target)
    message = refused(tmp_path / "own.tar")
    assert (
        f"own.tar/a/link.png is a {'hard ' * (kind == tarfile.LNKTYPE)}link to {target}" in message
    )
    assert remedy in message


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "prefix", ["", "./", "/", "../", "../../", "./x/../", "/data/sets/", "w" * 150 + "/"]
)
def test_names_of_every_kind_are_read(tmp_path, form, prefix):
    images = pictures(6)
    long = "long" * 60 + "é.png"
    with tarfile.open(tmp_path / "own.tar", "w", format=form) as tar:
        for i, image in enumerate(images):
            add(tar, f"{prefix}train/{'ab'[i % 2]}/{i}{long}", image)
    found = contents(read_image_tar(tmp_path / "own.tar"))
    assert found == {f"{'ab'[i % 2]}/{i}{long}": (i % 2, image) for i, image in enumerate(images)}


def test_a_name_that_is_no_utf8_is_read(tmp_path):
    images = pictures(6)
    with tarfile.open(
        tmp_path / "own.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT
    ) as tar:
        for i, image in enumerate(images):
            add(tar, f"{'ab'[i % 2]}/{i}é.png", image)
    assert r"a/0\xe9.png" in contents(read_image_tar(tmp_path / "own.tar"))


def test_the_last_of_two_files_of_one_name_is_read_and_that_is_said(tmp_path):
    images = pictures(8)
    with tarfile.open(tmp_path / "own.tar", "w") as tar:
        for i, image in enumerate(images[:6]):
            add(tar, f"{'ab'[i % 2]}/{i}.png", image)
        add(tar, "a/0.png", images[6])
    source = read_image_tar(tmp_path / "own.tar")
    assert contents(source)["a/0.png"] == (0, images[6])
    assert "left out: 1 file that a later one of its name replaces (a/0.png)" in source.remark


def test_pipes_and_devices_in_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "own.tar", "w") as tar:
        for i, image in enumerate(pictures(6)):
            add(tar, f"{'ab'[i % 2]}/{i}.png", image)
        add(tar, "a/pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "a/device.png", type=tarfile.CHRTYPE)
    text = read_image_tar(tmp_path / "own.tar").remark
    assert "left out: 2 special files (a/device.png, a/pipe.png)" in text


# -- what is no uncompressed, whole tar -----------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["own.tar.gz", "own.tgz", "own.tar.xz", "own.tar.bz2", "own.zip", "gz/own.tar"]
)
def test_a_compressed_archive_is_refused_with_a_command_that_unpacks_it(tmp_path, name):
    root = image_folder(tmp_path / "own it", "{}/{}", count=60)
    archive = tmp_path / "packed here" / name
    archive.parent.mkdir(parents=True)
    if archive.suffix == ".zip":
        subprocess.run(
            ["python3", "-m", "zipfile", "-c", str(archive), *map(str, root.iterdir())], check=True
        )
    else:
        packed_tar(root, archive, {"xz": "-J", "bz2": "-j"}.get(name.split(".")[-1], "-z"))
    with pytest.raises(DataError, match="is not an uncompressed tar") as raised:
        open_data(str(archive), tmp_path / "cache")
    command, folder = (
        str(raised.value).split("`")[1],
        str(raised.value).split(" give the folder ")[1],
    )
    subprocess.run(["bash", "-euc", command], check=True, cwd=tmp_path)
    there = open_data(folder, tmp_path / "cache")
    assert there.fingerprint == open_data(str(root), tmp_path / "cache").fingerprint


def test_a_tar_that_is_not_whole_is_refused_wherever_it_was_cut(tmp_path):
    archive = packed_tar(image_folder(tmp_path / "own", count=9), tmp_path / "own.tar")
    with tarfile.open(archive) as tar:
        starts = [member.offset for member in tar] + [tar.offset]
    whole = archive.read_bytes()
    for cut in sorted({1, 300, 700, *starts, *(start + 512 for start in starts), starts[-1] - 9}):
        if cut <= starts[-1]:
            archive.write_bytes(whole[:cut])
            assert "own.tar is no whole tar (" in refused(archive)
    archive.write_bytes(b"")
    assert "own.tar is no whole tar (" in refused(archive)
    archive.write_bytes(b"<html>not found</html>" * 99)
    assert "own.tar is no whole tar (" in refused(archive)
    for start in starts[1:-1]:  # a header with a wrong check sum
        archive.write_bytes(whole[:start] + b"damage" + whole[start + 6 :])
        assert f"its end mark is not at byte {start:,}" in refused(archive)


def test_a_tar_that_may_not_be_read_is_refused_by_name():
    with open_folder() as folder:
        archive = packed_tar(image_folder(folder / "own"), folder / "own.tar")
        archive.chmod(0)
        with nobody():
            assert "own.tar cannot be read (Permission denied)" in refused(archive)


def test_tars_that_were_put_together_are_refused(tmp_path):
    one = packed_tar(image_folder(tmp_path / "own"), tmp_path / "own.tar").read_bytes()
    (tmp_path / "two.tar").write_bytes(one + one)
    assert "two.tar goes on behind its end mark" in refused(tmp_path / "two.tar")


# -- the cache ------------------------------------------------------------------------------------


def test_what_is_said_of_a_tar_is_said_at_each_open(tmp_path, caplog):
    root = image_folder(tmp_path / "own", "{}/{}", count=60)
    (root / "notes.txt").write_text("x")
    archive = packed_tar(root, tmp_path / "own.TAR")
    for _ in range(2):
        caplog.clear()
        open_data(str(archive), tmp_path / "cache")
        assert [record.getMessage() for record in caplog.records] == [
            f"{archive}: read 60 images of 3 classes; left out: 1 file that is no image (.txt 1)"
        ]


def test_what_an_earlier_version_packed_stays_where_it_holds_the_same(tmp_path):
    root = image_folder(tmp_path / "own", "Training/{}/{}")
    image_folder(root, "Testing/{}/{}", count=6, seed=1)
    other = image_folder(tmp_path / "other", "{}/{}", count=60)
    for place in (root, packed_tar(root, tmp_path / "own.tar")):
        data = open_data(str(place), tmp_path / "cache")
        packed = Path(data.shards["train"][0].location).parent
        shard = packed / "train-00000-of-00001.parquet"
        (packed / REMARK).unlink()  # earlier versions wrote none
        before = shard.stat().st_mtime_ns
        open_data(str(place), tmp_path / "cache")
        assert shard.stat().st_mtime_ns == before
        (packed / REMARK).unlink()
        for path in packed.iterdir():
            path.unlink()
        pack(str(other), packed, progress=False)  # what it took the folders for was different
        assert open_data(str(place), tmp_path / "cache").fingerprint == data.fingerprint
