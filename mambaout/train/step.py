"""One optimizer step and one evaluation batch, the same code on every backend.

Nothing here reads a value back from the device. The random draws of a step depend on the seed, the
step and the image's place in the global batch. So the micro-batch size and the number of devices
change only rounding. A backend that compiles needs two graphs for any number of micro-batches: one
adds a micro-batch's gradients, the other takes the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Imported from its own module, because torch_xla replaces the function in torch.nn.utils.
from torch.nn.utils.clip_grad import clip_grad_norm_

from mambaout.data.batches.device_augment import StepDraws, draw_step, prepare_eval, prepare_train
from mambaout.data.batches.loader import Batch
from mambaout.model.network import MambaOut
from mambaout.recipe import Recipe
from mambaout.train.backend import Backend
from mambaout.train.optim import take_step


@dataclass
class TrainState:
    """Exactly the state that a step changes."""

    model: MambaOut
    optimizer: torch.optim.AdamW
    step: int = 0  # optimizer steps taken


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch on the device, with its random draws."""

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
    """The batch of optimizer step `step`, split into micro-batches that are all on the device."""
    split = makers(batch, recipe, backend=backend, step=step, micro_batch=micro_batch, seed=seed)
    return [make() for make in split]


def makers(
    batch: Batch, recipe: Recipe, *, backend: Backend, step: int, micro_batch: int, seed: int
) -> list[Callable[[], MicroBatch]]:
    """For each micro-batch of the batch of step `step`, the function that places it."""
    size = micro_batch // backend.num_hosts

    def make(rows: slice) -> MicroBatch:
        places = batch.first + np.arange(len(batch.labels))[rows]
        drawn = draw_step(
            recipe, seed=seed, step=step, places=places, fixed_shapes=backend.compiles
        )
        return MicroBatch(
            backend.place(batch.images[rows]),
            backend.place(batch.labels[rows]),
            drawn.placed(backend.place, backend.place_whole),
        )

    firsts = range(0, len(batch.labels), size)
    return [partial(make, slice(first, first + size)) for first in firsts]


def train_step(
    state: TrainState, parts: Iterable[MicroBatch], recipe: Recipe, *, backend: Backend, lr: float
) -> Sums:
    """Take one optimizer step on the micro-batches of a global batch; changes `state` in place.

    The caller cuts the graph after it has used the sums.
    """
    sums = add_gradients(state, parts, recipe, backend=backend)
    update(state, recipe, backend=backend, lr=lr)
    return sums


def add_gradients(
    state: TrainState, parts: Iterable[MicroBatch], recipe: Recipe, *, backend: Backend
) -> Sums:
    """Add the gradients of the mean loss over the global batch to the gradients in `state`.

    An out-of-memory error changes nothing but the gradients. The caller can clear them and try
    again with a smaller micro-batch.
    """
    model = state.model
    _set_training(model, True)
    loss_of = backend.compiled(_loss)
    loss_sum = backend.place_whole(torch.zeros(1, dtype=torch.float64))
    for part in parts:
        loss = loss_of(model, part, recipe, backend)
        (loss / recipe.global_batch).backward()
        loss_sum += loss.detach().double()
        backend.cut_graph()
        del part  # its memory is free for the next one
    return Sums(loss_sum, recipe.global_batch)


def _loss(model: MambaOut, part: MicroBatch, recipe: Recipe, backend: Backend) -> Tensor:
    """The sum of the micro-batch's losses, with the augmentation on the device."""
    images, targets = prepare_train(
        part.images, part.labels, part.drawn, recipe=recipe, num_classes=model.num_classes
    )
    with backend.autocast(recipe.precision):
        logits = model(images, part.drawn.drop)  # (micro_batch, num_classes)
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def update(state: TrainState, recipe: Recipe, *, backend: Backend, lr: float) -> None:
    """Update the weights in place with their gradients, then clear the gradients."""
    if recipe.optim.clip_norm is not None:
        clip_grad_norm_(state.model.parameters(), recipe.optim.clip_norm)
    take_step(state.optimizer, lr, recipe.optim.weight_decay, backend)
    state.step += 1


def _set_training(model: MambaOut, is_training: bool) -> None:
    """Call `model.train(is_training)`, which visits every module, only if the mode changes."""
    if model.training != is_training:
        model.train(is_training)


def eval_step(
    model: MambaOut, batch: Batch, recipe: Recipe, totals: Tensor, *, backend: Backend
) -> Tensor:
    """Add a batch's loss, top-1 hits and top-5 hits to `totals`, float64 (3,), and return the sums.

    Only the first `num_valid` images count; the rest is padding.
    """
    _set_training(model, False)
    labels = backend.place(batch.labels)
    valid = backend.place(torch.arange(len(batch.labels)) < batch.num_valid)
    with torch.no_grad():
        images = backend.place(batch.images)
        totals = totals + backend.compiled(_scores)(model, images, labels, valid, recipe, backend)
    backend.cut_graph()
    return totals


def _scores(
    model: MambaOut,
    images: Tensor,
    labels: Tensor,
    valid: Tensor,
    recipe: Recipe,
    backend: Backend,
) -> Tensor:
    """The loss, the top-1 hits and the top-5 hits of the images that are `valid`, float64 (3,)."""
    with backend.autocast(recipe.precision):
        logits = model(prepare_eval(images))
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, reduction="none")
    # The rank comes from comparisons: a tie counts against the network, and NaN is never a hit.
    target = logits.gather(1, labels[:, None])
    rank = (~(logits < target)).sum(dim=1)  # 1: the label has the largest logit
    found = (torch.where(valid, loss, 0), valid & (rank <= 1), valid & (rank <= 5))
    # The sum over devices is in fp32, because a TPU has no 64-bit arithmetic. It is exact for the
    # counts of a batch.
    return torch.stack([each.float().sum().double() for each in found])
