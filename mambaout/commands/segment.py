"""`mambaout train --task segment`: UperNet on a set in ADE20K's format."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mambaout.commands.dense import DenseCommand
from mambaout.segment_recipe import SegmentRecipe, segment_shape
from mambaout.segment_rules import SMALL_SEGMENT, fitted_segment
from mambaout.train.tasks import SEGMENT
from mambaout.variants import VARIANTS, ModelConfig, variant

if TYPE_CHECKING:
    from mambaout.dense.dense_sets import DenseSets
    from mambaout.train.backend import Backend
    from mambaout.train.outcomes import Outcome


class SegmentCommand(DenseCommand):
    """--task segment."""

    kind = SEGMENT
    format = "ADE20K"
    small = SMALL_SEGMENT
    fit = staticmethod(fitted_segment)
    figures: ClassVar = {
        "miou": "mIoU",
        "pixel_accuracy": "pixel accuracy",
        "miou_multi_scale": "multi-scale mIoU",
    }

    def variant(self, name: str) -> ModelConfig:
        found = variant(name)
        return segment_shape(name) if name in VARIANTS else found

    def read(self, data: str) -> DenseSets:
        from mambaout.dense.dense_sets import segment_sets

        return segment_sets(data)

    def num_steps(self, recipe: SegmentRecipe, num_images: int) -> int:
        return recipe.steps

    def trainer(
        self,
        recipe: SegmentRecipe,
        sets: DenseSets,
        init: Path | None,
        where: Backend,
        options: argparse.Namespace,
    ) -> tuple[Callable[..., Outcome], list[str]]:
        from mambaout.dense.segment import micro_batch_of, segmenter_plan, train_segmenter

        size = micro_batch_of(recipe, sets.num_classes, where, options.micro_batch)
        plan, said = segmenter_plan(recipe, sets.train, init)
        norms = f"the batch norms see {size} images at a time (--micro-batch)"
        if where.compiles:
            norms += (
                "; whole images are padded to multiples of the crop, which moves the figures a "
                "little"
            )
        train = partial(
            train_segmenter,
            recipe,
            plan,
            sets.train,
            sets.val,
            micro_batch=options.micro_batch,
            multi_scale=options.multi_scale,
        )
        return train, [said, norms]
