"""The steps of a run: places batches ahead of their step, and finds a micro-batch that fits.

If the device runs out of memory, the micro-batch is halved. The global batch never changes, so the
recipe stays the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mambaout import native
from mambaout.accounting import cost, mfu
from mambaout.chips import find_chip
from mambaout.data.batches.loader import Batch
from mambaout.layers import fused_kernel
from mambaout.memory import first_micro_batch, lanes_of, micro_batches, train_memory
from mambaout.model import scan_passes, selective_scan
from mambaout.model.gated_block import LOSS
from mambaout.model.gated_passes import c_files, is_compiled
from mambaout.recipe import Recipe
from mambaout.recompute import ALL_STAGES, Stages, check_recompute
from mambaout.train.backend import Backend
from mambaout.train.optim import fresh_gradients
from mambaout.train.step import MicroBatch, Sums, TrainState, add_gradients, makers, update

log = logging.getLogger(__name__)


class DoesNotFit(Exception):
    """Even the smallest micro-batch does not fit into memory; `__cause__` is the device's error."""


@dataclass
class PlacedBatch:
    """A batch, and its micro-batches, which are on the device or on the way there."""

    batch: Batch
    micro_batch: int
    parts: list[MicroBatch] | None  # None: `step` places them


class Stepper:
    """Takes the steps of one run with the largest micro-batch that fits."""

    def __init__(
        self,
        recipe: Recipe,
        num_classes: int,
        seed: int,
        backend: Backend,
        recompute: Stages = (),
    ) -> None:
        """Raises WrongRequest if the global batch does not split over the devices, or if they
        cannot recompute stages or multiply in the recipe's precision."""
        check_recompute(recompute, backend.name)
        backend.train_in(recipe.precision)
        self.recipe, self.seed, self.backend = recipe, seed, backend
        self.recompute = recompute
        self._macs = cost(recipe.model, recipe.image_size, num_classes).macs
        self._chip = find_chip(backend.device_name)
        self._sizes = micro_batches(recipe, backend.num_devices)
        self._fitting: int | None = None  # a micro-batch whose step has succeeded
        self.fuses_blocks = _fuses_blocks(recipe, backend)
        need = train_memory(
            recipe.model,
            recipe.image_size,
            num_classes,
            recipe.precision,
            lanes=lanes_of(self._chip),
            fused=self.fuses_blocks,
            recompute=recompute,
            placed=backend.micro_batches_at_once,
        )
        self.micro_batch = first_micro_batch(
            need, self._sizes, backend.usable_bytes(), backend.num_devices
        )

    @property
    def topology(self) -> dict[str, Any]:
        """The settings that change a run's bits, besides its recipe, seed and data."""
        return {
            "backend": self.backend.name,
            "num_devices": self.backend.num_devices,
            "num_hosts": self.backend.num_hosts,
            "fuses_blocks": self.fuses_blocks,
            "compiles": self.backend.compiles,
        }

    def go_on_with(self, micro_batch: int) -> None:
        """Use the micro-batch of a checkpoint if it suits this number of devices."""
        if micro_batch in self._sizes:
            self.micro_batch = micro_batch

    def placed_ahead(self, batches: Iterator[Batch], step: int) -> Iterator[PlacedBatch]:
        """The batches of the steps from `step` on; the next ones are sent to the device ahead."""
        ahead: list[PlacedBatch] = []
        for number, batch in enumerate(batches, step):
            ahead.append(PlacedBatch(batch, self.micro_batch, self._try_placed(batch, number)))
            if len(ahead) > self.backend.batches_ahead:
                yield ahead.pop(0)
        yield from ahead

    def _try_placed(self, batch: Batch, step: int) -> list[MicroBatch] | None:
        """The micro-batches on the device; None if `step` places them, one after the other.

        `step` also tries again if there is no room yet.
        """
        if not self.backend.batches_ahead:
            return None
        try:
            return self._placed(batch, step)
        except Exception as error:
            if not self.backend.is_out_of_memory(error):
                raise
            return None

    def _placed(self, batch: Batch, step: int) -> list[MicroBatch]:
        return [make() for make in self._makers(batch, step)]

    def _makers(self, batch: Batch, step: int) -> list[Callable[[], MicroBatch]]:
        return makers(
            batch,
            self.recipe,
            backend=self.backend,
            step=step,
            micro_batch=self.micro_batch,
            seed=self.seed,
        )

    def step(self, state: TrainState, batch: PlacedBatch, lr: float) -> Sums:
        """Take one optimizer step. Raises DoesNotFit if no micro-batch fits."""
        sums = self._gradients(state, batch)
        update(state, self.recipe, backend=self.backend, lr=lr)
        return sums

    def _gradients(self, state: TrainState, batch: PlacedBatch) -> Sums:
        while True:
            try:
                parts: Iterable[MicroBatch] | None = batch.parts
                if parts is None or batch.micro_batch != self.micro_batch:
                    parts = self.backend.in_turn(self._makers(batch.batch, state.step))
                sums = add_gradients(state, parts, self.recipe, backend=self.backend)
                if self._fitting != self.micro_batch:
                    self.backend.wait()  # an error on the device is raised only here
                    self._fitting = self.micro_batch
                return sums
            except Exception as error:
                if not self.backend.is_out_of_memory(error):
                    raise
                self._halve(error)
            batch.parts = parts = None
            fresh_gradients(state.optimizer, self.backend)
            self.backend.free_memory()

    def _halve(self, error: Exception) -> None:
        smaller = [size for size in self._sizes if 2 * size <= self.micro_batch]
        if not smaller:
            raise DoesNotFit from error
        log.warning(
            "micro-batch %d is out of memory; going on with %d (global batch stays %d)",
            self.micro_batch,
            smaller[0],
            self.recipe.global_batch,
        )
        self.micro_batch = smaller[0]

    def utilisation(self, images_per_second: float) -> float | None:
        """The MFU, 0 to 1, at this throughput over all devices; None if the peak is unknown."""
        return mfu(
            self._macs,
            images_per_second,
            self._chip,
            self.recipe.precision,
            self.backend.devices_held,
        )


def _fuses_blocks(recipe: Recipe, backend: Backend) -> bool:
    """Whether model/gated_block.py computes blocks of the network.

    Compiles the C code that the network can use, and warns if it is missing.
    """
    if backend.device.type != "cpu":
        return False
    config, is_low = recipe.model, recipe.precision == "bf16"
    mixers = {config.mixer_of(stage) for stage in ALL_STAGES}
    if any(name.startswith("conv_ssm") for name in mixers):
        native.prepare(scan_passes.c_files(), selective_scan.LOSS)
    kernels = [size for name in mixers if (size := fused_kernel(name, config)) is not None]
    for kernel in kernels:
        native.prepare(c_files(kernel, is_low), LOSS)
    return bool(kernels) and all(is_compiled(kernel, is_low) for kernel in kernels)
