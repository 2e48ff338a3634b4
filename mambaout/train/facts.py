"""Facts about a run for people: host, commit, versions. They are not part of any key."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

UNKNOWN = "unknown"  # the commit if the code has no repository
COMMIT_VARIABLE = "MAMBAOUT_COMMIT"  # set for workers that get the code without its repository


def git_commit() -> str:
    """The code's commit, with "+" at the end if files differ from it; "unknown" without git."""
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return commit + ("+" if changed else "")


def host_facts() -> dict[str, str]:
    """The facts beside the commit."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "timm": version("timm"),
    }
