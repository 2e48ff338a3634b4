"""Copies a data set's shards to a folder of this machine: `--stage DIR`, for example /dev/shm.

It is for a bucket or a disk that is slower than training: ImageNet at 5,000 images/s needs
0.5 GB/s. All processes of the machine share the copies, which stay until the folder is removed. An
evaluation copies only the shards that hold its split.

Writes: DIR/NAME-FINGERPRINT-SIZES/train-00000-of-0000N.parquet, validation-...; each is complete
        or missing
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from mambaout.cache import locked
from mambaout.data.bar import progress_bar
from mambaout.data.shards.data_set import DataSet, Split
from mambaout.data.shards.files import DataError, file_size, read_range
from mambaout.durable import PART, remove, replacing
from mambaout.numbers import bytes_text

log = logging.getLogger(__name__)

STAGE_THREADS = 8
PIECE_BYTES = 8 << 20  # bytes copied at a time; after a failed read this piece is read again

_SPLIT_FILES = {"train": "train", "val": "validation"}  # these names make the folder a data set


@dataclass(frozen=True, slots=True)
class _Copy:
    source: str
    target: Path
    num_bytes: int

    def is_there(self) -> bool:
        return self.target.exists() and self.target.stat().st_size == self.num_bytes


def stage(
    data: DataSet, folder: Path, *, split: Split | None = None, progress: bool = True
) -> DataSet:
    """Copy the shards of `data` under `folder` and return the data set that reads the copies.

    Shards that are there already are not copied again. With `split`, only the shards that hold that
    split are copied. Several processes may call this at once: one copies, the others wait. Raises
    DataError if there is no room or a shard cannot be read; complete copies stay.
    """
    shards = [
        (source, shard, f"{_SPLIT_FILES[source]}-{index:05d}-of-{len(of_split):05d}.parquet")
        for source, of_split in data.shards.items()
        for index, shard in enumerate(of_split)
    ]
    # The sizes of all shards, also of those not copied, so that training and an evaluation share
    # their copies.
    with ThreadPoolExecutor(STAGE_THREADS) as pool:
        each = [shard for _, shard, _ in shards]
        sizes = list(pool.map(lambda shard: file_size(shard.location, shard.footer), each))
    # The same images, packed in another way, have the same fingerprint but other row groups.
    packing = sha256(repr(sizes).encode()).hexdigest()[:6]
    home = folder.absolute() / f"{data.name}-{data.fingerprint}-{packing}"
    wanted = list(data.shards) if split is None else [data.source(split)]
    copies = {
        shard.location: _Copy(shard.location, home / name, size)
        for (source, shard, name), size in zip(shards, sizes, strict=True)
        if source in wanted
    }
    if not all(copy.is_there() for copy in copies.values()):
        try:
            home.mkdir(parents=True, exist_ok=True)
            with locked(home.with_name(f".{home.name}.lock")):
                _copy_missing(list(copies.values()), home, progress)
        except OSError as error:
            raise DataError(f"{data.name} cannot be staged in {folder}: {error}") from error
    staged = {
        source: tuple(
            replace(shard, location=str(copies[shard.location].target))
            for shard in data.shards[source]
        )
        for source in wanted
    }
    return replace(data, shards=data.shards | staged)


def _copy_missing(copies: Sequence[_Copy], home: Path, progress: bool) -> None:
    for left in home.glob(f".*{PART}"):
        remove(left)  # from a process that was killed while it copied
    missing = [copy for copy in copies if not copy.is_there()]
    need, free = sum(copy.num_bytes for copy in missing), shutil.disk_usage(home).free
    if need > free:
        raise DataError(
            f"staging takes {bytes_text(need)}, and {home} has {bytes_text(free)} left; "
            "stage where there is room, or leave --stage out"
        )
    if missing:
        log.info("copying %d shards, %s, to %s", len(missing), bytes_text(need), home)
    stop, lock = threading.Event(), threading.Lock()
    with (
        progress_bar(
            total=need, unit="B", unit_scale=True, unit_divisor=1024,
            desc=f"stage {home.name}", disable=not (progress and missing),
        ) as bar,
        ThreadPoolExecutor(STAGE_THREADS) as pool,
    ):  # fmt: skip

        def count(num_bytes: int) -> None:
            with lock:
                bar.update(num_bytes)

        under_way = [pool.submit(_copy, copy, count, stop) for copy in missing]
        try:
            for done in as_completed(under_way):
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


class _CopyStopped(Exception):
    """Another copy has failed."""


def _copy(copy: _Copy, count: Callable[[int], None], stop: threading.Event) -> None:
    """Copy one file under another name and rename it when it is complete. If `stop` is set during
    the copy, no file is left."""
    with (
        contextlib.suppress(_CopyStopped),
        replacing(copy.target) as aside,
        open(aside, "wb") as file,
    ):
        for start in range(0, copy.num_bytes, PIECE_BYTES):
            if stop.is_set():
                raise _CopyStopped
            length = min(PIECE_BYTES, copy.num_bytes - start)
            file.write(read_range(copy.source, start, length))
            count(length)
