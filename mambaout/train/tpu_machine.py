"""What a TPU that does not start is asked about: device files, limits, the kernel, libtpu's log."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

from mambaout.chips import GIB

# libtpu writes there unless the variable names another folder.
LOG_VARIABLE, LOG_FOLDER = "TPU_LOG_DIR", "/tmp/tpu_logs"
LOG_LINES = 15


def kernel() -> str:
    return f"{platform.system()} {platform.release()}"


def locked_memory() -> str:
    """How much memory a process may lock (`ulimit -l`), for a libtpu that "couldn't mmap"."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit / GIB:,.3f} GiB"


def device_files(devices: Path = Path("/dev")) -> list[str]:
    """The TPU's device files, each with a remark if this user may not open it."""
    found = sorted(devices.glob("accel[0-9]*"))
    return [
        str(path) if os.access(path, os.R_OK | os.W_OK) else f"{path} (may not be opened)"
        for path in found
    ]


def log_folder() -> Path:
    return Path(os.environ.get(LOG_VARIABLE) or LOG_FOLDER)


def log_lines(num_lines: int = LOG_LINES) -> list[str]:
    """The last lines of libtpu's newest log file, after a line with its path; empty without one."""
    folder = log_folder()
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
        newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            return []
        text = newest.read_text(errors="replace")
    except OSError:  # another user's, or removed by now
        return []
    return [f"{newest}:", *text.splitlines()[-num_lines:]]
