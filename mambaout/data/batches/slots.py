"""The memory that a ring's processes share: slots for batches, and one copy of a pickled value.

The memory consists of files without a name. The kernel frees them when the last process that maps
them has ended, even by a kill. This file imports no package but numpy, because every worker imports
it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import tempfile
from collections.abc import Iterator
from multiprocessing import reduction
from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes; a cache line, and enough for every dtype


class SlotLayout:
    """The layout of a slot: first the images, then the labels."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        num_rows, height, width, channels = shape
        self.labels_at = _aligned(num_rows * height * width * channels)
        self.num_bytes = self.labels_at + num_rows * np.dtype(np.int64).itemsize

    def arrays(self, slot: mmap.mmap) -> tuple[np.ndarray, np.ndarray]:
        images = np.ndarray(self.shape, np.uint8, buffer=slot)
        return images, np.ndarray(self.shape[0], np.int64, buffer=slot, offset=self.labels_at)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


@contextlib.contextmanager
def nameless(num_bytes: int) -> Iterator[int]:
    """A descriptor of memory without a name; it is open inside the context, until the workers have
    it. The memory holds zeros, and takes a page when that page is first written."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("mambaout")
    else:
        with tempfile.TemporaryFile() as unlinked:
            file = os.dup(unlinked.fileno())
    try:
        os.ftruncate(file, num_bytes)
        yield file
    finally:
        os.close(file)


class FileDescriptors:
    """File descriptors for a starting worker. Unpickled there, they are a list of its own ones."""

    def __init__(self, files: list[int]) -> None:
        self.files = files

    def __reduce__(self) -> tuple:
        return _received, ([reduction.DupFd(file) for file in self.files],)


def _received(files: list[Any]) -> list[int]:
    return [file.detach() for file in files]


@contextlib.contextmanager
def packed(value: object) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """A descriptor of the pickled value, and the spans of its parts: the pickle, then its arrays.

    All workers map the same copy. ImageNet's rows and labels are 30 MB; in 96 workers copies would
    be 3 GB.
    """
    buffers: list[pickle.PickleBuffer] = []
    parts = [memoryview(pickle.dumps(value, protocol=5, buffer_callback=buffers.append))]
    parts += [buffer.raw() for buffer in buffers]
    starts = [0]
    for part in parts:
        starts.append(_aligned(starts[-1] + len(part)))
    spans = [(start, start + len(part)) for start, part in zip(starts, parts, strict=False)]
    with nameless(starts[-1]) as file:
        with mmap.mmap(file, starts[-1]) as memory:
            for (start, stop), part in zip(spans, parts, strict=True):
                memory[start:stop] = part
        yield file, spans


def unpacked(file: int, spans: list[tuple[int, int]]) -> Any:
    """The value that `packed` has written."""
    # The map is private: a worker may write to its arrays, and no other worker sees it.
    memory = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_COPY))
    pickled, *buffers = (memory[start:stop] for start, stop in spans)
    return pickle.loads(pickled, buffers=buffers)
