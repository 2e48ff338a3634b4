"""What a CPU calls itself, and how its memory is kept.

Without torch: a plan names the device before anything is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def cpu_name(num_threads: int) -> str:
    """The CPU's model and the training threads: "Intel(R) Xeon(R) Processor (1 thread)"."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # not Linux: the platform's own name is used
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model} ({num_threads} thread{'s' if num_threads > 1 else ''})"


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, where its malloc is glibc's.

    Else each large map of a step is given back to the system and comes anew, page by page, at the
    next step: 4 to 12 % of a step's time. It costs a tenth more memory.
    """
    with contextlib.suppress(AttributeError, OSError):  # another malloc
        malloc = ctypes.CDLL(None)
        malloc.mallopt(M_MMAP_MAX, 0)  # nothing comes in a mapping of its own
        malloc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
