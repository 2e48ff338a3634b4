"""The C files beside this one, compiled for the machine when they are first needed.

It takes a second or two, once: the libraries are kept in the cache. Where there is no C compiler
or no AVX2 there is no function either, and its caller goes a longer way to the same pixels.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mambaout.cache import CACHE_VARIABLE, default_cache, locked
from mambaout.durable import replacing

log = logging.getLogger(__name__)

NEEDS = {"avx2", "bmi1", "bmi2"}
# For the very machine: its AVX-512 is worth 13 % to jpeg_crop.c. No product and sum are rounded as
# one where Pillow rounds them apart.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-fvisibility=hidden")
COMPILE_SECONDS = 120.0
INSTALL = "apt install gcc libc6-dev"

POINTER, SIZE, NUMBER, LONG = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64


class NotNative(Exception):
    """Why C cannot run here, and the remedy."""


def function(
    source: str, name: str, arguments: list[Any], result: Any = None
) -> Callable[..., int] | None:
    """The function `name` of the C file `source`, its types ctypes'; None where C cannot run."""
    try:
        found = getattr(_library(source), name)
    except NotNative:
        return None
    found.argtypes, found.restype = arguments, result
    return found


def prepare() -> None:
    """Compile what is not compiled yet; warn if that fails, unless nothing can be done about it."""
    reason = why_not()
    if reason is not None and _processor_flags() >= NEEDS:
        log.warning("images take twice as long to load: %s", reason)


def why_not() -> str | None:
    """Why images go the long way here, and the remedy; None where they do not."""
    try:
        for source in sorted(Path(__file__).parent.glob("*.c")):
            _library(source.name)
    except NotNative as error:
        return str(error)
    return None


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@functools.cache
def _library(source: str) -> ctypes.CDLL:
    flags = _processor_flags()
    if not flags >= NEEDS:
        raise NotNative(f"no processor with {', '.join(sorted(NEEDS))}")
    text = Path(__file__).with_name(source)
    parts = [text.read_bytes(), *(path.read_bytes() for path in sorted(text.parent.glob("*.h")))]
    identity = b"".join(parts) + " ".join([*FLAGS, *sorted(flags)]).encode()
    name = f"{text.stem}-{sha256(identity).hexdigest()[:16]}.so"
    try:
        library = default_cache() / name
        library.parent.mkdir(parents=True, exist_ok=True)
        if not library.exists():
            with locked(library.with_suffix(".lock")):  # once for all processes of a machine
                if not library.exists():
                    _compile(text, library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise NotNative(
            f"{name} cannot be used ({error}): set {CACHE_VARIABLE} to a folder that can be "
            "written and run from"
        ) from error


def _processor_flags() -> set[str]:
    """What the processor can do, as Linux names it; nothing on another system."""
    if platform.machine() != "x86_64":
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()[2:]) for line in lines if line.startswith("flags")), set())


def _compile(source: Path, library: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotNative(f"there is no C compiler, `cc`: {INSTALL}")
    try:
        # Other machines may share the folder and compile the same: the last one stands.
        with replacing(library) as part:
            command = [compiler, *FLAGS, "-o", str(part), str(source), "-lm"]
            subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_SECONDS)
    except subprocess.CalledProcessError as error:
        words = [*error.stderr.decode(errors="replace").strip().splitlines(), "no reason given"]
        raise NotNative(f"{compiler} failed ({words[0]}): {INSTALL}") from error
    except subprocess.TimeoutExpired as error:
        raise NotNative(f"{compiler} took over {COMPILE_SECONDS:g} s") from error
