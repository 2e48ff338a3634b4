"""The number of cores of this process, for code that starts one process for each core."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """The number of cores that this process may use; a container's CPU quota limits it."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    allowed = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, min(allowed, cgroup_cores()))


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """A container's CPU quota in whole cores; if none is set, the number of cores."""
    unlimited = os.cpu_count() or 1
    new, old = root / "cpu.max", root / "cpu"
    if new.exists():
        quota, period = new.read_text().split()
    elif (old / "cpu.cfs_quota_us").exists():
        quota = (old / "cpu.cfs_quota_us").read_text().strip()
        period = (old / "cpu.cfs_period_us").read_text().strip()
    else:
        return unlimited
    if quota in ("max", "-1"):
        return unlimited
    return max(1, int(quota) // int(period))
