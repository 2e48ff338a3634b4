"""Checkpoints that survive a kill: written to another name, renamed, and checked before use."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from mambaout.durable import leftovers, remove, replacing
from mambaout.errors import WrongRequest
from mambaout.model.torch_file import read_torch

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
FORMAT = 1

log = logging.getLogger(__name__)


def save(directory: Path, state: dict[str, Any]) -> None:
    """Write `state` as last.ckpt; the old last.ckpt becomes previous.ckpt.

    Tensors are written as CPU tensors, so that any backend can load them. At every moment the
    directory holds at least one whole checkpoint.
    """
    _write(directory / LAST, state, directory / PREVIOUS)


def keep(directory: Path, state: dict[str, Any]) -> None:
    """Write `state` as branch-STEP.ckpt, from which longer runs go on."""
    _write(directory / f"branch-{state['step']}.ckpt", state)


def _write(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    for left in leftovers(path):
        remove(left)  # from a process that was killed while it saved
    state = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), state)
    with replacing(path, keep=keep) as aside, aside.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)


def load_latest(directory: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of the directory, on the CPU; None if there is no checkpoint.

    If last.ckpt is damaged, a warning says so and previous.ckpt is used. If both are damaged, that
    is an error: to start from step 0 would throw work away without asking.
    """
    damaged = []
    for name in (LAST, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        if is_whole(path):
            return load(path)
        damaged.append(str(path))
        log.warning("%s is damaged (cut off or altered); trying the checkpoint before it", path)
    if damaged:
        raise WrongRequest(
            f"no whole checkpoint: {' and '.join(damaged)} damaged; "
            "remove the run directory to start the run afresh"
        )
    return None


def is_whole(path: Path) -> bool:
    """Whether the file is complete and unaltered: checks the zip's directory and all checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def load(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`.

    Raises ValueError if it is not one of ours, or has a format that this version does not know.
    """
    state = read_torch(path)
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise WrongRequest(f"{path} has checkpoint format {found!r}; this version reads {FORMAT}")
    return state
