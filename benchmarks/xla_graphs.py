"""The graphs that XLA gets for a training step and for inference, compared with timm's MambaOut.

Run:    python benchmarks/xla_graphs.py --json results/xla-graphs.json
Costs:  about 10 min on 2 quiet cores; needs no TPU, torch_xla compiles for the CPU
Prints: a line for each variant, precision and part, with the counts of both and their ratios

| part | our graphs | timm's |
|---|---|---|
| infer | the forward pass | the same |
| train | a micro-batch adds its gradients; the step | forward, loss, backward and AdamW in one |

Both sides begin with equal weights, and get the same uint8 images, drop path and label smoothing.
Both are one SPMD program. timm's step is its network, LabelSmoothingCrossEntropy and
create_optimizer_v2's AdamW; `torch_xla.sync` ends it. Ours is `train_step`, as a run calls it.

Counts come from the text of the modules that XLA dumps, all computations of a module together:
"before" is what torch_xla gives to the compiler, "after" is what the CPU's compiler makes of it. A
TPU's compiler gets the same "before", and makes something else of it. "computing" leaves out the
instructions that compute nothing: parameters, constants, tuples, calls. timm's norms are XLA's
batch norms, each of which counts as one and is taken apart by the compiler. A count of a training
step is that of the step's last graphs: timm's first step has a graph of its own. torch_xla 2.9 has
no cost analysis.

Times are CPU seconds, in a new process each; the two sides run at the same time. "trace" is a step
without its graph cuts, so Python and the recorded operations. "compile" is the cuts of the steps
that compile, and "graphs" is how many those are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from step import CELLS, Cell, timms

from mambaout.data.batches.loader import Batch
from mambaout.model.network import build
from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.train.backend import Backend, backend
from mambaout.train.cpu import cpu_name
from mambaout.train.facts import git_commit
from mambaout.train.optim import optimizer
from mambaout.train.step import TrainState, placed, train_step

SIDES = ("timm", "ours")
PARTS = ("infer", "train")
BATCH = 4  # the graphs of another batch have the same instructions
SMOOTHING, DROP_PATH = 0.1, 0.1
STEPS = 4  # the first two compile, the others are traced
COUNTS = ("instructions", "computing", "transposes", "copies", "moved_mb", "all_gathers", "unasked")
RATIOS = ("instructions", "computing", "transposes")  # in `ratio_to_timm`, with trace and compile
# They name or group values. A call's computation is put in its place before all else. The only
# custom call is "Sharding", which says where a value lies.
NOT_COMPUTING = ("parameter", "constant", "tuple", "get-tuple-element", "call", "custom-call")


# -- what a module holds --------------------------------------------------------------------------

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-0-9]*)\(", re.MULTILINE)
FP32_PRODUCT = re.compile(r"^.* = f32\[.*? (?:convolution|dot)\(.*$", re.MULTILINE)
SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")


def counted(text: str) -> dict[str, float]:
    """The instructions of an HLO module, of all its computations."""
    found = INSTRUCTION.findall(text)
    names = Counter(name for _, name in found)
    moved = (result_bytes(shape) for shape, name in found if name in ("transpose", "copy"))
    return {
        "instructions": len(found),
        "computing": len(found) - sum(names[name] for name in NOT_COMPUTING),
        "transposes": names["transpose"],
        "copies": names["copy"],
        "moved_mb": sum(moved) / 1e6,  # the results of transposes and copies
        "all_gathers": names["all-gather"] + names["all-to-all"],
        # Products of fp32 for which nobody asks precision: a TPU multiplies them in bf16.
        "unasked": sum("highest" not in line for line in FP32_PRODUCT.findall(text)),
    }


def result_bytes(shape: str) -> float:
    """Of an array, or of all arrays of a tuple."""
    total = 0.0
    for kind, sizes in SHAPE.findall(shape):
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        total += bits / 8 * math.prod(int(size) for size in sizes.split(",") if size)
    return total


def added(modules: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(module[name] for module in modules) for name in COUNTS}


# -- the two sides, in a process of their own -----------------------------------------------------


def recipe_of(cell: Cell, precision: str) -> Recipe:
    config = replace(cell.config, drop_path=DROP_PATH)
    plain = with_global_batch(replace(BASELINE, model=config), BATCH)
    return tuned(
        plain,
        image_size=cell.image_size,
        precision=precision,
        label_smoothing=SMOOTHING,
        **dict.fromkeys(("mixup", "cutmix", "erasing"), 0.0),
    )


def works(cell: Cell, side: str, precision: str, runtime: Backend) -> dict[str, Callable[[], None]]:
    """The parts of one side; each takes a step and ends with a graph cut."""
    recipe = recipe_of(cell, precision)
    torch.manual_seed(0)
    network: Any = build(recipe.model, cell.num_classes)
    pixels = torch.randint(256, (BATCH, cell.image_size, cell.image_size, 3), dtype=torch.uint8)
    labels = torch.randint(cell.num_classes, (BATCH,))
    ends = {"infer": infer_of, "train": (our_training if side == "ours" else timms_training)}
    if side == "timm":
        network = timms(cell, network)
        set_drop_path(network, recipe)
        network.to(runtime.device)
    else:
        runtime.move(network)
    return {part: end(network, recipe, pixels, labels, runtime) for part, end in ends.items()}


def set_drop_path(network: Any, recipe: Recipe) -> None:
    from timm.layers.drop import DropPath

    blocks = [block for stage in network.stages for block in stage.blocks]
    for block, rate in zip(blocks, recipe.model.drop_path_rates, strict=True):
        if rate > 0:
            block.drop_path = DropPath(rate)


def infer_of(
    network: Any, recipe: Recipe, pixels: torch.Tensor, labels: torch.Tensor, runtime: Backend
) -> Callable[[], None]:
    images = runtime.place(pixels.permute(0, 3, 1, 2).float())

    def infer() -> None:
        network.eval()
        with torch.no_grad(), runtime.autocast(recipe.precision):
            logits = network(images)  # kept until the cut, or there would be nothing to compute
        runtime.cut_graph()
        del logits

    return infer


def our_training(
    network: Any, recipe: Recipe, pixels: torch.Tensor, labels: torch.Tensor, runtime: Backend
) -> Callable[[], None]:
    state = TrainState(network, optimizer(network, recipe, runtime))
    batch = Batch(pixels, labels, num_valid=BATCH)

    def train() -> None:
        parts = placed(batch, recipe, backend=runtime, step=state.step, micro_batch=BATCH, seed=0)
        sums = train_step(state, parts, recipe, backend=runtime, lr=1e-3 + state.step * 1e-5)
        runtime.cut_graph()
        del sums

    return train


def timms_training(
    network: Any, recipe: Recipe, pixels: torch.Tensor, labels: torch.Tensor, runtime: Backend
) -> Callable[[], None]:
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
    from timm.optim._optim_factory import create_optimizer_v2

    loss_of = LabelSmoothingCrossEntropy(SMOOTHING)
    optim = recipe.optim
    found = create_optimizer_v2(
        network, opt="adamw", lr=optim.peak_lr, weight_decay=optim.weight_decay, eps=optim.adam_eps
    )
    mean, deviation = (
        runtime.place_whole(255 * torch.tensor(values).view(1, 3, 1, 1))
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    channels_first, steps = pixels.permute(0, 3, 1, 2).contiguous(), [0]

    def train() -> None:
        network.train()
        images, targets = runtime.place(channels_first), runtime.place(labels)
        for group in found.param_groups:
            group["lr"] = 1e-3 + steps[0] * 1e-5
        with runtime.autocast(recipe.precision):
            logits = network(images.float().sub_(mean).div_(deviation))
            loss = loss_of(logits, targets)
        found.zero_grad()
        loss.backward()
        found.step()
        steps[0] += 1
        runtime.cut_graph()

    return train


def child(cell: Cell, side: str, precision: str, dumps: Path | None) -> dict[str, Any]:
    """What a part costs in this process: its times, or the counts of the modules in `dumps`."""
    runtime = backend("xla")
    parts = works(cell, side, precision, runtime)
    cut, cut_seconds = runtime.cut_graph, [0.0]

    def timed_cut() -> None:
        began = time.process_time()
        cut()
        runtime.wait()
        cut_seconds[0] += time.process_time() - began

    setattr(runtime, "cut_graph", timed_cut)  # noqa: B010
    cut()
    runtime.wait()
    found = {}
    for part, work in parts.items():
        compile_seconds, graphs, traces, last = 0.0, 0, [], set[str]()
        for _ in range(STEPS):
            known, before = modules(dumps), runtime.compilations()
            began, cut_seconds[0] = time.process_time(), 0.0
            work()
            new = runtime.compilations() - before
            if new:
                graphs, compile_seconds = graphs + new, compile_seconds + cut_seconds[0]
                last = modules(dumps) - known
            else:
                traces.append(time.process_time() - began - cut_seconds[0])
        times = {"compile_seconds": compile_seconds, "trace_seconds": min(traces)}
        found[part] = {"graphs": graphs} | (times if dumps is None else texts_of(dumps, last))
    return found


def modules(dumps: Path | None) -> set[str]:
    """The names of the modules that were dumped so far."""
    if dumps is None:
        return set()
    return {path.name.split(".before_opt")[0] for path in dumps.glob("*.before_optimizations.txt")}


def texts_of(dumps: Path, names: set[str]) -> dict[str, dict[str, float]]:
    ends = {"before": "before_optimizations", "after": "cpu_after_optimizations"}
    return {
        key: added([counted((dumps / f"{name}.{end}.txt").read_text()) for name in names])
        for key, end in ends.items()
    }


# -- the rows -------------------------------------------------------------------------------------


# Counts over devices do not depend on it, and the compiler takes a fourth of the time.
QUICK = "--xla_backend_optimization_level=0"


def in_a_process(
    variant: str, side: str, precision: str, *, devices: int = 1, dumped: bool, flags: str = ""
) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        if dumped:
            flags += f" --xla_dump_to={folder} --xla_dump_hlo_as_text"
        environment = os.environ | {
            "PJRT_DEVICE": "CPU",
            "CPU_NUM_DEVICES": str(devices),
            "XLA_FLAGS": flags,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--child", side, "--variants", variant]
        command += ["--dtypes", precision, *(("--dumps", folder) if dumped else ())]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def both_sides(variant: str, precision: str, **options: Any) -> dict[str, Any]:
    """`in_a_process` for each side, at the same time."""
    with ThreadPoolExecutor(len(SIDES)) as pool:
        work = {
            side: pool.submit(in_a_process, variant, side, precision, **options) for side in SIDES
        }
        return {side: each.result() for side, each in work.items()}


def measured(variant: str, precision: str, rounds: int) -> list[dict[str, Any]]:
    """One row a part, with the counts of both sides and the ratios of their times."""
    alone = both_sides(variant, precision, dumped=True)
    two = both_sides(variant, precision, dumped=True, devices=2, flags=QUICK)
    times = [both_sides(variant, precision, dumped=False) for _ in range(rounds)]
    rows = []
    for part in PARTS:
        row: dict[str, Any] = {"variant": variant, "dtype": precision, "part": part}
        for side in SIDES:
            row[side] = alone[side][part] | {
                "all_gathers_on_2_devices": two[side][part]["after"]["all_gathers"]
            }
        for name in RATIOS:
            row[name] = row["ours"]["before"][name] / row["timm"]["before"][name]
        for name in ("trace_seconds", "compile_seconds") if rounds else ():
            ratios = sorted(both["ours"][part][name] / both["timm"][part][name] for both in times)
            row[name] = statistics.median(ratios)
            row[f"{name}_lowest"], row[f"{name}_highest"] = ratios[0], ratios[-1]
            for side in SIDES:
                row[side][name] = statistics.median(both[side][part][name] for both in times)
        rows.append(row)
    return rows


def line(row: dict[str, Any]) -> str:
    ours, theirs = row["ours"], row["timm"]
    said = f"{row['variant']} {row['dtype']} {row['part']} (ours / timm's): "
    said += f"{ours['graphs']} / {theirs['graphs']} graphs"
    for when in ("before", "after"):
        one, other = ours[when], theirs[when]
        said += f"; {when} optimisation " + ", ".join(
            f"{one[name]:g} / {other[name]:g} {name}" for name in COUNTS[:-2]
        )
    gathers = "all_gathers_on_2_devices"
    said += f"; {ours[gathers]:.0f} / {theirs[gathers]:.0f} all-gathers on 2 devices"
    one, other = ours["before"]["unasked"], theirs["before"]["unasked"]
    said += f"; {one:.0f} / {other:.0f} fp32 products without a precision"
    for name in ("trace", "compile"):
        key = f"{name}_seconds"
        if key in row:
            said += f"; {name} {row[key]:.2f} ({row[f'{key}_lowest']:.2f} to "
            said += f"{row[f'{key}_highest']:.2f}) times timm's {theirs[key]:.3g} s"
    return said


def ratio_to_timm(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Ours over timm's before optimisation, below 1 is less, by variant, precision and part."""
    names = (*RATIOS, "trace_seconds", "compile_seconds")
    return {
        f"{row['variant']} {row['dtype']} {row['part']}": {n: row[n] for n in names if n in row}
        for row in rows
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="*", default=["w8-d4"], choices=CELLS)
    parser.add_argument("--dtypes", nargs="*", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=5, help="0 measures no time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--dumps", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        cell, precision = CELLS[options.variants[0]], options.dtypes[0]
        print(json.dumps(child(cell, options.child, precision, options.dumps)))
        return 0
    load = os.getloadavg()[0]
    rows = []
    for variant in options.variants:
        for precision in options.dtypes:
            for row in measured(variant, precision, options.rounds):
                rows.append(row)
                print(line(row), flush=True)
    if options.json:
        machine = {"device": cpu_name(1), "cores": os.cpu_count(), "load_before": load}
        versions = {name: version(name) for name in ("torch", "torch_xla", "timm")}
        body = {
            "ratio_to_timm": ratio_to_timm(rows),
            "rows": rows,
            "machine": machine | versions,
            "command": " ".join(["python benchmarks/xla_graphs.py", *sys.argv[1:]]),
            "commit": git_commit(),
            "rounds": options.rounds,
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
