"""The makers decide which rows a batch holds and fill them, as a function of the batch's number.

The order of rows depends only on (seed, epoch), an image's augmentation on (seed, epoch, sample
id), and a batch on its step number. Any batch can be made without the ones before it, so to resume
costs nothing. Several processes fill one batch, each its share of the rows; the result does not
depend on the shares.

An epoch shuffles the row groups, then the rows inside windows. A window is a set of row groups of
at most 1 GiB together (encoded.WINDOW_BYTES). A smaller split is one window, which is an exact
shuffle. `pack` writes rows in a hashed order, so a window is a fair sample even of a sorted source.
A larger split has 32 lanes in each batch, and a row group's rows stay in one lane. A host has
consecutive rows of each batch, so it reads only its own row groups.

This file imports neither torch nor timm, because worker processes must start in a fraction of a
second.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from dataclasses import dataclass

import numpy as np

from mambaout.data.batches import ring
from mambaout.data.batches.ring import FillReport
from mambaout.data.draws import draws
from mambaout.data.images.augment import ImageDraws, TrainAugment, eval_crop
from mambaout.data.images.decode import Images, Picture, UndecodableImage
from mambaout.data.images.resample import ImagePart
from mambaout.data.shards.data_set import DataSet, Split
from mambaout.data.shards.encoded import WINDOW_BYTES, Shard, needed_bytes
from mambaout.data.shards.files import DataError
from mambaout.recipe import Recipe

LANES = 32  # parts of a batch, to divide between hosts
SUBSTITUTES = 16  # rows to try instead of one that cannot be decoded
DRAWN_TOGETHER = 256  # images; draws cost 20 us for a single image, 1 us for each of many
BATCHES_AHEAD = 2  # the row groups of so many later batches are read while a batch is made
EXACT_NEEDS = ("torch",)  # imported only for exact pixels: the import takes two seconds


def warm_workers() -> None:
    """Start the server process from which workers are forked, and return while it imports modules.

    A trainer that calls this before its own imports gets its first batch two seconds earlier.
    """
    ring.warm([__name__, *EXACT_NEEDS])


@dataclass(frozen=True, slots=True)
class HostShare:
    """The rank of this process among the `count` processes that train one network together."""

    rank: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """This host's rows of a global batch: consecutive rows, the same number on every host.

        Raises ValueError if `batch_size` does not split over the hosts.
        """
        if batch_size % self.count:
            raise ValueError(f"a batch of {batch_size} does not split over {self.count} hosts")
        size = batch_size // self.count
        return slice(self.rank * size, (self.rank + 1) * size)


ONLY_HOST = HostShare()


def epoch_order(
    shards: tuple[Shard, ...],
    rows: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch: int,
    window_bytes: int = WINDOW_BYTES,
) -> np.ndarray:
    """`rows` in the order of an epoch, for global batches of `batch` images."""
    group_rows = np.array([n for shard in shards for n in shard.group_rows])
    total_bytes = sum(shard.num_bytes for shard in shards)
    groups_a_window = max(1, int(window_bytes * len(group_rows) / max(total_bytes, 1)))
    group = np.searchsorted(np.cumsum(group_rows), rows, side="right")
    by_draw = np.argsort(draws("groups", seed, epoch, each=np.arange(len(group_rows))))
    rank = np.empty(len(group_rows), np.int64)
    rank[by_draw] = np.arange(len(group_rows))
    window, place = np.divmod(rank[group], groups_a_window)
    order = np.lexsort((draws("rows", seed, epoch, each=rows), window))
    if groups_a_window < len(group_rows):
        number = np.arange(len(rows)) // batch
        order = order[np.lexsort(((place * LANES // groups_a_window)[order], number))]
    return rows[order]


class _Maker:
    """Fills batches with rows of "train" or "val". Its pickle is small, because each process opens
    the images itself."""

    def __init__(self, data: DataSet, source: str, recipe: Recipe, num_rows: int) -> None:
        self.data, self.source, self.recipe = data, source, recipe
        self.num_rows, self.image_size = num_rows, recipe.image_size
        self._images: Images | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_images": None}

    def open(self) -> Images:
        if self._images is None:
            if multiprocessing.parent_process() is not None:
                self._work_on_one_thread()
            self._images = Images(self.data, self.source)
        return self._images

    def _work_on_one_thread(self) -> None:
        import torch

        torch.set_num_threads(1)

    def rows(self, key: int) -> np.ndarray:
        """The rows of batch `key` on this host; fewer than num_rows at the end of a split."""
        raise NotImplementedError

    def fill(
        self, key: int, images: np.ndarray, labels: np.ndarray, worker: int, num_workers: int
    ) -> FillReport:
        source = self.open()
        rows = self.rows(key)
        mine = self._share(rows, worker, num_workers)
        if source.pixels is None:
            source.encoded.keep_bytes = needed_bytes(num_workers)
            for later in range(key + 1, key + 1 + BATCHES_AHEAD):
                ahead = self.rows(later)
                ahead = ahead[self._share(ahead, worker, num_workers)]
                source.encoded.prefetch(np.unique(source.encoded.groups(ahead)).tolist())
        if worker == 0:
            images[len(rows) :] = 0
            labels[len(rows) :] = 0
        labels[mine] = self.data.labels[self.source][rows[mine]]
        return FillReport(len(rows), self._fill(key, images, labels, rows, mine))

    def _share(self, rows: np.ndarray, worker: int, num_workers: int) -> np.ndarray:
        """The places of a batch that a worker fills. They belong to few row groups, so usually only
        one process reads a row group."""
        if num_workers == 1:
            return np.arange(len(rows))
        by_group = np.argsort(self.open().encoded.groups(rows), kind="stable")
        first, end = (len(rows) * w // num_workers for w in (worker, worker + 1))
        return np.sort(by_group[first:end])

    def _fill(
        self, key: int, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, mine: np.ndarray
    ) -> tuple[str, ...]:
        raise NotImplementedError


class TrainMaker(_Maker):
    """Fills the training batch of any step."""

    def __init__(self, data: DataSet, recipe: Recipe, *, seed: int, host: HostShare) -> None:
        self.part = host.rows(recipe.global_batch)
        super().__init__(data, "train", recipe, self.part.stop - self.part.start)
        self.seed = seed
        self.train_rows = data.rows("train", recipe, seed=seed)
        self.steps_per_epoch = len(self.train_rows) // recipe.global_batch
        self.augment = TrainAugment(recipe)
        self._orders: dict[int, np.ndarray] = {}  # by epoch, at most two of them

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_orders": {}}

    def _work_on_one_thread(self) -> None:
        if not self.augment.fast:  # the fast way does not import torch
            super()._work_on_one_thread()

    def rows(self, key: int) -> np.ndarray:
        epoch, index = divmod(key, self.steps_per_epoch)
        batch = self.recipe.global_batch
        if epoch not in self._orders:
            kept = [self._orders.popitem()] if self._orders else []
            shards = self.data.shards["train"]
            order = epoch_order(shards, self.train_rows, seed=self.seed, epoch=epoch, batch=batch)
            self._orders = dict([*kept, (epoch, order)])
        return self._orders[epoch][index * batch : (index + 1) * batch][self.part]

    def _fill(
        self, key: int, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, mine: np.ndarray
    ) -> tuple[str, ...]:
        epoch = key // self.steps_per_epoch
        keys = draws("augment", self.seed, epoch, each=self.data.sample_ids[rows[mine]])
        notes: list[str] = []
        for first in range(0, len(mine), DRAWN_TOGETHER):
            part = slice(first, first + DRAWN_TOGETHER)
            drawn = self.augment.draw(keys[part])
            notes += self._augment(drawn, rows[mine[part]], mine[part], images, labels)
        return tuple(notes)

    def _augment(
        self,
        drawn: ImageDraws,
        rows: np.ndarray,
        places: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
    ) -> list[str]:
        """Fill `places` with the images of `rows`; returns a text for each undecodable image."""
        source, notes = self.open(), []
        pictures: list[Picture | UndecodableImage | None] = []
        pictures += [_or_error(source, row) for row in rows.tolist()]
        sizes = [getattr(picture, "size", (1, 1)) for picture in pictures]
        boxes = drawn.boxes(np.array(sizes)).tolist()
        for index, (row, place) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
            part = self.augment.part(boxes[index], drawn, index)
            # Each picture is freed after its crop, because a Pillow picture holds all its pixels
            # by then.
            picture, pictures[index] = pictures[index], None
            assert picture is not None
            try:
                crop = _cropped(source, row, picture, boxes[index], part, self.augment.least)
            except UndecodableImage as error:
                notes.append(f"{error.row} {error}")
                crop, part, labels[place] = self._substitute(row, drawn, index, error)
            images[place] = self.augment(crop, drawn, index, part)
        return notes

    def _substitute(
        self, row: int, drawn: ImageDraws, index: int, error: UndecodableImage
    ) -> tuple[np.ndarray, ImagePart | None, int]:
        """The crop, part and label of the next training row that can be decoded."""
        source = self.open()
        at = int(np.searchsorted(self.train_rows, row))
        for other in range(at + 1, at + 1 + SUBSTITUTES):
            row = int(self.train_rows[other % len(self.train_rows)])
            with contextlib.suppress(UndecodableImage):
                picture = source[row]
                box = drawn.boxes(np.array([picture.size]), slice(index, index + 1))[0].tolist()
                part = self.augment.part(box, drawn, index)
                crop = _cropped(source, row, picture, box, part, self.augment.least)
                return crop, part, int(self.data.labels["train"][row])
        raise DataError(f"{error}, nor are the {SUBSTITUTES} rows after it; replace them")


def _or_error(source: Images, row: int) -> Picture | UndecodableImage:
    try:
        return source[row]
    except UndecodableImage as error:
        return error


def _cropped(
    source: Images,
    row: int,
    picture: Picture | UndecodableImage,
    box: list[int],
    part: ImagePart | None = None,
    least: int | None = None,
) -> np.ndarray:
    """The pixels of a box, or of a part of it."""
    if isinstance(picture, UndecodableImage):
        raise picture
    left, top, width, height = box
    if part is not None:
        left, top, width, height = left + part.left, top + part.top, part.width, part.height
    try:
        return picture.crop((left, top, width, height), least)
    except Exception as error:  # decoders raise many kinds of errors for a damaged file
        raise source.undecodable(row, error) from error


class EvaluationMaker(_Maker):
    """Fills any evaluation batch. All batches hold every image of the split once, in row order."""

    def __init__(
        self, data: DataSet, split: Split, recipe: Recipe, batch_size: int, host: HostShare
    ) -> None:
        self.part, self.batch_size = host.rows(batch_size), batch_size
        super().__init__(data, data.source(split), recipe, self.part.stop - self.part.start)
        self.split_rows = data.rows(split, recipe)
        self.num_batches = -(-len(self.split_rows) // batch_size)

    def rows(self, key: int) -> np.ndarray:
        return self.split_rows[key * self.batch_size : (key + 1) * self.batch_size][self.part]

    def _fill(
        self, key: int, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, mine: np.ndarray
    ) -> tuple[str, ...]:
        source, size = self.open(), self.image_size
        pixels = source.pixels
        if pixels is not None and pixels.shape[1:3] == (size, size) and self.recipe.eval_crop == 1:
            chosen = pixels[rows[mine]]
            images[mine] = chosen if chosen.ndim == 4 else chosen[..., None]
            return ()
        for place, row in zip(mine.tolist(), rows[mine].tolist(), strict=True):
            try:
                picture = source[row]
                image = _cropped(source, row, picture, [0, 0, *picture.size])
            except UndecodableImage as error:
                # Without this image top-1 would be that of another set.
                raise DataError(f"{error}; an evaluation needs all: replace it") from error
            images[place] = eval_crop(image, self.recipe)
        return ()
