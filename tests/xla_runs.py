"""What tests/train/test_xla.py has done on XLA devices, in processes of its own.

torch_xla changes the process that imports it, and the number of devices is fixed by then.

Run:    PJRT_DEVICE=CPU CPU_NUM_DEVICES=4 python tests/xla_runs.py SCENARIO FOLDER
Writes: FOLDER/SCENARIO.json and the scenario's run directories
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mambaout.data.batches.loader import TrainBatches
from mambaout.data.packing.sources import open_data
from mambaout.model.network import build
from mambaout.model.selective_scan import selective_scan
from mambaout.recipe import BASELINE, Recipe, recipe_from_json, tuned, with_global_batch
from mambaout.train.backend import Backend, backend
from mambaout.train.loop import train
from mambaout.train.metrics import COMPILATIONS, TRAIN_LOSS, read_records
from mambaout.train.optim import optimizer
from mambaout.train.step import TrainState, add_gradients, placed, train_step

# Everything random is on, the rate is 0 in the first step, and the last batch of an evaluation is
# not full. 4 steps an epoch.
RECIPE = tuned(
    with_global_batch(BASELINE, 16),
    dims=(8, 8, 16, 16),
    depths=(1, 1, 1, 1),
    kernel_size=3,
    stem_stride=2,
    drop_path=0.3,
    image_size=16,
    train_images=64,
    minival_fraction=0.1,
    epochs=2,
    warmup_epochs=0.5,
    warmup_lr=0.0,
    peak_lr=1e-3,
)
STEPS_BEFORE_THE_KILL = 4
BF16 = tuned(RECIPE, precision="bf16")
PATCHES = tuned(RECIPE, downsampling="patchify", ssm_state=3)
MIXED = ("identity", "conv_ssm", "conv_ssm_four_way", "causal_attention")
OTHER = tuned(RECIPE, peak_lr=3e-3, weight_decay=0.1, beta2=0.99, drop_path=0.1)  # the same graphs


def losses(folder: Path) -> list[float]:
    records = read_records(folder / "records.jsonl")
    return [record.values[TRAIN_LOSS] for record in records]


def compilations(folder: Path) -> list[float]:
    records = read_records(folder / "records.jsonl")
    return [record.values[COMPILATIONS] for record in records]


def first_gradients(recipe: Recipe, where: Backend, micro_batch: int) -> dict[str, torch.Tensor]:
    """Of optimizer step 0, on the CPU."""
    data = open_data("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = where.move(build(recipe.model, data.num_classes))
    state = TrainState(model, optimizer(model, recipe, where))
    batch = next(TrainBatches(data, recipe, seed=0).starting_at(0))
    parts = placed(batch, recipe, backend=where, step=0, micro_batch=micro_batch, seed=0)
    add_gradients(state, parts, recipe, backend=where)
    return {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


def steps(folder: Path, where: Backend) -> dict[str, Any]:
    """Five steps of the whole recipe, and the gradients of the first."""
    data = open_data("digits")
    train(RECIPE, data, out=folder / "steps", backend=where, max_steps=5, log_every_steps=1)
    torch.save(first_gradients(RECIPE, where, 16), folder / "gradients.pt")
    if where.num_devices == 4:
        torch.save(first_gradients(RECIPE, where, 8), folder / "accumulated.pt")
    if where.num_devices < 8:
        train(BF16, data, out=folder / "bf16", backend=where, max_steps=5, log_every_steps=1)
        return {"bf16": losses(folder / "bf16")}
    return {}


def graphs(folder: Path, where: Backend) -> dict[str, Any]:
    """What is compiled when, in one process that trains one run after another."""
    data, found = open_data("digits"), {}

    def count(name: str, do: Callable[[], Any]) -> None:
        before = where.compilations()
        do()
        found[name] = where.compilations() - before

    def whole(name: str, recipe: Recipe = RECIPE, **options: Any) -> None:
        options = {"log_every_steps": 1, "checkpoint_seconds": 0} | options
        train(recipe, data, out=folder / name, backend=backend("xla"), **options)

    whole("first")
    found["by record"] = compilations(folder / "first")
    count("a resume", lambda: [whole("resumed", max_steps=3), whole("resumed")])
    count("other rates", lambda: whole("other", OTHER))
    count("seldom measured", lambda: whole("seldom", log_every_steps=50, checkpoint_seconds=1e9))

    def batches_of(global_batch: int) -> Callable[[], None]:
        # Micro-batches of 8, the smallest for four devices, whatever the memory.
        recipe = tuned(RECIPE, global_batch=global_batch, train_images=512, epochs=1)
        few = type(where).usable_bytes
        type(where).usable_bytes = lambda self: 0

        def run() -> None:
            whole(f"accumulated {global_batch}", recipe)
            type(where).usable_bytes = few

        return run

    count("32 micro-batches", batches_of(256))
    count("64 micro-batches", batches_of(512))
    _with_little_memory(folder, where)
    found["read in 3 steps"] = _reads_in_three_steps(where)
    return found


def _with_little_memory(folder: Path, where: Backend) -> None:
    """The first micro-batch fails as XLA fails where a program does not fit."""
    usual, cuts = type(where).cut_graph, []

    def cut_graph(self: Backend) -> None:
        usual(self)
        cuts.append(True)
        if len(cuts) == 2:  # the first warms evaluation up
            raise RuntimeError("RESOURCE_EXHAUSTED: Attempting to reserve 17.1G at the bottom")

    data = open_data("digits")
    type(where).cut_graph = cut_graph
    train(RECIPE, data, out=folder / "little", backend=where, max_steps=5, log_every_steps=1)
    type(where).cut_graph = usual


def _reads_in_three_steps(where: Backend) -> dict[str, int]:
    """What came back from the device while it trained, and what XLA left to the CPU."""
    from torch_xla.debug import metrics

    data = open_data("digits")
    model = where.move(build(RECIPE.model, data.num_classes))
    state = TrainState(model, optimizer(model, RECIPE, where))
    batches = TrainBatches(data, RECIPE, seed=0).starting_at(0)
    metrics.clear_all()
    for step in range(3):
        parts = placed(next(batches), RECIPE, backend=where, step=step, micro_batch=16, seed=0)
        train_step(state, parts, RECIPE, backend=where, lr=1e-3)
        where.cut_graph()
    where.wait()
    fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
    read = metrics.metric_data("TransferFromDeviceTime")
    return {"transfers": read[0] if read else 0, "fallbacks": len(fallbacks)}


def slowly(folder: Path, where: Backend) -> dict[str, Any]:
    """A run to be killed: a checkpoint after every step, and no end."""
    data = open_data("digits")
    looks = []

    def rest() -> bool:
        looks.append(None)
        if len(looks) > STEPS_BEFORE_THE_KILL:
            time.sleep(600)  # the test kills this process
        return False

    train(
        RECIPE,
        data,
        out=folder / "killed",
        backend=where,
        log_every_steps=1,
        checkpoint_seconds=0,
        stop=rest,
    )
    return {}


def resume(folder: Path, where: Backend) -> dict[str, Any]:
    """Whatever run lies in the folder, to its end."""
    data = open_data("digits")
    train(RECIPE, data, out=folder / "killed", backend=where, log_every_steps=1)
    return {"compilations": compilations(folder / "killed")}


def step_graph(folder: Path, where: Backend) -> dict[str, Any]:
    """One step of the recipe in FOLDER/recipe.json as XLA gets it: forward, backward, update."""
    # The graph as text is behind no public name.
    from torch_xla import _XLAC  # pyright: ignore[reportPrivateImportUsage]

    recipe = recipe_from_json((folder / "recipe.json").read_text())
    data = open_data("digits")
    model = where.move(build(recipe.model, data.num_classes))
    state = TrainState(model, optimizer(model, recipe, where))
    batch = next(TrainBatches(data, recipe, seed=0).starting_at(0))
    size = recipe.global_batch
    parts = placed(batch, recipe, backend=where, step=0, micro_batch=size, seed=0)
    type(where).cut_graph = lambda self: None  # all of it in one graph
    sums = train_step(state, parts, recipe, backend=where, lr=1e-3)
    moments = [moment for kept in state.optimizer.state.values() for moment in kept.values()]
    results = [sums.loss, *model.parameters(), *moments]
    return {"text": _XLAC._get_xla_tensors_hlo(results)}


def mixers(folder: Path, where: Backend) -> dict[str, Any]:
    """The first gradients with each of MIXED, and what XLA left to the CPU."""
    from torch_xla.debug import metrics

    for name in MIXED:
        torch.save(first_gradients(tuned(PATCHES, mixer=name), where, 16), folder / f"{name}.pt")
    return {"fallbacks": [n for n in metrics.counter_names() if n.startswith("aten::")]}


def scans(folder: Path, where: Backend) -> dict[str, Any]:
    """The selective scan in four directions and its gradients, beside the CPU's; and its graphs."""
    # The graph as text is behind no public name.
    from torch_xla import _XLAC  # pyright: ignore[reportPrivateImportUsage]
    from torch_xla.debug import metrics

    def results(inputs: list[torch.Tensor], size: tuple[int, int]) -> list[torch.Tensor]:
        leaves = [each.detach().requires_grad_() for each in inputs]
        out = selective_scan(*leaves, size)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    def inputs_of(directions: int, side: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        x, steps = torch.randn(2, side**2, 6), torch.rand(directions, 2, side**2, 6)
        into, out_of = torch.randn(2, directions, 2, side**2, 4)
        return [x, steps + 1e-3, -16 * torch.rand(directions, 6, 4) - 0.1, into, out_of]

    metrics.clear_all()
    inputs = inputs_of(4, 5)
    found = results([each.to(where.device) for each in inputs], (5, 5))
    pairs = zip(found, results(inputs, (5, 5)), strict=True)
    errors = [((a.cpu() - b).abs().max() / b.abs().max()).item() for a, b in pairs]
    fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
    instructions = []
    for side in (8, 16, 32):
        found = results([each.to(where.device) for each in inputs_of(1, side)], (side, side))
        instructions.append(_XLAC._get_xla_tensors_hlo(found).count(" = "))
    return {"errors": errors, "fallbacks": fallbacks, "instructions": instructions}


SCENARIOS = {f.__name__: f for f in (steps, graphs, slowly, resume, step_graph, mixers, scans)}


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = SCENARIOS[name](folder, backend("xla"))
    (folder / f"{name}.json").write_text(json.dumps(found))
