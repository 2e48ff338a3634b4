"""Promises of `mambaout pack`: the same pixels, the same bytes each time, nothing left out."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_files import encoded, photograph, pictures, write_folder, write_parquet
from PIL import Image

from mambaout.data import bar
from mambaout.data.cores import usable_cores
from mambaout.data.images.jpeg import segment_lengths
from mambaout.data.packing import pack as packing
from mambaout.data.packing import storing
from mambaout.data.packing.sources import open_data, pack, read_data_set
from mambaout.data.packing.storing import LossyEncoding
from mambaout.data.shards.files import DataError


def write_files(
    root: Path, count: int = 12, *, form: str = "jpeg", size: int = 90
) -> dict[str, bytes]:
    """Cuts of a photograph in two classes of train, a third as many in val; by path + split."""
    files: dict[str, bytes] = {}
    for i in range(count):
        for split in ("train", "val")[: 1 + (i % 6 < 2)]:
            path = root / split / "ab"[i % 2] / f"{i:03d}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            cut = photograph(size + 20, size + count)[i % 17 :, i : i + size]
            content = encoded(np.ascontiguousarray(cut), form)
            path.write_bytes(content)
            files[path.relative_to(root / split).as_posix() + split] = content
    return files


def rows(folder: Path, split: str = "train") -> list[dict]:
    return [
        row
        for path in sorted(folder.glob(f"{split}-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def fingerprint(folder: Path) -> str:
    return read_data_set("set", str(folder), folder.parent).fingerprint


# -- without loss ---------------------------------------------------------------------------------


def test_packed_jpegs_keep_their_pixels_and_tell_their_segments(tmp_path):
    files = write_files(tmp_path / "own")
    packed = pack(str(tmp_path / "own"), tmp_path / "shards", progress=False)
    assert (packed.num_images, packed.num_recut) == (len(files), len(files))
    for split, name in (("train", "train"), ("val", "validation")):
        for row in rows(tmp_path / "shards", name):
            before, after = files[row["image"]["path"] + split], row["image"]["bytes"]
            assert before != after
            np.testing.assert_array_equal(pixels(before), pixels(after))
            assert segment_lengths(after, row["segments"]) is not None
            assert row["label"] == "ab".index(row["image"]["path"][0])


def test_packing_twice_gives_the_same_bytes_on_any_number_of_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_BYTES", 12_000)
    monkeypatch.setattr(packing, "GROUP_ROWS", 3)
    write_files(tmp_path / "own")
    (tmp_path / "own" / "train" / "a" / "x.png").write_bytes(pictures(1)[0])
    written = []
    for cores in (1, 3):
        monkeypatch.setattr(storing, "usable_cores", lambda cores=cores: cores)
        out = tmp_path / f"shards-{len(written)}"
        packed = pack(str(tmp_path / "own"), out, progress=False)
        assert packed.num_cores == cores
        written.append(contents(out))
    assert written[0] == written[1]
    assert len(written[0]) > 3


def test_the_fingerprint_is_that_of_the_files_recut_or_not(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_BYTES", 12_000)
    write_files(tmp_path / "own")
    pack(str(tmp_path / "own"), tmp_path / "recut", progress=False)
    packed = pack(str(tmp_path / "own"), tmp_path / "plain", progress=False, as_is=True)
    assert len(contents(tmp_path / "recut")) == len(contents(tmp_path / "plain")) > 2
    assert fingerprint(tmp_path / "recut") == fingerprint(tmp_path / "plain")
    assert {row["segments"] for row in rows(tmp_path / "plain")} == {None}
    assert packed.num_recut == 0
    assert str(packed).endswith("; all stored as they are")


def test_what_is_stored_as_it_is_is_counted_by_its_kind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bar, "LINE_SECONDS", 0)
    files = write_files(tmp_path / "own")
    whole = next(iter(files.values()))
    for name, content in (
        ("cut.jpg", whole[:-300]),
        ("really.jpeg", pictures(1)[0]),
        ("small.png", pictures(2)[1]),
        ("moving.gif", encoded(photograph(20, 20), "gif")),
    ):
        (tmp_path / "own" / "train" / "b" / name).write_bytes(content)
    text = str(pack(str(tmp_path / "own"), tmp_path / "shards"))
    number = len(files)
    assert text.startswith(f"packed {number + 4} images in ")
    assert f"images/s on {usable_cores()} core" in text
    assert f"; {number} JPEGs re-cut (" in text
    assert text.endswith(
        "; 4 stored as they are: 1 GIF, 1 JPEG that jpegtran cannot re-cut without a change, 2 PNG"
    )
    assert f"{number + 4} of {number + 4} images (100 %)" in capsys.readouterr().err  # the bar
    found = {row["image"]["path"]: row for row in rows(tmp_path / "shards")}
    assert found["b/cut.jpg"]["image"]["bytes"] == whole[:-300]
    assert found["b/cut.jpg"]["segments"] is None
    assert found["b/really.jpeg"]["image"]["bytes"] == pictures(1)[0]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\xff\xd8"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    write_files(tmp_path / "own")
    (tmp_path / "own" / "train" / "b" / "broken.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"own/train/b/broken.jpg is not an image"):
        pack(str(tmp_path / "own"), tmp_path / "shards", progress=False)
    assert not (tmp_path / "shards").exists()


def test_a_process_that_is_ended_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    write_files(tmp_path / "own")
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    begin = subprocess.Popen
    monkeypatch.setattr(
        storing.subprocess, "Popen", lambda args, **rest: begin([args[0], "-c", code], **rest)
    )
    with pytest.raises(DataError, match=r"the process that was to store .* ended with status -9"):
        pack(str(tmp_path / "own"), tmp_path / "shards", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_the_processes_of_a_killed_packing_end_by_themselves(tmp_path):
    write_files(tmp_path / "own", 6)
    code = (
        "import itertools, sys; from pathlib import Path\n"
        "from mambaout.data.packing.storing import Sample, Storing\n"
        "read = Path(sys.argv[1]).read_bytes\n"
        "for row in Storing().rows(Sample('x', 0, read) for _ in itertools.count()):\n"
        "    print(len(row.stored.segments), flush=True)\n"
    )
    image = next((tmp_path / "own").rglob("*.jpeg"))
    packing = subprocess.Popen(
        [sys.executable, "-c", code, image], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert packing.stdout is not None
    assert int(packing.stdout.readline()) > 0
    packing.kill()
    # Standard error closes once the last of the processes that have it has ended.
    assert packing.communicate(timeout=60)[1] == b""


def test_a_script_without_a_guard_packs(tmp_path):
    write_files(tmp_path / "own", 6)
    script = tmp_path / "script.py"
    script.write_text(
        "from mambaout.data.packing.sources import open_data; from pathlib import Path\n"
        f"print(open_data({str(tmp_path / 'own')!r}, Path({str(tmp_path / 'cache')!r})))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.count("DataSet") == 1


# -- without jpegtran -----------------------------------------------------------------------------


def test_without_jpegtran_pack_says_what_to_do_and_a_folder_opens_as_it_is(
    tmp_path, monkeypatch, caplog
):
    files = write_files(tmp_path / "own")
    with_it = open_data(str(tmp_path / "own"), tmp_path / "cache").fingerprint
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DataError, match=r"apt install libjpeg-turbo-progs.*brew install.*--as-is"):
        pack(str(tmp_path / "own"), tmp_path / "shards", progress=False)
    assert not (tmp_path / "shards").exists()
    pack(str(tmp_path / "own"), tmp_path / "shards", progress=False, as_is=True)
    stored = {row["image"]["path"]: row["image"]["bytes"] for row in rows(tmp_path / "shards")}
    assert stored == {path[:-5]: data for path, data in files.items() if path.endswith("train")}
    assert not caplog.records
    assert open_data(str(tmp_path / "own"), tmp_path / "other").fingerprint == with_it
    assert "the JPEGs of own go into" in caplog.text
    pack("digits", tmp_path / "digits", progress=False)  # pixels need none


# -- from Parquet ---------------------------------------------------------------------------------


def test_a_parquet_folder_is_recut_row_by_row(tmp_path):
    cuts = [encoded(photograph(60 + i, 70), "jpeg") for i in range(20)]
    names = ("cat", "dog")
    for name, part in (
        ("train-0", slice(0, 9)),
        ("train-1", slice(9, 15)),
        ("val-0", slice(15, 20)),
    ):
        paths = [f"{i}.jpg" if i != 3 else None for i in range(20)][part]
        labels = [i % 2 for i in range(20)][part]
        file = tmp_path / "set" / "data" / f"{name}.parquet"
        write_parquet(file, cuts[part], labels, paths=paths, names=names, row_group_size=4)
    packed = pack(str(tmp_path / "set"), tmp_path / "shards", progress=False)
    assert packed.num_recut == 20
    found = rows(tmp_path / "shards") + rows(tmp_path / "shards", "validation")
    assert [row["label"] for row in found] == [i % 2 for i in range(20)]
    assert [row["image"]["path"] for row in found[:5]] == ["0.jpg", "1.jpg", "2.jpg", None, "4.jpg"]
    for row, before in zip(found, cuts, strict=True):
        np.testing.assert_array_equal(pixels(before), pixels(row["image"]["bytes"]))
        assert row["segments"]
    again = open_data(str(tmp_path / "shards"), tmp_path / "cache")
    assert again.class_names == names
    assert {split: len(labels) for split, labels in again.labels.items()} == {"train": 15, "val": 5}
    # What is packed can be packed again, to the same bytes.
    pack(f"file://{tmp_path / 'shards'}", tmp_path / "again", progress=False)
    for split in ("train", "validation"):
        assert rows(tmp_path / "again", split) == rows(tmp_path / "shards", split)


def test_a_parquet_row_that_cannot_be_packed_is_named(tmp_path):
    write_folder(tmp_path / "set")
    images, labels = pictures(9), [0, 1, 2] * 3
    file = tmp_path / "set" / "data" / "train-00000-of-00002.parquet"
    for image, label, message in (
        (images[8], None, "row 8 has no label"),
        (None, 2, "row 8 has no image.bytes"),
        (b"", 2, "row 8 is not an image"),
    ):
        write_parquet(file, [*images[:8], image], [*labels[:8], label])
        with pytest.raises(DataError, match=f"train-00000-of-00002.parquet {message}"):
            pack(str(tmp_path / "set"), tmp_path / "shards", progress=False)
        assert not (tmp_path / "shards").exists()


def test_the_datasets_library_reads_packed_shards(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_files(tmp_path / "own", 6)
    pack(str(tmp_path / "own"), tmp_path / "shards", progress=False)
    found = datasets.Dataset.from_parquet(
        [str(path) for path in (tmp_path / "shards").glob("train-*")],
        cache_dir=str(tmp_path / "cache"),
    )
    assert found.features["label"].names == ["a", "b"]
    assert found[0]["image"].size[0] == 90


# -- with a loss ----------------------------------------------------------------------------------


def test_lossy_images_are_small_jpegs_and_the_shards_say_so(tmp_path):
    write_files(tmp_path / "own", 6, size=120)
    grey = tmp_path / "own" / "train" / "a" / "grey.png"
    Image.fromarray(photograph(100, 80)).convert("L").save(grey)
    Image.fromarray(photograph(50, 30)).convert("CMYK").save(grey.with_name("small.jpg"))
    packed = pack(
        *(str(tmp_path / "own"), tmp_path / "lossy"),
        progress=False,
        lossy=LossyEncoding(short_side=60, quality=80),
    )
    assert "re-encoded at short side 60, quality 80 (" in str(packed)
    pack(str(tmp_path / "own"), tmp_path / "plain", progress=False)
    before = {
        row["image"]["path"]: pixels(row["image"]["bytes"]) for row in rows(tmp_path / "plain")
    }
    for row in rows(tmp_path / "lossy"):
        path, after = row["image"]["path"], pixels(row["image"]["bytes"])
        assert row["image"]["bytes"][:2] == b"\xff\xd8"
        assert row["segments"]
        if path == "a/small.jpg":
            assert after.shape == (50, 30, 3)
        elif path == "a/grey.png":
            assert after.shape == (75, 60)
        else:
            assert min(after.shape[:2]) == 60
            target = io.BytesIO()
            wanted = Image.fromarray(before[path])
            wanted = wanted.resize(after.shape[1::-1], Image.Resampling.BICUBIC)
            wanted.save(target, "jpeg", quality=80)
            np.testing.assert_array_equal(pixels(target.getvalue()), after)
    data = read_data_set("set", str(tmp_path / "lossy"), tmp_path)
    assert data.lossy == "short side 60, quality 80"
    assert read_data_set("set", str(tmp_path / "plain"), tmp_path).lossy is None
    pack(
        str(tmp_path / "lossy"), tmp_path / "twice", progress=False, lossy=LossyEncoding(quality=50)
    )
    assert read_data_set("set", str(tmp_path / "twice"), tmp_path).lossy == (
        "short side 60, quality 80; then quality 50"
    )
    pack(str(tmp_path / "lossy"), tmp_path / "same", progress=False)
    assert read_data_set("set", str(tmp_path / "same"), tmp_path).lossy == data.lossy
    prints = [fingerprint(tmp_path / name) for name in ("lossy", "plain", "twice")]
    assert len(set(prints)) == 3


def test_every_lossy_option_moves_the_fingerprint(tmp_path):
    write_files(tmp_path / "own", 6)
    prints = set()
    choices = (
        None,
        LossyEncoding(quality=90),
        LossyEncoding(short_side=4096),
        LossyEncoding(quality=89),
    )
    for index, lossy in enumerate(choices):
        pack(str(tmp_path / "own"), tmp_path / f"{index}", progress=False, lossy=lossy)
        prints.add(fingerprint(tmp_path / f"{index}"))
    assert len(prints) == len(choices)


def test_an_image_that_cannot_be_reencoded_is_kept_and_counted(tmp_path):
    files = write_files(tmp_path / "own")
    half = next(iter(files.values()))[:700]
    (tmp_path / "own" / "train" / "b" / "half.jpg").write_bytes(half)
    lossy = LossyEncoding(quality=50)
    packed = pack(str(tmp_path / "own"), tmp_path / "shards", progress=False, lossy=lossy)
    assert str(packed).endswith("; 1 stored as they are: 1 JPEG that cannot be decoded")
    found = {row["image"]["path"]: row for row in rows(tmp_path / "shards")}
    assert found["b/half.jpg"]["image"]["bytes"] == half


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 0}, "quality 0 is outside 1 to 100"),
        ({"quality": 101}, "quality 101 is outside 1 to 100"),
        ({"short_side": 15}, "short side 15 is outside 16 to 4096"),
        ({"short_side": 4097}, "short side 4097 is outside 16 to 4096"),
    ],
)
def test_lossy_options_have_bounds(options, message):
    with pytest.raises(DataError, match=message):
        LossyEncoding(**options)


def test_the_command_takes_the_options_and_prints_what_it_did(tmp_path):
    write_files(tmp_path / "own", 6)
    command = [sys.executable, "-m", "mambaout", "pack", str(tmp_path / "own")]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], capture_output=True, text=True, env=os.environ)

    done = run(str(tmp_path / "lossy"), "--short-side", "64")
    assert done.returncode == 0, done.stderr
    assert "re-encoded at short side 64, quality 90" in done.stdout
    done = run(str(tmp_path / "plain"), "--as-is")
    assert "all stored as they are" in done.stdout
    done = run(str(tmp_path / "none"), "--as-is", "--quality", "90")
    assert done.returncode == 2
    assert "leave one of both out" in done.stderr
    assert run(str(tmp_path / "none"), "--quality", "900").returncode == 2
