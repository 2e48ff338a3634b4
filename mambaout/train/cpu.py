"""The CPU's name, found without torch, because a plan names the device before torch is imported."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path


def cpu_name(num_threads: int) -> str:
    """The CPU's model and the training threads: "Intel(R) Xeon(R) Processor (1 thread)"."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # not Linux: the platform's own name is used
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model} ({num_threads} thread{'s' if num_threads > 1 else ''})"
