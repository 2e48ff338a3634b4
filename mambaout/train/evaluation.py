"""Top-1, top-5 and loss over every image of a split."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mambaout.data.batches.loader import Batch, evaluation_batches
from mambaout.data.batches.makers import HostShare
from mambaout.data.shards.data_set import DataSet, Split
from mambaout.errors import WrongRequest
from mambaout.model.network import MambaOut
from mambaout.recipe import Recipe
from mambaout.train.backend import Backend
from mambaout.train.step import eval_step


def evaluate(
    model: MambaOut,
    data: DataSet,
    split: Split,
    recipe: Recipe,
    *,
    backend: Backend,
    batch_size: int = 256,
    num_workers: int = 0,
    batches: Iterable[Batch] | None = None,
) -> dict[str, float]:
    """Top-1 and top-5 in percent, and the mean loss in nats, over every image of `split`.

    The names begin with the split: "val/top1". `batch_size` must be a multiple of the backend's
    devices. With `batches`, those are evaluated; they must hold the whole split. Raises ValueError
    for an empty split.
    """
    if batches is None:
        batches = evaluation_batches(
            data,
            split,
            recipe,
            batch_size=batch_size,
            num_workers=num_workers,
            host=HostShare(backend.host, backend.num_hosts),
        )
    num_images = data.num_images(split, recipe)
    if num_images == 0:
        raise WrongRequest(f"split {split!r} of {data.name} has no images to evaluate on")
    totals = no_totals(backend)
    for batch in batches:
        totals = eval_step(model, batch, recipe, totals, backend=backend)
    loss, top1, top5 = totals.tolist()
    return {
        f"{split}/top1": 100 * top1 / num_images,
        f"{split}/top5": 100 * top5 / num_images,
        f"{split}/loss": loss / num_images,
    }


def no_totals(backend: Backend) -> torch.Tensor:
    """The zeros that `eval_step` adds to."""
    return backend.place_whole(torch.zeros(3, dtype=torch.float64))


def evaluation_batch(recipe: Recipe, micro_batch: int, backend: Backend) -> int:
    """The images of an evaluation batch: those of a micro-batch, or 256 if that is small."""
    size = max(min(256, recipe.global_batch), micro_batch)
    return -(-size // backend.num_devices) * backend.num_devices


def warm_evaluation(model: MambaOut, recipe: Recipe, backend: Backend, batch_size: int) -> None:
    """Compile the evaluation, on a batch of padding."""
    count = batch_size // backend.num_hosts
    images = torch.zeros((count, recipe.image_size, recipe.image_size, 3), dtype=torch.uint8)
    batch = Batch(images, torch.zeros(count, dtype=torch.int64), num_valid=0)
    eval_step(model, batch, recipe, no_totals(backend), backend=backend)
