"""One training run: its directory, what a resume needs from it, its steps, and how it ends.

Holds recipe.json, records.jsonl, last.ckpt and previous.ckpt while it runs, outcome.json when it is
over; undecodable.txt where another image had to stand in for one. Of several hosts the first one
writes.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mambaout.accounting import Cost, cost, find_chip, mfu
from mambaout.data.loader import Batch
from mambaout.data.shards import DataSet
from mambaout.errors import WrongRequest
from mambaout.memory import first_micro_batch, lanes_of, micro_batches, train_memory
from mambaout.model.network import build
from mambaout.recipe import Recipe, canonical_json, flat_fields, recipe_from_json
from mambaout.train import checkpoint, metrics
from mambaout.train.backend import Backend
from mambaout.train.facts import host_facts
from mambaout.train.meter import Meter
from mambaout.train.metrics import Record
from mambaout.train.optim import fresh_gradients, optimizer
from mambaout.train.step import Part, Sums, TrainState, add_gradients, placed, update

log = logging.getLogger(__name__)


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


class DoesNotFit(Exception):
    """The smallest micro-batch is out of memory; the cause says how."""


@dataclass
class Sent:
    """A batch, and its micro-batches on the device, or on their way there."""

    batch: Batch
    micro_batch: int
    parts: list[Part] | None  # None: there was no room for them


class Run:
    """The run directory and what a resume needs from it."""

    def __init__(
        self, out: Path, recipe: Recipe, data: DataSet, seed: int, backend: Backend
    ) -> None:
        self.out, self.recipe, self.data, self.seed, self.backend = out, recipe, data, seed, backend
        self.cost: Cost = cost(recipe.model, recipe.image_size, data.num_classes)
        self.last_record: Record | None = None
        self.fitting: int | None = None  # a micro-batch that has been through
        self.sizes = micro_batches(recipe, backend.num_devices)
        self._check_and_claim()
        need = train_memory(
            recipe.model,
            recipe.image_size,
            data.num_classes,
            recipe.precision,
            lanes=lanes_of(find_chip(backend.device_name)),
        )
        self.micro_batch = first_micro_batch(
            need, self.sizes, backend.usable_bytes(), backend.num_devices
        )

    @property
    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "data": self.data.fingerprint}

    @property
    def finished(self) -> Outcome | None:
        """The outcome of a run that is already over."""
        path = self.out / "outcome.json"
        if not path.exists():
            return None
        try:
            outcome = json.loads(path.read_text(encoding="utf-8"))
            kept = {name: outcome["facts"][name] for name in self.identity}
            if outcome["status"] == "diverged":
                ended: Outcome = Diverged(outcome["facts"]["step"])
            else:
                ended = Finished(outcome["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            raise WrongRequest(
                f"{path} is not what a run writes ({error}); give another --out or remove it"
            ) from None
        self._require_same(kept)
        return ended

    def _check_and_claim(self) -> None:
        """Write recipe.json, or find that the directory holds this very run."""
        path = self.out / "recipe.json"
        if path.exists():
            kept = recipe_from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
            if kept != self.recipe:
                raise WrongRequest(
                    f"{self.out} holds a run of another recipe "
                    f"({_difference(kept, self.recipe)}){self._of_other_data()}; "
                    "give another --out or remove it"
                )
            return
        if self.backend.host > 0:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        _write_whole(path, json.dumps(json.loads(canonical_json(self.recipe)), indent=1) + "\n")

    def _of_other_data(self) -> str:
        """Said of a run of another recipe: a recipe that follows the data changes with them."""
        saved = checkpoint.load_latest(self.out)
        if saved is None or saved["identity"]["data"] == self.data.fingerprint:
            return ""
        return ", and of other data: the images are not those that it began with"

    def _require_same(self, identity: dict[str, Any]) -> None:
        if identity != self.identity:
            other = [
                f"{name} {identity[name]}, not {value}"
                for name, value in self.identity.items()
                if identity[name] != value
            ]
            raise WrongRequest(
                f"{self.out} holds another run, of {' and '.join(other)}; "
                "give another --out or remove it"
            )

    def restore(self) -> tuple[TrainState, Meter]:
        """The state of the newest checkpoint, or of step 0."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = build(self.recipe.model, self.data.num_classes)
        saved = checkpoint.load_latest(self.out)
        if saved is not None:
            self._require_same(saved["identity"])
            model.load_state_dict(saved["model"])
        # Loaded before it is moved: what a lazy backend copies on the device it would trace.
        model = self.backend.move(model)
        moments = None if saved is None else saved["optimizer"]
        state = TrainState(model, optimizer(model, self.recipe, self.backend, moments))
        meter = Meter(self.backend, self._utilisation)
        if saved is not None:
            state.step = saved["step"]
            if saved["micro_batch"] in self.sizes:  # of as many devices
                self.micro_batch = saved["micro_batch"]
            meter.load_state(saved["meter"])
            log.info("continuing %s at step %d", self.out, state.step)
            if saved["topology"] != self.topology:
                log.info(
                    "the checkpoint is of %s, and this is %s: equal to rounding, not to the bit",
                    saved["topology"],
                    self.topology,
                )
        if self.backend.host == 0:
            self._keep_records_up_to(state.step)
        return state, meter

    def sent_ahead(self, batches: Iterator[Batch], step: int) -> Iterator[Sent]:
        """The batches of the steps from `step` on, the next ones already on their way."""
        ahead: list[Sent] = []
        for number, batch in enumerate(batches, step):
            ahead.append(Sent(batch, self.micro_batch, self._try_placed(batch, number)))
            if len(ahead) > self.backend.batches_ahead:
                yield ahead.pop(0)
        yield from ahead

    def _try_placed(self, batch: Batch, step: int) -> list[Part] | None:
        """On the device; None where there is no room yet: `step` tries again."""
        try:
            return self._placed(batch, step)
        except Exception as error:
            if not self.backend.is_out_of_memory(error):
                raise
            return None

    def _placed(self, batch: Batch, step: int) -> list[Part]:
        return placed(
            batch,
            self.recipe,
            backend=self.backend,
            step=step,
            micro_batch=self.micro_batch,
            seed=self.seed,
        )

    def step(self, state: TrainState, sent: Sent, lr: float) -> Sums:
        """One optimizer step; out of memory halves the micro-batch, never the global batch."""
        sums = self._gradients(state, sent)
        update(state, self.recipe, backend=self.backend, lr=lr)
        return sums

    def _gradients(self, state: TrainState, sent: Sent) -> Sums:
        while True:
            try:
                parts = sent.parts
                if parts is None or sent.micro_batch != self.micro_batch:
                    parts = self._placed(sent.batch, state.step)
                sums = add_gradients(state, parts, self.recipe, backend=self.backend)
                if self.fitting != self.micro_batch:
                    self.backend.wait()  # what fails on the device is only told now
                    self.fitting = self.micro_batch
                return sums
            except Exception as error:
                if not self.backend.is_out_of_memory(error):
                    raise
                smaller = [n for n in self.sizes if 2 * n <= self.micro_batch]
                if not smaller:
                    raise DoesNotFit from error
                log.warning(
                    "micro-batch %d is out of memory; going on with %d (global batch stays %d)",
                    self.micro_batch,
                    smaller[0],
                    self.recipe.global_batch,
                )
                self.micro_batch = smaller[0]
            sent.parts = parts = None
            fresh_gradients(state.optimizer, self.backend)
            self.backend.free_memory()

    @property
    def topology(self) -> dict[str, Any]:
        """What a run's bits depend on beside its recipe, seed and data."""
        return {
            "backend": self.backend.name,
            "num_devices": self.backend.num_devices,
            "num_hosts": self.backend.num_hosts,
        }

    def save(self, state: TrainState, meter: Meter) -> None:
        if self.backend.host > 0:
            return
        checkpoint.save(
            self.out,
            {
                "recipe": canonical_json(self.recipe),
                "identity": self.identity,
                "num_classes": self.data.num_classes,
                "topology": self.topology,
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

    @property
    def undecodable(self) -> dict[int, str]:
        """The training images that this run could not decode, on any host: row, and why."""
        lines = [
            line.split(" ", 1)
            for path in sorted(self.out.glob("undecodable*.txt"))
            for line in path.read_text().splitlines()
        ]
        return {int(row): text for row, text in lines}

    def note_undecodable(self, images: dict[int, str]) -> None:
        """Keep what is new of `images`, each host in a file of its own."""
        known = self.undecodable
        new = [f"{row} {text}\n" for row, text in images.items() if row not in known]
        if new:
            host = self.backend.host
            name = f"undecodable-{host}.txt" if host else "undecodable.txt"
            with (self.out / name).open("a") as file:
                file.writelines(new)

    def _keep_records_up_to(self, step: int) -> None:
        """Drop the records after the checkpoint: the run makes them again."""
        path = self.out / "records.jsonl"
        kept = [record for record in metrics.read_records(path) if record.step <= step]
        if path.exists():
            _write_whole(path, "".join(record.to_json() + "\n" for record in kept))

    def end_finished(self, meter: Meter) -> Finished:
        """Write outcome.json from the last record."""
        last = self.last_record
        if last is None:  # a process that was killed after its last step
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
        facts: dict[str, object] = {"step": last.step}
        if meter.earlier_devices:
            facts[metrics.EARLIER_DEVICES] = meter.earlier_devices
        self._write_outcome("finished", final, facts)
        return Finished(final)

    def end_diverged(self, step: int) -> Diverged:
        facts = {"step": step, "error": f"the loss was not finite at step {step}"}
        self._write_outcome("diverged", {}, facts)
        log.warning("%s diverged: %s", self.out, facts["error"])
        return Diverged(step)

    def _write_outcome(
        self, status: str, final: dict[str, float], facts: dict[str, object]
    ) -> None:
        if self.backend.host > 0:
            return
        facts = {
            **facts,
            **host_facts(),
            **self.identity,
            "data_name": self.data.name,
            "data_lossy": self.data.lossy,
            "num_train": self.data.num_images("train", self.recipe),
            "num_minival": self.data.num_images("minival", self.recipe),
            "num_val": self.data.num_images("val", self.recipe),
            "num_classes": self.data.num_classes,
            "backend": self.backend.name,
            metrics.DEVICE: self.backend.device_name,
            metrics.NUM_DEVICES: self.backend.num_devices,
            "micro_batch": self.micro_batch,
            "undecodable_images": len(self.undecodable),
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
