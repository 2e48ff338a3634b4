"""Trains Mask R-CNN on a set in COCO format, and resumes it where it stopped last.

Run:    mambaout train tiny --task detect --data COCO_FOLDER --init WEIGHTS --out runs/detect
Writes: recipe.json, records.jsonl, last.ckpt, previous.ckpt, predictions.png and outcome.json

The same call resumes a run that was stopped or killed. On a CPU, the steps and the weights then
equal those of an uninterrupted run to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from mambaout.dense.coco import CocoData
from mambaout.dense.contact_sheet import contact_sheet
from mambaout.dense.detect_directory import SHEET, DetectDirectory
from mambaout.dense.detect_images import (
    EvaluationSamples,
    TrainingSamples,
    batch_places,
    loaded,
)
from mambaout.dense.detect_recipe import NOT_ON_XLA, DetectRecipe, detect_steps_per_epoch
from mambaout.dense.detect_step import LOSSES, DetectorSteps, detect_optimizer
from mambaout.dense.evaluate import Detections, fastest_engine, figures
from mambaout.durable import write_whole
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.train import metrics
from mambaout.train.backend import Backend
from mambaout.train.meter import Meter
from mambaout.train.metrics import Record
from mambaout.train.milestones import Interruptions, Milestones
from mambaout.train.outcomes import Diverged, Finished, Outcome, OutOfMemory, Preempted
from mambaout.train.reporter import Sink
from mambaout.train.step import Sums

log = logging.getLogger(__name__)

SHEET_IMAGES = 12  # of the validation images, on the sheet


@dataclass(frozen=True, kw_only=True)
class DetectorPlan:
    """The detector of a run: how it is made, and what says so in the run's identity."""

    build: Callable[
        [], GeneralizedRCNN
    ]  # on the CPU, with its first weights; torch's generator draws
    first_weights: str = "random"  # the file of the backbone's first weights and its content's key
    macs: float | None = None  # of one image; None: not known


def train_detector(
    recipe: DetectRecipe,
    plan: DetectorPlan,
    train: CocoData,
    val: CocoData,
    *,
    out: Path,
    backend: Backend,
    seed: int = 0,
    micro_batch: int = 2,
    sinks: Sequence[Sink] = (),
    max_steps: int | None = None,
    log_every_steps: int = 50,
    num_workers: int = 0,
    checkpoint_seconds: float = 300.0,
    stop: Callable[[], bool] = lambda: False,
    began: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train into the run directory `out`; a run that lies there is resumed.

    `micro_batch` images are in memory at once. The arguments that mambaout.train.loop.train has too
    mean the same here. Raises WrongRequest if the directory holds another run.
    """
    if backend.compiles:
        raise WrongRequest(NOT_ON_XLA)
    require_one_set(train, val)
    per_epoch = detect_steps_per_epoch(recipe, len(train.images))
    num_steps = per_epoch * recipe.epochs
    milestones = Milestones(
        global_batch=recipe.global_batch,
        num_train=len(train.images),
        per_epoch=per_epoch,
        num_steps=num_steps,
        last_step=num_steps if max_steps is None else min(num_steps, max_steps),
        eval_every_steps=per_epoch * recipe.eval_every_epochs,
        log_every_steps=log_every_steps,
    )
    directory = DetectDirectory(
        out,
        recipe,
        {
            "task": "detect",
            "seed": seed,
            "data": f"{train.fingerprint}-{val.fingerprint}",
            "first_weights": plan.first_weights,
        },
    )
    if (ended := directory.outcome) is not None:
        return ended
    run = _DetectRun(recipe, plan, seed, backend, directory)
    began()
    interruptions = Interruptions(milestones, backend, checkpoint_seconds, stop)
    first_step = run.step
    batches = batch_places(train, seed, recipe, first_step, milestones.last_step)
    samples = TrainingSamples(train, seed, recipe)
    for batch in run.meter.watch(loaded(samples, batches, num_workers)):
        lr = recipe.learning_rate(run.step, per_epoch)
        try:
            run.take_step(batch, micro_batch, lr)
        except Exception as error:
            if not backend.is_out_of_memory(error):
                raise
            return OutOfMemory(micro_batch, str(error))
        step, is_last = run.step, run.step == milestones.last_step
        has_evaluation = milestones.has_evaluation(step)
        if milestones.has_record(step):
            values = run.values(lr, micro_batch)
            if run.meter.diverged_at is not None:
                return run.end_diverged()
            if has_evaluation:
                with run.meter.paused():
                    values |= run.evaluated(val, num_workers, is_final=milestones.is_over(step))
            record = Record(
                step=step,
                epoch=milestones.epoch(step),
                images_seen=milestones.images_seen(step),
                seconds=run.meter.seconds,
                values=values,
            )
            directory.keep(record)
            for sink in sinks:
                sink(record)
        stopped, late = interruptions.ask(step)
        if late or stopped or is_last or has_evaluation:
            with run.meter.paused():
                if run.meter.is_finite():
                    directory.save(run.state() | {"classes": list(train.class_names)})
                elif is_last:
                    return run.end_diverged()
            interruptions.saved()
        if stopped:
            break
    if not milestones.is_over(run.step):
        return Preempted(run.step, first_step)
    return run.end_finished(train, val)


class _DetectRun:
    """The detector, its optimizer and its sums, and how they are saved and restored."""

    def __init__(
        self,
        recipe: DetectRecipe,
        plan: DetectorPlan,
        seed: int,
        backend: Backend,
        directory: DetectDirectory,
    ) -> None:
        self.recipe, self.plan, self.backend, self.directory = recipe, plan, backend, directory
        saved = directory.latest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.detector = plan.build()
        if saved is not None:
            self.detector.load_state_dict(saved["model"])
        backend.move(self.detector)
        self.optimizer = detect_optimizer(
            self.detector,
            lr=recipe.peak_lr,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
        )
        self.steps = DetectorSteps(self.detector, backend, recipe.precision, seed)
        self.meter = Meter(backend, lambda rate: None)
        self.losses = torch.zeros(len(LOSSES), dtype=torch.float64, device=backend.device)
        self.num_steps = 0  # since the last record
        self.step = 0
        if saved is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.meter.load_state(saved["meter"])
            self.losses = backend.place_whole(saved["losses"])
            self.num_steps, self.step = saved["num_steps"], saved["step"]
            log.info("continuing %s at step %d", directory.out, self.step)

    def take_step(self, batch: Sequence[Any], micro_batch: int, lr: float) -> None:
        losses = self.steps.add_gradients(batch, micro_batch, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.losses += losses
        self.num_steps += 1
        self.meter.add(Sums(_summed(losses, len(batch)), len(batch)))

    def values(self, lr: float, micro_batch: int) -> dict[str, float]:
        """The metrics of the window that ends here, without an evaluation's."""
        values = {metrics.TRAIN_LR: lr, metrics.MICRO_BATCH: micro_batch} | self.meter.record()
        means = (self.losses / self.num_steps).tolist()
        values |= {f"train/{name}": value for name, value in zip(LOSSES, means, strict=True)}
        self.losses.zero_()
        self.num_steps = 0
        return values

    def evaluated(self, val: CocoData, num_workers: int, *, is_final: bool) -> dict[str, float]:
        """COCO's figures on all validation images; writes the sheet."""
        found = predictions(self.steps, val, self.recipe, num_workers)
        shown = range(0, len(found), max(1, len(found) // SHEET_IMAGES))[:SHEET_IMAGES]
        sheet = contact_sheet(
            [val.pixels(val.images[n]) for n in shown], [found[n] for n in shown], val.class_names
        )
        write_whole(self.directory.out / SHEET, sheet)
        engine = "pycocotools" if is_final else fastest_engine()
        return {f"val/{name}": value for name, value in figures(val, found, engine).items()}

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "num_steps": self.num_steps,
            "losses": self.losses,
            "meter": self.meter.state(),
            "model": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def end_diverged(self) -> Diverged:
        step = int(self.meter.diverged_at or 0)
        self.directory.end(Ending.DIVERGED, {}, {"step": step})
        return Diverged(step)

    def end_finished(self, train: CocoData, val: CocoData) -> Finished:
        last = self.directory.last_record
        assert last is not None  # the last step has a record
        final = {name.removeprefix("val/"): value for name, value in last.values.items()}
        parameters = self.detector.parameters()
        final |= {
            metrics.PARAMS: sum(each.numel() for each in parameters if each.requires_grad),
            metrics.IMAGES_PER_SECOND: self.meter.images_per_second,
            metrics.INPUT_WAIT: self.meter.input_wait_fraction,
            metrics.TRAIN_DEVICE_HOURS: self.meter.seconds / 3600,
        }
        if self.plan.macs is not None:
            final[metrics.MACS] = self.plan.macs
        facts = {
            "num_train": len(train.images),
            "num_val": len(val.images),
            "num_classes": train.num_classes,
            "left_out": dict(train.left_out),
            "macs_image_size": list(self.recipe.counted_size),
            "backend": self.backend.name,
            metrics.DEVICE: self.backend.device_name,
            metrics.NUM_DEVICES: self.backend.num_devices,
        }
        if earlier := self.meter.earlier_devices:
            facts[metrics.EARLIER_DEVICES] = earlier
        self.directory.end(Ending.FINISHED, final, facts)
        return Finished(final)


def _summed(losses: Tensor, num_images: int) -> Tensor:
    """The batch's loss times its images, (1,) in float64, as the meter adds it up."""
    return losses.double().sum().reshape(1) * num_images


def predictions(
    steps: DetectorSteps, data: CocoData, recipe: DetectRecipe, num_workers: int = 0
) -> list[Detections]:
    """What the detector finds on every image of `data`, one image at a time, in their order."""
    samples = EvaluationSamples(data, recipe)
    places = [[index] for index in range(len(samples))]
    return [steps.predict(one) for (one,) in loaded(samples, places, num_workers)]


def require_one_set(train: CocoData, val: CocoData) -> None:
    """Raise WrongRequest unless both splits have the same categories."""
    one, other = (
        dict(zip(each.category_ids, each.class_names, strict=True)) for each in (train, val)
    )
    if one != other:
        wrong = sorted({number for number, _ in one.items() ^ other.items()})
        raise WrongRequest(
            f"{train.file} and {val.file} have other categories: id {wrong[0]} is "
            f"{one.get(wrong[0], 'missing')!r} and {other.get(wrong[0], 'missing')!r}"
        )
