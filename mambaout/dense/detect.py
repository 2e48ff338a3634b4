"""Trains Mask R-CNN on a set in COCO format, and resumes it where it stopped last.

Run:    mambaout train tiny --task detect --data COCO_FOLDER --init WEIGHTS --out runs/detect
Writes: recipe.json, records.jsonl, last.ckpt, previous.ckpt, predictions.png and outcome.json

The same call resumes a run that was stopped or killed. On a CPU, the steps and the weights then
equal those of an uninterrupted run to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from mambaout.dense.coco import CocoData
from mambaout.dense.contact_sheet import contact_sheet
from mambaout.dense.dense_directory import DenseDirectory
from mambaout.dense.detect_images import (
    DetectSample,
    EvaluationSamples,
    TrainingSamples,
    batch_places,
)
from mambaout.dense.detect_step import LOSSES, DetectorSteps, detect_optimizer
from mambaout.dense.evaluate import Detections, fastest_engine, figures
from mambaout.dense.loading import loaded
from mambaout.dense.loop import DenseRun, train_run
from mambaout.detect_recipe import (
    NOT_ON_XLA,
    DetectRecipe,
    detect_recipe_from_json,
    detect_steps_per_epoch,
)
from mambaout.durable import write_whole
from mambaout.errors import WrongRequest
from mambaout.train.backend import Backend
from mambaout.train.milestones import Milestones
from mambaout.train.outcomes import Outcome
from mambaout.train.reporter import Sink
from mambaout.train.tasks import SHEET

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
    backend.train_in(recipe.precision)
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
    directory = DenseDirectory(
        out,
        recipe,
        detect_recipe_from_json,
        {
            "task": "detect",
            "seed": seed,
            "data": f"{train.fingerprint}-{val.fingerprint}",
            "first_weights": plan.first_weights,
        },
    )
    if (ended := directory.outcome) is not None:
        return ended
    run = DetectRun(
        recipe,
        plan,
        train,
        val,
        seed=seed,
        backend=backend,
        directory=directory,
        micro_batch=micro_batch,
        num_workers=num_workers,
    )
    began()
    places = batch_places(train, seed, recipe, run.step, milestones.last_step)
    return train_run(
        run,
        milestones,
        loaded(TrainingSamples(train, seed, recipe), places, num_workers),
        lambda step: recipe.learning_rate(step, per_epoch),
        sinks=sinks,
        checkpoint_seconds=checkpoint_seconds,
        stop=stop,
    )


class DetectRun(DenseRun):
    """A detector that is trained."""

    losses = tuple(LOSSES)

    def __init__(
        self,
        recipe: DetectRecipe,
        plan: DetectorPlan,
        train: CocoData,
        val: CocoData,
        *,
        seed: int,
        backend: Backend,
        directory: DenseDirectory,
        micro_batch: int,
        num_workers: int,
    ) -> None:
        self.recipe, self.plan, self.train, self.val = recipe, plan, train, val
        self.num_workers = num_workers
        saved = directory.latest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            detector = plan.build()
        if saved is not None:
            detector.load_state_dict(saved["model"])
        backend.move(detector)
        optimizer = detect_optimizer(
            detector,
            lr=recipe.peak_lr,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
        )
        if saved is not None:
            optimizer.load_state_dict(saved["optimizer"])
        self.steps = DetectorSteps(detector, backend, recipe.precision, seed)
        super().__init__(
            detector,
            optimizer,
            backend,
            directory,
            saved,
            micro_batch=micro_batch,
            asked=micro_batch,
            sizes=range(micro_batch, 0, -1),
        )

    @property
    def macs(self) -> float | None:
        return self.plan.macs

    def add_gradients(self, batch: Sequence[DetectSample]) -> Tensor:
        return self.steps.add_gradients(batch, self.micro_batch, self.step)

    def state(self) -> dict[str, Any]:
        return super().state() | {"classes": list(self.train.class_names)}

    def update(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def evaluated(self, *, is_final: bool) -> dict[str, float]:
        """COCO's figures on all validation images; writes the sheet."""
        val = self.val
        found = predictions(self.steps, val, self.recipe, self.num_workers)
        shown = range(0, len(found), max(1, len(found) // SHEET_IMAGES))[:SHEET_IMAGES]
        sheet = contact_sheet(
            [val.pixels(val.images[n]) for n in shown], [found[n] for n in shown], val.class_names
        )
        write_whole(self.directory.out / SHEET, sheet)
        engine = "pycocotools" if is_final else fastest_engine()
        return {f"val/{name}": value for name, value in figures(val, found, engine).items()}

    def facts(self) -> dict[str, Any]:
        return {
            "num_train": len(self.train.images),
            "num_val": len(self.val.images),
            "num_classes": self.train.num_classes,
            "left_out": dict(self.train.left_out),
            "macs_image_size": list(self.recipe.counted_size),
        }


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
        ours, theirs = (
            repr(each[wrong[0]]) if wrong[0] in each else "missing" for each in (one, other)
        )
        raise WrongRequest(
            f"{train.file} and {val.file} have other categories: id {wrong[0]} is {ours} in the "
            f"first and {theirs} in the second; give both the same list, also where a class has no "
            "object"
        )
