"""`mambaout train --task detect`: Mask R-CNN on a set in COCO format."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mambaout.commands.dense import DenseCommand, DenseRequest, shorter_warmup
from mambaout.dense.detect_recipe import (
    DETECT_BASELINE,
    NOT_ON_XLA,
    DetectRecipe,
    detect_recipe_from_json,
    detect_steps_per_epoch,
    tuned_detect,
)
from mambaout.errors import WrongRequest
from mambaout.options import option
from mambaout.variants import ModelConfig, variant

if TYPE_CHECKING:
    from mambaout.model.initial import InitialWeights
    from mambaout.train.backend import Backend
    from mambaout.train.outcomes import Outcome

MICRO_BATCH = 2  # images in memory at once, as in mmdetection's 8 x 2
# What --data shapes trains if it is not said otherwise: minutes on a CPU, not a photograph's size.
SHAPES_FIELDS: Mapping[str, Any] = {
    **{"depths": (1, 1, 2, 1), "dims": (24, 48, 72, 96), "drop_path": 0.0},
    **{"head_channels": 64, "box_features": 256, "smallest_anchor": 24, "sampled_boxes": 128},
    **{"shorter_side": 96, "longer_side": 96, "global_batch": 6, "peak_lr": 1e-3},
}
SMOKE_FIELDS: Mapping[str, Any] = {
    **SHAPES_FIELDS,
    **{"dims": (8, 16, 24, 32), "head_channels": 16, "box_features": 64, "epochs": 1},
}


class DetectRequest(DenseRequest):
    """What the options of a detection ask for."""

    baseline: ClassVar = DETECT_BASELINE
    shapes_fields: ClassVar = SHAPES_FIELDS
    smoke_fields: ClassVar = SMOKE_FIELDS

    def recipe(self, num_images: int) -> tuple[DetectRecipe, list[str]]:
        base = DETECT_BASELINE
        fields, lines = self.fields()
        epochs = fields.get("epochs", base.epochs)
        if epochs != base.epochs:
            for name in ("first_drop_epoch", "second_drop_epoch"):
                if name not in self.given:
                    fields[name] = max(1, round(getattr(base, name) * epochs / base.epochs))
                    lines.append(f"{option(name)} {fields[name]}: the same share of the epochs")
        steps = num_images // fields.get("global_batch", base.global_batch) * epochs
        lines += shorter_warmup(fields, steps, base.warmup_steps)
        return tuned_detect(base, fields), lines


class DetectCommand(DenseCommand):
    """--task detect."""

    task = "detect"
    format = "COCO"
    request = DetectRequest
    figures: ClassVar = {"box_ap": "box AP", "mask_ap": "mask AP"}

    def check(self, options: argparse.Namespace) -> None:
        if options.backend == "xla":
            raise WrongRequest(NOT_ON_XLA)
        super().check(options)

    def variant(self, name: str) -> ModelConfig:
        return variant(name)

    def read(self, root: str) -> Sequence[Any]:
        from mambaout.dense.coco import read_coco

        return read_coco(root, "train"), read_coco(root, "val")

    def fields_of_start(self, initial: InitialWeights) -> Mapping[str, Any]:
        from mambaout.dense.detector_start import fields_of_start

        return fields_of_start(initial)

    def num_images(self, train: Any) -> int:
        return len(train.images)

    def num_steps(self, recipe: DetectRecipe, train: Any) -> int:
        return detect_steps_per_epoch(recipe, len(train.images)) * recipe.epochs

    def read_recipe(self, text: str, where: str) -> DetectRecipe:
        return detect_recipe_from_json(text, where)

    def trainer(
        self,
        recipe: DetectRecipe,
        splits: Sequence[Any],
        init: Path | None,
        where: Backend,
        options: argparse.Namespace,
    ) -> tuple[Callable[..., Outcome], list[str]]:
        from mambaout.dense.detect import train_detector
        from mambaout.dense.detector_plan import detector_plan

        micro_batch = options.micro_batch or min(MICRO_BATCH, recipe.global_batch)
        if micro_batch > recipe.global_batch:
            raise WrongRequest(
                f"--micro-batch {micro_batch} is more than --global-batch {recipe.global_batch}; "
                "give that or less"
            )
        plan, said = detector_plan(recipe, splits[0], init)
        return partial(train_detector, recipe, plan, *splits, micro_batch=micro_batch), [said]
