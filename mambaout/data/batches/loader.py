"""The batches of training, from any step on, and of evaluation.

makers.py decides what a batch holds and fills it. ring.py decides who fills it: this process, or
workers that share its memory.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mambaout import native
from mambaout.data.batches import ring
from mambaout.data.batches.makers import (
    EXACT_NEEDS,
    ONLY_HOST,
    EvaluationMaker,
    HostShare,
    TrainMaker,
)
from mambaout.data.images.c_files import C_FILES, LOSS
from mambaout.data.shards.data_set import DataSet, Split
from mambaout.data.shards.files import DataError
from mambaout.recipe import Recipe, steps_per_epoch

log = logging.getLogger(__name__)

KEPT_BYTES = 256 << 20  # of evaluation images that a run keeps; the same as for decoded splits
UNDECODABLE = 0.001  # the share of training images that other images may replace


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a step in the training: its epoch and its batch in it, both counted from 0."""

    epoch: int
    batch: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one shape. Rows from `num_valid` on are padding: zeros, with label 0.

    With several hosts each has its own rows of a global batch; they start at its place `first`.
    """

    images: Tensor  # uint8 (B, H, W, 3)
    labels: Tensor  # int64 (B,)
    num_valid: int
    first: int = 0


class TrainBatches:
    """The training batches of a recipe on a data set.

    Each is a whole global batch, or this host's share of it. An image that cannot be decoded is
    replaced by the next one that can, and `undecodable` lists it by its row. If more than one in a
    thousand of the training images are undecodable, a DataError is raised.
    """

    def __init__(
        self,
        data: DataSet,
        recipe: Recipe,
        *,
        seed: int,
        num_workers: int = 0,
        host: HostShare = ONLY_HOST,
    ) -> None:
        self.data, self.recipe, self.num_workers = data, recipe, num_workers
        self.num_images = data.num_images("train", recipe)
        self.steps_per_epoch = steps_per_epoch(recipe, self.num_images)
        self.undecodable: dict[int, str] = {}  # {row: text with shard, row and reason}
        self._make = TrainMaker(data, recipe, seed=seed, host=host)
        images = self._make.open()  # a small set is decoded here, once on a machine
        if images.pixels is None:
            native.prepare(C_FILES, LOSS)  # compile here, before every worker needs it

    def position(self, step: int) -> Position:
        return Position(*divmod(step, self.steps_per_epoch))

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The batches of the optimizer steps `step`, `step` + 1, and so on, without end."""
        made = _made(self._make, itertools.count(step), self.num_workers)
        return (self._checked(batch) for batch in made)

    def _checked(self, made: ring.FilledBatch) -> Batch:
        for note in made.notes:
            row, text = note.split(" ", 1)
            if int(row) not in self.undecodable:
                self.undecodable[int(row)] = text
                log.warning("%s; another image stands in for it", text)
        if len(self.undecodable) > UNDECODABLE * self.num_images:
            raise DataError(
                f"{len(self.undecodable)} of the {self.num_images} training images of "
                f"{self.data.name} cannot be decoded, more than {UNDECODABLE:.1%}: "
                f"{'; '.join([*self.undecodable.values()][:3])}. Replace them, or pack without them"
            )
        return _batch(made, self._make.part.start)


class EvaluationBatches:
    """The batches of a split that is evaluated again and again.

    The first evaluation decodes and resizes the images. If they take at most KEPT_BYTES, they are
    kept for the next ones. Arguments and errors are those of `evaluation_batches`.
    """

    def __init__(
        self,
        data: DataSet,
        split: Split,
        recipe: Recipe,
        *,
        batch_size: int,
        num_workers: int = 0,
        host: HostShare = ONLY_HOST,
    ) -> None:
        self._make = functools.partial(
            evaluation_batches,
            *(data, split, recipe),
            batch_size=batch_size,
            num_workers=num_workers,
            host=host,
        )
        num_images = data.num_images(split, recipe) / host.count
        self._keeps = num_images * 3 * recipe.image_size**2 <= KEPT_BYTES
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        seen: list[Batch] = []
        for batch in self._make():
            if self._keeps:
                seen.append(batch)
            yield batch
        if self._keeps:
            self._kept = seen


def evaluation_batches(
    data: DataSet,
    split: Split,
    recipe: Recipe,
    *,
    batch_size: int,
    num_workers: int = 0,
    host: HostShare = ONLY_HOST,
) -> Iterator[Batch]:
    """Every image of `split`, once over all hosts, in global batches of `batch_size`.

    The last batch is padded. An image that cannot be decoded raises DataError, because without it
    top-1 would be that of another set.
    """
    make = EvaluationMaker(data, split, recipe, batch_size, host)
    decoded = make.open().pixels is not None
    made = _made(make, range(make.num_batches), 0 if decoded else num_workers)
    return (_batch(batch, make.part.start) for batch in made)


def _made(
    make: TrainMaker | EvaluationMaker, keys: Iterable[int], num_workers: int
) -> Iterator[ring.FilledBatch]:
    needs = () if isinstance(make, TrainMaker) and make.augment.fast else EXACT_NEEDS
    return ring.made_in_order(make, keys, num_workers, preload=needs)


def _batch(made: ring.FilledBatch, first: int) -> Batch:
    labels = torch.from_numpy(made.labels)
    return Batch(torch.from_numpy(made.images), labels, made.num_valid, first)
