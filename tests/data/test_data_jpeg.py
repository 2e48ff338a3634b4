"""Promises of data/images/jpeg.py: re-cut files keep their pixels, and a box costs a part."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import simplejpeg
from image_files import photograph
from PIL import Image
from places import PATHS

from mambaout.data.images.jpeg import has_jpegtran, image_size, recut, splice
from mambaout.data.shards.files import DataError

# name: pixels' mode, and how Pillow writes it
KINDS = {
    "4:2:0": ("RGB", {"subsampling": 2}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:4:4": ("RGB", {"subsampling": 0}),
    "progressive": ("RGB", {"progressive": True}),
    "grey": ("L", {}),
    "progressive grey": ("L", {"progressive": True}),
    "CMYK": ("CMYK", {}),
    "kept RGB": ("RGB", {"keep_rgb": True}),
    "restarts of its own": ("RGB", {"restart_marker_rows": 1}),
}


def photo(kind: str = "4:2:0", height: int = 333, width: int = 350, quality: int = 92) -> bytes:
    mode, options = KINDS[kind]
    target = io.BytesIO()
    image = Image.fromarray(photograph(height, width)).convert(mode)
    image.save(target, "jpeg", quality=quality, **options)
    return target.getvalue()


def cut(encoded: bytes) -> tuple[bytes, bytes]:
    done = recut(encoded)
    assert done is not None
    return done


def pillow(encoded: bytes | bytearray) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image)


def colours(encoded: bytes | bytearray) -> np.ndarray:
    return simplejpeg.decode_jpeg(encoded)


def boxes(width: int, height: int, count: int, seed: int = 0):
    draws = np.random.default_rng(seed)
    yield 0, 0, width, height
    yield 0, 0, 1, 1
    yield width - 1, height - 1, 1, 1
    for _ in range(count):
        left, right = sorted(draws.integers(0, width + 1, 2))
        top, bottom = sorted(draws.integers(0, height + 1, 2))
        if left < right and top < bottom:
            yield int(left), int(top), int(right - left), int(bottom - top)


# -- re-cutting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_recut_file_has_the_same_pixels_and_is_an_ordinary_jpeg(kind):
    before = photo(kind)
    after, segments = cut(before)
    np.testing.assert_array_equal(pillow(before), pillow(after))
    if kind != "CMYK":
        np.testing.assert_array_equal(colours(before), colours(after))
    with Image.open(io.BytesIO(after)) as image:
        assert image.format == "JPEG"
        assert "progressive" not in image.info
    assert len(segments) < 0.04 * len(after)


def test_the_colours_of_a_cmyk_file_with_adobes_transform_survive():
    # Pillow writes no such file: the transform of one that it does write is set to YCCK's.
    before = photo("CMYK", quality=98)
    marker = before.index(b"Adobe")
    before = before[: marker + 11] + b"\x02" + before[marker + 12 :]
    after, _ = cut(before)
    with Image.open(io.BytesIO(after)) as image:
        assert (image.mode, image.info["adobe_transform"]) == ("CMYK", 2)
    np.testing.assert_array_equal(pillow(before), pillow(after))


def test_a_rotation_in_the_exif_data_is_not_applied_as_in_timm():
    target, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(photograph(40, 60)).save(target, "jpeg", exif=exif)
    after, _ = cut(target.getvalue())
    assert image_size(after) == image_size(target.getvalue()) == (60, 40)
    np.testing.assert_array_equal(pillow(target.getvalue()), pillow(after))


def test_recutting_twice_gives_the_same_bytes():
    once, segments = cut(photo())
    assert cut(photo()) == (once, segments)
    assert cut(once) == (once, segments)


@pytest.mark.parametrize("size", [(1, 1), (8, 1), (16, 16), (17, 31), (300, 5), (5, 300)])
@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "grey"])
def test_files_of_any_size_are_recut(kind, size):
    before = photo(kind, *size)
    after, segments = cut(before)
    np.testing.assert_array_equal(pillow(before), pillow(after))
    height, width = size
    spliced = splice(after, segments, (width // 2, height // 2, width - width // 2, 1))
    assert spliced is not None
    assert simplejpeg.decode_jpeg_header(spliced.encoded)[:2] == (spliced.height, spliced.width)


def test_what_cannot_be_recut_without_a_change_is_left_alone():
    whole = photo()
    assert recut(b"") is None
    assert recut(b"no image") is None
    assert recut(photo()[:200]) is None
    assert recut(whole[:-2000]) is None  # jpegtran warns: the end is missing
    assert recut(whole[:-2] + b"garbage" + whole[-2:]) is None  # and of bytes that mean nothing
    target = io.BytesIO()
    Image.fromarray(photograph(40, 40)).save(target, "png")
    assert recut(target.getvalue()) is None
    # A progressive file without its last scans is whole for jpegtran, but decoders smooth it.
    progressive = photo("progressive")
    last_scan = progressive.rindex(b"\xff\xda")
    assert recut(progressive[:last_scan] + b"\xff\xd9") is None


def test_without_jpegtran_the_remedy_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not has_jpegtran()
    with pytest.raises(DataError, match=r"apt install libjpeg-turbo-progs.*--as-is"):
        recut(photo())


# -- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_read_from_the_header(kind):
    assert image_size(photo(kind, 123, 77)) == (77, 123)
    assert image_size(memoryview(photo(kind, 123, 77))) == (77, 123)


def test_no_size_is_read_from_what_is_no_jpeg():
    whole = photo()
    frame = whole.index(b"\xff\xc0")
    for wrong in (
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff" * 100,
        b"\xff\xd8" + b"\xff" * 100,
        b"\x89PNG",
        whole[: frame + 6],
        whole[: frame + 1] + b"\xc3" + whole[frame + 2 :],  # lossless
        whole[: frame + 1] + b"\xc9" + whole[frame + 2 :],  # arithmetic
        whole[: frame + 4] + b"\x0c" + whole[frame + 5 :],  # 12 bits
        whole[: frame + 5] + b"\0\0" + whole[frame + 7 :],  # height told at the end of the scan
    ):
        assert image_size(wrong) is None


# -- splicing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["4:2:0", "4:2:2", "4:4:4", "progressive", "grey", "kept RGB"])
def test_a_box_has_the_pixels_of_the_whole_up_to_its_edge(kind):
    encoded, segments = cut(photo(kind))
    whole = colours(encoded)
    height, width = whole.shape[:2]
    for left, top, wide, high in boxes(width, height, 60):
        part = splice(encoded, segments, (left, top, wide, high))
        assert part is not None
        pixels = colours(part.encoded)
        assert pixels.shape[:2] == (part.height, part.width)
        np.testing.assert_array_equal(
            pixels[part.top : part.top + high, part.left : part.left + wide],
            whole[top : top + high, left : left + wide],
        )


def test_a_box_of_a_cmyk_file_has_the_pixels_of_the_whole():
    encoded, segments = cut(photo("CMYK"))
    whole = pillow(encoded)
    part = splice(encoded, segments, (100, 50, 90, 120))
    assert part is not None
    pixels = pillow(part.encoded)[part.top : part.top + 120, part.left : part.left + 90]
    np.testing.assert_array_equal(pixels, whole[50:170, 100:190])


def test_a_box_takes_little_more_than_its_share_of_the_bytes():
    encoded, segments = cut(photo(width=350, height=440))
    for left, top, wide, high in boxes(350, 440, 60):
        part = splice(memoryview(encoded), memoryview(segments), (left, top, wide, high))
        assert part is not None
        assert part.width <= wide + 64  # a segment of 32 pixels at either side
        assert part.height <= high + 32


def test_boxes_outside_the_image_and_foreign_segments_give_nothing():
    encoded, segments = cut(photo())
    other, others = cut(photo("4:4:4", 200, 100))
    assert splice(encoded, segments, (0, 0, 350, 333)) is not None
    for box in ((0, 0, 351, 333), (-1, 0, 5, 5), (0, 0, 0, 5), (9, 9, 5, -5), (349, 0, 2, 1)):
        assert splice(encoded, segments, box) is None
    box = (10, 10, 20, 20)
    assert splice(encoded, others, box) is None
    assert splice(other, segments, box) is None
    assert splice(photo(), segments, box) is None
    assert splice(encoded + b"0", segments, box) is None
    assert splice(encoded, b"", box) is None
    assert splice(b"", segments, box) is None


# -- damage ---------------------------------------------------------------------------------------


def mutated(data: bytes, draws: np.random.Generator) -> bytes:
    """`data` with one to four wounds: flipped bytes, a cut end, spans taken out, put in, markers"""
    content = bytearray(data)
    kinds = 6 if draws.random() < 0.5 else 3  # the first three keep the length
    for _ in range(draws.integers(1, 5)):
        size = max(len(content), 1)
        # Half of the wounds hit the header, where the structure is.
        at = int(draws.integers(0, min(size, 700) if draws.random() < 0.5 else size))
        kind = draws.integers(0, kinds)
        if kind == 0:
            content[at : at + 1] = draws.bytes(1)
        elif kind == 1:
            content[at : at + 2] = bytes([0xFF, int(draws.integers(0xC0, 0x100))])
        elif kind == 2:
            place = content.find(b"\xff", at) + 1
            content[place : place + 1] = bytes([int(draws.integers(0xC0, 0x100))])
        elif kind == 3:
            del content[at:]
        elif kind == 4:
            del content[at : at + int(draws.integers(1, 200))]
        else:
            content[at:at] = draws.bytes(int(draws.integers(1, 200)))
    return bytes(content)


def check_mutations(first: int, last: int) -> tuple[int, int]:
    """Splices and decodes mutations; how many gave a part, and how many of those decoded."""
    kinds = [cut(photo(kind, 120, 150)) for kind in ("4:2:0", "4:4:4", "grey", "CMYK")]
    parts = decoded = 0
    for seed in range(first, last):
        draws = np.random.default_rng(seed)
        encoded, segments = kinds[seed % len(kinds)]
        target = draws.integers(0, 4)
        if target != 0:
            encoded = mutated(encoded, draws)
        if target == 0:
            segments = mutated(segments, draws)
        elif target == 1:  # lengths that still add up
            numbers = np.frombuffer(segments, "<u2").copy()
            numbers[9:] = draws.permutation(numbers[9:])
            segments = numbers.tobytes()
        if draws.random() < 0.7 and len(segments) > 17:  # the checksum would refuse it
            place = min(int.from_bytes(segments[16:18], "little"), len(encoded))
            sealed = crc32(segments[4:], crc32(encoded[:place]))
            segments = sealed.to_bytes(4, "little") + segments[4:]
        assert image_size(encoded) is None or min(image_size(encoded) or ()) > 0
        left, top, wide, high = (int(n) for n in draws.integers((-1, -1, 1, 1), (70, 60, 80, 62)))
        part = splice(encoded, segments, (left, top, wide, high))
        if part is None:
            continue
        parts += 1
        assert 0 <= part.left <= part.left + wide <= part.width
        assert 0 <= part.top <= part.top + high <= part.height
        assert len(part.encoded) <= len(encoded)
        try:
            simplejpeg.decode_jpeg(part.encoded, strict=bool(seed % 2))
            decoded += 1
        except ValueError:
            pass
    return parts, decoded


def test_two_thousand_mutated_files_are_refused_or_decoded_without_a_crash():
    # In a process of its own: a crash there is a failure here.
    code = "import test_data_jpeg as t; print(*t.check_mutations(0, 2000))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    parts, decoded = map(int, done.stdout.split())
    assert decoded > 200  # damage inside a segment is for the decoder to take or refuse
    assert parts < 2000
