"""What a plan is for: the share of a trial, how many run at a time, and the device's name.

A plan is for the machines on which the same command without `--plan` would run. Two kinds of
device can be planned from anywhere: the TPUs that `--accelerator` names, and the GPU that
`--plan GPU` names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mambaout.chips import Chip
from mambaout.errors import WrongRequest
from mambaout.launch.calibrate import device_of
from mambaout.launch.cluster import cluster_address, join, leave
from mambaout.launch.precision import kinds_of_gpu
from mambaout.launch.resources import (
    MOST_CORES_BESIDE_A_GPU,
    Node,
    Share,
    is_tpu,
    plan_nodes,
    share,
)
from mambaout.launch.sweep_options import planned_chip
from mambaout.numbers import counted
from mambaout.study.price.plan import Plan, plan
from mambaout.study.price.rates import Rate, known_rates
from mambaout.study.study import Trial

# Of a plan for a GPU that is not here. More GPUs: --max-concurrent.
GPU_HOST = Node({"CPU": float(MOST_CORES_BESIDE_A_GPU), "GPU": 1.0})


@dataclass(frozen=True, kw_only=True)
class PlannedMachine:
    """The machines that a plan is for: what one trial gets, and how fast that is known to be."""

    part: Share
    at_a_time: int  # trials
    device: str  # the driver's name for it, or a name of the chip table
    storage: Path

    @cached_property
    def rates(self) -> Sequence[Rate]:
        return known_rates(self.storage, self.device, self.at_a_time, self.part.devices_held)

    def plan(self, trials: Sequence[Trial], num_train: int, num_classes: int, **more: Any) -> Plan:
        """The price of the trials here; `more` are the other arguments of price.plan.plan."""
        return plan(
            trials,
            num_train,
            num_classes,
            rates=self.rates,
            device=self.device,
            num_devices=self.part.devices_held,
            concurrency=self.at_a_time,
            **more,
        )


def planned_machine(
    options: argparse.Namespace, storage: Path, timed: str | None = None
) -> PlannedMachine:
    """The machines of the launch with these options, or one GPU of the kind that --plan names.

    `timed` is the device that a calibration has just timed. WrongRequest if no machine has the
    share of a trial, or if a cluster has GPUs of several kinds.
    """
    chip, accelerator = planned_chip(options), options.accelerator
    with ExitStack() as cleanup:
        cluster = None if is_tpu(accelerator) else cluster_address(options.address)
        if chip is not None:
            accelerator = _gpu(accelerator, chip)
            nodes = [GPU_HOST]
        elif cluster is None:
            nodes = plan_nodes(accelerator)
        else:
            nodes = join(cluster)
            cleanup.callback(leave)
        part = share(accelerator, nodes)
        if chip is not None:
            device = chip.name
        elif timed is not None:
            device = timed
        elif part.gpus and cluster is not None:
            device = _only_kind(nodes)
        else:
            device = device_of(part)
        at_a_time = options.max_concurrent or part.slots(nodes)
        return PlannedMachine(part=part, at_a_time=at_a_time, device=device, storage=storage)


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
