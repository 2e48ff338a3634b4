"""A trial's share of a cluster: how many cores and devices one training run gets.

| accelerator | a trial gets | at the same time |
|---|---|---|
| cpu | one core | one trial on each core |
| gpu | one GPU | one trial on each GPU |
| gpu:0.5 | half of a GPU | two trials on each GPU |
| tpu-v3-8 | a TPU host: 4 chips, 8 cores | one trial on each host |
| tpu-v3-8-chip | one chip of such a host, 2 cores | four trials on each host |
| tpu-v3-32 | a slice: 4 hosts, 32 cores, one process on each host | one trial on each slice |

A plain request for TPU chips may be placed on any host, also on a host of a slice, where it would
hang. So a TPU share names the type of its hosts, and all bundles of a slice are placed on one
slice.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mambaout.data.cores import usable_cores
from mambaout.errors import WrongRequest

# A trial gets one core, however many there are. For networks of this size, a second trial on a
# second core brings more than a second thread. And if the number of threads depended on the
# machine, the order of sums and the last bits of a result would too.
CPU_TRIAL_CORES = 1
MOST_CORES_BESIDE_A_GPU = 8
# For loading images, out of the 96 virtual CPUs (48 cores) of a TPU v3 host.
MOST_CORES_BESIDE_A_CHIP = 12
CORES_PER_CHIP = 2  # of TPU v3; a program sees each core as a device
CHIPS_PER_HOST = 4

# Labels that Ray itself gives a TPU host, from its environment or its metadata.
POD_TYPE = "ray.io/tpu-pod-type"  # "v3-8", "v3-32"
SLICE_NAME = "ray.io/tpu-slice-name"
WORKER_ID = "ray.io/tpu-worker-id"
# The same for a host with GPUs: "L4", "GeForce-RTX-5090". Ray looks only at the first GPU.
GPU_TYPE = "ray.io/accelerator-type"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, as Ray describes it."""

    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    id: str = ""  # Ray's id, if the machine is up

    def has(self, name: str) -> float:
        return self.resources.get(name, 0)

    @property
    def pod_type(self) -> str | None:
        """The TPU to which the machine belongs, like "v3-8"; None if not known."""
        return self.labels.get(POD_TYPE)


@dataclass(frozen=True)
class _Tpu:
    pod_type: str
    chips: int = CHIPS_PER_HOST  # of each host
    num_hosts: int = 1


_TPUS = {
    "tpu-v3-8": _Tpu("v3-8"),
    "tpu-v3-8-chip": _Tpu("v3-8", chips=1),
    "tpu-v3-32": _Tpu("v3-32", num_hosts=4),
}
_NOT_SUPPORTED = {
    "tpu-v3-16": "torch_xla has no layout for the two hosts of a v3-16",
}
ACCELERATORS: tuple[str, ...] = ("cpu", "gpu", *_TPUS)
CHOICES = (
    "cpu, gpu, gpu:0.5 (half of one), tpu-v3-8 (a host), tpu-v3-8-chip (one of its four chips), "
    "tpu-v3-32 (a slice of four hosts)"
)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one trial holds while it runs."""

    accelerator: str
    cpus: int  # of each host
    gpus: float = 0  # 0.5: half of one
    chips: int = 0  # of a TPU, of each host
    num_hosts: int = 1  # machines, a process on each
    pod_type: str | None = None  # of the TPU hosts

    @property
    def backend(self) -> str:
        """Its name in train.backend."""
        return "xla" if self.chips else "cuda" if self.gpus else "cpu"

    @property
    def device(self) -> str | None:
        """The name of a TPU's cores in the chip table; None for other devices."""
        return "TPU v3" if self.chips else None

    @property
    def num_devices(self) -> int:
        """The number of devices, over all hosts, that share a global batch."""
        return CORES_PER_CHIP * self.chips * self.num_hosts or 1

    @property
    def devices_held(self) -> float:
        """The devices that are paid for; 0.5 for half of a GPU."""
        return self.gpus or self.num_devices

    @property
    def num_workers(self) -> int:
        """The number of processes that load images on each host.

        On a CPU, the one core trains and loads in turn.
        """
        return 0 if self.backend == "cpu" else self.cpus - 1

    @property
    def env(self) -> dict[str, str]:
        """Variables for a worker's environment, unless it already has others."""
        return {"PJRT_DEVICE": "TPU"} if self.chips else {}

    @property
    def label_selector(self) -> dict[str, str]:
        """The labels of machines on which it may be placed."""
        return {POD_TYPE: self.pod_type} if self.pod_type else {}

    def resources(self) -> dict[str, float]:
        """The Ray resources of each host."""
        wanted = {"CPU": float(self.cpus), "GPU": float(self.gpus), "TPU": float(self.chips)}
        return {name: amount for name, amount in wanted.items() if amount}

    def placement(self) -> Any:
        """The placement group for tune.with_resources. Tune always frees it when a trial ends.

        The first bundle belongs to the trial. With several hosts, the first bundle only
        coordinates. Each host has one of the other bundles, all on one slice.
        """
        from ray import tune

        if self.pod_type is None:
            return tune.PlacementGroupFactory([self.resources()])
        if self.num_hosts == 1:
            return tune.PlacementGroupFactory(
                [self.resources()], bundle_label_selector=[self.label_selector]
            )
        bundles = [{"CPU": 1.0}, *[self.resources()] * self.num_hosts]
        no_strategy: Any = None  # for single machines; it excludes a strategy for slices
        return tune.PlacementGroupFactory(
            bundles,
            no_strategy,
            bundle_label_selector=[self.label_selector] * len(bundles),
            topology_strategy={SLICE_NAME: "STRICT_PACK"},
        )

    def slots(self, nodes: Sequence[Node]) -> int:
        """The number of trials that fit on the nodes at once."""
        fitting = [node for node in nodes if self.pod_type in (None, node.pod_type)]
        if self.num_hosts > 1:
            return self._slices(fitting)
        return sum(self._places(node) for node in fitting)

    def _places(self, node: Node) -> int:
        places = [
            int(node.has(name) // amount)
            for name, amount in self.resources().items()
            if name != "GPU"
        ]
        if self.gpus:  # a part must lie on one GPU: three trials of 0.3 on each
            places.append(int(node.has("GPU")) * int(1 / self.gpus + 1e-9))
        return min(places)

    def _slices(self, nodes: Sequence[Node]) -> int:
        """The number of complete slices in which one host has a free core for the coordinator."""
        whole: Counter[str] = Counter()
        roomy: set[str] = set()
        for node in nodes:
            name = node.labels.get(SLICE_NAME)
            if name is not None and self._places(node):
                whole[name] += 1
                if node.has("CPU") > self.cpus:
                    roomy.add(name)
        return sum(whole[name] >= self.num_hosts for name in roomy)


def check_accelerator(accelerator: str | None) -> None:
    """Raise ValueError for a name that is no accelerator."""
    if accelerator is None or accelerator in ACCELERATORS or accelerator in _NOT_SUPPORTED:
        return
    if accelerator.startswith("gpu:"):
        _gpu_part(accelerator)
        return
    raise WrongRequest(f"unknown accelerator {accelerator!r}; choose from {CHOICES}")


def _gpu_part(accelerator: str) -> float:
    """1 for "gpu", 0.5 for "gpu:0.5"."""
    text = accelerator.partition(":")[2] or "1"
    try:
        part = float(text)
    except ValueError:
        part = 0.0
    # Ray counts in ten-thousandths. No GPU has gained from as many as sixteen trials.
    if not 1 / 16 <= part <= 1:
        raise WrongRequest(
            f"accelerator {accelerator}: a trial takes one GPU or a part of it from 0.0625 to 1, "
            "for example gpu:0.5 for two trials on each"
        )
    return part


def share(accelerator: str | None, nodes: Sequence[Node]) -> Share:
    """The share of a trial on `accelerator`. None means a TPU, else a GPU, else a core.

    Raises ValueError if the nodes can never provide it.
    """
    check_accelerator(accelerator)
    if accelerator in _NOT_SUPPORTED:
        raise WrongRequest(
            f"accelerator {accelerator} is not supported: {_NOT_SUPPORTED[accelerator]}; there is "
            f"{_described(nodes)}; choose tpu-v3-8 with v3-8 hosts, or tpu-v3-32 with a v3-32 slice"
        )
    found = _sized(accelerator or _best(nodes), nodes)
    if found.slots(nodes) < 1:
        raise WrongRequest(_refusal(found, nodes))
    return found


def _best(nodes: Sequence[Node]) -> str:
    """The accelerator to use if none was asked for."""
    if any(node.has("TPU") for node in nodes):
        types = {node.pod_type for node in nodes if node.has("TPU")}
        for name in ("tpu-v3-8", "tpu-v3-32"):
            if _TPUS[name].pod_type in types:
                return name
        raise WrongRequest(
            f"no trial runs on the TPUs that there are: {_described(nodes)}; use v3-8 hosts or "
            f"v3-32 slices{_label_hint(nodes)}, or choose --accelerator cpu"
        )
    return "gpu" if any(node.has("GPU") >= 1 for node in nodes) else "cpu"


def _sized(accelerator: str, nodes: Sequence[Node]) -> Share:
    """The share with its cores.

    Each node of the kind must have them, so the node with the fewest cores decides.
    """
    if accelerator == "cpu":
        return Share(accelerator="cpu", cpus=CPU_TRIAL_CORES)
    tpu = _TPUS.get(accelerator)
    if tpu is None:
        part = _gpu_part(accelerator)
        each = int(1 / part + 1e-9)  # trials on a GPU
        with_gpu = [node for node in nodes if node.has("GPU") >= 1]
        beside = [int(node.has("CPU") // (node.has("GPU") * each)) for node in with_gpu]
        cpus = max(1, min([MOST_CORES_BESIDE_A_GPU, *beside])) if beside else 1
        return Share(accelerator=accelerator, cpus=cpus, gpus=part)
    hosts = [n for n in nodes if n.pod_type == tpu.pod_type and n.has("TPU") >= tpu.chips]
    # The coordinator of a slice takes a core of one of its hosts.
    free = [node.has("CPU") - (tpu.num_hosts > 1) for node in hosts]
    beside = [int(cpus * tpu.chips // CHIPS_PER_HOST) for cpus in free]
    most = MOST_CORES_BESIDE_A_CHIP * tpu.chips
    return Share(
        accelerator=accelerator,
        cpus=max(1, min([most, *beside])) if beside else 1,
        chips=tpu.chips,
        num_hosts=tpu.num_hosts,
        pod_type=tpu.pod_type,
    )


# -- what is wrong ---------------------------------------------------------------------------------


def _refusal(part: Share, nodes: Sequence[Node]) -> str:
    needs = _amounts(part.resources())
    if part.num_hosts > 1:
        where = (
            f"on each of {part.num_hosts} hosts of one {part.pod_type} slice, and a core more on "
            "one of them, and no slice has that"
        )
        remedy = f"wait for a whole {part.pod_type} slice, or choose another --accelerator"
    elif part.pod_type:
        where = f"of a {part.pod_type} host, and no machine has that"
        remedy = f"give the --address of a cluster with {part.pod_type} hosts, or choose another "
        remedy += "--accelerator"
    else:
        where, remedy = "", "choose another --accelerator or --address"
        needs += ", and no machine has that"
    hint = _label_hint(nodes) if part.chips else ""
    said = f"a trial on {part.accelerator} needs {needs} {where}".rstrip()
    return f"{said}: {_described(nodes)}; {remedy}{hint}"


def _label_hint(nodes: Sequence[Node]) -> str:
    if any(node.has("TPU") and node.pod_type is None for node in nodes):
        return f" (a TPU host without the label {POD_TYPE} counts for none: `ray start --labels`)"
    return ""


def _described(nodes: Sequence[Node]) -> str:
    """The machines as text. Equal ones are counted."""
    texts: Counter[str] = Counter()
    for node in nodes:
        text = _amounts(node.resources)
        if node.has("TPU"):
            text += f" ({node.pod_type or 'TPU of unknown type'}"
            name = node.labels.get(SLICE_NAME)
            several = name is not None and node.pod_type != "v3-8"
            text += f", slice {name})" if several else ")"
        texts[text] += 1
    parts = [f"{count} x {text}" if count > 1 else text for text, count in texts.items()]
    return "; ".join(parts) or "there is none"


def _amounts(resources: Mapping[str, float]) -> str:
    amounts = [(resources.get(name, 0), name) for name in ("CPU", "GPU", "TPU")]
    shown = [f"{amount:g} {name}" for amount, name in amounts if amount]
    shown = [text.replace("TPU", "TPU chips") for text in shown]
    return " and ".join(shown).replace("1 TPU chips", "1 TPU chip") or "no CPU or GPU"


# -- machines --------------------------------------------------------------------------------------


def is_tpu(accelerator: str | None) -> bool:
    """Whether the name alone says of which machines a trial gets a share."""
    return accelerator in _TPUS


def plan_nodes(accelerator: str | None) -> list[Node]:
    """The machines for a plan without a cluster: Google's for a TPU, else this machine."""
    if accelerator not in _TPUS:
        return [this_machine(accelerator)]
    tpu = _TPUS[accelerator]
    labels = {POD_TYPE: tpu.pod_type, SLICE_NAME: "planned"}
    host = Node({"CPU": 96.0, "TPU": float(CHIPS_PER_HOST)}, labels)
    return [host] * tpu.num_hosts


def this_machine(accelerator: str | None) -> Node:
    """What this process may use. It looks for GPUs and TPUs only if one may be used."""
    resources, labels = {"CPU": float(usable_cores())}, {}
    chips = tpu_chips()
    if chips and (accelerator is None or accelerator.startswith("tpu")):
        resources["TPU"] = float(chips)
        kind = _tpu_type()
        if kind is not None:
            labels[POD_TYPE] = kind
    devices = ("nvidia[0-9]*", "dxg", "kfd")  # Nvidia, Windows' Linux, AMD
    may_use_gpu = accelerator is None or accelerator.startswith("gpu")
    if may_use_gpu and any(any(Path("/dev").glob(name)) for name in devices):
        import torch

        resources["GPU"] = float(torch.cuda.device_count())
    return Node(resources, labels)


def tpu_chips(devices: Path = Path("/dev")) -> int:
    """The number of TPU chips of this machine."""
    return len(list(devices.glob("accel[0-9]*")))


def _tpu_type() -> str | None:
    """ "v3-8": from the environment on GKE, or from the metadata server on a TPU VM."""
    if kind := os.environ.get("TPU_ACCELERATOR_TYPE"):
        return kind
    address = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
    asked = urllib.request.Request(
        address + "accelerator-type", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=2) as answer:
            return answer.read().decode().strip()
    except (urllib.error.URLError, OSError):
        return None
