"""Trains UperNet on a set in ADE20K's format, and resumes it where it stopped last.

Run:    mambaout train tiny --task segment --data ADE20K --init WEIGHTS --out runs/segment
Writes: recipe.json, records.jsonl, last.ckpt, previous.ckpt, predictions.png and outcome.json

The same call resumes a run that was stopped or killed. On a CPU, the steps and the weights then
equal those of an uninterrupted run to the bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mambaout.dense.ade20k import SegmentData
from mambaout.dense.backbone import load_backbone, require_shape
from mambaout.dense.confusion import MIOU, MIOU_MULTI_SCALE, Confusion
from mambaout.dense.dense_directory import DenseDirectory
from mambaout.dense.loading import loaded
from mambaout.dense.loop import DenseRun, train_run
from mambaout.dense.segment_images import (
    SegmentEvaluation,
    SegmentSample,
    SegmentTraining,
    WholeSample,
    batch_places,
)
from mambaout.dense.segment_sheet import segment_sheet
from mambaout.dense.segment_step import LOSSES, SegmenterSteps, segment_optimizer
from mambaout.dense.upernet import UperNet, upernet
from mambaout.durable import write_whole
from mambaout.errors import WrongRequest
from mambaout.model.weights import read_weights
from mambaout.segment_recipe import (
    LEAST_MICRO_BATCH,
    SegmentRecipe,
    segment_micro_batches,
    segment_recipe_from_json,
)
from mambaout.train.backend import Backend
from mambaout.train.milestones import Milestones
from mambaout.train.optim import take_step
from mambaout.train.outcomes import Outcome
from mambaout.train.reporter import Sink
from mambaout.train.tasks import SHEET

log = logging.getLogger(__name__)

SHEET_IMAGES = 6  # of the validation images, on the sheet
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the multi-scale evaluation, each with its mirror


@dataclass(frozen=True, kw_only=True)
class SegmenterPlan:
    """The segmenter of a run: how it is made, and what says so in the run's identity."""

    build: Callable[[], UperNet]  # on the CPU, with its first weights; torch's generator draws
    first_weights: str = "random"  # or the key of the content of the backbone's file


def segmenter_plan(
    recipe: SegmentRecipe, data: SegmentData, init: Path | None
) -> tuple[SegmenterPlan, str]:
    """The plan, and a sentence about the first weights of the backbone: those in `init`, or random.

    Raises WrongRequest if the file does not fit the network.
    """

    def build() -> UperNet:
        segmenter = upernet(
            recipe.model, data.num_classes, channels=recipe.head_channels, dropout=recipe.dropout
        )
        if weights is not None:
            require_shape(segmenter.backbone, weights)
            said.append(load_backbone(segmenter.backbone, weights))
        return segmenter

    said: list[str] = []
    weights = None if init is None else read_weights(init)
    if init is None:
        text = "the backbone's first weights are random; --init FILE gives others"
        return SegmenterPlan(build=build), text
    build()  # whether the file fits is known before the run begins
    key = blake2b(init.read_bytes(), digest_size=8).hexdigest()
    return SegmenterPlan(build=build, first_weights=key), said[0]


def train_segmenter(
    recipe: SegmentRecipe,
    plan: SegmenterPlan,
    train: SegmentData,
    val: SegmentData,
    *,
    out: Path,
    backend: Backend,
    seed: int = 0,
    micro_batch: int | None = None,
    multi_scale: bool = False,
    sinks: Sequence[Sink] = (),
    max_steps: int | None = None,
    log_every_steps: int = 50,
    num_workers: int = 0,
    checkpoint_seconds: float = 300.0,
    stop: Callable[[], bool] = lambda: False,
    began: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train into the run directory `out`; a run that lies there is resumed.

    `micro_batch` images are in memory at once, and the batch norms see as many at a time. None: as
    many as are estimated to fit, or those of the run that is resumed. With `multi_scale` the last
    evaluation is done at six scales too. The arguments that mambaout.train.loop.train has too mean
    the same here. Raises WrongRequest if the directory holds another run, or if the batch cannot be
    split so.
    """
    backend.train_in(recipe.precision)
    first = micro_batch_of(recipe, train.num_classes, backend, micro_batch)
    milestones = Milestones(
        global_batch=recipe.global_batch,
        num_train=len(train),
        per_epoch=math.ceil(len(train) / recipe.global_batch),
        num_steps=recipe.steps,
        last_step=recipe.steps if max_steps is None else min(recipe.steps, max_steps),
        eval_every_steps=recipe.eval_every_steps,
        log_every_steps=log_every_steps,
    )
    directory = DenseDirectory(
        out,
        recipe,
        segment_recipe_from_json,
        {
            "task": "segment",
            "seed": seed,
            "data": f"{train.fingerprint}-{val.fingerprint}",
            "first_weights": plan.first_weights,
        },
    )
    if (ended := directory.outcome) is not None:
        return ended
    run = SegmentRun(
        recipe,
        plan,
        train,
        val,
        seed=seed,
        backend=backend,
        directory=directory,
        micro_batch=first,
        asked=micro_batch,
        multi_scale=multi_scale,
        num_workers=num_workers,
    )
    began()
    places = batch_places(len(train), seed, recipe, run.step, milestones.last_step)
    return train_run(
        run,
        milestones,
        loaded(SegmentTraining(train, seed, recipe), places, num_workers),
        recipe.learning_rate,
        sinks=sinks,
        checkpoint_seconds=checkpoint_seconds,
        stop=stop,
    )


def micro_batch_of(
    recipe: SegmentRecipe, num_classes: int, backend: Backend, asked: int | None
) -> int:
    """`asked`, or if it is None, the largest micro-batch that is estimated to fit.

    On a CPU it matters: there the kernel ends a process that needs too much. Raises WrongRequest
    if the batch cannot be split so.
    """
    if backend.num_hosts > 1:
        raise WrongRequest("a segmenter is trained by one host; take a slice of one host")
    sizes = segment_micro_batches(recipe.global_batch, backend.num_devices)
    if not sizes:
        raise WrongRequest(
            f"--global-batch {recipe.global_batch} does not split over {backend.num_devices} "
            f"devices into parts of {LEAST_MICRO_BATCH} images or more; try "
            f"{LEAST_MICRO_BATCH * backend.num_devices}"
        )
    if asked is not None:
        if asked not in sizes:
            raise WrongRequest(
                f"--micro-batch {asked} does not split --global-batch {recipe.global_batch} into "
                f"equal parts that batch norms can take; give {' or '.join(map(str, sizes))}"
            )
        return asked
    # Floats that one image keeps for each of its pixels: two heads' logits with what the loss makes
    # of them, the decoder's maps at a fourth of the sides, and the backbone's.
    floats = 6 * num_classes + recipe.head_channels + 10 * recipe.model.dims[0]
    room = backend.usable_bytes() / (4 * floats * recipe.crop_size**2) * backend.num_devices
    return next((size for size in sizes if size <= room), sizes[-1])


class SegmentRun(DenseRun):
    """A segmenter that is trained."""

    losses = LOSSES

    def __init__(
        self,
        recipe: SegmentRecipe,
        plan: SegmenterPlan,
        train: SegmentData,
        val: SegmentData,
        *,
        seed: int,
        backend: Backend,
        directory: DenseDirectory,
        micro_batch: int,
        asked: int | None,
        multi_scale: bool,
        num_workers: int,
    ) -> None:
        self.recipe, self.train, self.val = recipe, train, val
        self.multi_scale, self.num_workers = multi_scale, num_workers
        self.class_iou = np.zeros(0)  # of the last evaluation, in percent; nan: absent
        saved = directory.latest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            segmenter = plan.build()
        if saved is not None:
            segmenter.load_state_dict(saved["model"])
        segmenter = backend.move(segmenter)
        moments = None if saved is None else saved["optimizer"]
        self.steps = SegmenterSteps(segmenter, backend, recipe, seed)
        super().__init__(
            segmenter,
            segment_optimizer(segmenter, recipe, backend, moments),
            backend,
            directory,
            saved,
            micro_batch=micro_batch,
            asked=asked,
            sizes=segment_micro_batches(recipe.global_batch, backend.num_devices),
        )

    @property
    def macs(self) -> float:
        return self.recipe.cost(self.train.num_classes).macs

    def add_gradients(self, batch: Sequence[SegmentSample]) -> Tensor:
        return self.steps.add_gradients(batch, self.micro_batch, self.step)

    def state(self) -> dict[str, Any]:
        return super().state() | {"classes": list(self.train.class_names)}

    def update(self, lr: float) -> None:
        take_step(self.optimizer, lr, self.recipe.weight_decay, self.backend)

    def evaluated(self, *, is_final: bool) -> dict[str, float]:
        """The figures on all validation images; writes the sheet."""
        shown = range(0, len(self.val), max(1, len(self.val) // SHEET_IMAGES))[:SHEET_IMAGES]
        confusion, kept = evaluate(
            self.steps, self.val, num_workers=self.num_workers, keep=frozenset(shown)
        )
        images, labels = zip(*(self.val.pair(n) for n in shown), strict=True)
        sheet = segment_sheet(images, labels, [kept[n] for n in shown], self.val.class_names)
        write_whole(self.directory.out / SHEET, sheet)
        self.class_iou = confusion.class_iou()
        values = confusion.figures()
        if is_final and self.multi_scale:
            several, _ = evaluate(
                self.steps, self.val, RATIOS, with_mirrors=True, num_workers=self.num_workers
            )
            values[MIOU_MULTI_SCALE] = several.figures()[MIOU]
        return {f"val/{name}": value for name, value in values.items()}

    def facts(self) -> dict[str, Any]:
        names, shares = self.val.class_names, self.class_iou.tolist()
        iou = {n: None if math.isnan(v) else v for n, v in zip(names, shares, strict=False)}
        return {
            "num_train": len(self.train),
            "num_val": len(self.val),
            "num_classes": self.train.num_classes,
            "left_out": dict(self.train.left_out),
            "macs_image_size": list(self.recipe.counted_size),
            "micro_batch": self.micro_batch,
            "class_iou": iou,
        }


def evaluate(
    steps: SegmenterSteps,
    data: SegmentData,
    ratios: Sequence[float] = (1.0,),
    *,
    with_mirrors: bool = False,
    num_workers: int = 0,
    keep: frozenset[int] = frozenset(),
) -> tuple[Confusion, dict[int, np.ndarray]]:
    """The counts over every image of `data`, one at a time, and the maps of the images in `keep`.

    The figures are those at the image files' own sizes.
    """
    confusion, kept = Confusion(data.num_classes), {}
    found = predictions(steps, data, ratios, with_mirrors=with_mirrors, num_workers=num_workers)
    for one, classes in found:
        confusion.add(one.labels, classes)
        if one.index in keep:
            kept[one.index] = classes
    return confusion, kept


def predictions(
    steps: SegmenterSteps,
    data: SegmentData,
    ratios: Sequence[float] = (1.0,),
    *,
    with_mirrors: bool = False,
    num_workers: int = 0,
) -> Iterator[tuple[WholeSample, np.ndarray]]:
    """Each image of `data`, in their order, with its map of classes, uint8 of the file's size."""
    samples = SegmentEvaluation(data, steps.recipe, ratios)
    for (one,) in loaded(samples, [[index] for index in range(len(data))], num_workers):
        size = one.labels.shape
        yield one, steps.predict(one.scaled, (size[0], size[1]), with_mirrors=with_mirrors)
