"""The CPU's name, and a setting of its memory allocator.

This file does not import torch, because a plan names the device before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # constants of glibc's malloc.h


def cpu_name(num_threads: int) -> str:
    """The CPU's model and the training threads: "Intel(R) Xeon(R) Processor (1 thread)"."""
    return f"{_model()} ({num_threads} thread{'s' if num_threads > 1 else ''})"


@functools.cache
def _model() -> str:
    with contextlib.suppress(OSError):  # not Linux: the platform's own name is used
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()  # this starts a process, `uname -p`


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees; this has an effect only with glibc.

    Otherwise each large map of a step is returned to the system, and the next step gets it again
    page by page, which takes 2 to 12 % of its time. The process needs about a tenth more memory.
    """
    with contextlib.suppress(AttributeError, OSError):  # another malloc
        malloc = ctypes.CDLL(None)
        malloc.mallopt(M_MMAP_MAX, 0)  # no block gets a mapping of its own
        malloc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
