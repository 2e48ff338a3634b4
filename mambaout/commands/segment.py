"""`mambaout train --task segment`: UperNet on a set in ADE20K's format."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mambaout.commands.dense import DenseCommand, DenseRequest, shorter_warmup
from mambaout.fields import flat_fields
from mambaout.options import field_text, option
from mambaout.segment_recipe import (
    AUTHOR,
    DROP_PATHS,
    SEGMENT_BASELINE,
    SegmentRecipe,
    segment_recipe_from_json,
    segment_shape,
    tuned_segment,
)
from mambaout.variants import VARIANTS, ModelConfig, variant

if TYPE_CHECKING:
    from mambaout.model.initial import InitialWeights
    from mambaout.train.backend import Backend
    from mambaout.train.outcomes import Outcome

# What --data shapes trains if it is not said otherwise: minutes on a CPU, not a photograph's size.
SHAPES_FIELDS: Mapping[str, Any] = {
    **{"depths": (1, 1, 2, 1), "dims": (24, 48, 72, 96), "drop_path": 0.0, "head_channels": 64},
    **{"crop_size": 96, "shorter_side": 96, "longer_side": 96, "global_batch": 8, "peak_lr": 2e-3},
    # At 1e-3 with the full augmentation mIoU was 32.3 after as many steps; so it is 43.3 (n=1).
    **{"scale_min": 0.75, "scale_max": 1.5, "max_class_share": 1.0},
    **{"photometric": 0.0, "dropout": 0.0, "steps": 1500, "eval_every_steps": 300},
}
SMOKE_FIELDS: Mapping[str, Any] = {
    **SHAPES_FIELDS,
    **{"dims": (8, 16, 24, 32), "head_channels": 16, "steps": 4, "eval_every_steps": 2},
    "global_batch": 4,
}
EVALUATIONS = 10  # of a training that is shorter than one evaluation's wait


class SegmentRequest(DenseRequest):
    """What the options of a segmentation ask for."""

    baseline: ClassVar = SEGMENT_BASELINE
    shapes_fields: ClassVar = SHAPES_FIELDS
    smoke_fields: ClassVar = SMOKE_FIELDS

    def recipe(self, num_images: int) -> tuple[SegmentRecipe, list[str]]:
        base = SEGMENT_BASELINE
        fields, lines = self.fields()
        if self.shape is not None and "drop_path" not in self.given:
            known = [name for name in DROP_PATHS if segment_shape(name) == self.shape]
            if known:
                rate = field_text(self.shape.drop_path)
                lines.append(f"{option('drop_path')} {rate}: {AUTHOR}, for {known[0]}")
        steps = fields.get("steps", base.steps)
        lines += shorter_warmup(fields, steps, base.warmup_steps)
        if "eval_every_steps" not in fields and steps <= base.eval_every_steps:
            fields["eval_every_steps"] = max(1, steps // EVALUATIONS)
            lines.append(
                f"{option('eval_every_steps')} {fields['eval_every_steps']}: {EVALUATIONS} "
                f"evaluations in the {steps} steps"
            )
        return tuned_segment(base, fields), lines


class SegmentCommand(DenseCommand):
    """--task segment."""

    task = "segment"
    format = "ADE20K"
    request = SegmentRequest
    figures: ClassVar = {
        "miou": "mIoU",
        "pixel_accuracy": "pixel accuracy",
        "miou_multi_scale": "multi-scale mIoU",
    }

    def variant(self, name: str) -> ModelConfig:
        found = variant(name)
        return segment_shape(name) if name in VARIANTS else found

    def read(self, root: str) -> Sequence[Any]:
        from mambaout.dense.ade20k import read_ade20k

        return read_ade20k(root)

    def fields_of_start(self, initial: InitialWeights) -> Mapping[str, Any]:
        known = (name for name, shape in VARIANTS.items() if shape == initial.model)
        name = next(known, None)
        return flat_fields(initial.model if name is None else segment_shape(name))

    def num_images(self, train: Any) -> int:
        return len(train)

    def num_steps(self, recipe: SegmentRecipe, train: Any) -> int:
        return recipe.steps

    def read_recipe(self, text: str, where: str) -> SegmentRecipe:
        return segment_recipe_from_json(text, where)

    def trainer(
        self,
        recipe: SegmentRecipe,
        splits: Sequence[Any],
        init: Path | None,
        where: Backend,
        options: argparse.Namespace,
    ) -> tuple[Callable[..., Outcome], list[str]]:
        from mambaout.dense.segment import micro_batch_of, segmenter_plan, train_segmenter

        size = micro_batch_of(recipe, splits[0].num_classes, where, options.micro_batch)
        plan, said = segmenter_plan(recipe, splits[0], init)
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
            *splits,
            micro_batch=options.micro_batch,
            multi_scale=options.multi_scale,
        )
        return train, [said, norms]
