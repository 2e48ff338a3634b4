"""Measures how fast a recipe trains and evaluates on this process's devices, in a few seconds.

It runs the training loop itself on the recipe's own batches. So the speed includes loading and
augmentation, with the micro-batch that fits into memory, like in a trial. It keeps no files.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mambaout.data.batches.loader import evaluation_batches
from mambaout.data.shards.data_set import DataSet
from mambaout.model.network import build
from mambaout.recipe import Recipe
from mambaout.recompute import Stages
from mambaout.train.backend import Backend
from mambaout.train.evaluation import add_scores, evaluation_batch, no_totals
from mambaout.train.loop import train
from mambaout.train.outcomes import OutOfMemory

NEVER = 1_000_000  # epochs: a calibration ends long before, and before it evaluates
EVAL_SHARE = 0.25  # the share of the seconds that goes to evaluation


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The speed and the memory of a recipe on a device."""

    images_per_second: float  # of training, without the first step
    eval_images_per_second: float
    first_step_seconds: float  # including building the network, opening the data, finding kernels
    peak_memory_bytes: int | None  # of a GPU; of the process on a CPU; None on a TPU
    device: str
    num_devices: float  # 0.5 for half of a GPU


def calibrate(
    recipe: Recipe,
    data: DataSet,
    backend: Backend,
    *,
    seconds: float = 10.0,
    num_workers: int = 0,
    recompute: Stages = (),
    seed: int = 0,
) -> Calibration:
    """Train `recipe` for about `seconds` after its first step, then evaluate for a quarter of that.

    Raises MemoryError if not even the smallest micro-batch fits.
    """
    clock = _Clock(backend, seconds)
    endless = replace(
        recipe,
        schedule=replace(recipe.schedule, epochs=NEVER),
        init=None,  # the weights change no speed
        eval_every_epochs=NEVER,
    )
    with tempfile.TemporaryDirectory(prefix="mambaout-calibrate-") as folder:
        outcome = train(
            endless,
            data,
            out=Path(folder) / "run",
            backend=backend,
            seed=seed,
            num_workers=num_workers,
            recompute=recompute,
            log_every_steps=NEVER * recipe.global_batch,
            checkpoint_seconds=math.inf,
            stop=clock.step_is_over,
        )
    if isinstance(outcome, OutOfMemory):
        raise outcome.as_error()
    return Calibration(
        images_per_second=clock.steps * recipe.global_batch / clock.elapsed,
        eval_images_per_second=_evaluated(recipe, data, backend, EVAL_SHARE * seconds, num_workers),
        first_step_seconds=clock.first_step_seconds,
        peak_memory_bytes=backend.peak_memory_bytes(),
        device=backend.device_name,
        num_devices=backend.devices_held,
    )


class _Clock:
    """Counts the steps after the first one, until the seconds are over."""

    def __init__(self, backend: Backend, seconds: float) -> None:
        self.backend, self.seconds = backend, seconds
        self.made = self.started = time.monotonic()
        self.steps = -1  # after the first

    @property
    def first_step_seconds(self) -> float:
        return self.started - self.made

    def step_is_over(self) -> bool:
        """Whether to stop; the loop asks this after every step."""
        self.steps += 1
        if self.steps == 0:
            self.backend.wait()
            self.started = time.monotonic()
        elif time.monotonic() - self.started >= self.seconds:
            self.backend.wait()
            self.elapsed = time.monotonic() - self.started
            return True
        return False


def _evaluated(
    recipe: Recipe, data: DataSet, backend: Backend, seconds: float, num_workers: int
) -> float:
    """Images/s of whole passes over minival, or of a part of one if the time is short.

    As in a trial, `num_workers` processes decode the images, and every pass decodes them again.
    """
    model = backend.move(build(recipe.model, data.num_classes))
    size = evaluation_batch(recipe, 1, backend)

    def timed(until: Callable[[], bool]) -> int:
        num_images, totals, fitting = 0, no_totals(backend), size
        batches = evaluation_batches(
            data, "minival", recipe, batch_size=size, num_workers=num_workers
        )
        for batch in batches:
            totals, fitting = add_scores(
                model, batch, recipe, totals, backend=backend, size=fitting
            )
            num_images += batch.num_valid
            if until():
                break
        backend.wait()
        return num_images

    timed(lambda: True)  # the first batch warms up
    started, num_images = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        num_images += timed(lambda: time.monotonic() - started >= seconds)
    return num_images / elapsed
