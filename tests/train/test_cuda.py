"""The CUDA backend: what of it a machine without a GPU can hold, and what only a GPU can.

`gpu` is a pretended GPU: torch's answers about the hardware are replaced, and nothing else. A test
with `needs_gpu` runs only where torch sees a real one.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from needs import needs_cxx, needs_gpu
from small_memory import NO_MEMORY, RoomFor

from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.launch.failures import classify
from mambaout.memory import train_memory
from mambaout.recipe import tuned
from mambaout.study.speeds import device_of
from mambaout.train import stepper
from mambaout.train.backend import (
    ALLOCATOR_VARIABLE,
    OLDER_ALLOCATOR_VARIABLE,
    Cpu,
    Cuda,
    backend,
)
from mambaout.train.cuda_precision import set_products
from mambaout.train.loop import train
from mambaout.train.metrics import read_records
from mambaout.train.stepper import Stepper


@pytest.fixture(autouse=True)
def torchs_own_settings():
    yield
    set_products(tf32=False)


class PretendedStream:
    """Notes what it is told; its events are named after the stream and numbered."""

    def __init__(self, name: str, did: list[str]) -> None:
        self.name, self.did, self.events = name, did, 0

    def record_event(self) -> SimpleNamespace:
        self.events += 1
        text = f"{self.name} {self.events}"
        return SimpleNamespace(text=text, synchronize=lambda: self.did.append(f"await {text}"))

    def wait_event(self, event: SimpleNamespace) -> None:
        self.did.append(f"{self.name} waits for {event.text}")


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU; its name, capability and memory can be set."""
    for variable in (ALLOCATOR_VARIABLE, OLDER_ALLOCATOR_VARIABLE):
        monkeypatch.setenv(variable, "")  # so that it is put back afterwards
        monkeypatch.delenv(variable)
    told = SimpleNamespace(name="NVIDIA L4", capability=(8, 9), free=22 << 30, total=24 << 30)
    told.did = []
    told.stream = lambda name: PretendedStream(name, told.did)
    for name, answer in {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: told.name,
        "get_device_capability": lambda device=None: told.capability,
        "mem_get_info": lambda device=None: (told.free, told.total),
        "set_per_process_memory_fraction": lambda part, device=None: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "current_stream": lambda device=None: told.stream("working"),
        "Stream": lambda device=None: told.stream("copying"),
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return told


def products() -> set[str]:
    """What torch is told of matrix products and convolutions, by its newer and older names."""
    backends: Any = torch.backends
    older = {True: "tf32", False: "ieee"}
    return {
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.rnn.fp32_precision,
        older[backends.cuda.matmul.allow_tf32],
        older[backends.cudnn.allow_tf32],
        {"highest": "ieee", "high": "tf32"}[torch.get_float32_matmul_precision()],
    }


def test_fp32_is_ieee_in_matrix_products_and_convolutions_and_tf32_is_tf32_in_both(gpu):
    cudnn: Any = torch.backends.cudnn
    cudnn.conv.fp32_precision = "tf32"
    where = Cuda(compiles=False)
    assert products() == {"ieee"}
    for precision, wanted in (
        ("tf32", "tf32"),
        ("bf16", "ieee"),
        ("tf32", "tf32"),
        ("fp32", "ieee"),
    ):
        where.train_in(precision)
        assert products() == {wanted}


@needs_cxx
def test_torch_compile_works_with_either_setting():
    """With torch's newer names alone, TorchInductor raises an error."""
    weight = torch.ones(4, 4)
    for tf32 in (True, False):
        set_products(tf32)
        torch._dynamo.reset()
        assert torch.compile(lambda x: x @ weight)(weight).sum() == 64


def test_a_run_sets_the_precision_of_its_recipe(gpu, tiny_recipe):
    Stepper(replace(tiny_recipe, precision="tf32"), 10, 0, Cuda(compiles=False))
    assert products() == {"tf32"}


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize(
    ("name", "capability"), [("Tesla V100-SXM3-32GB", (7, 0)), ("Tesla T4", (7, 5))]
)
def test_a_gpu_without_units_for_bf16_and_tf32_refuses_them_and_trains_in_fp32(
    gpu, name, capability, precision, tiny_recipe
):
    gpu.name, gpu.capability = name, capability
    where = Cuda(compiles=False)
    assert not where.multiplies_bf16
    said = f"precision={precision} on {name}: its compute capability is {capability[0]}"
    with pytest.raises(WrongRequest, match=f"{said}.* give --precision fp32"):
        Stepper(replace(tiny_recipe, precision=precision), 10, 0, where)
    Stepper(tiny_recipe, 10, 0, where)


@pytest.mark.parametrize(("capability", "has_units"), [((7, 5), False), ((8, 0), True)])
def test_units_for_bf16_go_by_the_capability_also_of_a_gpu_that_no_table_knows(
    gpu, capability, has_units
):
    gpu.name, gpu.capability = "NVIDIA Abacus", capability
    assert Cuda(compiles=False).multiplies_bf16 is has_units


@pytest.mark.parametrize("error", NO_MEMORY)
def test_every_error_of_short_memory_halves_the_micro_batch(
    error, digits, tmp_path, tiny_recipe, caplog
):
    recipe = tuned(tiny_recipe, epochs=1)
    train(recipe, digits, out=tmp_path / "run", backend=RoomFor(40, error), max_steps=1)
    assert "micro-batch 64 is out of memory; going on with 32" in caplog.text
    assert classify(RuntimeError(error)) is Ending.OUT_OF_MEMORY


def test_another_assert_or_library_error_is_not_taken_for_short_memory():
    for text in ("CUDA error: device-side assert triggered", "INTERNAL ASSERT FAILED at x.cpp"):
        assert not Cpu().is_out_of_memory(RuntimeError(text))
        assert classify(RuntimeError(text)) is Ending.BROKEN
    assert not Cpu().is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("given", ["", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_are_expandable_unless_the_user_has_set_up_the_allocator(gpu, monkeypatch, given):
    names = ALLOCATOR_VARIABLE, OLDER_ALLOCATOR_VARIABLE
    if given:
        monkeypatch.setenv(given, "backend:native")
    Cuda(compiles=False)
    found = {name: os.environ[name] for name in names if name in os.environ}
    assert found == ({given: "backend:native"} if given else {names[0]: "expandable_segments:True"})


def test_a_micro_batch_is_copied_beside_the_work_on_the_one_before_it_and_no_third_is_placed(gpu):
    where = Cuda(compiles=False)

    def make(number: int) -> int:
        gpu.did.append(f"copy {number}")
        return number

    for number in where.in_turn([partial(make, n) for n in (1, 2, 3)]):
        gpu.did.append(f"work on {number}")
    assert gpu.did == [
        "copy 1",
        "working waits for copying 1",
        "work on 1",
        "copy 2",
        "working waits for copying 2",
        "work on 2",
        "await working 1",
        "copy 3",
        "working waits for copying 3",
        "work on 3",
    ]
    gpu.did.clear()
    list(where.in_turn([partial(make, 4)]))  # of the next step
    assert gpu.did[:2] == ["await working 2", "copy 4"]


def test_the_pixels_of_two_micro_batches_are_counted_on_a_gpu_and_none_on_a_cpu(
    gpu, tiny_recipe, monkeypatch
):
    asked: list[int] = []

    def counted(*args, placed=0, **more):
        asked.append(placed)
        return train_memory(*args, placed=placed, **more)

    monkeypatch.setattr(stepper, "train_memory", counted)
    for where in (Cuda(compiles=False), Cpu()):
        Stepper(tiny_recipe, 10, 0, where)
    assert asked == [2, 0]
    plain, more = (train_memory(tiny_recipe.model, 224, placed=count) for count in (0, 2))
    assert more.image_bytes - plain.image_bytes == 2 * 3 * 224 * 224


@needs_gpu
def test_on_a_gpu_rows_may_change_as_soon_as_they_are_placed():
    where = backend("cuda", compiles=False)
    rows = torch.full((256, 224, 224, 3), 7, dtype=torch.uint8)
    placed = next(iter(where.in_turn([lambda: where.place(rows)])))
    rows.zero_()
    assert int(placed.min()) == 7


@needs_gpu
def test_on_a_gpu_a_run_takes_the_steps_of_a_cpu_up_to_rounding(digits, tmp_path, tiny_recipe):
    losses = []
    for where in (backend("cuda", compiles=False), Cpu()):
        out = tmp_path / where.name
        train(tiny_recipe, digits, out=out, backend=where, max_steps=3, log_every_steps=1)
        losses.append([each.values["train/loss"] for each in read_records(out / "records.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_half_of_a_gpu_counts_as_half_in_memory_hours_and_mfu(gpu, tiny_recipe):
    whole, half = Cuda(compiles=False), Cuda(compiles=False, part=0.5)
    assert (whole.devices_held, half.devices_held) == (1, 0.5)
    assert half.usable_bytes() == pytest.approx(0.9 * 12 * 2**30)
    recipe = replace(tiny_recipe, precision="bf16")
    used = [Stepper(recipe, 10, 0, each).utilisation(100.0) for each in (whole, half)]
    assert used[1] == pytest.approx(2 * (used[0] or 0))


def test_the_facts_of_a_run_hold_its_part_of_the_device(digits, tmp_path, tiny_recipe):
    """On a CPU that pretends to be shared: the facts and hours are computed as on a GPU."""
    where = Cpu()
    where.part = 0.5
    train(tiny_recipe, digits, out=tmp_path / "run", backend=where)
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    last = list(read_records(tmp_path / "run" / "records.jsonl"))[-1]
    assert outcome["facts"]["num_devices"] == 0.5
    hours = outcome["metrics"]["train_device_hours"]
    assert hours >= 0.5 * last.seconds / 3600
    assert hours == pytest.approx(0.5 * last.seconds / 3600, rel=0.2)
    whole: Any = SimpleNamespace(facts=outcome["facts"] | {"num_devices": 1})
    half: Any = SimpleNamespace(facts=outcome["facts"])
    assert device_of(half) == f"0.5 x {device_of(whole)}"


def test_tf32_is_refused_on_a_cpu_before_anything_is_written(digits, tmp_path, tiny_recipe):
    recipe = replace(tiny_recipe, precision="tf32")
    with pytest.raises(WrongRequest, match="backend cpu: precision=tf32 is for NVIDIA GPUs"):
        train(recipe, digits, out=tmp_path / "run", backend=Cpu())
    assert not (tmp_path / "run").exists()


@needs_gpu
def test_on_a_gpu_fp32_products_are_exact_to_fp32_and_tf32_are_not():
    where = backend("cuda", compiles=False)
    torch.manual_seed(0)
    a, image, kernel = torch.randn(256, 256), torch.randn(2, 16, 32, 32), torch.randn(16, 16, 3, 3)

    def errors(precision: str) -> list[float]:
        where.train_in(precision)
        b, x, w = (t.to(where.device) for t in (a, image, kernel))
        found = (b @ b).cpu(), torch.conv2d(x, w).cpu()
        exact = a.double() @ a.double(), torch.conv2d(image.double(), kernel.double())
        return [
            float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, exact, strict=True)
        ]

    assert max(errors("fp32")) < 1e-5
    assert min(errors("tf32")) > 1e-5
