"""The directory of one run: which run it holds, what a resume needs, and how its end is written.

It holds recipe.json, records.jsonl, last.ckpt and previous.ckpt while the run goes on, and
outcome.json when it is over. undecodable.txt lists the images that another image has replaced. On
several hosts only the first one writes; the list of images is the exception.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mambaout.accounting import cost
from mambaout.code_version import CODE_VERSION, said_version
from mambaout.data.shards.data_set import DataSet
from mambaout.durable import append_lines, read_lines, read_whole, sync_lines, write_whole
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.model.first_weights import new_model
from mambaout.model.initial import load_initial
from mambaout.recipe import Recipe, canonical_json, recipe_from_json
from mambaout.recompute import stages_text
from mambaout.train import checkpoint, metrics
from mambaout.train.backend import Backend
from mambaout.train.facts import UNKNOWN
from mambaout.train.meter import Meter
from mambaout.train.metrics import Record
from mambaout.train.optim import optimizer
from mambaout.train.outcomes import Diverged, Finished
from mambaout.train.run_files import RunFiles, difference
from mambaout.train.step import TrainState
from mambaout.train.stepper import Stepper

log = logging.getLogger(__name__)


class RunDirectory(RunFiles):
    """The files of one run. Each tells which run it is: recipe, seed, data, code version."""

    def __init__(
        self, out: Path, recipe: Recipe, data: DataSet, seed: int, backend: Backend
    ) -> None:
        super().__init__(out)
        self.recipe, self.data, self.seed, self.backend = recipe, data, seed, backend
        self._check_and_claim()

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "data": self.data.fingerprint,
            "code_version": CODE_VERSION,
        }

    @property
    def outcome(self) -> Finished | Diverged | None:
        """The outcome if the run is already over, else None.

        Raises WrongRequest if outcome.json is damaged or of another run.
        """
        found = self.read_outcome(("seed", "data"), "a run")
        if found is None:
            return None
        ended, facts = found
        kept = {name: facts[name] for name in ("seed", "data")}
        kept["code_version"] = said_version(facts)
        self._require_same(kept, facts.get("git_commit"))
        return ended

    def _check_and_claim(self) -> None:
        """Write recipe.json, or check that the one that is there holds the same recipe."""
        path = self.out / "recipe.json"
        text = read_whole(path)
        is_written = text is not None
        if not is_written and path.exists():  # a power loss emptied it: a checkpoint has the recipe
            saved = checkpoint.load_latest(self.out)
            text = None if saved is None else saved["recipe"]
        if text is not None:
            kept = recipe_from_json(text, str(path))
            if kept != self.recipe:
                raise WrongRequest(
                    f"{self.out} holds a run of another recipe "
                    f"({difference(kept, self.recipe)}){self._of_other_data()}; "
                    "give another --out or remove it"
                )
        if is_written or self.backend.host > 0:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(json.loads(canonical_json(self.recipe)), indent=1) + "\n")

    def _of_other_data(self) -> str:
        """For the error about another recipe: other data may be the cause, because a recipe can
        follow the data."""
        saved = checkpoint.load_latest(self.out)
        if saved is None or saved["identity"]["data"] == self.data.fingerprint:
            return ""
        return ", and of other data: the images are not those that it began with"

    def _require_same(self, identity: dict[str, Any], commit: str | None) -> None:
        """Raise WrongRequest if the directory holds another run, written by code of `commit`."""
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

    def restore(self, stepper: Stepper, init: Path | None = None) -> tuple[TrainState, Meter]:
        """The state and the meter of the newest checkpoint, or those of step 0.

        `stepper` gets the checkpoint's micro-batch. `init` is the file of the weights that the
        recipe starts from; it is read only if there is no checkpoint.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = new_model(self.recipe, self.data.num_classes)
        saved = checkpoint.load_latest(self.out)
        if saved is not None:
            self._require_same(saved["identity"], saved.get("git_commit"))
            model.load_state_dict(saved["model"])
        elif self.recipe.init is not None:
            load_initial(model, init, self.recipe.init)  # the seed has drawn what stays new
        # The weights are loaded before the move: a lazy backend would trace copies on the device.
        model = self.backend.move(model)
        moments = None if saved is None else saved["optimizer"]
        state = TrainState(model, optimizer(model, self.recipe, self.backend, moments))
        meter = Meter(self.backend, stepper.utilisation)
        if saved is not None:
            state.step = saved["step"]
            stepper.go_on_with(saved["micro_batch"])
            meter.load_state(saved["meter"])
            log.info("continuing %s at step %d", self.out, state.step)
            # A checkpoint of an earlier version does not say "compiles".
            topology = {"compiles": saved["topology"]["backend"] == "xla"} | saved["topology"]
            if topology != stepper.topology:
                log.info(
                    "the checkpoint is of %s, and this is %s: equal to rounding, not to the bit",
                    topology,
                    stepper.topology,
                )
        if self.backend.host == 0:
            self.keep_records_up_to(state.step)
        return state, meter

    def save(
        self, state: TrainState, meter: Meter, stepper: Stepper, *, branches: bool = False
    ) -> None:
        """Write the checkpoint. If the run `branches` here, it is kept for longer runs, too."""
        if self.backend.host > 0:
            return
        self.sync_records()
        body = {
            "recipe": canonical_json(self.recipe),
            "identity": self.identity,
            "git_commit": self.commit,
            "num_classes": self.data.num_classes,
            "topology": stepper.topology,
            "step": state.step,
            "micro_batch": stepper.micro_batch,
            "meter": meter.state(),
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
        }
        if branches:  # before last.ckpt: after a kill in between, the run comes by here again
            checkpoint.keep(self.out, body)
        checkpoint.save(self.out, body)

    def keep(self, record: Record) -> None:
        if self.backend.host == 0:
            super().keep(record)
        else:
            self.last_record = record

    @property
    def undecodable(self) -> dict[int, str]:
        """The training images that this run could not decode, on any host: {row: reason}."""
        return dict(
            line
            for path in sorted(self.out.glob("undecodable*.txt"))
            for line in read_lines(path, _row_and_text)
        )

    def note_undecodable(self, images: dict[int, str]) -> None:
        """Store the images that are not stored yet; each host has a file of its own."""
        known = self.undecodable
        new = {row: text for row, text in images.items() if row not in known}
        if new:
            host = self.backend.host
            name = f"undecodable-{host}.txt" if host else "undecodable.txt"
            lines = [f"{row} {' '.join(text.split())}" for row, text in new.items()]
            append_lines(self.out / name, lines)

    def lacks(self, metric: str, step: int) -> bool:
        """Whether the record with `metric` at the checkpoint's step is lost. Only the first host
        knows.

        Earlier versions did not sync records before the checkpoint, so a power loss could lose it.
        """
        last = self.last_record
        there = last is not None and last.step == step and metric in last.values
        return self.backend.host == 0 and not there

    def sync_records(self) -> None:
        super().sync_records()
        for path in self.out.glob("undecodable*.txt"):
            sync_lines(path)

    def end_finished(self, meter: Meter, stepper: Stepper) -> Finished:
        """Write outcome.json from the last record."""
        last = self.last_record
        if last is None:  # an earlier process was killed after the last step
            *_, last = metrics.read_records(self.records)
        price = cost(self.recipe.model, self.recipe.image_size, self.data.num_classes)
        final = dict(last.values) | {
            metrics.TOP1: last.values[metrics.VAL_TOP1],
            metrics.TOP5: last.values[metrics.VAL_TOP5],
            metrics.MACS: price.macs,
            metrics.PARAMS: price.params,
            metrics.ACTIVATIONS: price.activations,
            metrics.IMAGES_PER_SECOND: meter.images_per_second,
            metrics.INPUT_WAIT: meter.input_wait_fraction,
            metrics.TRAIN_DEVICE_HOURS: meter.seconds * self.backend.devices_held / 3600,
        }
        facts: dict[str, object] = {"step": last.step}
        if meter.earlier_devices:
            facts[metrics.EARLIER_DEVICES] = meter.earlier_devices
        self._write_outcome(Ending.FINISHED, final, facts, stepper)
        return Finished(final)

    def end_diverged(self, step: int, stepper: Stepper) -> Diverged:
        facts = {"step": step, "error": f"the loss was not finite at step {step}"}
        self._write_outcome(Ending.DIVERGED, {}, facts, stepper)
        log.warning("%s diverged: %s", self.out, facts["error"])
        return Diverged(step)

    def _write_outcome(
        self,
        ending: Ending,
        final: dict[str, float],
        facts: Mapping[str, object],
        stepper: Stepper,
    ) -> None:
        if self.backend.host > 0:
            return
        facts = {
            **facts,
            "git_commit": self.commit,
            **self.identity,
            "data_name": self.data.name,
            "data_lossy": self.data.lossy,
            "num_train": self.data.num_images("train", self.recipe),
            "num_minival": self.data.num_images("minival", self.recipe),
            "num_val": self.data.num_images("val", self.recipe),
            "num_classes": self.data.num_classes,
            "backend": self.backend.name,
            metrics.DEVICE: self.backend.device_name,
            metrics.NUM_DEVICES: self.backend.devices_held,
            "micro_batch": stepper.micro_batch,
            "recompute": stages_text(stepper.recompute),
            "undecodable_images": len(self.undecodable),
        }
        self.write_outcome(ending, final, facts)


def _row_and_text(line: str) -> tuple[int, str]:
    row, _, text = line.partition(" ")
    return int(row), text
