"""A trial's share of a cluster: how many cores and devices one training run gets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Accelerator = Literal["cpu", "gpu", "tpu-v3-8", "tpu-v3-32"]
ACCELERATORS: tuple[str, ...] = get_args(Accelerator)

# One core a trial, however many there are: a network of this size gains more from a neighbour
# trial than from a second thread, and a thread count that followed the machine would change the
# order of sums and with it the last bits of a result.
CPU_TRIAL_CORES = 1
MOST_CORES_BESIDE_A_GPU = 8

Node = Mapping[str, float]  # resource name -> amount, as ray.nodes() has it


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one trial holds while it runs."""

    accelerator: Accelerator
    cpus: int
    gpus: int = 0

    @property
    def backend(self) -> str:
        """The name that train.backend knows it by."""
        return "cuda" if self.gpus else "cpu"

    @property
    def num_workers(self) -> int:
        """Processes that load images; on a CPU the one core trains and loads in turn."""
        return self.cpus - 1 if self.gpus else 0

    def resources(self) -> dict[str, float]:
        """For tune.with_resources."""
        wanted = {"CPU": float(self.cpus), "GPU": float(self.gpus)}
        return {name: amount for name, amount in wanted.items() if amount}

    def slots(self, nodes: Sequence[Node]) -> int:
        """Trials that fit on the nodes at once."""
        wanted = self.resources()
        return sum(
            min(int(node.get(n, 0) // amount) for n, amount in wanted.items()) for node in nodes
        )


def share(accelerator: str | None, nodes: Sequence[Node]) -> Share:
    """The share of a trial on `accelerator`; None: a GPU where there is one, else a core.

    Raises ValueError where the nodes can never give it.
    """
    if accelerator is not None and accelerator not in ACCELERATORS:
        raise ValueError(
            f"unknown accelerator {accelerator!r}; choose from {', '.join(ACCELERATORS)}"
        )
    if accelerator is not None and accelerator.startswith("tpu"):
        raise ValueError(f"accelerator {accelerator} is not built yet; choose cpu or gpu")
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if accelerator == "cpu" or (accelerator is None and not with_gpu):
        found = Share(accelerator="cpu", cpus=CPU_TRIAL_CORES)
    else:
        # A share must fit on each node that has a GPU, so the poorest of them sets the cores.
        beside = min((int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu), default=1)
        cpus = max(1, min(MOST_CORES_BESIDE_A_GPU, beside))
        found = Share(accelerator="gpu", cpus=cpus, gpus=1)
    if found.slots(nodes) < 1:
        has = [dict(node) for node in nodes]
        raise ValueError(
            f"a trial on {found.accelerator} needs {_amounts(found.resources())}, and no machine "
            f"has that: {'; '.join(map(_amounts, has)) or 'there is none'}; "
            "choose another --accelerator or --address"
        )
    return found


def _amounts(resources: Mapping[str, float]) -> str:
    shown = [f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU")]
    return " and ".join(text for text in shown if not text.startswith("0 ")) or "no CPU or GPU"


def this_machine(accelerator: str | None) -> Node:
    """The cores and GPUs that this process may use; asks for GPUs only where one may be used."""
    gpus = 0
    devices = ("nvidia[0-9]*", "dxg", "kfd")  # Nvidia, Windows' Linux, AMD
    if accelerator in (None, "gpu") and any(any(Path("/dev").glob(name)) for name in devices):
        import torch

        gpus = torch.cuda.device_count()
    return {"CPU": float(usable_cores()), "GPU": float(gpus)}


def usable_cores() -> int:
    """Cores that this process may run on, a container's CPU quota included."""
    return max(1, min(len(os.sched_getaffinity(0)), _cgroup_cores()))


def _cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """A container's quota in whole cores, or as many as there are where none is set."""
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
