"""CODE_VERSION is part of every run's identity; this notices when it has to be raised.

Each case is a way to a number that a change can move alone: pixels of either kind, out of PNG and
of JPEG files, in either precision, in evaluation alone, on XLA.

Run:    python tests/train/test_code_version.py CASE FOLDER    the numbers of a case, as JSON
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import photograph, write_parquet
from PIL import Image
from places import PATHS
from xla_runs import RECIPE as FOR_XLA
from xla_runs import first_gradients
from xla_runs import losses as xla_losses

from mambaout.code_version import CODE_VERSION
from mambaout.data.batches.loader import evaluation_batches
from mambaout.data.packing.sources import open_data
from mambaout.data.shards.data_set import DataSet
from mambaout.model.network import MambaOut, build
from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.train.backend import Cpu, backend
from mambaout.train.evaluation import evaluate, no_totals
from mambaout.train.loop import train
from mambaout.train.metrics import MINIVAL_LOSS, TRAIN_LOSS, VAL_LOSS, read_records
from mambaout.train.step import eval_step

# Everything random is on.
RECIPE = tuned(
    with_global_batch(BASELINE, 32),
    dims=(8, 16, 24, 32),
    depths=(1, 1, 1, 1),
    stem_stride=2,
    drop_path=0.2,
    color_jitter=0.2,
    image_size=28,
    train_images=192,
    minival_fraction=0.1,
    epochs=1,
    warmup_epochs=0.5,
    peak_lr=2e-3,
)
FP32 = tuned(RECIPE, train_images=96)
BF16 = tuned(FP32, precision="bf16")
EVAL = tuned(RECIPE, image_size=40, eval_crop=0.8)
PHOTOGRAPHS = tuned(RECIPE, global_batch=16, train_images=48, image_size=32)


def losses(recipe: Recipe, data: DataSet, folder: Path) -> list[float]:
    """The training loss of each step, and the losses after the last."""
    train(recipe, data, out=folder / "run", backend=Cpu(), seed=3, log_every_steps=1)
    records = list(read_records(folder / "run" / "records.jsonl"))
    after = [records[-1].values[name] for name in (MINIVAL_LOSS, VAL_LOSS)]
    return [record.values[TRAIN_LOSS] for record in records] + after


def on_xla(folder: Path) -> list[float]:
    """The training loss of three steps; tests/train/test_xla.py has what XLA evaluates."""
    options: Any = {"out": folder / "run", "log_every_steps": 1, "max_steps": 3}
    train(FOR_XLA, open_data("digits"), backend=backend("xla"), **options)
    return xla_losses(folder / "run")


def photographs(folder: Path) -> DataSet:
    """JPEGs of all sizes, so that each crop is decoded by itself, in colour and grey."""
    for split, first, count in (("train", 0, 60), ("validation", 60, 24)):
        images = []
        for i in range(first, first + count):
            target = io.BytesIO()
            height, width = 120 + 37 * i % 211, 120 + 53 * i % 223
            pixels = photograph(height + i, width + i)[i:, i:]
            image = Image.fromarray(pixels).convert("L" if i % 5 == 4 else "RGB")
            image.save(target, "jpeg", quality=80 + i % 15, subsampling=i % 3)
            images.append(target.getvalue())
        labels = [i % 10 for i in range(count)]
        write_parquet(folder / f"data/{split}-00000-of-00001.parquet", images, labels)
    return open_data(str(folder))


def drawn_model(recipe: Recipe) -> MambaOut:
    """A network whose weights no training and no change of the initialisation has touched."""
    model, generator = build(recipe.model, 10), torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        scale = 0.02 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.data.copy_(scale * drawn + ("norm.weight" in name))
    return model


def evaluated(folder: Path) -> list[float]:
    """Loss and top-5 of fixed weights."""
    found = []
    for data in (open_data("digits"), photographs(folder)):
        values = evaluate(drawn_model(EVAL), data, "val", EVAL, backend=Cpu())
        found += [values[VAL_LOSS], values["val/top5"]]
    return found


def rounded(folder: Path) -> list[float]:
    """How far bf16 takes the gradients of a step, as a share of them, and the loss of an image.

    A loss in bf16 is as far from one in fp32 as from one that another CPU computes in bf16. How
    far is the same on every CPU, and moves with what is computed in which precision.
    """
    halves, wholes = (first_gradients(recipe, Cpu(), 32) for recipe in (BF16, FP32))
    flat = [torch.cat([part.flatten() for part in each.values()]) for each in (halves, wholes)]
    found = [float((flat[0] - flat[1]).norm() / flat[1].norm())]
    data, by_image = photographs(folder), []
    for precision in ("bf16", "fp32"):
        recipe = tuned(EVAL, precision=precision)
        model, start = drawn_model(recipe), no_totals(Cpu())
        batches = evaluation_batches(data, "val", recipe, batch_size=1)
        totals = [eval_step(model, batch, recipe, start, backend=Cpu()) for batch in batches]
        by_image.append(torch.stack(totals)[:, 0])
    return [*found, float((by_image[0] - by_image[1]).square().mean().sqrt())]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Numbers that a code version has, and how far apart they are between CPUs at the most."""

    numbers: Callable[[Path], list[float]]
    rel: float


# Between the widest instructions and oneDNN's, ATen's and MKL's narrowest (AVX-512 with AMX, AVX2,
# SSE), fp32 losses here moved by 1.3e-7, those of bf16 by 1.4e-4, the size of bf16's rounding by
# 16 %, hits not at all.
FP32_REL, BF16_REL, ROUNDING_REL = 2e-5, 5e-4, 0.2

CASES = {
    "digits, exact pixels": Case(
        numbers=lambda folder: losses(RECIPE, open_data("digits"), folder), rel=FP32_REL
    ),
    "digits, fast pixels": Case(
        numbers=lambda folder: losses(tuned(FP32, pixels="fast"), open_data("digits"), folder),
        rel=FP32_REL,
    ),
    "JPEGs, exact pixels": Case(
        numbers=lambda folder: losses(PHOTOGRAPHS, photographs(folder), folder), rel=FP32_REL
    ),
    "JPEGs, fast pixels": Case(
        numbers=lambda folder: losses(
            tuned(PHOTOGRAPHS, pixels="fast"), photographs(folder), folder
        ),
        rel=FP32_REL,
    ),
    "evaluation": Case(numbers=evaluated, rel=FP32_REL),
    "bf16": Case(numbers=lambda folder: losses(BF16, open_data("digits"), folder), rel=BF16_REL),
    "bf16, its rounding": Case(numbers=rounded, rel=ROUNDING_REL),
    # XLA compiles for the CPU that it finds; tests/train/test_xla.py has it within 1e-5 of this
    # very CPU.
    "XLA": Case(numbers=on_xla, rel=1e-4),
}

# By code version, with torch 2.9.0, torch_xla 2.9.0, OpenCV 5.0.0, simplejpeg 1.9.0 and Pillow
# 13.0.0 on an x86 CPU. A new version takes over what it does not move:
# GOLDEN[5] = GOLDEN[4] | {"bf16": [...]}
GOLDEN = {
    4: {
        "digits, exact pixels": [
            *(2.303664, 2.336262, 2.281275, 2.213558, 2.384811, 2.452867),
            *(2.383318, 2.399231),
        ],
        "digits, fast pixels": [2.301369, 2.338142, 2.412251, 2.375033, 2.390613],
        "JPEGs, exact pixels": [2.362741, 2.333176, 2.451735, 2.468383, 2.325648],
        "JPEGs, fast pixels": [2.362578, 2.330409, 2.442961, 2.458169, 2.32934],
        "evaluation": [2.665654, 53.061225, 2.82637, 50.0],
        "bf16": [2.299926, 2.336139, 2.410753, 2.372129, 2.388559],
        "bf16, its rounding": [0.0129, 0.0176],
        "XLA": [2.344172, 2.305962, 2.302777],
    },
}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_case_has_its_numbers_of_this_code_version():
    assert CODE_VERSION in GOLDEN, (
        f"CODE_VERSION is {CODE_VERSION}, and GOLDEN in {Path(__file__).name} ends with "
        f"{max(GOLDEN)}: add the line\nGOLDEN[{CODE_VERSION}] = GOLDEN[{max(GOLDEN)}] | {{}}\n"
        "and run this file, which says what to write into it"
    )
    assert GOLDEN[CODE_VERSION].keys() == CASES.keys()


@pytest.mark.parametrize("name", [name for name in CASES if name != "XLA"])
def test_the_same_recipe_seed_and_data_give_the_numbers_of_this_code_version(
    name, data_cache, one_thread, tmp_path
):
    check(name, CASES[name].numbers(tmp_path))


@pytest.mark.slow  # half a minute of compiling
def test_xla_gives_the_numbers_of_this_code_version(digits, tmp_path):
    # torch_xla changes the process that imports it.
    flags = {"PJRT_DEVICE": "CPU", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    ran = subprocess.run(
        [sys.executable, __file__, "XLA", str(tmp_path)],
        env=os.environ | flags | {"CPU_NUM_DEVICES": "1", "PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    check("XLA", json.loads(ran.stdout.splitlines()[-1]))


def check(name: str, found: list[float]) -> None:
    """Fail where the numbers of a case are not those of this code version, and say what to do."""
    golden, new = GOLDEN[CODE_VERSION][name], CODE_VERSION + 1
    assert found == pytest.approx(golden, rel=CASES[name].rel), (
        f"{name}: these are not the numbers of code version {CODE_VERSION}. Where that is meant, "
        f"raise CODE_VERSION in mambaout/code_version.py to {new}, so that no run goes on with "
        f"other numbers and no trial of the old ones is taken for one of the new; and add here\n"
        f"    GOLDEN[{new}] = GOLDEN[{CODE_VERSION}] | {{\n"
        f"        {name!r}: {[float(f'{value:.7g}') for value in found]},\n    }}\n"
        f"with every other case that fails. Where CODE_VERSION is new in this change, write the "
        f"line into GOLDEN[{CODE_VERSION}]. Where it is not meant, undo what moved the numbers."
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(CASES[sys.argv[1]].numbers(Path(sys.argv[2]))))
