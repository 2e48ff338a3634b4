"""`mambaout train --task detect`: Mask R-CNN on a set in COCO format."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mambaout.commands.dense import DenseCommand
from mambaout.detect_recipe import NOT_ON_XLA, DetectRecipe, detect_steps_per_epoch
from mambaout.detect_rules import MICRO_BATCH, SMALL_DETECT, fitted_detect
from mambaout.errors import WrongRequest
from mambaout.train.tasks import DETECT
from mambaout.variants import ModelConfig, variant

if TYPE_CHECKING:
    from mambaout.dense.dense_sets import DenseSets
    from mambaout.model.initial import InitialWeights
    from mambaout.train.backend import Backend
    from mambaout.train.outcomes import Outcome


class DetectCommand(DenseCommand):
    """--task detect."""

    kind = DETECT
    format = "COCO"
    small = SMALL_DETECT
    fit = staticmethod(fitted_detect)
    figures: ClassVar = {"box_ap": "box AP", "mask_ap": "mask AP"}

    def check(self, options: argparse.Namespace) -> None:
        if options.backend == "xla":
            raise WrongRequest(f"{NOT_ON_XLA}; use --backend cpu or --backend cuda")
        super().check(options)

    def variant(self, name: str) -> ModelConfig:
        return variant(name)

    def read(self, data: str) -> DenseSets:
        from mambaout.dense.dense_sets import detect_sets

        return detect_sets(data)

    def num_steps(self, recipe: DetectRecipe, num_images: int) -> int:
        return detect_steps_per_epoch(recipe, num_images) * recipe.epochs

    def fields_of_start(self, weights: InitialWeights) -> Mapping[str, Any]:
        from mambaout.dense.detector_start import fields_of_start

        return fields_of_start(weights)

    def trainer(
        self,
        recipe: DetectRecipe,
        sets: DenseSets,
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
        plan, said = detector_plan(recipe, sets.train, init)
        train = partial(train_detector, recipe, plan, sets.train, sets.val, micro_batch=micro_batch)
        return train, [said]
