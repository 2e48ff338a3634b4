"""Rows to batches: the order of an epoch, its continuation at any step, and evaluation.

The order is a pure function of (seed, epoch), an image's augmentation of (seed, epoch, sample
id), and a batch of its step number: any batch is made without the ones before it, so continuing
costs nothing and the number of workers changes nothing.

An epoch shuffles the row groups, then the rows inside windows of row groups of at most 1 GiB
together (shards.WINDOW_BYTES). A smaller split is one window: an exact shuffle. `pack` writes
rows in a hashed order, so that a window is a fair sample even of a sorted source.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mambaout.data.augment import TrainAugment, eval_crop, host_generators_kept
from mambaout.data.decode import Images
from mambaout.data.draws import draws
from mambaout.data.shards import WINDOW_BYTES, DataSet, Shard, Split
from mambaout.recipe import Recipe, steps_per_epoch

SHEET_PIXELS = 1 << 20  # pixels that Pillow holds of a batch at once


@dataclass(frozen=True, slots=True)
class Position:
    """Where training stands: the next batch of an epoch, both counted from 0."""

    epoch: int
    batch: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one shape. Rows from `num_valid` on are padding: zeros, with label 0.

    One of several hosts has its own rows of a global batch, which begin at its place `first`.
    """

    images: Tensor  # uint8 (B, H, W, 3)
    labels: Tensor  # int64 (B,)
    num_valid: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """Which of the processes that train one network together this is, and of how many."""

    rank: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """This host's rows of a global batch: one run of them, as long on every host."""
        if batch_size % self.count:
            raise ValueError(f"a batch of {batch_size} does not split over {self.count} hosts")
        size = batch_size // self.count
        return slice(self.rank * size, (self.rank + 1) * size)


ONLY_HOST = Host()


class TrainBatches:
    """The training batches of a recipe on a data set, each of the whole global batch, or of the
    share that one of several hosts has of it."""

    def __init__(
        self,
        data: DataSet,
        recipe: Recipe,
        *,
        seed: int,
        num_workers: int = 0,
        host: Host = ONLY_HOST,
    ) -> None:
        self.data, self.recipe, self.seed, self.num_workers = data, recipe, seed, num_workers
        self.rows = data.rows("train", recipe)
        self.steps_per_epoch = steps_per_epoch(recipe, len(self.rows))
        self._make = _TrainMaker(data, recipe, seed, self.rows, self.steps_per_epoch, host)
        self._make.open()  # a small set is decoded here, once, and a damaged one refused

    def position(self, step: int) -> Position:
        return Position(*divmod(step, self.steps_per_epoch))

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The batches of optimizer steps `step`, `step` + 1, ... without end."""
        return _made_in_order(self._make, itertools.count(step), self.num_workers)


def evaluation_batches(
    data: DataSet,
    split: Split,
    recipe: Recipe,
    *,
    batch_size: int,
    num_workers: int = 0,
    host: Host = ONLY_HOST,
) -> Iterator[Batch]:
    """Every image of `split` once over all hosts, in global batches of `batch_size`, the last one
    padded."""
    make = _EvaluationMaker(data, split, recipe, batch_size, host)
    images = make.open()
    # Decoded images are resized faster than a worker starts (4 s for its imports).
    workers = num_workers if images.pixels is None else 0
    return _made_in_order(make, range(-(-len(make.rows) // batch_size)), workers)


def epoch_order(
    shards: tuple[Shard, ...],
    rows: np.ndarray,
    *,
    seed: int,
    epoch: int,
    window_bytes: int = WINDOW_BYTES,
) -> np.ndarray:
    """`rows` in the order of an epoch."""
    group_rows = np.array([n for shard in shards for n in shard.group_rows])
    total_bytes = sum(shard.num_bytes for shard in shards)
    groups_a_window = max(1, int(window_bytes * len(group_rows) / max(total_bytes, 1)))
    group = np.searchsorted(np.cumsum(group_rows), rows, side="right")
    by_draw = np.argsort(draws("groups", seed, epoch, each=np.arange(len(group_rows))))
    window = np.empty(len(group_rows), np.int64)
    window[by_draw] = np.arange(len(group_rows)) // groups_a_window
    return rows[np.lexsort((draws("rows", seed, epoch, each=rows), window[group]))]


class _TrainMaker:
    """Makes the batch of any step; small to pickle: a worker opens the images for itself."""

    def __init__(
        self,
        data: DataSet,
        recipe: Recipe,
        seed: int,
        rows: np.ndarray,
        steps_per_epoch: int,
        host: Host,
    ) -> None:
        self.data, self.recipe, self.seed, self.rows = data, recipe, seed, rows
        self.steps_per_epoch, self.part = steps_per_epoch, host.rows(recipe.global_batch)
        self.images: Images | None = None
        self.epoch: int | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"images": None, "epoch": None, "order": None}

    def open(self) -> Images:
        if self.images is None:
            self.images = Images(self.data, "train")
            self.augment = TrainAugment(self.recipe)
        return self.images

    def __call__(self, step: int) -> Batch:
        images = self.open()
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            shards = self.data.shards["train"]
            self.order = epoch_order(shards, self.rows, seed=self.seed, epoch=epoch)
            self.epoch = epoch
        size, batch = self.recipe.image_size, self.recipe.global_batch
        rows = self.order[index * batch : (index + 1) * batch][self.part]
        keys = draws("augment", self.seed, epoch, each=self.data.sample_ids[rows])
        with host_generators_kept():
            pixels = _stacked(
                (
                    self.augment(images[row], key)
                    for row, key in zip(rows.tolist(), keys.tolist(), strict=True)
                ),
                len(rows),
                size,
            )
        labels = torch.from_numpy(self.data.labels["train"][rows])
        return Batch(torch.from_numpy(pixels), labels, len(rows), self.part.start)


class _EvaluationMaker:
    """Makes any batch of an evaluation."""

    def __init__(
        self, data: DataSet, split: Split, recipe: Recipe, batch_size: int, host: Host
    ) -> None:
        self.data, self.recipe, self.batch_size = data, recipe, batch_size
        self.part = host.rows(batch_size)
        self.rows = data.rows(split, recipe)
        self.source = "val" if split == "val" else "train"  # minival is cut from train's shards
        self.images: Images | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"images": None}

    def open(self) -> Images:
        if self.images is None:
            self.images = Images(self.data, self.source)
        return self.images

    def __call__(self, index: int) -> Batch:
        images, size = self.open(), self.recipe.image_size
        rows = self.rows[index * self.batch_size : (index + 1) * self.batch_size][self.part]
        count = self.part.stop - self.part.start
        if self._exact_size(images.pixels):
            pixels = np.zeros((count, size, size, 3), np.uint8)
            chosen = images.pixels[rows]
            pixels[: len(rows)] = chosen[..., None] if chosen.ndim == 3 else chosen[..., :3]
        else:
            crops = (eval_crop(images[row], self.recipe) for row in rows.tolist())
            pixels = _stacked(crops, count, size)
        labels = np.zeros(count, np.int64)
        labels[: len(rows)] = self.data.labels[self.source][rows]
        return Batch(torch.from_numpy(pixels), torch.from_numpy(labels), len(rows), self.part.start)

    def _exact_size(self, pixels: np.ndarray | None) -> TypeGuard[np.ndarray]:
        """Whether there are pixels at hand that resize and crop would not change."""
        size = self.recipe.image_size
        return (
            pixels is not None and pixels.shape[1:3] == (size, size) and self.recipe.eval_crop == 1
        )


def _stacked(images: Iterator[Image.Image], count: int, size: int) -> np.ndarray:
    """At most `count` RGB images of (size, size) as uint8 (count, size, size, 3); zeros after them.

    They are pasted under each other and handed to numpy together: alone, a 28 px image pays 11 us.
    """
    pixels = np.zeros((count, size, size, 3), np.uint8)
    sheet_images = max(1, SHEET_PIXELS // size**2)
    for first in range(0, count, sheet_images):
        sheet = Image.new("RGB", (size, size * min(sheet_images, count - first)))
        for i, image in enumerate(itertools.islice(images, sheet_images)):
            sheet.paste(image, (0, i * size))
        pixels[first : first + sheet_images] = np.asarray(sheet).reshape(-1, size, size, 3)
    return pixels


def _made_in_order(
    make: Callable[[int], Batch], keys: Iterable[int], num_workers: int
) -> Iterator[Batch]:
    if num_workers == 0:
        return map(make, keys)
    # From a server that has only imported this module: a fork of this process, with CUDA's, Ray's
    # or Arrow's threads in it, can hang, and a fresh process a worker pays 4 s of imports each.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return iter(
        DataLoader(
            _Made(make),
            sampler=keys,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            worker_init_fn=_end_with_the_trainer,
            multiprocessing_context=context,
        )
    )


def _end_with_the_trainer(_worker: int) -> None:
    """Ends a worker when the process it makes batches for is gone, killed ones included.

    torch's own watch looks at the parent process, which is the server; server and workers would
    keep each other alive.
    """

    def watch() -> None:
        trainer = multiprocessing.parent_process()
        assert trainer is not None
        trainer.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Made(Dataset):
    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, key: int) -> Batch:
        return self.make(key)


def _as_it_is(batch: Any) -> Any:
    return batch
