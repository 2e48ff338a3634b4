"""Shared by several subcommands: defaults, help lines and checked numbers."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

DEFAULT_STORAGE = Path("runs")
MOST_WORKERS = 1024  # processes
STAGE_HELP = "copy the shards that are read to this folder first, for example /dev/shm"
WORKERS_HELP = "processes that load images; default: none on a CPU, else one less than the cores"
STORAGE_HELP = f"the folder of the studies (default {DEFAULT_STORAGE})"
WEIGHTS_HELP = (
    "a file of weights (.ckpt, .safetensors, .pth, .pth.tar, .bin), a run's folder, or STUDY/TRIAL "
    "by their names, as `mambaout list` shows them"
)
NO_EMA_HELP = "take the plain weights where the file holds EMA weights too; default: EMA, as timm"


def pixel_size(text: str) -> int | tuple[int, int]:
    """A type for argparse: the side of a square image, or HEIGHTxWIDTH, in pixels."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(re.fullmatch(r"[1-9][0-9]{0,5}", side) for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a whole number from 1 to 999999, or HEIGHTxWIDTH, like 800x1280"
        )
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def folder(text: str) -> Path:
    """A type for argparse: a folder's name. Empty would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; give a folder")
    return Path(os.path.expanduser(text))


def load_workers(asked: int | None, backend: str) -> int:
    """How many processes load images: as asked for, else 0 on a CPU, else all cores but one."""
    from mambaout.data.cores import usable_cores

    if asked is not None:
        return asked
    return 0 if backend == "cpu" else max(1, usable_cores() - 1)
