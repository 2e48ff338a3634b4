"""One optimizer step and one evaluation batch, the same code on every backend.

Nothing here reads a value back from the device. The random draws of a step depend on the seed, the
step and the sample's place in the global batch, so neither the micro-batch size nor the number of
devices moves anything but rounding. A backend that compiles meets two graphs, whatever the number
of micro-batches: one that adds a micro-batch's gradients, one that takes the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# By its own name: torch_xla replaces the one in torch.nn.utils when it is imported.
from torch.nn.utils.clip_grad import clip_grad_norm_

from mambaout.data.batches.device_augment import StepDraws, draw_step, prepare_eval, prepare_train
from mambaout.data.batches.loader import Batch
from mambaout.model.network import MambaOut
from mambaout.recipe import Recipe
from mambaout.train.backend import Backend
from mambaout.train.optim import take_step


@dataclass
class TrainState:
    """What a step changes, and nothing else."""

    model: MambaOut
    optimizer: torch.optim.AdamW
    step: int = 0  # optimizer steps taken


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch on the device, with what was drawn for it."""

    images: Tensor  # uint8 (b, H, W, 3)
    labels: Tensor  # int64 (b,)
    drawn: StepDraws


@dataclass(frozen=True)
class Sums:
    """Sums over the images of a step that stay on the device until a record is made."""

    loss: Tensor  # float64 (1,)
    num_images: int


def placed(
    batch: Batch, recipe: Recipe, *, backend: Backend, step: int, micro_batch: int, seed: int
) -> list[MicroBatch]:
    """The batch of optimizer step `step` in micro-batches on the device."""
    size = micro_batch // backend.num_hosts
    parts = []
    for first in range(0, len(batch.labels), size):
        rows = slice(first, first + size)
        places = batch.first + np.arange(len(batch.labels))[rows]
        drawn = draw_step(
            recipe, seed=seed, step=step, places=places, fixed_shapes=backend.compiles
        )
        parts.append(
            MicroBatch(
                backend.place(batch.images[rows]),
                backend.place(batch.labels[rows]),
                drawn.placed(backend.place, backend.place_whole),
            )
        )
    return parts


def train_step(
    state: TrainState, parts: Sequence[MicroBatch], recipe: Recipe, *, backend: Backend, lr: float
) -> Sums:
    """Take one optimizer step on the micro-batches of a global batch; changes `state` in place.

    The caller cuts the graph after it has used the sums.
    """
    sums = add_gradients(state, parts, recipe, backend=backend)
    update(state, recipe, backend=backend, lr=lr)
    return sums


def add_gradients(
    state: TrainState, parts: Sequence[MicroBatch], recipe: Recipe, *, backend: Backend
) -> Sums:
    """Add the gradients of the mean loss over the global batch to what the weights have.

    An out-of-memory error leaves all but the gradients as it was, so that the caller can try again
    with fresh ones and a smaller micro-batch.
    """
    model = state.model
    _set_training(model, True)
    loss_sum = backend.place_whole(torch.zeros(1, dtype=torch.float64))
    for part in parts:
        images, targets = prepare_train(
            part.images, part.labels, part.drawn, recipe=recipe, num_classes=model.num_classes
        )
        with backend.autocast(recipe.precision):
            logits = model(images, part.drawn.drop)  # (micro_batch, num_classes)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        (loss / recipe.global_batch).backward()
        loss_sum += loss.detach().double()
        backend.cut_graph()
    return Sums(loss_sum, recipe.global_batch)


def update(state: TrainState, recipe: Recipe, *, backend: Backend, lr: float) -> None:
    """Move the weights by their gradients, and clear those."""
    if recipe.optim.clip_norm is not None:
        clip_grad_norm_(state.model.parameters(), recipe.optim.clip_norm)
    take_step(state.optimizer, lr, recipe.optim.weight_decay, backend)
    # A graph that finds gradients to add to is another than one that finds none.
    state.optimizer.zero_grad(set_to_none=not backend.compiles)
    state.step += 1


def _set_training(model: MambaOut, is_training: bool) -> None:
    """`model.train(is_training)`, which walks over every module, where it is another mode."""
    if model.training != is_training:
        model.train(is_training)


def eval_step(
    model: MambaOut, batch: Batch, recipe: Recipe, totals: Tensor, *, backend: Backend
) -> Tensor:
    """`totals`, float64 (3,): loss, top-1 and top-5 hits, with the batch's first `num_valid` images
    added; the padding counts for nothing."""
    _set_training(model, False)
    labels = backend.place(batch.labels)
    valid = backend.place(torch.arange(len(batch.labels)) < batch.num_valid)
    with torch.no_grad():
        images = prepare_eval(backend.place(batch.images))
        with backend.autocast(recipe.precision):
            logits = model(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        # A rank by comparison: ties count against the network, and NaN is never a hit.
        target = logits.gather(1, labels[:, None])
        rank = (~(logits < target)).sum(dim=1)  # 1: the label has the largest logit
        found = (torch.where(valid, loss, 0), valid & (rank <= 1), valid & (rank <= 5))
        # Over the devices in fp32, exact for counts of a batch: a TPU has no 64-bit arithmetic.
        totals = totals + torch.stack([each.float().sum().double() for each in found])
    backend.cut_graph()
    return totals
