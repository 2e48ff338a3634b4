"""Top-1, top-5 and loss over every image of a split."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaout.data.batches.loader import Batch, evaluation_batches
from mambaout.data.batches.makers import HostShare
from mambaout.data.shards.data_set import DataSet, Split
from mambaout.errors import WrongRequest
from mambaout.model.network import MambaOut
from mambaout.recipe import Recipe
from mambaout.train.backend import Backend
from mambaout.train.step import eval_step

log = logging.getLogger(__name__)


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
    totals, size = no_totals(backend), batch_size
    for batch in batches:
        totals, size = add_scores(model, batch, recipe, totals, backend=backend, size=size)
    loss, top1, top5 = totals.tolist()
    return {
        f"{split}/top1": 100 * top1 / num_images,
        f"{split}/top5": 100 * top5 / num_images,
        f"{split}/loss": loss / num_images,
    }


def add_scores(
    model: MambaOut, batch: Batch, recipe: Recipe, totals: Tensor, *, backend: Backend, size: int
) -> tuple[Tensor, int]:
    """Add the scores of `batch` to `totals`, `size` images at a time over all hosts.

    Returns the sums, and the size that fitted into memory: it is halved until one does. Raises the
    device's error if not even one image a device fits.
    """
    while True:
        rows = size // backend.num_hosts
        try:
            sums = totals
            for part in _parts(batch, rows):
                sums = eval_step(model, part, recipe, sums, backend=backend)
            return sums, size
        except Exception as error:
            smaller = size // 2 // backend.num_devices * backend.num_devices
            if not backend.is_out_of_memory(error) or not smaller:
                raise
            log.warning("evaluating %d images is out of memory; going on with %d", size, smaller)
            size = smaller
        backend.free_memory()


def _parts(batch: Batch, rows: int) -> Iterator[Batch]:
    """The batch in parts of `rows` rows; the last part is padded to as many, for its shape."""
    if len(batch.labels) <= rows:
        yield batch
        return
    for first in range(0, len(batch.labels), rows):
        images, labels = batch.images[first : first + rows], batch.labels[first : first + rows]
        lacking = rows - len(labels)
        yield Batch(
            F.pad(images, (0, 0, 0, 0, 0, 0, 0, lacking)),
            F.pad(labels, (0, lacking)),
            num_valid=min(max(batch.num_valid - first, 0), len(labels)),
        )


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
    add_scores(model, batch, recipe, no_totals(backend), backend=backend, size=batch_size)
