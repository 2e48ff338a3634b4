"""For each field of a recipe the values that tests move it to, one field at a time."""

from __future__ import annotations

from typing import Any

from mambaout.recipe import field_choices, field_types

# Of the fields that are numbers. One that has a few choices is moved to each of the others.
MOVES = {
    "depths": (1, 1, 1, 1),
    "dims": (8, 16, 24, 40),
    "expansion": 2.0,
    "kernel_size": 5,
    "conv_ratio": 0.5,
    "hidden_multiple": 24,
    "mixer_stages": (3, 4),
    "ssm_state": 3,
    "drop_path": 0.8,
    "peak_lr": 3e-3,
    "weight_decay": 0.5,
    "beta1": 0.5,
    "beta2": 0.5,
    "adam_eps": 1e-3,
    "clip_norm": 0.01,
    "mup_base_dim": 2,
    "epochs": 2,
    "warmup_epochs": 0.0,
    "warmup_lr": 1e-4,
    "cooldown_epochs": 1,
    "final_lr": 1e-3,
    "lr_decay_share": 0.5,
    "crop_scale_min": 0.9,
    "crop_ratio_min": 0.99,
    "hflip": 0.0,
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
    "global_batch": 32,
    "image_size": 20,
    "eval_crop": 0.7,
    "minival_fraction": 0.3,
    "train_images": 200,
    "eval_every_epochs": 2,
}

# What a field needs beside it to act.
BESIDE = {
    "mixer_stages": {"mixer": "identity"},
    "ssm_state": {"mixer": "conv_ssm"},
    "ssm_discretisation": {"mixer": "conv_ssm"},
}

NOT_ON_A_CPU = {("precision", "tf32")}  # tests/train/test_cuda.py has it

# A digest says nothing without its file: tests/train/test_initial_weights.py moves the run by it.
MOVED_ELSEWHERE = {"init"}


def moves(name: str, value: Any) -> list[Any]:
    """What the field `name` is moved to from `value`; nothing for a number without a row."""
    if choices := field_choices(name):
        others = [choice for choice in choices if choice != value]
        return [choice for choice in others if (name, choice) not in NOT_ON_A_CPU]
    return [MOVES[name]] if name in MOVES else []


def fields_without_a_row() -> set[str]:
    known = MOVES.keys() | MOVED_ELSEWHERE
    return {name for name in field_types() if not field_choices(name)} - known
