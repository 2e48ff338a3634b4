"""The clock and the sums of a run. Losses stay on the device until `record` waits for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from mambaout.train import metrics
from mambaout.train.backend import Backend
from mambaout.train.step import Sums

T = TypeVar("T")  # a batch of any task


class Meter:
    """Times training between waits for the device, and adds up the sums of the steps.

    The throughput leaves out the first step of a process, which warms up (allocations, kernels,
    compilation). It also leaves out evaluation, checkpoints, records, and every window in which
    something was compiled. `seconds` counts everything.
    """

    def __init__(self, backend: Backend, utilisation: Callable[[float], float | None]) -> None:
        self._backend, self._utilisation = backend, utilisation
        # The shape is (1,), because a lazy backend makes a scalar 0 or 1 part of its graph.
        self._loss = self._zero(torch.float64)
        self._num_images = 0  # since the last record
        self._all_images = 0
        self._steps = self._zero(torch.int64)
        self._bad_step = backend.place_whole(torch.tensor([-1]))
        self._compilations = backend.compilations()
        self._window_compilations = 0
        self._seconds = 0.0  # of earlier processes
        self._device = metrics.device_text(backend.device_name, backend.devices_held)
        self._earlier_devices: list[str] = []
        self._started = time.monotonic()
        self._warm = False
        self._window_start = 0.0
        self._window_images = self._timed_images = 0
        self._window_wait = self._timed_wait = self._timed_seconds = 0.0
        self.diverged_at: int | None = None

    def _zero(self, dtype: torch.dtype) -> Tensor:
        return self._backend.place_whole(torch.zeros(1, dtype=dtype))

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all processes of the run, without start-up."""
        return self._seconds + time.monotonic() - self._started

    @property
    def images_per_second(self) -> float:
        """Throughput over all timed windows; over everything if the run has no timed window."""
        if self._timed_seconds > 0:
            return self._timed_images / self._timed_seconds
        return self._all_images / self.seconds

    @property
    def earlier_devices(self) -> list[str]:
        """Other devices that earlier processes of the run used; the times include theirs."""
        return [device for device in self._earlier_devices if device != self._device]

    @property
    def input_wait_fraction(self) -> float:
        return self._timed_wait / self._timed_seconds if self._timed_seconds > 0 else 0.0

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches; the wait for each is timed."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self._window_wait += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def add(self, sums: Sums) -> None:
        """Add the sums of one step, and end its graph."""
        self._steps += 1
        self._loss += sums.loss
        self._num_images += sums.num_images
        self._all_images += sums.num_images
        bad = (self._bad_step < 0) & ~torch.isfinite(sums.loss)
        self._bad_step = torch.where(bad, self._steps, self._bad_step)
        self._backend.cut_graph()
        if self._warm:
            self._window_images += sums.num_images
        else:
            self._backend.wait()
            self._warm = True
            self._open_window()

    def is_finite(self) -> bool:
        """Whether every loss so far was finite; waits for the device.

        If not, `diverged_at` becomes the first bad step.
        """
        bad_step = int(self._bad_step)
        if bad_step >= 0:
            self.diverged_at = bad_step
        return bad_step < 0

    def record(self) -> dict[str, float]:
        """The metrics since the last record. Between evaluations and checkpoints, training waits
        for the device only here."""
        loss = float(self._loss)
        self.is_finite()
        values: dict[str, float] = {
            metrics.TRAIN_LOSS: loss / self._num_images,
        }
        if (memory := self._backend.peak_memory_bytes()) is not None:
            values[metrics.PEAK_MEMORY] = memory
        seconds = time.monotonic() - self._window_start
        if self._backend.compiles:
            values[metrics.COMPILATIONS] = self._backend.compilations() - self._compilations
        if self._is_timed:
            rate = self._window_images / seconds
            values[metrics.IMAGES_PER_SECOND] = rate
            values[metrics.INPUT_WAIT] = self._window_wait / seconds
            used = self._utilisation(rate)
            if used is not None:
                values[metrics.MFU] = used
        self._loss = self._zero(torch.float64)
        self._num_images = 0
        self._close_window()
        self._open_window()
        return values

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time is left out of the throughput."""
        self._backend.wait()
        self._close_window()
        yield
        self._open_window()

    def _open_window(self) -> None:
        self._window_start, self._window_wait, self._window_images = time.monotonic(), 0.0, 0
        self._window_compilations = self._backend.compilations()

    @property
    def _is_timed(self) -> bool:
        compiled = self._backend.compilations() > self._window_compilations
        return self._window_images > 0 and not compiled

    def _close_window(self) -> None:
        if self._is_timed:
            self._timed_seconds += time.monotonic() - self._window_start
            self._timed_images += self._window_images
            self._timed_wait += self._window_wait

    def state(self) -> dict[str, Any]:
        """The values that a resumed run needs to make the records of an uninterrupted run."""
        return {
            "loss": self._loss.cpu(),
            "num_images": self._num_images,
            "all_images": self._all_images,
            "steps": int(self._steps),
            "seconds": self.seconds,
            "timed": [self._timed_images, self._timed_seconds, self._timed_wait],
            "devices": list(dict.fromkeys([*self._earlier_devices, self._device])),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._loss = self._backend.place_whole(state["loss"].reshape(1))
        self._num_images, self._all_images = state["num_images"], state["all_images"]
        self._steps = self._backend.place_whole(torch.tensor([state["steps"]]))
        self._seconds = state["seconds"]
        self._timed_images, self._timed_seconds, self._timed_wait = state["timed"]
        self._earlier_devices = state.get("devices", [])  # checkpoints of earlier versions lack it
