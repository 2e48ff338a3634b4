"""Promises of jpeg_crop.c: libjpeg's pixels to the bit, and no harm from any file."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from needs import needs_c
from PIL import Image
from places import PATHS
from test_data_jpeg import boxes, cut, mutated, photo

from mambaout.data.images import jpeg_crop
from mambaout.data.images.decode import picture
from mambaout.data.images.jpeg import segment_lengths
from mambaout.data.images.jpeg_crop import decoded_box
from mambaout.data.shards.encoded import EncodedImage
from mambaout.native import LONG, NUMBER, POINTER, SIZE

BASELINE_KINDS = ("4:2:0", "4:2:2", "4:4:4", "grey")


def by_libjpeg(encoded: bytes, *, smooth: bool = True) -> np.ndarray:
    space = simplejpeg.decode_jpeg_header(encoded)[2]
    form = "GRAY" if space == "Gray" else "RGB"
    pixels = simplejpeg.decode_jpeg(encoded, form, fastupsample=not smooth)
    return pixels[..., 0] if form == "GRAY" else pixels


def check(encoded: bytes, segments: bytes | None, box, whole: np.ndarray, *, smooth: bool) -> None:
    left, top, width, height = box
    lengths = None if segments is None else segment_lengths(encoded, segments)
    found = decoded_box(encoded, lengths, box, is_grey=whole.ndim == 2, smooth=smooth)
    assert found is not None
    np.testing.assert_array_equal(found, whole[top : top + height, left : left + width])


# -- the same pixels ------------------------------------------------------------------------------


@needs_c
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("kind", BASELINE_KINDS)
def test_a_box_of_a_file_has_libjpegs_pixels_to_the_bit(kind, smooth):
    before = photo(kind, 203, 351, quality=95)
    after, segments = cut(before)
    whole = by_libjpeg(before, smooth=smooth)
    for box in boxes(351, 203, 60):
        check(after, segments, box, whole, smooth=smooth)
        check(before, None, box, whole, smooth=smooth)


@needs_c
@pytest.mark.parametrize("kind", BASELINE_KINDS)
def test_files_of_any_size_have_them(kind):
    for height, width in ((1, 8), (8, 1), (16, 16), (17, 31), (5, 300), (300, 9), (33, 65)):
        before = photo(kind, height, width)
        after, segments = cut(before)
        for smooth in (True, False):
            whole = by_libjpeg(before, smooth=smooth)
            for box in boxes(width, height, 9):
                if width >= 8 or kind not in ("4:2:0", "4:2:2"):  # else libjpeg does not smooth
                    check(after, segments, box, whole, smooth=smooth)
                    check(before, None, box, whole, smooth=smooth)


@needs_c
@pytest.mark.parametrize("quality", [1, 30, 100])
@pytest.mark.parametrize("kind", BASELINE_KINDS)
def test_the_coarsest_and_the_finest_coefficients_have_them(kind, quality):
    # Noise and hard edges: codes and values of every length, and pixels that have to be clamped.
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 2, (96, 160, 3), np.uint8) * 255
    pixels[:48] = draws.integers(0, 256, (48, 160, 3), np.uint8)
    pixels[:, 100:] = pixels[::8, 100::8].repeat(8, 0).repeat(8, 1)[:96, :60]
    target = io.BytesIO()
    subsampling = {"4:2:0": 2, "4:2:2": 1, "4:4:4": 0, "grey": 0}[kind]
    image = Image.fromarray(pixels).convert("L" if kind == "grey" else "RGB")
    image.save(target, "jpeg", quality=quality, subsampling=subsampling)
    after, segments = cut(target.getvalue())
    whole = by_libjpeg(target.getvalue())
    for box in boxes(160, 96, 9):
        check(after, segments, box, whole, smooth=True)
        check(target.getvalue(), None, box, whole, smooth=True)


@needs_c
def test_threads_decode_at_once():
    files = [cut(photo(kind, 200, 200 + 8 * n)) for n, kind in enumerate(BASELINE_KINDS)]
    wholes = [by_libjpeg(encoded) for encoded, _ in files]

    def decode(number: int) -> None:
        encoded, segments = files[number % len(files)]
        box = (number % 50, number % 40, 100, 90)
        check(encoded, segments, box, wholes[number % len(files)], smooth=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, range(400)))


@pytest.mark.parametrize("kind", [*BASELINE_KINDS, "progressive", "kept RGB", "CMYK"])
def test_where_c_cannot_run_a_box_of_a_recut_file_has_the_same_pixels(kind, monkeypatch):
    monkeypatch.setattr(jpeg_crop, "_decode_box", lambda: None)
    before = photo(kind, 203, 351)
    with Image.open(io.BytesIO(before)) as image:
        whole = np.asarray(image if kind == "grey" else image.convert("RGB"))
    after, segments = cut(before)
    found = picture(EncodedImage(memoryview(after), memoryview(segments)))
    for left, top, width, height in boxes(351, 203, 20):
        wanted = whole[top : top + height, left : left + width]
        np.testing.assert_array_equal(found.crop((left, top, width, height)), wanted)


# -- what it leaves to others ---------------------------------------------------------------------


@needs_c
def test_other_codings_are_left_to_libjpeg_and_pillow():
    for kind in ("progressive", "CMYK", "restarts of its own"):
        assert decoded_box(photo(kind), None, (0, 0, 9, 9), is_grey=False, smooth=True) is None
    for kind in ("progressive", "kept RGB", "restarts of its own"):
        source = photo(kind)
        found = picture(EncodedImage(memoryview(source), None)).crop((7, 5, 200, 100))
        with Image.open(io.BytesIO(source)) as image:
            np.testing.assert_array_equal(found, np.asarray(image)[5:105, 7:207])


@needs_c
def test_boxes_outside_and_lengths_of_another_file_give_nothing():
    encoded, segments = cut(photo())
    lengths = segment_lengths(encoded, segments)
    assert lengths is not None
    for box in ((0, 0, 351, 333), (-1, 0, 5, 5), (0, 0, 0, 5), (9, 9, 5, -5), (349, 0, 2, 1)):
        assert decoded_box(encoded, lengths, box, is_grey=False, smooth=True) is None
    assert segment_lengths(photo(), segments) is None
    assert segment_lengths(encoded, b"") is None
    for wrong in (lengths[:-2], lengths[2:], bytes(lengths) + b"\1\1", b"", None):
        assert decoded_box(encoded, wrong, (9, 9, 5, 5), is_grey=False, smooth=True) is None


@needs_c
@pytest.mark.parametrize("box", [(0, 0, 350, 333), (10, 10, 50, 50)])
def test_a_file_that_ends_early_is_damaged_wherever_the_box_lies(box):
    encoded, segments = cut(photo())
    whole, lengths = photo(), segment_lengths(encoded, segments)
    for part in (whole[: len(whole) // 2], whole[:-2], whole[:-1], whole[:-2] + b"\xff\xd0"):
        assert decoded_box(part, None, box, is_grey=False, smooth=True) is None
    assert (
        decoded_box(whole[:-2] + b"\xff\xff\xd9??", None, box, is_grey=False, smooth=True)
        is not None
    )
    if box[3] > 300:  # with lengths, what the box does not touch is not looked at
        half = encoded[: len(encoded) // 2]
        assert decoded_box(half, lengths, box, is_grey=False, smooth=True) is None


def check_mutations(first: int, last: int) -> int:
    """Decodes boxes of damaged files; how many gave pixels."""
    kinds = [cut(photo(kind, 120, 150)) for kind in BASELINE_KINDS]
    plain = [photo(kind, 120, 150) for kind in BASELINE_KINDS]
    decoded = 0
    for seed in range(first, last):
        draws = np.random.default_rng(seed)
        encoded, segments = kinds[seed % len(kinds)]
        lengths: bytes | None = segments[18:]
        if seed % 3 == 0:
            encoded, lengths = plain[seed % len(kinds)], None
        elif seed % 3 == 1:  # lengths of the right number that say anything
            numbers = np.frombuffer(segments[18:], "<u2").copy()
            wounds = draws.integers(0, len(numbers), 4)
            numbers[wounds] = draws.integers(0, 65536, 4)
            lengths = numbers.tobytes()
        if seed % 3 != 1 or draws.random() < 0.5:
            encoded = mutated(encoded, draws)
        left, top, wide, high = (int(n) for n in draws.integers((-1, -1, 1, 1), (70, 60, 80, 62)))
        box, smooth = (left, top, wide, high), bool(draws.integers(0, 2))
        is_grey = bool(draws.integers(0, 2))
        found = decoded_box(encoded, lengths, box, is_grey=is_grey, smooth=smooth)
        decoded += found is not None
    return decoded


def use_watched_copy(library: str) -> None:
    """Decode with that library, in memory of exactly the sizes that it is told."""
    arguments = [POINTER, SIZE, POINTER, SIZE, *[NUMBER] * 5, POINTER, POINTER, SIZE]
    decode = ctypes.CDLL(library).decode_box
    decode.argtypes, decode.restype = arguments, LONG
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [SIZE], POINTER, [POINTER]

    def copied(source: int | None, size: int) -> int | None:
        if source is None:
            return None
        target = libc.malloc(size)
        ctypes.memmove(target, source, size)
        return target

    def watched(file, size, lengths, num, left, top, width, height, smooth, out, scratch, room):
        own = [copied(file, size), copied(lengths, 2 * num), libc.malloc(room)]
        own.append(libc.malloc(3 * max(width, 0) * max(height, 0)))
        box = (left, top, width, height)
        said = decode(own[0], size, own[1], num, *box, smooth, own[3], own[2], room)
        for memory in own:
            libc.free(memory)
        if said < 0:  # as much as it wants, to the byte
            return watched(file, size, lengths, num, *box, smooth, out, scratch, -said)
        return said

    jpeg_crop._decode_box = lambda: watched


@needs_c
def test_two_thousand_mutated_files_touch_no_memory_but_theirs(tmp_path):
    # In a process of its own, watched by the sanitizers of gcc: what they find ends it.
    preloaded = [
        subprocess.run(
            ["cc", f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    if not all(Path(found).is_absolute() for found in preloaded):
        pytest.skip("cc has no sanitizers, as gcc has them")
    library, watchers = tmp_path / "watched.so", "-fsanitize=address,undefined"
    source = Path(jpeg_crop.__file__).with_suffix(".c")
    flags = ["-O1", "-g", "-march=native", watchers, "-fno-sanitize-recover", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", str(library), str(source)], check=True)
    code = (
        "import test_data_jpeg_crop as t\n"
        f"t.use_watched_copy({str(library)!r})\n"
        "print(t.check_mutations(0, 2000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ
        | {"LD_PRELOAD": ":".join(preloaded), "ASAN_OPTIONS": "detect_leaks=0"}
        | {"PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 200 < int(done.stdout) < 1600


@needs_c
def test_what_is_not_damaged_for_both_has_libjpegs_pixels():
    """Wounds in the coded data of a re-cut file: without a complaint the pixels are libjpeg's.

    In a plain one a wound lasts to the file's end, and sums of DC may leave 16 bits, where
    libjpeg-turbo wraps.
    """
    encoded, segments = cut(photo("4:2:0", 120, 150))
    header = int.from_bytes(segments[16:18], "little")
    compared = 0
    for seed in range(400):
        draws = np.random.default_rng(seed)
        content = bytearray(encoded)
        content[int(draws.integers(header, len(encoded) - 2))] ^= 1 << int(draws.integers(0, 8))
        lengths, box = segment_lengths(bytes(content), segments), (0, 0, 150, 120)
        found = decoded_box(bytes(content), lengths, box, is_grey=False, smooth=True)
        try:
            wanted = simplejpeg.decode_jpeg(bytes(content))
        except ValueError:
            continue
        if found is not None:
            np.testing.assert_array_equal(found, wanted)
            compared += 1
    assert compared > 20
