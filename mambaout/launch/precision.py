"""The number format of a study's matrix products. It is chosen before the recipes are made.

It depends on the devices of the trials (mambaout/rules.py). It is a value in every recipe, and so a
part of every trial's key. A study keeps the format with which it began; study.json stores it. So a
launch from another machine, to go on or to report, refers to the same trials.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from mambaout.applied_rules import PRECISION, AppliedRule, multiplies_bf16, precision_rule
from mambaout.chips import Chip
from mambaout.errors import WrongRequest
from mambaout.launch.cluster import cluster_address, join, leave
from mambaout.launch.resources import GPU_TYPE, Node, share, this_machine
from mambaout.recipe import BASELINE
from mambaout.study.study import StudyFolder
from mambaout.train.gpus import gpus

TPU = "TPU v3"  # every TPU of --accelerator is of this kind
ASK_SECONDS = 120.0  # longest time for a machine of a cluster to report its GPUs
NOT_UP = "a GPU that is not up yet"
# Ray's names for groups of GPUs that the chip table lists one by one. All GPUs of a group agree on
# bf16.
_KINDS = {
    "A100": "A100 40GB",
    "A100-40G": "A100 40GB",
    "A100-80G": "A100 80GB",
    "V100": "V100 SXM2 16GB",
}


@dataclass(frozen=True)
class Precision:
    """The number format in which a study's trials multiply."""

    value: str
    why: str = ""  # the reason given when the study began
    rule: AppliedRule | None = None  # for its recipes; None if they have it already

    def to_json(self) -> dict[str, str]:
        """For study.json."""
        return {"value": self.value, "why": self.why}


def precision_of(
    folder: StudyFolder,
    given: str | None,
    *,
    accelerator: str | None,
    address: str | None,
    rerun: bool,
    chip: Chip | None = None,
) -> Precision:
    """The given precision, else that with which the study began, else that of its devices.

    `chip` is the GPU for which a study is planned, wherever it is.

    A cluster is asked only if nothing else decides, and then left again. WrongRequest if it does
    not answer or lacks what a trial needs.
    """
    if given is not None:
        is_here = chip is not None or cluster_address(address) is None
        if given != "fp32" and is_here and not _is_named(accelerator):
            _require_units(given, _devices(accelerator, address, chip))
        return Precision(given, f"--precision {given}")
    begun = None if rerun else _begun(folder)
    if begun is None:
        return _default(_devices(accelerator, address, chip))
    if chip is not None or cluster_address(address) is None or _is_named(accelerator):
        default = _default(_devices(accelerator, address, chip))
        if begun.value == default.value:
            return replace(begun, rule=default.rule)
        reason = f"here it would be {default.value}"
    elif begun.value == BASELINE.precision:
        return begun
    else:
        reason = begun.why or "whatever its devices are now"
    kept = f"the study was begun with it ({reason}); --precision or --rerun changes it"
    return replace(begun, rule=AppliedRule(PRECISION, begun.value, kept))


def _require_units(precision: str, devices: Mapping[str, bool | None]) -> None:
    """WrongRequest if a GPU is known to have no units for bf16; then it has none for TF32."""
    slow = [name for name, has_units in devices.items() if has_units is False]
    if slow:
        raise WrongRequest(
            f"--precision {precision}: {' and '.join(slow)} has no units for it, which begin with "
            "compute capability 8.0; give --precision fp32"
        )


def _begun(folder: StudyFolder) -> Precision | None:
    """The precision in study.json; None if there is no such file."""
    try:
        study = folder.read()
    except FileNotFoundError:
        return None
    if PRECISION in study:
        return Precision(study[PRECISION]["value"], study[PRECISION]["why"])
    # An earlier version wrote the file. There, no device changed the precision.
    return Precision(study.get("given", {}).get(PRECISION, BASELINE.precision))


def _default(devices: Mapping[str, bool | None]) -> Precision:
    rule = precision_rule(devices)
    if rule is None:
        return Precision(BASELINE.precision)
    return Precision(rule.value, rule.reason, rule)


# -- the devices of a trial ------------------------------------------------------------------------


def _is_named(accelerator: str | None) -> bool:
    """Whether the name alone determines the devices."""
    return accelerator is not None and (accelerator == "cpu" or accelerator.startswith("tpu"))


def _devices(
    accelerator: str | None, address: str | None, chip: Chip | None
) -> dict[str, bool | None]:
    """The kinds of TPU and GPU that a trial may get, and whether each multiplies in bf16."""
    if chip is not None:
        return {chip.name: multiplies_bf16(chip.name)}
    if _is_named(accelerator):
        return {} if accelerator == "cpu" else {TPU: multiplies_bf16(TPU)}
    with ExitStack() as cleanup:
        cluster = cluster_address(address)
        nodes = [this_machine(accelerator)]
        if cluster is not None:
            nodes = join(cluster)
            cleanup.callback(leave)
        part = share(accelerator, nodes)
        if part.device is not None:
            return {part.device: multiplies_bf16(part.device)}
        if not part.gpus:
            return {}
        if cluster is None:
            return gpus()
        found: dict[str, bool | None] = {}
        for node in nodes:
            if node.has("GPU") >= 1:
                found |= gpus_of(node)
        return dict(sorted(found.items()))  # nodes come in any order


def kinds_of_gpu(nodes: Sequence[Node]) -> set[str]:
    """The names that the drivers of a cluster's machines have for their GPUs.

    A machine that does not answer in time has Ray's name for them.
    """
    found: set[str] = set()
    for node in nodes:
        if node.has("GPU") >= 1:
            answered = _asked(node) if node.id else {}
            found |= set(answered) or {node.labels.get(GPU_TYPE, NOT_UP)}
    return found


def gpus_of(node: Node) -> dict[str, bool | None]:
    """The kinds of GPU of a cluster's machine, by Ray's names, else by the machine's."""
    kind = node.labels.get(GPU_TYPE, "")
    known = multiplies_bf16(_KINDS.get(kind, kind))
    if known is None and node.id and (asked := _asked(node)):
        return asked
    return {kind or NOT_UP: known}


def _asked(node: Node) -> dict[str, bool | None]:
    """The machine's own answer; empty if it does not answer in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there: Any = NodeAffinitySchedulingStrategy(node.id, soft=False)
    # Ask without a share of a GPU, because another study's trials may use all GPUs.
    work: Any = ray.remote(num_cpus=0, max_calls=1, max_retries=0, scheduling_strategy=there)(
        _gpus_of_this_host
    )
    try:
        return ray.get(work.remote(), timeout=ASK_SECONDS)
    except Exception:  # Ray's copy of any error; then the kinds are unknown, which is reported
        return {}


def _gpus_of_this_host() -> dict[str, bool | None]:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # it is empty: Ray gives this process no GPU
    return gpus()
