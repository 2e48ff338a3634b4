"""The backbone inside a checkpoint of a detection or a segmentation.

Such a checkpoint says its task in its identity. Its network has the backbone as a part, under names
that begin with one of BODIES. The names in the backbone are a classifier's, and those of the norms
on the four outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mambaout.errors import WrongRequest

BODIES = ("backbone.body.", "backbone.")  # of a detector, of a segmenter
NORMS = "norms."  # the names of the output norms begin so; a classifier has none
# How tensors are called in a detector or segmenter of torchvision, mmdetection or mmsegmentation.
_FOREIGN = ("backbone.", "neck.", "rpn", "roi_head", "bbox_head.", "decode_head.")


def task_of(saved: Mapping[str, Any]) -> str | None:
    """The task of a run's checkpoint, like "detect"; None for a classifier and a foreign file."""
    identity = saved.get("identity")
    task = identity.get("task") if isinstance(identity, Mapping) else None
    return task if isinstance(task, str) else None


def said_by(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's checkpoint holds, without the optimizer, which is twice the network."""
    return {name: value for name, value in saved.items() if name != "optimizer"}


def backbone_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors of a whole network. WrongRequest if it has none."""
    for body in BODIES:
        found = {n.removeprefix(body): t for n, t in state.items() if n.startswith(body)}
        if found:
            return found
    raise WrongRequest(f"no tensor's name begins with {BODIES[0]}, so there is no backbone in it")


def require_ours(tensors: Mapping[str, Tensor]) -> None:
    """Raise WrongRequest if these are tensors of another program's detector or segmenter."""
    if all(name.startswith(_FOREIGN) for name in tensors):
        raise WrongRequest(
            f"it holds a detector or segmenter of another program ({next(iter(tensors))}); give "
            "the folder or last.ckpt of a run of `mambaout train --task detect`, or a classifier's "
            "weights"
        )
