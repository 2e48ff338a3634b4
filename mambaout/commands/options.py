"""What several subcommands share: defaults, help lines, and numbers that are checked."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

DEFAULT_STORAGE = Path("runs")
STAGE_HELP = "copy the shards that are read to this folder first, for example /dev/shm"
WORKERS_HELP = "processes that load images; default: none on a CPU, else one less than the cores"
STORAGE_HELP = f"the folder of the studies (default {DEFAULT_STORAGE})"
WEIGHTS_HELP = (
    "a file of weights (.ckpt, .safetensors, .pth, .pth.tar, .bin), a run's folder, or STUDY/TRIAL "
    "by their names, as `mambaout list` shows them"
)
NO_EMA_HELP = "take the plain weights where the file holds EMA weights too; default: EMA, as timm"


def whole_number(least: int) -> Callable[[str], int]:
    """A reader, for argparse, of whole numbers from `least` on."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {least}")
        return int(text)

    return read


def load_workers(asked: int | None, backend: str) -> int:
    """The processes that load images: what was asked for, or what the machine has to spare."""
    from mambaout.data.cores import usable_cores

    if asked is not None:
        return asked
    return 0 if backend == "cpu" else max(1, usable_cores() - 1)
