"""The samples of batches, made by processes or by this one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar, cast

from torch.utils.data import DataLoader

from mambaout.data.shards.files import DataError

Sample_co = TypeVar("Sample_co", covariant=True)


class HasFolder(Protocol):
    @property
    def folder(self) -> str: ...


class SampleMaker(Protocol[Sample_co]):
    """Makes a sample for a place. An image that cannot be read is returned as the error, because a
    process would wrap it in a traceback's text."""

    @property
    def data(self) -> HasFolder: ...

    def __getitem__(self, place: Any, /) -> Sample_co | DataError: ...


def loaded(
    samples: SampleMaker[Sample_co], batches: Iterable[list], num_workers: int
) -> Iterator[list[Sample_co]]:
    """The samples of each batch, made by `num_workers` processes, or here if there are none.

    Raises DataError for an image that cannot be read.
    """
    for found in _made(samples, batches, num_workers):
        for each in found:
            if isinstance(each, DataError):
                raise each
        yield cast("list[Sample_co]", found)


def _made(
    samples: SampleMaker[Sample_co], batches: Iterable[list], num_workers: int
) -> Iterator[list[Sample_co | DataError]]:
    if not num_workers:
        for batch in batches:
            yield [samples[place] for place in batch]
        return
    # A bucket's client and an XLA device have threads, which a fork would leave behind. Without
    # them, forked processes share the annotations' memory.
    has_threads = "://" in samples.data.folder or "torch_xla" in sys.modules
    start = "forkserver" if has_threads else "fork"
    yield from DataLoader(
        cast(Any, samples),
        batch_sampler=cast(Any, batches),
        collate_fn=_as_they_are,
        num_workers=num_workers,
        multiprocessing_context=start,
    )


def _as_they_are(batch: list) -> list:
    return batch
