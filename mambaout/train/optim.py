"""AdamW with the recipe's weight decay, and the learning rate of any step."""

from __future__ import annotations

import math

import torch
from torch import nn

from mambaout.recipe import Recipe


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over `model`: weight decay on matrices and kernels only.

    Biases, norms and other one-dimensional parameters do not decay, as in DeiT and timm.
    """
    decayed, kept = [], []
    for parameter in model.parameters():
        (decayed if parameter.ndim > 1 else kept).append(parameter)
    optim = recipe.optim
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": optim.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ],
        lr=optim.peak_lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.adam_eps,
    )


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of optimizer step `step`, counted from 0.

    Warm-up runs inside the cosine, as in timm's `warmup_prefix=False`: the cosine is a function of
    all `epochs`, and the warm-up line covers its first part. With lr_steps="epoch" this gives the
    released code's rates: 1e-6 for the whole first epoch, 3.80e-3 in epoch 19, 3.956e-3 in epoch
    20, 1e-5 in the cool-down.
    """
    schedule, peak = recipe.schedule, recipe.optim.peak_lr
    epoch = step // steps_per_epoch if schedule.lr_steps == "epoch" else step / steps_per_epoch
    if epoch < schedule.warmup_epochs:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * epoch / schedule.warmup_epochs
    if epoch >= schedule.epochs:
        return schedule.final_lr
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / schedule.epochs))
    return schedule.final_lr + (peak - schedule.final_lr) * cosine
