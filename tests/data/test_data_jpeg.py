"""Promises of data/images/jpeg.py: re-cut files keep their pixels, and tell their segments."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from image_files import photograph
from PIL import Image

from mambaout.data.images.jpeg import has_jpegtran, image_size, recut, segment_lengths
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
    assert segment_lengths(after, segments) is not None


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


# -- segments -------------------------------------------------------------------------------------


def test_segments_tell_the_bytes_of_their_own_file_and_of_no_other():
    encoded, segments = cut(photo())
    other, others = cut(photo("4:4:4", 200, 100))
    lengths = segment_lengths(memoryview(encoded), memoryview(segments))
    assert lengths is not None
    header_bytes = int.from_bytes(segments[16:18], "little")
    assert header_bytes + np.frombuffer(lengths, "<u2").sum() == len(encoded)
    for file, index in (
        (encoded, others), (other, segments), (photo(), segments), (encoded, b""), (b"", segments),
    ):  # fmt: skip
        assert segment_lengths(file, index) is None


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


def test_the_header_of_a_mutated_file_is_read_or_refused():
    kinds = [cut(photo(kind, 120, 150)) for kind in ("4:2:0", "4:4:4", "grey", "CMYK")]
    refused = 0
    for seed in range(2000):
        draws = np.random.default_rng(seed)
        encoded, segments = kinds[seed % len(kinds)]
        if seed % 3:
            encoded = mutated(encoded, draws)
        else:
            segments = mutated(segments, draws)
        assert image_size(encoded) is None or min(image_size(encoded) or ()) > 0
        refused += segment_lengths(encoded, segments) is None
    assert 500 < refused < 2000
