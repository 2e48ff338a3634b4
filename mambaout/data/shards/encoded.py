"""Gives the encoded images of shards, row by row. Row groups are read whole, before their use."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mambaout.data.shards.files import DataError, Footer
from mambaout.data.shards.parquet import leaf_columns, read_columns

SEGMENTS = "segments"  # the column with a re-cut JPEG's `segments` (jpeg.py), or null

WINDOW_BYTES = 1 << 30  # of the row groups whose rows an epoch shuffles together
NEIGHBOURS_BYTES = 256 << 20  # of row groups that a process shares with neighbouring processes

READ_AHEAD_THREADS = 2


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """The column that holds the encoded images: a struct of bytes and path, or plain bytes."""

    name: str = "image"
    is_struct: bool = True

    @property
    def bytes_leaf(self) -> str:
        return f"{self.name}.bytes" if self.is_struct else self.name

    @property
    def path_leaf(self) -> str:
        """The stored column of the paths; None if the images have none."""
        return f"{self.name}.path"


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file."""

    location: str  # a path, or a URI such as gs://bucket/train-00000-of-00010.parquet
    group_rows: tuple[int, ...]  # rows of each row group
    num_bytes: int
    image: ImageColumn = ImageColumn()
    footer: Footer | None = field(default=None, repr=False, compare=False)  # None: not known yet

    @property
    def num_rows(self) -> int:
        return sum(self.group_rows)


def place(shards: Sequence[Shard], row: int) -> str:
    """The text "SHARD row N" for a row of a split, for messages."""
    for shard in shards:
        if row < shard.num_rows:
            return f"{shard.location} row {row}"
        row -= shard.num_rows
    raise IndexError(row)


def needed_bytes(num_workers: int) -> int:
    """The bytes that one of `num_workers` processes keeps in memory to read each of its row groups
    only once an epoch.

    It is the process's share of two windows, because the next window is read while the last rows of
    this one are used. With room for only one window, a process read each row group six times.
    """
    return 2 * WINDOW_BYTES // num_workers + NEIGHBOURS_BYTES


class EncodedImage(NamedTuple):
    """A row's image file, and its `segments` (jpeg.py) if `pack` re-cut it."""

    image: memoryview
    segments: memoryview | None


class EncodedImages:
    """Gives any row's encoded image. It reads whole row groups and keeps the last used ones.

    Threads may share it. Row groups that were read ahead are kept too; they are dropped only after
    those that were used already.
    """

    def __init__(self, shards: Sequence[Shard], keep_bytes: int = needed_bytes(1)) -> None:
        self.shards = shards
        self.keep_bytes = keep_bytes  # may be changed between two rows
        sizes = [rows for shard in shards for rows in shard.group_rows]
        self.group_of = [(shard, g) for shard in shards for g in range(len(shard.group_rows))]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._starts = self.starts.tolist()  # for one row bisect takes 0.1 us, searchsorted 2 us
        self.kept: OrderedDict[int, _Group] = OrderedDict()
        self.kept_bytes = 0
        self._ahead: dict[int, int] = {}  # {row group: bytes} of groups read ahead, not used yet
        self._reading: dict[int, Future[_Group]] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def groups(self, rows: np.ndarray) -> np.ndarray:
        """The int64 row group of each row, counted over all shards."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def path(self, row: int) -> str | None:
        """The stored path of the image of `row`, for messages; None if no path is stored."""
        group = bisect_right(self._starts, row) - 1
        shard, row_group = self.group_of[group]
        try:
            return read_paths(shard, [row_group])[row - self._starts[group]]
        except DataError:  # the caller must report its own error even if the path cannot be read
            return None

    def __getitem__(self, row: int) -> EncodedImage:
        """The image file in row `row`; DataError if it has none or cannot be read."""
        group = bisect_right(self._starts, row) - 1
        loaded, index = self._loaded(group), row - self._starts[group]
        image = loaded.images[index]
        if image is None:
            raise DataError(
                f"{place(self.shards, row)} has no {self.shards[0].image.bytes_leaf}, only a path "
                "at most; embed the images: `mambaout pack SOURCE OUT` from the folder that holds "
                "them"
            )
        return EncodedImage(image, None if loaded.segments is None else loaded.segments[index])

    def prefetch(self, groups: Iterable[int]) -> None:
        """Start to read these row groups in the background, in this order.

        A group is skipped if it does not fit beside the groups that were read ahead and are not
        used yet. An error is raised later, when a row of the group is asked for.
        """
        with self._lock:
            for group in groups:
                if group in self.kept or group in self._reading:
                    continue
                shard, index = self.group_of[group]
                size = shard.num_bytes * shard.group_rows[index] // max(shard.num_rows, 1)
                if self._ahead and sum(self._ahead.values()) + size > self.keep_bytes:
                    return
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(READ_AHEAD_THREADS, "read-ahead")
                self._ahead[group] = size
                self._reading[group] = self._pool.submit(self._read_and_keep, group)

    def close(self) -> None:
        """Drop all that is kept, and start no more reads. Running reads end by themselves."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
            self.kept.clear()
            self._reading.clear()
            self._ahead.clear()
            self.kept_bytes = 0

    def _loaded(self, group: int) -> _Group:
        with self._lock:
            found = self.kept.get(group)
            if found is not None:
                self.kept.move_to_end(group)
                self._ahead.pop(group, None)
                return found
            reading = self._reading.get(group)
            ours = reading is None or reading.cancel()  # a read that has not started is done here
            if reading is None or ours:
                reading = self._reading[group] = Future()
                reading.set_running_or_notify_cancel()
        if ours:
            try:
                reading.set_result(self._read_and_keep(group))
            except BaseException as error:
                reading.set_exception(error)
        try:
            return reading.result()
        except BaseException:
            with self._lock:  # so that the next caller tries again
                if self._reading.get(group) is reading:
                    del self._reading[group]
            raise
        finally:
            with self._lock:
                self._ahead.pop(group, None)

    def _read_and_keep(self, group: int) -> _Group:
        shard, index = self.group_of[group]
        found = _read_group(shard, index)
        if len(found.images) != shard.group_rows[index]:
            raise DataError(
                f"row group {index} of {shard.location} has {len(found.images)} rows and had "
                f"{shard.group_rows[index]}: the shard was replaced while it was in use"
            )
        with self._lock:
            if group in self._reading:  # unless it was closed in the meantime
                del self._reading[group]
                self.kept[group] = found
                self.kept_bytes += found.num_bytes
                self._make_room(group)
        return found

    def _make_room(self, newest: int) -> None:
        """Drop the least recently used groups. Groups that were not used yet are dropped last,
        beginning with the one read latest."""
        used = [g for g in self.kept if g not in self._ahead]
        unused = [g for g in reversed(self.kept) if g in self._ahead]
        for group in used + unused:
            if self.kept_bytes <= self.keep_bytes:
                return
            if group != newest:
                self.kept_bytes -= self.kept.pop(group).num_bytes
                self._ahead.pop(group, None)


class _Values:
    """A column's values as slices of its memory: 0.3 us each; a pyarrow scalar takes 2 us."""

    def __init__(self, table: pa.Table, column: str, leaf: str | None = None) -> None:
        chunks = table.column(column).chunks
        parts = chunks if leaf is None else [chunk.field(leaf) for chunk in chunks]
        values = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
        if not pa.types.is_large_binary(values.type):
            values = values.cast(pa.binary())
        _, offsets, data = values.buffers()
        code = "q" if pa.types.is_large_binary(values.type) else "i"
        self.first = values.offset
        self.offsets = memoryview(offsets).cast("B").cast(code)
        self.data = memoryview(b"" if data is None else data).cast("B")
        # `to_pylist`, because pyarrow's way to a NumPy array would import pandas: half a second.
        nulls = values.is_null().to_pylist() if values.null_count else []
        self.null = {row for row, is_null in enumerate(nulls) if is_null}
        self.num_bytes = values.nbytes
        self.num_rows = len(values)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> memoryview | None:
        if index in self.null:
            return None
        index += self.first
        return self.data[self.offsets[index] : self.offsets[index + 1]]


class _Group(NamedTuple):
    images: _Values
    segments: _Values | None
    num_bytes: int


def _read_group(shard: Shard, row_group: int) -> _Group:
    location, image = shard.location, shard.image
    # A shard by others may have a column of that name: with another type, or with content that does
    # not fit the file, which jpeg.py detects.
    with_segments = leaf_columns(location, shard.footer).get(SEGMENTS) == "BYTE_ARRAY"
    columns = [image.bytes_leaf] + [SEGMENTS] * with_segments
    table = read_columns(location, columns, [row_group], shard.footer)
    images = _Values(table, image.name, "bytes" if image.is_struct else None)
    segments = _Values(table, SEGMENTS) if with_segments else None
    num_bytes = images.num_bytes + (0 if segments is None else segments.num_bytes)
    return _Group(images, segments, num_bytes)


def read_paths(shard: Shard, row_groups: Sequence[int] | None = None) -> list[str | None]:
    """The stored paths of a shard's images, of some row groups or of all; None: no path."""
    leaf = shard.image.path_leaf
    if not shard.image.is_struct or leaf not in leaf_columns(shard.location, shard.footer):
        groups = range(len(shard.group_rows)) if row_groups is None else row_groups
        return [None] * sum(shard.group_rows[group] for group in groups)
    found: list[str | None] = []
    table = read_columns(shard.location, [leaf], row_groups, shard.footer)
    for chunk in table.column(shard.image.name).chunks:
        found += [
            path if isinstance(path, str) else None for path in chunk.field("path").to_pylist()
        ]
    return found
