"""One training run: its directory, what a resume needs from it, its steps, and how it ends.

Holds recipe.json, records.jsonl, last.ckpt and previous.ckpt while it runs, outcome.json when it is
over; undecodable.txt where another image had to stand in for one. Of several hosts the first one
writes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mambaout.accounting import Cost, cost, mfu
from mambaout.chips import find_chip
from mambaout.code_version import CODE_VERSION, said_version
from mambaout.data.batches.loader import Batch
from mambaout.data.shards.data_set import DataSet
from mambaout.durable import (
    DamagedLine,
    append_lines,
    read_lines,
    read_whole,
    sync_lines,
    write_whole,
)
from mambaout.errors import WrongRequest
from mambaout.memory import first_micro_batch, lanes_of, micro_batches, train_memory
from mambaout.model.network import build
from mambaout.recipe import Recipe, canonical_json, flat_fields, recipe_from_json
from mambaout.train import checkpoint, metrics
from mambaout.train.backend import Backend
from mambaout.train.facts import UNKNOWN, git_commit, host_facts
from mambaout.train.meter import Meter
from mambaout.train.metrics import Record
from mambaout.train.optim import fresh_gradients, optimizer
from mambaout.train.step import MicroBatch, Sums, TrainState, add_gradients, placed, update

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
    began: int = field(default=0, compare=False)  # the step that this call went on from


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
    parts: list[MicroBatch] | None  # None: there was no room for them


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
    def records(self) -> Path:
        return self.out / "records.jsonl"

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "data": self.data.fingerprint,
            "code_version": CODE_VERSION,
        }

    @cached_property
    def commit(self) -> str:
        return git_commit()

    @property
    def finished(self) -> Outcome | None:
        """The outcome of a run that is already over."""
        path = self.out / "outcome.json"
        text = read_whole(path)
        if text is None:
            return None
        try:
            outcome = json.loads(text)
            kept = {name: outcome["facts"][name] for name in ("seed", "data")}
            kept["code_version"] = said_version(outcome["facts"])
            commit = outcome["facts"].get("git_commit")
            if outcome["status"] == "diverged":
                ended: Outcome = Diverged(outcome["facts"]["step"])
            else:
                ended = Finished(outcome["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            raise WrongRequest(
                f"{path} is not what a run writes ({error}); give another --out or remove it"
            ) from None
        self._require_same(kept, commit)
        return ended

    def _check_and_claim(self) -> None:
        """Write recipe.json, or find that the directory holds this very run."""
        path = self.out / "recipe.json"
        text = read_whole(path)
        is_written = text is not None
        if not is_written and path.exists():  # emptied by a power loss: a checkpoint has it, too
            saved = checkpoint.load_latest(self.out)
            text = None if saved is None else saved["recipe"]
        if text is not None:
            kept = recipe_from_json(text, str(path))
            if kept != self.recipe:
                raise WrongRequest(
                    f"{self.out} holds a run of another recipe "
                    f"({_difference(kept, self.recipe)}){self._of_other_data()}; "
                    "give another --out or remove it"
                )
        if is_written or self.backend.host > 0:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(json.loads(canonical_json(self.recipe)), indent=1) + "\n")

    def _of_other_data(self) -> str:
        """Said of a run of another recipe: a recipe that follows the data changes with them."""
        saved = checkpoint.load_latest(self.out)
        if saved is None or saved["identity"]["data"] == self.data.fingerprint:
            return ""
        return ", and of other data: the images are not those that it began with"

    def _require_same(self, identity: dict[str, Any], commit: str | None) -> None:
        """WrongRequest where the directory's run, which code of `commit` wrote, is another one."""
        other = [
            f"{name} {identity[name]}, not {self.identity[name]}"
            for name in ("seed", "data")
            if identity[name] != self.identity[name]
        ]
        if other:
            raise WrongRequest(
                f"{self.out} holds another run, of {' and '.join(other)}; "
                "give another --out or remove it"
            )
        if (version := said_version(identity)) != CODE_VERSION:
            known = commit is not None and commit != UNKNOWN
            raise WrongRequest(
                f"{self.out} holds a run of code version {version}, and this mambaout is of code "
                f"version {CODE_VERSION}, which comes to other numbers; give another --out to "
                "train it anew, or use the mambaout that began it"
                + (f", of commit {commit}" if known else "")
            )

    def restore(self) -> tuple[TrainState, Meter]:
        """The state of the newest checkpoint, or of step 0."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = build(self.recipe.model, self.data.num_classes)
        saved = checkpoint.load_latest(self.out)
        if saved is not None:
            self._require_same(saved["identity"], saved.get("git_commit"))
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

    def _try_placed(self, batch: Batch, step: int) -> list[MicroBatch] | None:
        """On the device; None where there is no room yet: `step` tries again."""
        try:
            return self._placed(batch, step)
        except Exception as error:
            if not self.backend.is_out_of_memory(error):
                raise
            return None

    def _placed(self, batch: Batch, step: int) -> list[MicroBatch]:
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
        self._sync_records()
        checkpoint.save(
            self.out,
            {
                "recipe": canonical_json(self.recipe),
                "identity": self.identity,
                "git_commit": self.commit,
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
        append_lines(self.records, [record.to_json()])

    @property
    def undecodable(self) -> dict[int, str]:
        """The training images that this run could not decode, on any host: row, and why."""
        return dict(
            line
            for path in sorted(self.out.glob("undecodable*.txt"))
            for line in read_lines(path, _row_and_text)
        )

    def note_undecodable(self, images: dict[int, str]) -> None:
        """Keep what is new of `images`, each host in a file of its own."""
        known = self.undecodable
        new = {row: text for row, text in images.items() if row not in known}
        if new:
            host = self.backend.host
            name = f"undecodable-{host}.txt" if host else "undecodable.txt"
            lines = [f"{row} {' '.join(text.split())}" for row, text in new.items()]
            append_lines(self.out / name, lines)

    def _keep_records_up_to(self, step: int) -> None:
        """Drop the records after the checkpoint: the run makes them again."""
        kept = []
        try:
            for record in metrics.read_records(self.records):
                if record.step <= step:
                    kept.append(record)
        except DamagedLine as error:
            log.warning("%s; the records from there on are dropped", error)
        if self.records.exists():
            lines = "".join(record.to_json() + "\n" for record in kept)
            write_whole(self.records, lines)
        self.last_record = kept[-1] if kept else None

    def lacks(self, metric: str, step: int) -> bool:
        """Whether the checkpoint's own record, with `metric`, is lost; the first host alone knows.

        A power loss could take it from a run of an earlier version, which did not sync records
        before the checkpoint that stands for them.
        """
        last = self.last_record
        there = last is not None and last.step == step and metric in last.values
        return self.backend.host == 0 and not there

    def _sync_records(self) -> None:
        """Have the records on the disk, before what stands for them is."""
        for path in (self.records, *self.out.glob("undecodable*.txt")):
            sync_lines(path)

    def end_finished(self, meter: Meter) -> Finished:
        """Write outcome.json from the last record."""
        last = self.last_record
        if last is None:  # a process that was killed after its last step
            *_, last = metrics.read_records(self.records)
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
        self._sync_records()
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
        write_whole(self.out / "outcome.json", json.dumps(body, indent=1) + "\n")

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


def _row_and_text(line: str) -> tuple[int, str]:
    row, _, text = line.partition(" ")
    return int(row), text
