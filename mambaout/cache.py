"""The cache folder: packed data, decoded pixels, compiled C and graphs, made once a machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

CACHE_VARIABLE = "MAMBAOUT_CACHE"


def default_cache() -> Path:
    """The folder $MAMBAOUT_CACHE, or ~/.cache/mambaout if that variable is not set."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "mambaout")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; first wait until no process of this machine holds it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it if this process dies
        yield
