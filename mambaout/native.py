"""The package's C files, compiled for this machine when they are first needed.

    NORMS = CFile(Path(__file__).with_name("norms.c"), "-DWIDTH=8")
    norm = function(NORMS, "norm", [POINTER, SIZE])  # None if C cannot run here

Compiling takes a second or two, once: the libraries are kept in the cache. Without a C compiler or
without AVX2 `function` gives None, and its caller computes the same result in a slower way.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from mambaout.cache import CACHE_VARIABLE, default_cache, locked
from mambaout.durable import write_whole

log = logging.getLogger(__name__)

NEEDS = {"avx2", "bmi1", "bmi2", "fma"}
# -march=native: AVX-512 makes jpeg_crop.c 13 % faster. -ffp-contract=off: Pillow rounds a product
# and a sum apart, so the compiler must not fuse them; a C file that may fuse them asks for it.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-fvisibility=hidden")
COMPILE_SECONDS = 120.0
DIGEST_BYTES = 32  # at the end of a library, of what stands before them
INSTALL = "apt install gcc libc6-dev"

POINTER, SIZE, NUMBER, LONG = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64


class CFile(NamedTuple):
    """A C file, with the headers in its folder, and extra flags for the compiler."""

    path: Path
    flags: tuple[str, ...] = ()


class NotNative(Exception):
    """C cannot run here; the message says why, and the remedy."""


def function(
    source: CFile, name: str, arguments: list[Any], result: Any = None
) -> Callable[..., int] | None:
    """The C function `name` of `source`, or None if C cannot run here.

    `arguments` and `result` are ctypes types.
    """
    try:
        found = getattr(_library(source), name)
    except NotNative:
        return None
    found.argtypes, found.restype = arguments, result
    return found


def prepare(sources: tuple[CFile, ...], loss: str) -> None:
    """Compile the sources that are not compiled yet.

    If that fails, warn and name the `loss`. There is no warning if the user can do nothing about
    the failure.
    """
    reason = why_not(sources)
    if reason is not None and _processor_flags() >= NEEDS:
        log.warning("%s: %s", loss, reason)


def why_not(sources: tuple[CFile, ...]) -> str | None:
    """Why the C files cannot be used here, and the remedy; None if they can be used."""
    try:
        for source in sources:
            _library(source)
    except NotNative as error:
        return str(error)
    return None


def address(array: Any) -> int:
    """The memory address of a NumPy array's first byte."""
    return array.__array_interface__["data"][0]


@functools.cache
def _library(source: CFile) -> ctypes.CDLL:
    flags = _processor_flags()
    if not flags >= NEEDS:
        raise NotNative(f"no processor with {', '.join(sorted(NEEDS))}")
    path = source.path
    parts = [
        path.read_bytes(),
        *(header.read_bytes() for header in sorted(path.parent.glob("*.h"))),
    ]
    identity = b"".join(parts) + " ".join([*FLAGS, *source.flags, *sorted(flags)]).encode()
    name = f"{path.stem}-{sha256(identity).hexdigest()[:16]}.so"
    try:
        library = default_cache() / name
        library.parent.mkdir(parents=True, exist_ok=True)
        if not _is_whole(library):
            with locked(library.with_suffix(".lock")):  # one process compiles, the others wait
                if not _is_whole(library):
                    _compile(source, library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise NotNative(
            f"{name} cannot be used ({error}): set {CACHE_VARIABLE} to a folder that can be "
            "written and run from"
        ) from error


def _is_whole(library: Path) -> bool:
    """Whether the file is there with all its bytes: the system kills a process that runs past the
    end of one that was cut off."""
    try:
        body = library.read_bytes()
    except FileNotFoundError:
        return False
    return sha256(body[:-DIGEST_BYTES]).digest() == body[-DIGEST_BYTES:]


def _processor_flags() -> set[str]:
    """The processor's features, by Linux's names; empty on another system."""
    if platform.machine() != "x86_64":
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()[2:]) for line in lines if line.startswith("flags")), set())


def _compile(source: CFile, library: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotNative(f"there is no C compiler, `cc`: {INSTALL}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            # The link is a step of its own, without these flags. With -fopenmp it would load a
            # second OpenMP, which does not use torch's number of threads. With -ffast-math it would
            # change how the whole process rounds.
            made, linked = Path(folder, "made.o"), Path(folder, "linked.so")
            compiled = [compiler, *FLAGS, *source.flags, "-c", "-o", str(made)]
            _run(compiler, [*compiled, str(source.path)])
            _run(compiler, [compiler, "-shared", "-o", str(linked), str(made), "-lm"])
            body = linked.read_bytes()
        # The system's loader ignores the digest at the end. Another machine may share the folder:
        # the last writer's file stays.
        write_whole(library, body + sha256(body).digest())
    except subprocess.TimeoutExpired as error:
        raise NotNative(f"{compiler} took over {COMPILE_SECONDS:g} s") from error


def _run(compiler: str, command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_SECONDS)
    except subprocess.CalledProcessError as error:
        words = [*error.stderr.decode(errors="replace").strip().splitlines(), "no reason given"]
        raise NotNative(f"{compiler} failed ({words[0]}): {INSTALL}") from error
