"""Boxes of JPEGs, decoded by jpeg_crop.c: the same pixels as libjpeg-turbo's in half of its time.

The C is compiled for the machine when it is first needed, in a second or two, and kept in the
cache. Where there is no C compiler or no AVX2, `decoded_box` has nothing to give and its caller
goes the long way, to the same pixels.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np

from mambaout.data import ring
from mambaout.data.files import default_cache, locked

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
# Built for the very machine: its AVX-512 is worth 13 % over AVX2.
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fvisibility=hidden")
NEEDS = {"avx2", "bmi1", "bmi2"}
INSTALL = "apt install gcc libc6-dev"
COMPILE_SECONDS = 120.0
DONE = 0  # what the C function says

Buffer = bytes | memoryview
Box = tuple[int, int, int, int]  # left, top, width, height


class NoDecoder(Exception):
    """Why jpeg_crop.c cannot run here, and the remedy."""


def decoded_box(
    encoded: Buffer, lengths: Buffer | None, box: Box, *, is_grey: bool, smooth: bool
) -> np.ndarray | None:
    """The pixels of `box`: uint8 (height, width) of a grey JPEG, (height, width, 3) of another.

    `encoded` is a baseline JPEG, grey or in YCbCr; `lengths` are those of its restart segments
    (jpeg.segment_lengths), None for a file without any. With `smooth` chroma is interpolated, as
    libjpeg does by default. The pixels are good until the next call in this thread. None where
    jpeg_crop.c cannot run, and for a file that it does not decode, a damaged one among others.
    """
    function = _function()
    if function is None:
        return None
    left, top, width, height = box
    shape = (height, width) if is_grey else (height, width, 3)
    pixels = room("pixels", 3 * width * height)
    file = np.frombuffer(encoded, np.uint8)
    table = file[:0] if lengths is None else np.frombuffer(lengths, np.uint8)
    scratch = room("scratch", 0)
    while (said := function(
        *(_address(file), file.size),
        *(None if lengths is None else _address(table), table.size // 2),
        *(left, top, width, height, smooth),
        *(_address(pixels), _address(scratch), scratch.size),
    )) < 0:  # fmt: skip
        scratch = room("scratch", -said)
    return pixels[: math.prod(shape)].reshape(shape) if said == DONE else None


def room(purpose: str, num_bytes: int) -> np.ndarray:
    """At least so much memory of this thread: new memory for each image takes 5 % longer."""
    found = _THREAD.__dict__.get(purpose)
    if found is None or found.size < num_bytes:
        found = _THREAD.__dict__[purpose] = np.empty(num_bytes * 5 // 4, np.uint8)
    return found


_THREAD = threading.local()


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def why_not() -> str | None:
    """Why JPEGs go the long way here, and the remedy; None where they do not."""
    try:
        _load()
    except NoDecoder as error:
        return str(error)
    return None


@functools.cache
def _function() -> Callable[..., int] | None:
    reason = why_not()
    if reason is None:
        return _load()
    first_worker = f"{ring.WORKER_NAME}0"  # the others find the same
    has_remedy = _processor_flags() >= NEEDS
    if has_remedy and multiprocessing.current_process().name in ("MainProcess", first_worker):
        log.warning("JPEGs take twice as long to decode: %s", reason)
    return None


@functools.cache
def _load() -> Callable[..., int]:
    flags = _processor_flags()
    if not flags >= NEEDS:
        raise NoDecoder(f"the fast decoder wants a processor with {', '.join(sorted(NEEDS))}")
    identity = SOURCE.read_bytes() + " ".join([*FLAGS, *sorted(flags)]).encode()
    library = default_cache() / f"jpeg_crop-{sha256(identity).hexdigest()[:16]}.so"
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        if not library.exists():
            with locked(library.with_suffix(".lock")):  # once for all processes
                if not library.exists():
                    _compile(library)
        function = ctypes.CDLL(str(library)).decode_box
    except OSError as error:
        raise NoDecoder(f"{library} cannot be used ({error})") from error
    function.restype = ctypes.c_int64
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    function.argtypes = [pointer, size, pointer, size, *[number] * 5, pointer, pointer, size]
    return function


def _processor_flags() -> set[str]:
    """What the processor can do, as Linux names it; nothing on another system."""
    if platform.machine() != "x86_64":
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()[2:]) for line in lines if line.startswith("flags")), set())


def _compile(library: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoDecoder(f"there is no C compiler, `cc`: {INSTALL}")
    part = library.with_suffix(".part")
    command = [compiler, *FLAGS, "-o", str(part), str(SOURCE)]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_SECONDS)
        os.replace(part, library)
    except subprocess.CalledProcessError as error:
        words = [*error.stderr.decode(errors="replace").strip().splitlines(), "no reason given"]
        raise NoDecoder(f"{compiler} failed ({words[0]}): {INSTALL}") from error
    except subprocess.TimeoutExpired as error:
        raise NoDecoder(f"{compiler} took over {COMPILE_SECONDS:g} s") from error
    finally:
        part.unlink(missing_ok=True)
