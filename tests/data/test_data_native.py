"""Promises of the C files: compiled once, the same pixels without them, and the remedy named."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
from image_files import photograph
from needs import needs_c
from PIL import Image
from test_data_jpeg import cut, photo

from mambaout import native
from mambaout.data.images import jpeg_crop, resample
from mambaout.data.images.c_files import C_FILES, LOSS
from mambaout.data.images.decode import picture
from mambaout.data.images.randaugment import FILL, PLACES
from mambaout.data.images.resample import moved
from mambaout.data.shards.encoded import EncodedImage

IMPORTS = "from mambaout.native import why_not; from mambaout.data.images.c_files import C_FILES"


def forget() -> None:
    for cached in (jpeg_crop._decode_box, resample._affine, native._library):
        cached.cache_clear()


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A folder; nothing is compiled yet."""
    monkeypatch.setenv("MAMBAOUT_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path
    forget()


@functools.cache
def photographs_cut() -> list[tuple[bytes, bytes]]:
    return [cut(photo(kind)) for kind in ("4:2:0", "4:2:2", "4:4:4", "grey", "progressive")]


def some_pixels() -> list[np.ndarray]:
    """Of all that C has a part in."""
    found = []
    for encoded, segments in photographs_cut():
        for place in (memoryview(segments), None):
            shown = picture(EncodedImage(memoryview(encoded), place))
            found += [shown.crop((30, 40, 150, 130), least).copy() for least in (None, 100, 60)]
    places = PLACES["Rotate"](17.0, 90)
    return found + [moved(photograph(90, 90), places, bicubic=how) for how in (True, False)]


def check_the_same(before: list[np.ndarray], after: list[np.ndarray]) -> None:
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_c
@pytest.mark.parametrize("compiler", [None, "exit 1", "echo 'stdio.h: no such file' >&2; exit 1"])
def test_without_a_compiler_the_pixels_are_the_same_and_the_remedy_is_named(
    fresh, monkeypatch, caplog, compiler
):
    before = some_pixels()
    native.prepare(C_FILES, LOSS)
    assert not caplog.records
    for library in (fresh / "cache").glob("*.so"):
        library.unlink()
    forget()
    (fresh / "bin").mkdir()
    if compiler:
        (fresh / "bin" / "cc").write_text(f"#!/bin/sh\n{compiler}\n")
        (fresh / "bin" / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fresh / 'bin'}:/nowhere")
    check_the_same(before, some_pixels())
    native.prepare(C_FILES, LOSS)
    (said,) = caplog.messages
    assert "twice as long" in said
    assert "apt install gcc libc6-dev" in said
    assert "stdio.h: no such file" in said or "echo" not in str(compiler)
    assert "apt install" in str(native.why_not(C_FILES))


@needs_c
@pytest.mark.parametrize("left", [0, 9, 16384], ids=["empty", "a few bytes", "cut off"])
def test_a_damaged_library_is_compiled_again(fresh, left):
    code = f"{IMPORTS}; print(why_not(C_FILES))"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "None\n")
        for library in (fresh / "cache").glob("*.so"):
            library.write_bytes(library.read_bytes()[:left])


@needs_c
def test_a_cache_that_cannot_be_written_is_named(fresh, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv("MAMBAOUT_CACHE", str(fresh / "file" / "below"))
    forget()
    assert "set MAMBAOUT_CACHE" in str(native.why_not(C_FILES))
    assert len(some_pixels()) == 32


@needs_c
def test_a_processor_without_avx2_goes_the_long_way_in_silence(fresh, monkeypatch, caplog):
    before = some_pixels()
    forget()
    monkeypatch.setattr(native, "_processor_flags", lambda: {"sse2"})
    check_the_same(before, some_pixels())
    native.prepare(C_FILES, LOSS)
    assert not caplog.records
    assert "no processor with avx2" in str(native.why_not(C_FILES))


@needs_c
def test_processes_that_need_it_at_once_compile_it_once(fresh):
    code = (
        f"{IMPORTS}; import subprocess\n"
        "run = subprocess.run\n"
        "subprocess.run = lambda *a, **k: ('-c' in a[0] and print('compiled'), run(*a, **k))[1]\n"
        "assert why_not(C_FILES) is None"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert "".join(said).count("compiled") == len(list((fresh / "cache").glob("*.so"))) == 2


@needs_c
@pytest.mark.parametrize("bicubic", [True, False])
def test_any_affine_transform_has_pillows_pixels_to_the_bit(bicubic):
    draws = np.random.default_rng(0)
    how = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    for height, width in ((1, 1), (2, 3), (5, 4), (40, 33)):
        image = draws.integers(0, 256, (height, width, 3), np.uint8)
        for _ in range(40):
            places = tuple(draws.normal(0, (1, 1, width, 1, 1, height)).tolist())
            wanted = Image.fromarray(image).transform(
                (width, height), Image.Transform.AFFINE, places, resample=how, fillcolor=FILL
            )
            found = moved(image, places, bicubic=bicubic)
            np.testing.assert_array_equal(found, np.asarray(wanted))
