"""What a plan is for: the share of a trial, how many run at a time, and the device's name.

A plan is for the machines on which the same command without `--plan` would run. Two kinds of
device can be planned from anywhere: the TPUs that `--accelerator` names, and the GPU that
`--plan GPU` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from mambaout.chips import Chip
from mambaout.errors import WrongRequest
from mambaout.launch.calibrate import device_of
from mambaout.launch.cluster import cluster_address, join, leave
from mambaout.launch.precision import kinds_of_gpu
from mambaout.launch.request import Request, check_share
from mambaout.launch.resources import (
    MOST_CORES_BESIDE_A_GPU,
    Node,
    Share,
    is_tpu,
    plan_nodes,
    share,
)
from mambaout.numbers import counted

# Of a plan for a GPU that is not here. More GPUs: --max-concurrent.
GPU_HOST = Node({"CPU": float(MOST_CORES_BESIDE_A_GPU), "GPU": 1.0})


@dataclass(frozen=True, kw_only=True)
class PlannedShare:
    """A trial's share of the machines that a plan is for."""

    part: Share
    at_a_time: int  # trials
    device: str  # the driver's name for it, or a name of the chip table


def planned_share(request: Request, chip: Chip | None, timed: str | None = None) -> PlannedShare:
    """The share for which `request` is planned: that of its launch, or one GPU of kind `chip`.

    `timed` is the device that a calibration has just timed. WrongRequest if no machine has the
    share, if a recipe does not fit it, or if a cluster has GPUs of several kinds.
    """
    with ExitStack() as cleanup:
        cluster = None if is_tpu(request.accelerator) else cluster_address(request.address)
        accelerator = request.accelerator
        if chip is not None:
            accelerator = _gpu(accelerator, chip)
            nodes = [GPU_HOST]
        elif cluster is None:
            nodes = plan_nodes(accelerator)
        else:
            nodes = join(cluster)
            cleanup.callback(leave)
        part = share(accelerator, nodes)
        check_share(request, part)
        if chip is not None:
            device = chip.name
        elif timed is not None:
            device = timed
        elif part.gpus and cluster is not None:
            device = _only_kind(nodes)
        else:
            device = device_of(part)
        at_a_time = request.max_concurrent or part.slots(nodes)
        return PlannedShare(part=part, at_a_time=at_a_time, device=device)


def _gpu(accelerator: str | None, chip: Chip) -> str:
    if accelerator is None or accelerator.startswith("gpu"):
        return accelerator or "gpu"
    raise WrongRequest(
        f"--plan '{chip.name}' is for a GPU, and --accelerator is {accelerator}: leave one of them "
        "out, or give --accelerator gpu"
    )


def _only_kind(nodes: Sequence[Node]) -> str:
    kinds = sorted(kinds_of_gpu(nodes))
    if len(kinds) > 1:
        raise WrongRequest(
            f"the cluster has {counted(len(kinds), 'kind')} of GPU ({', '.join(kinds)}), and a "
            f"plan is for one: name it, for example --plan '{kinds[0]}'"
        )
    return kinds[0]
