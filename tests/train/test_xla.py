"""Promises of the XLA backend, kept on virtual devices of torch_xla's CPU runtime."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from places import TESTS
from xla_runs import BF16, MIXED, PATCHES, RECIPE, first_gradients, losses

from mambaout.recipe import tuned
from mambaout.train import checkpoint
from mambaout.train.backend import Cpu, backend
from mambaout.train.loop import train
from mambaout.train.metrics import VAL_TOP1, read_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = TESTS / "xla_runs.py"
# Optimised code takes four times as long to compile and gives losses within 3e-7.
FLAGS = "--xla_backend_optimization_level=0"


def start(scenario: str, folder: Path, num_devices: int, flags: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": str(num_devices),
        "XLA_FLAGS": f"{FLAGS} {flags}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), scenario, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def on_xla(scenario: str, folder: Path, num_devices: int, flags: str = "") -> dict[str, Any]:
    process = start(scenario, folder, num_devices, flags)
    shown, _ = process.communicate()
    assert process.returncode == 0, shown
    return json.loads((folder / f"{scenario}.json").read_text())


@pytest.fixture(scope="module")
def eager(digits, tmp_path_factory) -> Path:
    """Run directories of the same recipes on a CPU without XLA."""
    folder = tmp_path_factory.mktemp("eager")
    for name, recipe in (("steps", RECIPE), ("bf16", BF16)):
        train(recipe, digits, out=folder / name, backend=Cpu(), max_steps=5, log_every_steps=1)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The scenario `graphs` on four devices; its run "first" was never stopped."""
    folder = tmp_path_factory.mktemp("graphs")
    return folder, on_xla("graphs", folder, 4)


@pytest.mark.parametrize("num_devices", [1, 4, 8])
def test_the_first_steps_on_any_number_of_devices_equal_the_eager_cpus(
    num_devices, eager, digits, tmp_path
):
    hlo = tmp_path / "hlo"
    flags = f"--xla_dump_to={hlo} --xla_dump_hlo_as_text" if num_devices == 4 else ""
    found = on_xla("steps", tmp_path, num_devices, flags)
    assert losses(tmp_path / "steps") == pytest.approx(losses(eager / "steps"), rel=1e-5)
    wanted = first_gradients(RECIPE, Cpu(), 16)
    for file in sorted(tmp_path.glob("*.pt")):  # one micro-batch; on four devices two, too
        assert_same_gradients(torch.load(file), wanted)
    topology = checkpoint.load(tmp_path / "steps" / "last.ckpt")["topology"]
    assert topology == {
        "backend": "xla",
        "num_devices": num_devices,
        "num_hosts": 1,
        "fuses_blocks": False,
        "compiles": True,
    }
    if num_devices < 8:
        # 8 bits of mantissa: a product is off by up to 2**-9.
        assert found["bf16"] == pytest.approx(losses(eager / "bf16"), rel=2**-9)
        assert found["bf16"] == pytest.approx(losses(eager / "steps"), rel=2**-7)
    if num_devices == 4:
        assert_each_device_has_its_share_alone(hlo)


def assert_same_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        atol = 1e-4 * float(wanted[name].abs().max()) + 1e-9
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=atol)


def test_with_every_kind_of_mixer_the_gradients_are_those_of_the_cpu(digits, tmp_path):
    found = on_xla("mixers", tmp_path, num_devices=4)
    assert found["fallbacks"] == []
    for name in MIXED:
        wanted = first_gradients(tuned(PATCHES, mixer=name), Cpu(), 16)
        assert_same_gradients(torch.load(tmp_path / f"{name}.pt"), wanted)


def assert_each_device_has_its_share_alone(hlo: Path) -> None:
    """The partitioned graphs sum over devices, and never collect a map of the whole batch."""
    graphs = [path.read_text() for path in hlo.glob("*cpu_after_optimizations.txt")]
    assert sum(" all-reduce(" in graph for graph in graphs) >= 4  # training and evaluation
    assert sum("convolution(" in graph for graph in graphs) >= 4
    assert not [graph for graph in graphs if "all-gather" in graph or "all-to-all" in graph]
    shutil.rmtree(hlo)  # thousands of files


def test_nothing_is_compiled_after_the_first_step(uninterrupted):
    _, found = uninterrupted
    # Evaluation, a micro-batch, the optimizer's step; over a rate of 0, mixup, cutmix, erasing and
    # drop path, two evaluations and checkpoints.
    assert found["by record"] == [3] * 8


def test_a_resume_and_a_trial_of_other_rates_compile_nothing(uninterrupted):
    _, found = uninterrupted
    assert found["a resume"] == 0
    assert found["other rates"] == 0  # learning rate, weight decay, beta2, drop path
    assert found["seldom measured"] == 0


def test_what_is_compiled_does_not_depend_on_the_number_of_micro_batches(uninterrupted):
    _, found = uninterrupted
    assert found["32 micro-batches"] <= 3
    assert found["64 micro-batches"] == 0


def test_a_micro_batch_that_does_not_fit_is_halved_and_changes_nothing(uninterrupted, eager):
    folder, _ = uninterrupted
    assert losses(folder / "little") == pytest.approx(losses(eager / "steps"), rel=1e-5)
    assert checkpoint.load(folder / "little" / "last.ckpt")["micro_batch"] == 8
    assert checkpoint.load(folder / "first" / "last.ckpt")["micro_batch"] == 16


def test_a_step_reads_nothing_back_and_leaves_nothing_to_the_cpu(uninterrupted):
    _, found = uninterrupted
    assert found["read in 3 steps"] == {"transfers": 0, "fallbacks": 0}


def test_measuring_seldom_or_often_gives_the_same_weights_to_the_bit(uninterrupted):
    folder, _ = uninterrupted
    assert_same_state(folder / "first", folder / "seldom")


def test_a_killed_run_goes_on_to_the_same_bits_and_onto_other_devices_to_rounding(
    uninterrupted, digits, tmp_path
):
    folder, _ = uninterrupted
    process = start("slowly", tmp_path, 4)
    records = tmp_path / "killed" / "records.jsonl"
    deadline = time.monotonic() + 200
    while len(list(read_records(records))) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for other in ("on cpu", "on 8"):
        shutil.copytree(tmp_path / "killed", tmp_path / other / "killed")
    found = on_xla("resume", tmp_path, 4)
    assert_same_state(folder / "first", tmp_path / "killed")
    assert losses(folder / "first") == losses(tmp_path / "killed")
    assert found["compilations"][-1] == 3

    train(RECIPE, digits, out=tmp_path / "on cpu/killed", backend=backend("cpu"), log_every_steps=1)
    on_xla("resume", tmp_path / "on 8", 8)
    for other in ("on cpu", "on 8"):
        out = tmp_path / other / "killed"
        assert losses(out) == pytest.approx(losses(folder / "first"), rel=1e-4)
        *_, last = read_records(out / "records.jsonl")
        assert last.values[VAL_TOP1] == pytest.approx(val_top1(folder / "first"), abs=0.5)


def test_what_is_compiled_on_a_tpu_is_kept_for_the_next_process(tmp_path):
    # The runtime is asked as on a TPU and answers as one; what it would then do is written down.
    code = f"""
from pathlib import Path
import torch_xla.runtime as runtime
from mambaout.train.backend import _torch_xla
did = []
runtime.device_type = lambda: "TPU"
runtime.host_index = lambda: 2
runtime.initialize_cache = lambda path: did.append((path, runtime.is_spmd()))
for _ in range(2):
    _torch_xla(Path({str(tmp_path)!r}))
print(did)
"""
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PJRT_DEVICE": "CPU"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    folder = tmp_path / f"torch_xla-{version('torch_xla')}" / "host-2"
    # Once a process, and before anything has been computed.
    assert shown.splitlines()[-1] == str([(str(folder), False)])
    assert folder.is_dir()


def val_top1(out: Path) -> float:
    *_, last = read_records(out / "records.jsonl")
    return last.values[VAL_TOP1]


def assert_same_state(first: Path, second: Path) -> None:
    one, other = (checkpoint.load(out / "last.ckpt") for out in (first, second))
    assert one["step"] == other["step"]
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    for index, moments in one["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, other["optimizer"]["state"][index][name]), (index, name)
