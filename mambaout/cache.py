"""The folder of what is made once a machine: packed data, decoded pixels, compiled C and graphs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

CACHE_VARIABLE = "MAMBAOUT_CACHE"


def default_cache() -> Path:
    """$MAMBAOUT_CACHE, else ~/.cache/mambaout."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "mambaout")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, once whoever of this machine holds it has let go."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it if this process dies
        yield
