"""Train one recipe on the devices of this process, from wherever it stopped last.

Writes into the run directory: recipe.json, records.jsonl, last.ckpt and previous.ckpt while it
runs, outcome.json when it is over. The same call continues a run that was stopped or killed; the
steps, the weights and the records are those of a run that never was, bit for bit on a CPU.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mambaout.accounting import Cost, cost, find_chip, mfu
from mambaout.data.loader import TrainBatches, evaluation_batches
from mambaout.data.shards import DataSet, Split
from mambaout.model.network import MambaOut, build
from mambaout.recipe import (
    Recipe,
    canonical_json,
    flat_fields,
    recipe_from_json,
    steps_per_epoch,
)
from mambaout.train import checkpoint, metrics
from mambaout.train.backend import Backend
from mambaout.train.facts import host_facts
from mambaout.train.meter import Meter
from mambaout.train.metrics import Record
from mambaout.train.optim import learning_rate, optimizer
from mambaout.train.step import TrainState, eval_step, micro_batches, train_step

log = logging.getLogger(__name__)

Sink = Callable[[Record], None]


@dataclass(frozen=True)
class Finished:
    metrics: dict[str, float]


@dataclass(frozen=True)
class Diverged:
    step: int  # the first whose loss was not finite


@dataclass(frozen=True)
class Preempted:
    """Stopped before the end, everything saved; the same call goes on."""

    step: int


@dataclass(frozen=True)
class OutOfMemory:
    """Even the smallest micro-batch does not fit."""

    micro_batch: int
    error: str


Outcome = Finished | Diverged | Preempted | OutOfMemory


def train(
    recipe: Recipe,
    data: DataSet,
    *,
    out: Path,
    backend: Backend,
    seed: int = 0,
    sinks: Sequence[Sink] = (),
    max_steps: int | None = None,
    log_every_steps: int = 50,
    num_workers: int = 0,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train `recipe` on `data` into the run directory `out`, continuing what lies there.

    Every sink is called with every record, records.jsonl first. `max_steps` ends this call early,
    as `stop` does once it returns true; both leave a run that can be continued.

    Raises ValueError where the directory holds a run of another recipe, seed or data set.
    """
    batch, devices = recipe.global_batch, backend.num_devices
    if batch % devices:
        raise ValueError(
            f"global_batch={batch} does not split over {devices} devices; "
            f"try {batch // devices * devices} or {-(-batch // devices) * devices}"
        )
    num_train = data.num_images("train", recipe)
    per_epoch = steps_per_epoch(recipe, num_train)
    num_steps = per_epoch * recipe.schedule.total_epochs
    last_step = num_steps if max_steps is None else min(num_steps, max_steps)
    run = _Run(out, recipe, data, seed, backend)
    if run.finished is not None:
        return run.finished

    state, meter = run.restore()
    batches = TrainBatches(data, recipe, seed=seed, num_workers=num_workers)
    eval_size = max(min(256, recipe.global_batch), run.micro_batch)

    def measure(split: Split) -> dict[str, float]:
        return evaluate(
            state.model,
            data,
            split,
            recipe,
            backend=backend,
            batch_size=eval_size,
            num_workers=num_workers,
        )

    def report(values: dict[str, float]) -> None:
        record = Record(
            step=state.step,
            epoch=state.step * recipe.global_batch / num_train,
            images_seen=state.step * recipe.global_batch,
            seconds=meter.seconds,
            values=values,
        )
        for sink in (run.write_record, *sinks):
            sink(record)

    saved_at, stopped = time.monotonic(), False
    for batch in meter.watch(
        batches.starting_at(state.step), until=lambda: state.step >= last_step
    ):
        lr = learning_rate(recipe, state.step, per_epoch)
        try:
            meter.add(run.step(state, batch, lr))
        except _DoesNotFit as error:
            return OutOfMemory(run.micro_batch, str(error.__cause__))
        over = state.step == num_steps
        at_eval = over or state.step % (per_epoch * recipe.eval_every_epochs) == 0
        if at_eval or state.step % log_every_steps == 0:
            values = {metrics.TRAIN_LR: lr, metrics.MICRO_BATCH: run.micro_batch} | meter.record()
            if meter.diverged_at is not None:
                return run.end_diverged(meter.diverged_at)
            with meter.paused():
                if at_eval:
                    values |= measure("minival")
                if over:
                    values |= measure("val")
                report(values)
        stopped = not over and stop()
        late = time.monotonic() - saved_at > checkpoint_seconds
        if at_eval or late or stopped or state.step == last_step:
            with meter.paused():
                if meter.is_finite():  # a checkpoint never holds a run that has already diverged
                    run.save(state, meter)
            saved_at = time.monotonic()
        if stopped:
            break
    if state.step < num_steps:
        return Preempted(state.step)
    return run.end_finished(meter)


def evaluate(
    model: MambaOut,
    data: DataSet,
    split: Split,
    recipe: Recipe,
    *,
    backend: Backend,
    batch_size: int = 256,
    num_workers: int = 0,
) -> dict[str, float]:
    """Top-1 and top-5 in percent and mean loss over every image of `split`, under split/ names."""
    batches = evaluation_batches(
        data, split, recipe, batch_size=batch_size, num_workers=num_workers
    )
    sums = [eval_step(model, batch, recipe, backend=backend) for batch in batches]
    num_images = sum(part.num_images for part in sums)
    if num_images == 0:
        raise ValueError(f"split {split!r} of {data.name} has no images to evaluate on")
    return {
        f"{split}/top1": 100 * int(sum(part.top1 for part in sums)) / num_images,
        f"{split}/top5": 100 * int(sum(part.top5 for part in sums)) / num_images,
        f"{split}/loss": float(sum(part.loss for part in sums)) / num_images,
    }


class _DoesNotFit(Exception):
    """The smallest micro-batch is out of memory; the cause says how."""


class _Run:
    """The run directory and what a resume needs from it."""

    def __init__(
        self, out: Path, recipe: Recipe, data: DataSet, seed: int, backend: Backend
    ) -> None:
        self.out, self.recipe, self.data, self.seed, self.backend = out, recipe, data, seed, backend
        self.cost: Cost = cost(recipe.model, recipe.image_size, data.num_classes)
        self._check_and_claim()
        mixes = recipe.augment.mixup > 0 or recipe.augment.cutmix > 0
        self.sizes = micro_batches(recipe.global_batch, mixes)
        # Every convolution's and linear's output is kept for the backward pass, and about as much
        # again by norms, the gate and the residual sums.
        image_bytes = 4 * 3 * self.cost.activations
        fitting = [n for n in self.sizes if n * image_bytes <= backend.activation_budget_bytes()]
        self.micro_batch = fitting[0] if fitting else self.sizes[-1]

    @property
    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "data": self.data.fingerprint}

    @property
    def finished(self) -> Outcome | None:
        """The outcome of a run that is already over."""
        path = self.out / "outcome.json"
        if not path.exists():
            return None
        outcome = json.loads(path.read_text())
        self._require_same({name: outcome["facts"][name] for name in self.identity})
        if outcome["status"] == "diverged":
            return Diverged(outcome["facts"]["step"])
        return Finished(outcome["metrics"])

    def _check_and_claim(self) -> None:
        """Write recipe.json, or find that the directory holds this very run."""
        path = self.out / "recipe.json"
        if path.exists():
            kept = recipe_from_json(path.read_text())
            if kept != self.recipe:
                raise ValueError(
                    f"{self.out} holds a run of another recipe "
                    f"({_difference(kept, self.recipe)}); give another --out or remove it"
                )
            return
        self.out.mkdir(parents=True, exist_ok=True)
        _write_whole(path, json.dumps(json.loads(canonical_json(self.recipe)), indent=1) + "\n")

    def _require_same(self, identity: dict[str, Any]) -> None:
        if identity != self.identity:
            raise ValueError(
                f"{self.out} holds a run of {identity}, not of {self.identity}; "
                "give another --out or remove it"
            )

    def restore(self) -> tuple[TrainState, Meter]:
        """The state of the newest checkpoint, or of step 0."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = build(self.recipe.model, self.data.num_classes)
        state = TrainState(model.to(self.backend.device), optimizer(model, self.recipe))
        meter = Meter(self.backend, self._utilisation)
        saved = checkpoint.load_latest(self.out)
        if saved is not None:
            self._require_same(saved["identity"])
            model.load_state_dict(saved["model"])
            state.optimizer.load_state_dict(saved["optimizer"])
            state.step, self.micro_batch = saved["step"], saved["micro_batch"]
            meter.load_state(saved["meter"])
            log.info("continuing %s at step %d", self.out, state.step)
        self._keep_records_up_to(state.step)
        return state, meter

    def step(self, state: TrainState, batch: Any, lr: float) -> Any:
        """One optimizer step; out of memory halves the micro-batch, never the global batch."""
        while True:
            try:
                return train_step(
                    state,
                    batch,
                    self.recipe,
                    backend=self.backend,
                    lr=lr,
                    micro_batch=self.micro_batch,
                    seed=self.seed,
                )
            except Exception as error:
                if not self.backend.is_out_of_memory(error):
                    raise
                smaller = [n for n in self.sizes if 2 * n <= self.micro_batch]
                if not smaller:
                    raise _DoesNotFit from error
                log.warning(
                    "micro-batch %d is out of memory; going on with %d (global batch stays %d)",
                    self.micro_batch,
                    smaller[0],
                    self.recipe.global_batch,
                )
                self.micro_batch = smaller[0]
            state.optimizer.zero_grad(set_to_none=True)
            self.backend.free_memory()

    def save(self, state: TrainState, meter: Meter) -> None:
        checkpoint.save(
            self.out,
            {
                "recipe": canonical_json(self.recipe),
                "identity": self.identity,
                "num_classes": self.data.num_classes,
                "topology": {
                    "backend": self.backend.name,
                    "num_devices": self.backend.num_devices,
                },
                "step": state.step,
                "micro_batch": self.micro_batch,
                "meter": meter.state(),
                "model": state.model.state_dict(),
                "optimizer": state.optimizer.state_dict(),
            },
        )

    def write_record(self, record: Record) -> None:
        with (self.out / "records.jsonl").open("a") as file:
            file.write(record.to_json() + "\n")

    def _keep_records_up_to(self, step: int) -> None:
        """Drop the records after the checkpoint: the run makes them again."""
        path = self.out / "records.jsonl"
        kept = [record for record in metrics.read_records(path) if record.step <= step]
        if path.exists():
            _write_whole(path, "".join(record.to_json() + "\n" for record in kept))

    def end_finished(self, meter: Meter) -> Finished:
        """Write outcome.json from the last record."""
        *_, last = metrics.read_records(self.out / "records.jsonl")
        final = dict(last.values) | {
            metrics.TOP1: last.values[metrics.VAL_TOP1],
            metrics.TOP5: last.values[metrics.VAL_TOP5],
            metrics.MACS: self.cost.macs,
            metrics.PARAMS: self.cost.params,
            metrics.ACTIVATIONS: self.cost.activations,
            metrics.IMAGES_PER_SECOND: meter.images_per_second,
            metrics.INPUT_WAIT: meter.input_wait_fraction,
            metrics.TRAIN_DEVICE_HOURS: meter.seconds * self.backend.num_devices / 3600,
        }
        self._write_outcome("finished", final, {"step": last.step})
        return Finished(final)

    def end_diverged(self, step: int) -> Diverged:
        facts = {"step": step, "error": f"the loss was not finite at step {step}"}
        self._write_outcome("diverged", {}, facts)
        log.warning("%s diverged: %s", self.out, facts["error"])
        return Diverged(step)

    def _write_outcome(
        self, status: str, final: dict[str, float], facts: dict[str, object]
    ) -> None:
        facts = {
            **facts,
            **host_facts(),
            **self.identity,
            "data_name": self.data.name,
            "num_train": self.data.num_images("train", self.recipe),
            "num_minival": self.data.num_images("minival", self.recipe),
            "num_val": self.data.num_images("val", self.recipe),
            "num_classes": self.data.num_classes,
            "backend": self.backend.name,
            "device": self.backend.device_name,
            "num_devices": self.backend.num_devices,
            "micro_batch": self.micro_batch,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        body = {"status": status, "metrics": final, "facts": facts}
        _write_whole(self.out / "outcome.json", json.dumps(body, indent=1) + "\n")

    def _utilisation(self, images_per_second: float) -> float | None:
        chip = find_chip(self.backend.device_name)
        return mfu(
            self.cost.macs,
            images_per_second,
            chip,
            self.recipe.precision,
            self.backend.num_devices,
        )


def _difference(kept: Recipe, asked: Recipe) -> str:
    old, new = flat_fields(kept), flat_fields(asked)
    changed = [name for name in old if old[name] != new[name]]
    return ", ".join(f"{name} {old[name]!r} not {new[name]!r}" for name in changed)


def _write_whole(path: Path, text: str) -> None:
    """Write `path` so that a kill leaves the old file or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)
