"""The training step and inference compared with timm's MambaOut, on equal weights and images.

Run:    python benchmarks/step.py --dtype fp32 --json results/step-fp32.json
        python benchmarks/step.py --device cuda --dtype bf16      where a GPU is
Costs:  about 4 min on 2 quiet cores
Prints: two lines a variant: timm's images/s, and ours over timm's, the median of --rounds rounds
        with the lowest and the highest; the rounds of the two alternate

| variant | network | image | batch |
|---|---|---|---|
| femto, tiny | published | 224 px | 16, 8 |
| w16-d10, w32-d4, w8-d4 | of the study on a laptop: width of the first stage, blocks | 28 px | 64 |

timm's network is its own class. In the small networks, conv1 of timm's stem gets stride 1, because
timm has no stem for small images, and its blocks get our hidden widths. A training step is forward,
loss, backward and AdamW. Each side uses its usual AdamW: ours is fused, timm's is torch's default.
With one thread, CPU time is measured, because other work on the machine changes it little. With
more threads, wall time is measured.

Before the measurement, each cell checks that both are equal in fp32: outputs within 1e-5 of the
largest, and gradients within 2e-5 of each parameter's largest. In bf16, our gradients may be no
farther from those of fp32 than timm's are.
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
from mambaout.train.cpu import cpu_name
from mambaout.train.facts import git_commit
from mambaout.variants import VARIANTS, ModelConfig

SMALL = ModelConfig(stem_stride=2)
PARTS = ("train", "infer")
# Relative to the largest value. After 18 blocks, another order of the same sums differs by so much.
OUTPUTS_OFF, GRADIENTS_OFF = 1e-5, 2e-5


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
    "w16-d10": Cell(shape(16, 2, 2, 4, 2), 28, 64, 10),
    "w32-d4": Cell(shape(32, 1, 1, 1, 1), 28, 64, 10),
    "w8-d4": Cell(shape(8, 1, 1, 1, 1), 28, 64, 10),
}


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

    def logits(self) -> Tensor:
        device = self.images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(self.images)

    def gradients(self) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.logits().float(), self.labels).backward()
        found = {name: p.grad for name, p in self.model.named_parameters()}
        return {name: grad.clone() for name, grad in found.items() if grad is not None}

    def train(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.logits().float(), self.labels).backward()
        self.optimizer.step()

    def infer(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.logits()


def contenders(cell: Cell, precision: str, device: str) -> dict[str, Contender]:
    """The contenders of the cell. The first is timm, with which the others are compared."""
    torch.manual_seed(0)
    ours = build(replace(cell.config, drop_path=0.0), cell.num_classes)
    theirs = timms(cell, ours)
    images = torch.randn(cell.batch, 3, cell.image_size, cell.image_size).to(device)
    labels = torch.randint(cell.num_classes, (cell.batch,)).to(device)
    networks: dict[str, Any] = {"timm": theirs.to(device), "ours": ours.to(device)}
    if device == "cuda":
        last: Any = copy.deepcopy(theirs)  # nn.Module.to's types leave memory_format out
        networks["timm, channels last"] = last.to(memory_format=torch.channels_last)
        networks["timm, compiled"] = torch.compile(copy.deepcopy(theirs))
        networks["ours, compiled"] = torch.compile(copy.deepcopy(ours))
    return {
        name: Contender(
            network,
            images,
            labels,
            precision,
            torch.optim.AdamW(network.parameters(), fused=True if name[:4] == "ours" else None),
        )
        for name, network in networks.items()
    }


def check_equal(cell: Cell, precision: str, device: str) -> dict[str, float]:
    """The largest differences of outputs and gradients. They must be rounding errors."""
    found = contenders(cell, precision, device)
    theirs, ours = found["timm"], found["ours"]
    theirs.model.train(), ours.model.train()
    with torch.no_grad():
        outputs = [one.logits().float() for one in (theirs, ours)]
    grads = [one.gradients() for one in (theirs, ours)]
    if precision == "fp32":
        out = _off(outputs[1], outputs[0])
        grad = max(_off(grads[1][name], wanted) for name, wanted in grads[0].items())
        assert out < OUTPUTS_OFF, f"outputs differ by {out:.2g}"
        assert grad < GRADIENTS_OFF, f"gradients differ by {grad:.2g}"
        return {"outputs_off": out, "gradients_off": grad}
    exact = contenders(cell, "fp32", device)["timm"].gradients()
    norms = [
        statistics.median(
            float((side[name] - wanted).norm() / wanted.norm()) for name, wanted in exact.items()
        )
        for side in grads
    ]
    assert norms[1] <= 1.05 * norms[0], f"farther from fp32 than timm: {norms[1]}, {norms[0]}"
    return {"gradients_off_fp32": norms[1], "timms_gradients_off_fp32": norms[0]}


def _off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def seconds(work: Callable[[], None], device: str, num_threads: int) -> float:
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    clock = time.process_time if num_threads == 1 else time.perf_counter
    began = clock()
    work()
    return clock() - began


def measured(cell: Cell, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for training and one for inference, for each contender except timm."""
    found = contenders(cell, options.dtype, options.device)
    times: dict[tuple[str, str], list[float]] = {}
    for index in range(options.rounds + 1):
        for name, one in found.items():
            for part in PARTS:
                taken = seconds(getattr(one, part), options.device, options.threads)
                if index > 0:  # the first warms up
                    times.setdefault((name, part), []).append(taken)
    rows = []
    for name in list(found)[1:]:
        for part in PARTS:
            pairs = zip(times["timm", part], times[name, part], strict=True)
            ratios = sorted(theirs / ours for theirs, ours in pairs)
            rows.append(
                {
                    "contender": name,
                    "part": part,
                    "ratio": statistics.median(ratios),
                    "lowest": ratios[0],
                    "highest": ratios[-1],
                    "timm_images_per_second": cell.batch / statistics.median(times["timm", part]),
                }
            )
    return rows


def ratio_to_timm(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Our ratio in training and in inference by variant; the compiled network's where there is
    one."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["contender"].startswith("ours"):
            found.setdefault(row["variant"], {})[row["part"]] = row["ratio"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="*", default=list(CELLS), choices=CELLS)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else cpu_name(options.threads)
    machine = {"device": device, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    rows: list[dict[str, Any]] = []
    torch.set_num_threads(options.threads)
    for name in options.variants:
        cell = CELLS[name]
        equal = check_equal(cell, options.dtype, options.device)
        for row in measured(cell, options):
            rows.append({"variant": name, "batch": cell.batch, **row, **equal})
            print(
                f"{name:8} {options.dtype} {row['part']:5} {row['contender']}: "
                f"{row['ratio']:.2f} times timm ({row['lowest']:.2f} to {row['highest']:.2f}), "
                f"which has {row['timm_images_per_second']:,.1f} images/s",
                flush=True,
            )
    if options.json:
        body = {
            "ratio_to_timm": ratio_to_timm(rows),
            "rows": rows,
            "machine": machine | {"torch": torch.__version__, "timm": version("timm")},
            "command": " ".join(["python benchmarks/step.py", *sys.argv[1:]]),
            "commit": git_commit(),
            "rounds": options.rounds,
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
