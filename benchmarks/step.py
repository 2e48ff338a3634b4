"""The training step and inference compared with timm's MambaOut, on equal weights and images.

Run:    python benchmarks/step.py --dtype fp32 --json results/step-fp32.json
        python benchmarks/step.py --device cuda --dtype bf16 --json rows.json
Costs:  about 4 min on 2 quiet cores; on a GPU not measured, most of it compiling
Prints: two lines a contender: its images/s, and its ratio to timm's, the median of --rounds rounds
        with the lowest and the highest; the rounds of all contenders alternate

| variant | network | image | batch |
|---|---|---|---|
| femto, tiny | published | 224 px | 16, 8 |
| w16-d10, w32-d4, w8-d4 | of the study on a laptop: width of the first stage, blocks | 28 px | 64 |
| tiny, small, base with `--device cuda` | published | 224 px | 64, 128, 256 |

timm's network is its own class. In the small networks, conv1 of timm's stem gets stride 1, because
timm has no stem for small images, and its blocks get our hidden widths. A training step is forward,
loss, backward and AdamW. Each side uses its usual AdamW: ours is the run's own update, timm's is
torch's default. With one thread, CPU time is measured, because other work on the machine changes it
little. With more threads, wall time is measured. On a GPU, CUDA events measure 20 steps in a row.

On a GPU, or with --compiled, the contenders are timm and ours, each eager and compiled, each with
images and weights in torch's usual layout and in channels_last. Beside `base` there is `ours,
aligned`: base with hidden channels rounded up to a multiple of 8, which is 0.3 % more MACs. It is
another network, so its results are not compared.

Before the measurement, each cell checks that all are equal in fp32: outputs within 1e-5 of the
largest, and gradients within 2e-5 of each parameter's largest; on a GPU within 1e-4 and 1e-3,
because cuDNN chooses algorithms by layout. In bf16, our gradients may be no farther from those of
fp32 than timm's are.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaout.model.network import MambaOut, build
from mambaout.recipe import BASELINE
from mambaout.train import compiler
from mambaout.train.backend import backend
from mambaout.train.compiler import compiled
from mambaout.train.facts import git_commit
from mambaout.train.optim import optimizer, take_step
from mambaout.variants import ALIGNMENT, VARIANTS, ModelConfig

SMALL = ModelConfig(stem_stride=2)
PARTS = ("train", "infer")
# Relative to the largest value. After 18 blocks, another order of the same sums differs by so much.
OFF = {"cpu": (1e-5, 2e-5), "cuda": (1e-4, 1e-3)}  # of outputs, of gradients
GPU_VARIANTS, GPU_BATCHES = ("tiny", "small", "base"), (64, 128, 256)
GPU_STEPS = 20  # in a row: one alone would be measured with the launch of its first kernels
RATE, WEIGHT_DECAY = 1e-3, 0.05
FIRST = "timm"
ALIGNED = "ours, aligned"


@dataclass(frozen=True)
class Cell:
    """One network at one batch size."""

    config: ModelConfig
    image_size: int
    batch: int
    num_classes: int


def shape(width: int, *depths: int) -> ModelConfig:
    dims = (width, 2 * width, 4 * width, 6 * width)
    return replace(SMALL, dims=dims, depths=depths)


CELLS = {
    "femto": Cell(VARIANTS["femto"], 224, 16, 1000),
    "tiny": Cell(VARIANTS["tiny"], 224, 8, 1000),
    "small": Cell(VARIANTS["small"], 224, 4, 1000),
    "base": Cell(VARIANTS["base"], 224, 4, 1000),
    "w16-d10": Cell(shape(16, 2, 2, 4, 2), 28, 64, 10),
    "w32-d4": Cell(shape(32, 1, 1, 1, 1), 28, 64, 10),
    "w8-d4": Cell(shape(8, 1, 1, 1, 1), 28, 64, 10),
}


CPU_VARIANTS = ("femto", "tiny", "w16-d10", "w32-d4", "w8-d4")


def timms(cell: Cell, ours: MambaOut) -> nn.Module:
    """timm's network with the cell's shape and our weights."""
    from timm.models import mambaout

    config = cell.config
    theirs: Any = mambaout.MambaOut(
        num_classes=cell.num_classes, depths=config.depths, dims=config.dims
    )
    for stage, dim in zip(theirs.stages, config.dims, strict=True):
        for index in range(len(stage.blocks)):
            stage.blocks[index] = mambaout.GatedConvBlock(
                dim,
                expansion_ratio=(config.hidden(dim) + 0.5) / dim,
                kernel_size=config.kernel_size,
                conv_ratio=config.conv_ratio,
            )
    theirs.stem.conv1.stride = (config.stem_stride // 2,) * 2
    theirs.load_state_dict(ours.state_dict())
    return theirs


# -- what is measured -----------------------------------------------------------------------------


@dataclass
class Contender:
    """A network with its images, for training and inference."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    precision: str
    optimizer: torch.optim.Optimizer
    update: Callable[[], None]  # takes a step of the optimizer
    is_compiled: bool = False

    def logits(self) -> Tensor:
        call = compiled(_logits) if self.is_compiled else _logits
        return call(self.model, self.images, self.precision == "bf16")

    def loss(self) -> Tensor:
        call = compiled(_loss) if self.is_compiled else _loss
        return call(self.model, self.images, self.labels, self.precision == "bf16")

    def outputs(self) -> Tensor:
        self.model.train()
        with torch.no_grad():
            return self.logits().float()

    def gradients(self) -> dict[str, Tensor]:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        found = {name: p.grad for name, p in self.model.named_parameters()}
        return {name: grad.clone() for name, grad in found.items() if grad is not None}

    def train(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.update()

    def infer(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.logits()


def _logits(model: nn.Module, images: Tensor, is_low: bool) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=is_low):
        return model(images)


def _loss(model: nn.Module, images: Tensor, labels: Tensor, is_low: bool) -> Tensor:
    return F.cross_entropy(_logits(model, images, is_low).float(), labels)


def contenders(
    cell: Cell,
    precision: str,
    device: str,
    *,
    has_compiled: bool = False,
    has_aligned: bool = False,
) -> dict[str, Contender]:
    """The contenders of the cell. The first is timm, with which the others are compared."""
    torch.manual_seed(0)
    config = replace(cell.config, drop_path=0.0)
    ours = build(config, cell.num_classes)
    networks: dict[str, nn.Module] = {FIRST: timms(cell, ours), "ours": ours}
    images = torch.randn(cell.batch, 3, cell.image_size, cell.image_size).to(device)
    labels = torch.randint(cell.num_classes, (cell.batch,)).to(device)
    if not has_compiled:
        return {
            name: contender(name, network.to(device), config, images, labels, precision)
            for name, network in networks.items()
        }
    found = {}
    for text, layout in (("", torch.contiguous_format), (", channels last", torch.channels_last)):
        laid = images.contiguous(memory_format=layout)
        for name, network in networks.items():
            for mode in ("", ", compiled"):
                mine: Any = copy.deepcopy(network)  # nn.Module.to's types leave memory_format out
                mine = mine.to(device, memory_format=layout)
                one = contender(name + text + mode, mine, config, laid, labels, precision)
                found[name + text + mode] = one
    if has_aligned:
        wider = replace(config, hidden_multiple=ALIGNMENT)
        name, network = f"{ALIGNED}, compiled", build(wider, cell.num_classes).to(device)
        found[name] = contender(name, network, wider, images, labels, precision)
    return found


def contender(
    name: str,
    network: nn.Module,
    config: ModelConfig,
    images: Tensor,
    labels: Tensor,
    precision: str,
) -> Contender:
    is_compiled = name.endswith("compiled")
    usual = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    found = Contender(network, images, labels, precision, usual, usual.step, is_compiled)
    if name.startswith("ours"):
        where = backend(images.device.type, compiles=is_compiled)
        found.optimizer = optimizer(network, replace(BASELINE, model=config), where)
        found.update = lambda: take_step(found.optimizer, RATE, WEIGHT_DECAY, where)
    return found


def check_equal(
    found: dict[str, Contender], cell: Cell, precision: str, device: str
) -> dict[str, float]:
    """The largest differences of outputs and gradients from timm's. They must be rounding
    errors."""
    others = [name for name in found if name != FIRST and not name.startswith(ALIGNED)]
    grads = found[FIRST].gradients()
    if precision == "fp32":
        outputs = found[FIRST].outputs()
        out = max(_off(found[name].outputs(), outputs) for name in others)
        grad = 0.0
        for name in others:
            other = found[name].gradients()
            grad = max(grad, *(_off(other[key], wanted) for key, wanted in grads.items()))
        most = OFF[device]
        assert out < most[0], f"outputs differ by {out:.2g}"
        assert grad < most[1], f"gradients differ by {grad:.2g}"
        return {"outputs_off": out, "gradients_off": grad}
    exact = contenders(cell, "fp32", device)[FIRST].gradients()
    timms_norm = _distance(grads, exact)
    norm = max(_distance(found[n].gradients(), exact) for n in others if n.startswith("ours"))
    assert norm <= 1.05 * timms_norm, f"farther from fp32 than timm: {norm}, {timms_norm}"
    return {"gradients_off_fp32": norm, "timms_gradients_off_fp32": timms_norm}


def _distance(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The median over the parameters of the gradients' relative errors."""
    return statistics.median(
        float((found[name] - wanted).norm() / wanted.norm()) for name, wanted in exact.items()
    )


def _off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def seconds(work: Callable[[], None], device: str, num_threads: int) -> float:
    """The time of one call of `work`."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(GPU_STEPS):
            work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000 / GPU_STEPS
    clock = time.process_time if num_threads == 1 else time.perf_counter
    began = clock()
    work()
    return clock() - began


Times = dict[tuple[str, str], list[float]]  # seconds a step in each round, by contender and part


def measured(found: dict[str, Contender], options: argparse.Namespace) -> Times:
    times: Times = {}
    for index in range(options.rounds + 1):
        for name, one in found.items():
            for part in PARTS:
                taken = seconds(getattr(one, part), options.device, options.threads)
                if index > 0:  # the first warms up, and compiles
                    times.setdefault((name, part), []).append(taken)
    return times


def rows_of(times: Times, batch: int) -> list[dict[str, Any]]:
    """One row for training and one for inference, for each contender except timm."""
    rows = []
    for name in dict.fromkeys(name for name, _ in times):
        for part in PARTS if name != FIRST else ():
            ratios = _ratios(times[FIRST, part], times[name, part])
            peers = [peer for peer, of in times if of == part and peer.startswith(FIRST)]
            fastest = min(peers, key=lambda peer: statistics.median(times[peer, part]))
            to_fastest = statistics.median(_ratios(times[fastest, part], times[name, part]))
            rows.append(
                {
                    "contender": name,
                    "part": part,
                    "ratio": statistics.median(ratios),
                    "lowest": ratios[0],
                    "highest": ratios[-1],
                    "ratio_to_fastest_timm": to_fastest,
                    "fastest_timm": fastest,
                    "images_per_second": batch / statistics.median(times[name, part]),
                    "timm_images_per_second": batch / statistics.median(times[FIRST, part]),
                }
            )
    return rows


def _ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """How many times as fast ours is in each round, sorted."""
    return sorted(their / our for their, our in zip(theirs, ours, strict=True))


def ratio_to_timm(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Our ratio in training and in inference by variant. If there are compiled networks, ours is
    compiled, as in a run, and timm's is the fastest of its contenders; at the largest batch."""
    has_compiled = any(row["contender"] == "ours, compiled" for row in rows)
    ours, column = ("ours", "ratio")
    if has_compiled:
        ours, column = ("ours, compiled", "ratio_to_fastest_timm")
    found: dict[str, dict[str, float]] = {}
    for row in sorted(rows, key=lambda row: row["batch"]):
        if row["contender"] == ours:
            found.setdefault(row["variant"], {})[row["part"]] = row[column]
    return found


def rows_of_cell(
    name: str, cell: Cell, options: argparse.Namespace, has_compiled: bool
) -> list[dict[str, Any]]:
    """The rows of a cell, after its check. Frees its memory."""
    found = contenders(
        cell,
        options.dtype,
        options.device,
        has_compiled=has_compiled,
        has_aligned=has_compiled and name == "base",
    )
    equal = check_equal(found, cell, options.dtype, options.device)
    rows = rows_of(measured(found, options), cell.batch)
    return [{"variant": name, "batch": cell.batch, **row, **equal} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="*", choices=CELLS)
    parser.add_argument("--batches", nargs="*", type=int, help="instead of the table's")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compiled", action="store_true", help="all contenders, as on a GPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    torch.set_num_threads(options.threads)
    # It sets what fp32 is: on a GPU, both sides do without TF32.
    device = backend(options.device, compiles=False).device_name
    has_compiled = on_gpu or options.compiled
    if has_compiled and (reason := compiler.why_not(options.device)) is not None:
        parser.error(f"torch.compile does not work here: {reason}")
    machine = {"device": device, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    rows: list[dict[str, Any]] = []
    for name in options.variants or (GPU_VARIANTS if on_gpu else CPU_VARIANTS):
        batches = options.batches or (GPU_BATCHES if on_gpu else [CELLS[name].batch])
        for cell in [replace(CELLS[name], batch=batch) for batch in batches]:
            try:
                found = rows_of_cell(name, cell, options, has_compiled)
            except torch.OutOfMemoryError:
                print(f"{name:8} batch {cell.batch}: out of memory, left out", flush=True)
                continue
            rows += found
            for row in found:
                print(
                    f"{name:8} {options.dtype} batch {cell.batch} {row['part']:5} "
                    f"{row['contender']}: {row['images_per_second']:,.1f} images/s, "
                    f"{row['ratio']:.2f} times timm ({row['lowest']:.2f} to {row['highest']:.2f}), "
                    f"{row['ratio_to_fastest_timm']:.2f} times {row['fastest_timm']}",
                    flush=True,
                )
    if options.json:
        body = {
            "ratio_to_timm": ratio_to_timm(rows),
            "rows": rows,
            "machine": machine | {"torch": torch.__version__, "timm": version("timm")},
            "commit": git_commit(),
            "command": " ".join(["python benchmarks/step.py", *sys.argv[1:]]),
            "rounds": options.rounds,
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
