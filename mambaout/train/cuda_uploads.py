"""Copies to a GPU beside its work: one micro-batch is on its way while another is computed.

A copy begins in memory that the GPU can read by itself (pinned). The rows are first copied there,
so the loader may fill its own memory again at once. The copy runs on a stream of its own. Events
keep the two streams in order: the work on a micro-batch waits for its copy, and no third
micro-batch is placed before the work on the first of them has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

AT_ONCE = 2  # micro-batches on the GPU: one in work, one ahead
T = TypeVar("T")


class Uploads:
    """The copies from this process to one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._working = torch.cuda.current_stream(device)
        self._copying = torch.cuda.Stream(device)
        self._ends: deque[Any] = deque()  # of the work on the latest micro-batches

    def place(self, tensor: Tensor) -> Tensor:
        """`tensor` on the GPU; `tensor` itself may change as soon as the call returns."""
        there = tensor.pin_memory().to(self._device, non_blocking=True)
        there.record_stream(self._working)  # else its memory could be used again too early
        return there

    def in_turn(self, makers: Iterable[Callable[[], T]]) -> Iterator[T]:
        """What each of `makers` places on the GPU, in their order.

        The caller starts the work on an item before it asks for the next one. The GPU does not
        wait: while it works on one item, the next one is copied.
        """
        for make in makers:
            while len(self._ends) >= AT_ONCE:
                self._ends.popleft().synchronize()
            with torch.cuda.stream(self._copying):
                item = make()
                copied: Any = self._copying.record_event()
            self._working.wait_event(copied)
            yield item
            del item
            self._ends.append(self._working.record_event())
