"""The loop of a detection or segmentation training, and what both have in a run.

    run = SomeRun(...)                     # a DenseRun: network, optimizer, sums, restored
    outcome = train_run(run, milestones, batches, stop=..., ...)

If the device runs out of memory, the micro-batch is halved and the same step is taken again. The
global batch never changes, so the recipe stays the same.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mambaout.dense.dense_directory import DenseDirectory
from mambaout.endings import Ending
from mambaout.train import metrics
from mambaout.train.backend import Backend
from mambaout.train.meter import Meter
from mambaout.train.metrics import Record
from mambaout.train.milestones import Interruptions, Milestones
from mambaout.train.optim import fresh_gradients
from mambaout.train.outcomes import Diverged, Finished, Outcome, OutOfMemory, Preempted
from mambaout.train.reporter import Sink
from mambaout.train.step import Sums
from mambaout.train.stepper import DoesNotFit

log = logging.getLogger(__name__)


class DenseRun(ABC):
    """The network, its optimizer and its sums, and how they are saved and restored.

    `sizes` are the micro-batches that may be tried, the largest first.
    """

    losses: ClassVar[Sequence[str]]  # the names of the parts of the loss

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        backend: Backend,
        directory: DenseDirectory,
        saved: Mapping[str, Any] | None,
        *,
        micro_batch: int,
        asked: int | None,
        sizes: Sequence[int],
    ) -> None:
        """`network` is on its device, and both have the state of `saved`, a checkpoint.

        The run begins with `micro_batch`. If the checkpoint's run was `asked` for the same one, or
        like it for none, its own stays, which may have been halved.
        """
        self.network, self.optimizer = network, optimizer
        self.backend, self.directory = backend, directory
        self.micro_batch, self._asked = micro_batch, asked
        self.sizes = sizes
        self._fitting: int | None = None  # a micro-batch whose step has succeeded
        self.meter = Meter(backend, lambda rate: None)
        self._sums = backend.place_whole(torch.zeros(len(self.losses), dtype=torch.float64))
        self._num_steps = 0  # since the last record
        self.step = 0
        if saved is not None:
            self.meter.load_state(saved["meter"])
            self._sums = backend.place_whole(saved["losses"])
            self._num_steps, self.step = saved["num_steps"], saved["step"]
            log.info("continuing %s at step %d", directory.out, self.step)
            kept = saved.get("micro_batch", micro_batch)  # earlier versions did not save it
            if kept != micro_batch and kept in sizes and saved["asked"] == asked:
                self.micro_batch = kept
                log.warning("going on with a micro-batch of %d, as the run has so far", kept)

    @abstractmethod
    def add_gradients(self, batch: Sequence[Any]) -> Tensor:
        """Add the gradients of the loss of the whole batch of this step, `micro_batch` images at a
        time. Returns the parts of the loss, as in `losses`; they stay on the device."""

    @abstractmethod
    def update(self, lr: float) -> None:
        """Update the weights with their gradients, and clear the gradients."""

    @abstractmethod
    def evaluated(self, *, is_final: bool) -> dict[str, float]:
        """The figures of all validation images, by names that begin with "val/"."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """The facts of outcome.json about the data and the result."""

    @property
    @abstractmethod
    def macs(self) -> float | None:
        """The multiply-adds of one image; None: not known."""

    def take_step(self, batch: Sequence[Any], lr: float) -> None:
        """Take one optimizer step. Raises DoesNotFit if no micro-batch fits."""
        losses = self._gradients(batch)
        self.update(lr)
        self.step += 1
        self._sums += losses
        self._num_steps += 1
        # The meter adds up the losses of images.
        self.meter.add(Sums(losses.double().sum().reshape(1) * len(batch), len(batch)))

    def _gradients(self, batch: Sequence[Any]) -> Tensor:
        while True:
            # A pass that fails may have moved the statistics of batch norms.
            is_known = self._fitting == self.micro_batch
            before = [] if is_known else [each.cpu().clone() for each in self.network.buffers()]
            try:
                losses = self.add_gradients(batch)
                if not is_known:
                    self.backend.wait()  # an error on the device is raised only here
                    self._fitting = self.micro_batch
                return losses
            except Exception as error:
                if not self.backend.is_out_of_memory(error):
                    raise
                self._halve(error)
            for buffer, old in zip(self.network.buffers(), before, strict=False):
                buffer.copy_(self.backend.place_whole(old))
            fresh_gradients(self.optimizer, self.backend)
            self.backend.free_memory()

    def _halve(self, error: Exception) -> None:
        smaller = [size for size in self.sizes if 2 * size <= self.micro_batch]
        if not smaller:
            raise DoesNotFit from error
        log.warning(
            "micro-batch %d is out of memory; going on with %d (the global batch stays)",
            self.micro_batch,
            smaller[0],
        )
        self.micro_batch = smaller[0]

    def values(self, lr: float) -> dict[str, float]:
        """The metrics of the window that ends here, without an evaluation's."""
        values = {metrics.TRAIN_LR: lr, metrics.MICRO_BATCH: self.micro_batch}
        values |= self.meter.record()
        means = (self._sums / self._num_steps).tolist()
        values |= {f"train/{name}": value for name, value in zip(self.losses, means, strict=True)}
        self._sums = self.backend.place_whole(torch.zeros(len(means), dtype=torch.float64))
        self._num_steps = 0
        return values

    def evaluated_or_again(self, *, is_final: bool) -> dict[str, float]:
        """`evaluated`, once more if the device is out of memory: training's cache is then free."""
        try:
            return self.evaluated(is_final=is_final)
        except Exception as error:
            if not self.backend.is_out_of_memory(error):
                raise
            log.warning("the evaluation is out of memory; trying again with the cache freed")
        self.backend.free_memory()
        try:
            return self.evaluated(is_final=is_final)
        except Exception as error:
            if not self.backend.is_out_of_memory(error):
                raise
            raise DoesNotFit("in the evaluation of one image at a time") from error

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "micro_batch": self.micro_batch,
            "asked": self._asked,
            "num_steps": self._num_steps,
            "losses": self._sums,
            "meter": self.meter.state(),
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def end_diverged(self) -> Diverged:
        step = int(self.meter.diverged_at or 0)
        self.directory.end(Ending.DIVERGED, {}, {"step": step})
        return Diverged(step)

    def end_finished(self) -> Finished:
        last = self.directory.last_record
        assert last is not None  # the last step has a record
        final = {name.removeprefix("val/"): value for name, value in last.values.items()}
        parameters = self.network.parameters()
        final |= {
            metrics.PARAMS: sum(each.numel() for each in parameters if each.requires_grad),
            metrics.IMAGES_PER_SECOND: self.meter.images_per_second,
            metrics.INPUT_WAIT: self.meter.input_wait_fraction,
            metrics.TRAIN_DEVICE_HOURS: self.meter.seconds * self.backend.devices_held / 3600,
        }
        if self.macs is not None:
            final[metrics.MACS] = self.macs
        facts = self.facts() | {
            "backend": self.backend.name,
            metrics.DEVICE: self.backend.device_name,
            metrics.NUM_DEVICES: self.backend.devices_held,
        }
        if earlier := self.meter.earlier_devices:
            facts[metrics.EARLIER_DEVICES] = earlier
        self.directory.end(Ending.FINISHED, final, facts)
        return Finished(final)


def train_run(
    run: DenseRun,
    milestones: Milestones,
    batches: Iterator[Sequence[Any]],
    rate: Callable[[int], float],
    *,
    sinks: Sequence[Sink],
    checkpoint_seconds: float,
    stop: Callable[[], bool],
) -> Outcome:
    """Train `run` on `batches`, which begin at its step, to its end or to `milestones.last_step`.

    `rate` gives the learning rate of a step. Each record is written to the run directory first, and
    then every sink is called with it.
    """
    directory, meter = run.directory, run.meter
    interruptions = Interruptions(milestones, run.backend, checkpoint_seconds, stop)
    first_step = run.step
    for batch in meter.watch(batches):
        lr = rate(run.step)
        try:
            run.take_step(batch, lr)
        except DoesNotFit as error:
            return OutOfMemory(run.micro_batch, str(error.__cause__))
        step, is_last = run.step, run.step == milestones.last_step
        has_evaluation = milestones.has_evaluation(step)
        if milestones.has_record(step):
            values = run.values(lr)
            if meter.diverged_at is not None:
                return run.end_diverged()
            if has_evaluation:
                with meter.paused():
                    try:
                        values |= run.evaluated_or_again(is_final=milestones.is_over(step))
                    except DoesNotFit as error:
                        return OutOfMemory(run.micro_batch, str(error.__cause__), str(error))
            record = Record(
                step=step,
                epoch=milestones.epoch(step),
                images_seen=milestones.images_seen(step),
                seconds=meter.seconds,
                values=values,
            )
            directory.keep(record)
            for sink in sinks:
                sink(record)
        stopped, late = interruptions.ask(step)
        if late or stopped or is_last or has_evaluation:
            with meter.paused():
                if meter.is_finite():
                    directory.save(run.state())
                elif is_last:
                    return run.end_diverged()
            interruptions.saved()
        if stopped:
            break
    if not milestones.is_over(run.step):
        return Preempted(run.step, first_step)
    return run.end_finished()
