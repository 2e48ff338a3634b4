"""One optimizer step and one evaluation batch, the same code on every backend.

Nothing here reads a value back from the device. The random draws of a step depend on the seed, the
step and the sample's place in the global batch, so the micro-batch size moves nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaout.data.augment import prepare_eval, prepare_train
from mambaout.data.loader import Batch
from mambaout.model.network import MambaOut
from mambaout.recipe import Recipe
from mambaout.train.backend import Backend


@dataclass
class TrainState:
    """What a step changes, and nothing else."""

    model: MambaOut
    optimizer: torch.optim.AdamW
    step: int = 0  # optimizer steps taken


@dataclass(frozen=True)
class Sums:
    """Sums over images that stay on the device until a record is made."""

    loss: Tensor  # float64 scalar
    num_images: int


@dataclass(frozen=True)
class EvalSums:
    loss: Tensor
    top1: Tensor
    top5: Tensor
    num_images: int


def micro_batches(global_batch: int, mixes: bool) -> list[int]:
    """The micro-batch sizes that split `global_batch` evenly, largest first.

    Where a recipe mixes pairs of images a micro-batch holds whole pairs.
    """
    sizes = [n for n in range(global_batch, 0, -1) if global_batch % n == 0]
    return [n for n in sizes if n % 2 == 0] if mixes else sizes


def drop_draws(seed: int, step: int, global_batch: int, num_blocks: int) -> Tensor:
    """Stochastic depth's uniform draws, (global_batch, num_blocks) in [0, 1), on the host."""
    digest = blake2b(f"drop_path:{seed}:{step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand((global_batch, num_blocks), generator=generator)


def train_step(
    state: TrainState,
    batch: Batch,
    recipe: Recipe,
    *,
    backend: Backend,
    lr: float,
    micro_batch: int,
    seed: int,
) -> Sums:
    """Take one optimizer step on `batch`, a whole global batch; changes `state` in place.

    An out-of-memory error leaves weights, optimizer and step as they were, so that the caller can
    try again with a smaller micro-batch.
    """
    model, global_batch = state.model, len(batch.labels)
    draws = None
    if recipe.model.drop_path > 0:
        draws = drop_draws(seed, state.step, global_batch, recipe.model.num_blocks)
    model.train()
    state.optimizer.zero_grad(set_to_none=True)
    loss_sum = torch.zeros((), dtype=torch.float64, device=backend.device)
    for first, images, labels in _slices(batch, micro_batch, backend):
        images, targets = prepare_train(
            images,
            labels,
            recipe=recipe,
            num_classes=model.num_classes,
            seed=seed,
            step=state.step,
            first=first,
        )
        kept = None if draws is None else backend.place(draws[first : first + len(labels)])
        with backend.autocast(recipe.precision):
            logits = model(images, kept)  # (micro_batch, num_classes)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        (loss / global_batch).backward()
        loss_sum += loss.detach().double()
    if recipe.optim.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    state.step += 1
    backend.step_boundary()
    return Sums(loss_sum, global_batch)


def eval_step(model: MambaOut, batch: Batch, recipe: Recipe, *, backend: Backend) -> EvalSums:
    """Loss and hits over the first `batch.num_valid` images; the padding counts for nothing."""
    model.eval()
    labels = backend.place(batch.labels)
    valid = backend.place(torch.arange(len(batch.labels)) < batch.num_valid)
    with torch.inference_mode():
        images = prepare_eval(backend.place(batch.images))
        with backend.autocast(recipe.precision):
            logits = model(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        # A rank by comparison: ties count against the network, and NaN is never a hit.
        target = logits.gather(1, labels[:, None])
        rank = (~(logits < target)).sum(dim=1)  # 1: the label has the largest logit
        sums = EvalSums(
            loss=torch.where(valid, loss, 0).double().sum(),
            top1=(valid & (rank <= 1)).sum(),
            top5=(valid & (rank <= 5)).sum(),
            num_images=batch.num_valid,
        )
    backend.step_boundary()
    return sums


def _slices(
    batch: Batch, micro_batch: int, backend: Backend
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The global batch in micro-batches on the device, each with its first sample's index."""
    for first in range(0, len(batch.labels), micro_batch):
        part = slice(first, first + micro_batch)
        yield first, backend.place(batch.images[part]), backend.place(batch.labels[part])
