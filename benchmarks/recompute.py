"""The memory and the time of --recompute, beside timm's checkpointing, on equal weights and images.

Run:    python benchmarks/recompute.py --json results/recompute.json
Costs:  5 min of one core
Prints: one line a contender: the memory of an image, the time of a step over that of the same
        network without recomputation, and over timm's; the median of --rounds rounds with the
        lowest and the highest; the rounds of the contenders alternate

The contenders are timm's network, without and with its set_grad_checkpointing(), and ours without
--recompute and with the stages 1, 1,2 and all. The networks, batches and steps are those of
step.py. Memory is counted in bytes of tensors. That of an image is the difference of two batches:

- kept: what autograd keeps from the forward to the backward pass (saved_tensors_hooks).
- peak: the most that forward and backward hold at once (torch.profiler, CUDA's own counter).

Recomputation must change no bit. Each cell checks that our gradients are the same with and without.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step import CELLS, Cell, Contender, contenders, seconds
from step import contender as contender_of
from torch import Tensor

from mambaout.memory import MIB
from mambaout.recompute import ALL_STAGES, stages_text
from mambaout.train.cpu import cpu_name
from mambaout.train.facts import git_commit

STAGES = ((1,), (1, 2), ALL_STAGES)
TIMM, TIMM_LESS, OURS = "timm", "timm, checkpointing", "ours"
PLAIN = {TIMM_LESS: TIMM} | {f"{OURS}, {stages_text(stages)}": OURS for stages in STAGES}


def with_recompute(cell: Cell, precision: str, device: str) -> dict[str, Contender]:
    """The contenders of the cell, timm's first."""
    found = contenders(cell, precision, device)

    def another(name: str, change: Callable[[Any], None]) -> Contender:
        plain = found[name]
        model: Any = copy.deepcopy(plain.model)
        change(model)
        config = replace(cell.config, drop_path=0.0)
        return contender_of(name, model, config, plain.images, plain.labels, precision)

    wanted = {
        TIMM: found[TIMM],
        TIMM_LESS: another(TIMM, lambda model: model.set_grad_checkpointing(True)),
        OURS: found[OURS],
    }
    for stages in STAGES:
        name = f"{OURS}, {stages_text(stages)}"
        wanted[name] = another(OURS, lambda model, stages=stages: model.set_recompute(stages))
    for one in wanted.values():
        one.model.train()
    return wanted


def check_same_bits(found: dict[str, Contender]) -> None:
    wanted = found[OURS].gradients()
    for name, one in found.items():
        if PLAIN.get(name) == OURS:
            for parameter, grad in one.gradients().items():
                assert torch.equal(grad, wanted[parameter]), f"{name}: {parameter} differs"


# -- memory ---------------------------------------------------------------------------------------


def kept_bytes(one: Contender) -> int:
    """Bytes that autograd keeps of a forward pass, each storage once; with the parameters."""
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = one.logits()
    del logits
    return sum(storage.nbytes() for storage in found.values())


def peak_bytes(one: Contender, device: str) -> int:
    """The most bytes that forward and backward hold at once, above those before them."""

    def work() -> None:
        F.cross_entropy(one.logits().float(), one.labels).backward()

    one.optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        work()
    profiler: Any = profiled.profiler  # its memory events are behind no public name
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def of_an_image(one: Contender, measure: Callable[[Contender], int]) -> float:
    """MiB for each image more, from half the batch and the whole."""
    batch = len(one.images)
    sizes = (batch // 2, batch)
    few, more = (
        measure(replace(one, images=one.images[:size], labels=one.labels[:size])) for size in sizes
    )
    return (more - few) / (sizes[1] - sizes[0]) / MIB


# -- time -----------------------------------------------------------------------------------------


def spread(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The ratio of each pair's times: the median, the lowest and the highest."""
    ratios = sorted(one / other for one, other in pairs)
    return {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}


def measured(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each contender of the network `name`."""
    cell = CELLS[name]
    found = with_recompute(cell, options.dtype, options.device)
    check_same_bits(found)
    memory = {
        contender: {
            "kept_mib": of_an_image(one, kept_bytes),
            "peak_mib": of_an_image(one, lambda one: peak_bytes(one, options.device)),
        }
        for contender, one in found.items()
    }
    times: dict[str, list[float]] = {contender: [] for contender in found}
    for index in range(options.rounds + 1):
        for contender, one in found.items():
            taken = seconds(one.train, options.device, options.threads)
            if index > 0:  # the first warms up
                times[contender].append(taken)

    def over(contender: str, other: str) -> dict[str, float]:
        return spread(list(zip(times[contender], times[other], strict=True)))

    return [
        {
            "variant": name,
            "batch": cell.batch,
            "contender": contender,
            **memory[contender],
            "time_to_plain": over(contender, PLAIN.get(contender, contender)),
            "time_to_timm": over(contender, TIMM),
            "time_to_timm_checkpointing": over(contender, TIMM_LESS),
            "images_per_second": cell.batch / statistics.median(times[contender]),
        }
        for contender in found
    ]


def ratio_to_timm(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By variant, ours with all stages to timm's with checkpointing: speed and memory."""
    found: dict[str, dict[str, float]] = {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        of = {row["contender"]: row for row in rows if row["variant"] == variant}
        ours, theirs = of[f"{OURS}, all"], of[TIMM_LESS]
        found[variant] = {
            "train": 1 / ours["time_to_timm_checkpointing"]["median"],
            "kept": ours["kept_mib"] / theirs["kept_mib"],
            "peak": ours["peak_mib"] / theirs["peak_mib"],
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["femto", "tiny", "w16-d10"]
    parser.add_argument("--variants", nargs="*", default=default, choices=CELLS)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else cpu_name(options.threads)
    machine = {"device": device, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    rows: list[dict[str, Any]] = []
    torch.set_num_threads(options.threads)
    for name in options.variants:
        for row in measured(name, options):
            rows.append(row)
            plain, timm = row["time_to_plain"], row["time_to_timm"]
            print(
                f"{name:8} {options.dtype} {row['contender']:20} an image: "
                f"kept {row['kept_mib']:6.2f} MiB, peak {row['peak_mib']:6.2f} MiB; "
                f"a step: {plain['median']:.2f} times without it "
                f"({plain['lowest']:.2f} to {plain['highest']:.2f}), "
                f"{timm['median']:.2f} times timm ({timm['lowest']:.2f} to {timm['highest']:.2f})",
                flush=True,
            )
    if options.json:
        body = {
            "ratio_to_timm": ratio_to_timm(rows),
            "rows": rows,
            "machine": machine | {"torch": torch.__version__, "timm": version("timm")},
            "command": " ".join(["python benchmarks/recompute.py", *sys.argv[1:]]),
            "commit": git_commit(),
            "rounds": options.rounds,
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
