"""Every field of a recipe moves the run; a new number without a row in knob_moves.py fails."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
import torch
from knob_moves import BESIDE, fields_without_a_row, moves

from mambaout.fields import flat_fields
from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.train.backend import Cpu
from mambaout.train.checkpoint import load
from mambaout.train.loop import train
from mambaout.train.metrics import read_records


def fingerprint(recipe: Recipe, data, out) -> str:
    """The final weights and what was measured, as a digest."""
    train(recipe, data, out=out, backend=Cpu(), log_every_steps=2)
    digest = sha256()
    for name, weight in load(out / "last.ckpt")["model"].items():
        digest.update(name.encode() + weight.numpy().tobytes())
    for record in read_records(out / "records.jsonl"):
        shown = {k: v for k, v in record.values.items() if k.split("/")[0] in ("minival", "val")}
        digest.update(f"{record.step} {sorted(shown.items())}".encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def unmoved(digits, tmp_path_factory) -> str:
    return fingerprint(knob_recipe(), digits, tmp_path_factory.mktemp("unmoved"))


def knob_recipe() -> Recipe:
    """Three epochs of two steps with everything switched on."""
    return tuned(
        with_global_batch(BASELINE, 64),
        depths=(1, 1, 2, 1),
        dims=(8, 16, 24, 32),
        kernel_size=3,
        stem_stride=2,
        drop_path=0.3,
        epochs=3,
        warmup_epochs=0.5,
        peak_lr=2e-3,
        image_size=16,
        train_images=128,
        minival_fraction=0.1,
    )


def test_every_number_has_a_row():
    assert fields_without_a_row() == set()


def all_moves() -> list[tuple[str, Any]]:
    """Every field with each value that it is moved to."""
    fields = flat_fields(knob_recipe())
    return [(name, moved) for name, value in fields.items() for moved in moves(name, value)]


@pytest.mark.parametrize(("knob", "value"), all_moves(), ids=str)
def test_every_knob_moves_the_run(knob, value, digits, unmoved, tmp_path):
    torch.set_num_threads(1)
    if beside := BESIDE.get(knob):
        unmoved = fingerprint(tuned(knob_recipe(), **beside), digits, tmp_path / "unmoved")
    moved = tuned(knob_recipe(), **BESIDE.get(knob, {}), **{knob: value})
    assert fingerprint(moved, digits, tmp_path / "moved") != unmoved
