"""Every field of a recipe moves the run; a new field without a row here fails."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch

from mambaout.recipe import Recipe, field_types, tuned
from mambaout.train.backend import Cpu
from mambaout.train.checkpoint import load
from mambaout.train.loop import train
from mambaout.train.metrics import read_records

MOVES = {
    "depths": (1, 1, 1, 1),
    "dims": (8, 16, 24, 40),
    "expansion": 2.0,
    "kernel_size": 5,
    "conv_ratio": 0.5,
    "stem_stride": 4,
    "hidden_multiple": 8,
    "drop_path": 0.6,
    "peak_lr": 3e-3,
    "weight_decay": 0.5,
    "beta1": 0.5,
    "beta2": 0.5,
    "adam_eps": 1e-3,
    "clip_norm": 0.01,
    "lr_base_dim": 2,
    "epochs": 2,
    "warmup_epochs": 0.0,
    "warmup_lr": 1e-4,
    "cooldown_epochs": 1,
    "final_lr": 1e-3,
    "lr_steps": "epoch",
    "crop_scale_min": 0.9,
    "crop_ratio_min": 0.99,
    "hflip": 0.0,
    "interpolation": "bilinear",
    "randaugment": 1.0,
    "randaugment_std": 0.0,
    "randaugment_layers": 1,
    "color_jitter": 0.9,
    "mixup": 0.0,
    "cutmix": 0.0,
    "mixup_prob": 0.0,
    "cutmix_prob": 1.0,
    "erasing": 1.0,
    "label_smoothing": 0.0,
    "pixels": "fast",
    "global_batch": 32,
    "image_size": 20,
    "eval_crop": 0.7,
    "minival_fraction": 0.3,
    "train_images": 200,
    "eval_every_epochs": 2,
    "precision": "bf16",
}
ONE_VALUE_YET = {"mixer"}  # nothing to move to until a second mixer is built


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
    """Two epochs of two steps with everything switched on."""
    from mambaout.recipe import BASELINE, with_global_batch

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


def test_every_field_has_a_row():
    assert MOVES.keys() | ONE_VALUE_YET == field_types().keys()


@pytest.mark.parametrize("knob", MOVES)
def test_every_knob_moves_the_run(knob, digits, unmoved, tmp_path):
    torch.set_num_threads(1)
    moved = tuned(knob_recipe(), **{knob: MOVES[knob]})
    assert fingerprint(moved, digits, tmp_path) != unmoved
