"""Makers for the tests of the ring, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mambaout.data.batches.ring import FillReport
from mambaout.data.shards.files import DataError


@dataclass
class Counting:
    """Rows of batch `key` hold `key` and the row; every fourth has a note."""

    num_rows: int = 11
    image_size: int = 4

    def open(self) -> None:
        self.opened = True

    def fill(
        self, key: int, images: np.ndarray, labels: np.ndarray, worker: int, num_workers: int
    ) -> FillReport:
        assert self.opened
        share = range(self.num_rows)[worker::num_workers]
        for row in share:
            images[row] = (31 * key + row) % 251
            labels[row] = 1000 * key + row
        self.after(key, labels, worker)
        notes = tuple(f"row {row} of batch {key}" for row in share if row == key % 4)
        return FillReport(self.num_rows - key % 2, notes)

    def after(self, key: int, labels: np.ndarray, worker: int) -> None:
        """What a test adds."""


@dataclass
class Begun(Counting):
    """Writes a byte to a file for each key that the first worker begins."""

    file: Path = Path()

    def after(self, key: int, labels: np.ndarray, worker: int) -> None:
        if worker == 0:
            with self.file.open("ab") as begun:
                begun.write(b".")


@dataclass
class Naming(Counting):
    """Labels are the process ids of the workers; from `slow_from` on, they sleep in the fill.

    Each writes a byte to the file `begun` when it begins a fill.
    """

    slow_from: int = 1 << 62
    begun: Path | None = None

    def fill(
        self, key: int, images: np.ndarray, labels: np.ndarray, worker: int, num_workers: int
    ) -> FillReport:
        labels[worker::num_workers] = os.getpid()
        if self.begun is not None:
            with self.begun.open("ab") as file:
                file.write(b".")
        if key >= self.slow_from:
            time.sleep(600)
        return FillReport(self.num_rows)


class TwoArguments(ValueError):
    """Pickles, and does not come back."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")


@dataclass
class Failing(Counting):
    """The second worker fails at batch 3, the first one at batch 4."""

    how: str = "DataError"

    def after(self, key: int, labels: np.ndarray, worker: int) -> None:
        if key < 3 or (key == 3 and worker == 0):
            return
        if self.how == "DataError":
            raise DataError(f"shard-{key}.parquet is damaged")
        if self.how == "stop":
            raise StopIteration
        if self.how == "two arguments":
            raise TwoArguments(f"shard-{key}", "gone")
        if self.how == "local":

            class LocalError(Exception):
                pass

            raise LocalError(f"shard-{key} is far away")
        if self.how == "exit":
            os._exit(3)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class NotOpening(Counting):
    def open(self) -> None:
        raise DataError("no shards here")


@dataclass
class WithTable(Counting):
    """Adds one to its table at each call: what another worker added must not show."""

    table: np.ndarray = field(default_factory=lambda: np.zeros(1000, np.int64))

    def after(self, key: int, labels: np.ndarray, worker: int) -> None:
        self.table += 1
        labels[worker] = self.table.sum()
