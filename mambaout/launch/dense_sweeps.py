"""What differs between a sweep over detectors and one over segmenters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mambaout.accounting import Cost
from mambaout.dense_rules import SHAPES
from mambaout.detect_recipe import NOT_ON_XLA, DetectRecipe, detect_steps_per_epoch
from mambaout.detect_rules import SMALL_DETECT, fitted_detect
from mambaout.errors import WrongRequest
from mambaout.segment_recipe import SegmentRecipe, segment_micro_batches
from mambaout.segment_rules import SMALL_SEGMENT, fitted_segment
from mambaout.train.tasks import DETECT, SEGMENT, TaskKind

if TYPE_CHECKING:
    from mambaout.dense.dense_sets import DenseSets

TRAINER = "mambaout.launch.dense_trial:train_dense_trial"


@dataclass(frozen=True, kw_only=True)
class DenseSweep:
    """One task, as a sweep needs it."""

    kind: TaskKind
    data: str  # help of --data
    small: Mapping[str, Mapping[str, Any]]  # fields of the generated sets, by the set's name
    open: Callable[[str], Any]  # --data -> DenseSets
    fit: Callable[..., tuple[Any, list[str]]]
    num_steps: Callable[[Any, int], int]  # (recipe, training images) -> of the whole training
    num_evaluations: Callable[[Any], int]
    cost: Callable[[Any, DenseSets], Cost]  # of one image
    check_micro_batch: Callable[[Any, int], None]  # raises WrongRequest
    not_on_xla: str = ""  # why it cannot run there; "" if it can


def _open_detect(data: str) -> DenseSets:
    from mambaout.dense.dense_sets import detect_sets

    return detect_sets(data)


def _check_of_detect(recipe: DetectRecipe, size: int) -> None:
    if size > recipe.global_batch:
        raise WrongRequest(
            f"--micro-batch {size} is more than the global batch {recipe.global_batch}; give that "
            "or less"
        )


DETECT_SWEEP = DenseSweep(
    kind=DETECT,
    data=f"a folder or bucket in COCO format, or {SHAPES}, a small generated set",
    small=SMALL_DETECT,
    open=_open_detect,
    fit=fitted_detect,
    num_steps=lambda recipe, images: detect_steps_per_epoch(recipe, images) * recipe.epochs,
    num_evaluations=lambda recipe: math.ceil(recipe.epochs / recipe.eval_every_epochs),
    cost=lambda recipe, sets: recipe.cost(sets.num_classes, with_masks=sets.train.has_masks),
    check_micro_batch=_check_of_detect,
    not_on_xla=NOT_ON_XLA,
)


def _open_segment(data: str) -> DenseSets:
    from mambaout.dense.dense_sets import segment_sets

    return segment_sets(data)


def _check_of_segment(recipe: SegmentRecipe, size: int) -> None:
    sizes = segment_micro_batches(recipe.global_batch)
    if size not in sizes:
        raise WrongRequest(
            f"--micro-batch {size} does not split the global batch {recipe.global_batch} into "
            f"equal parts that batch norms can take; give {' or '.join(map(str, sizes))}"
        )


SEGMENT_SWEEP = DenseSweep(
    kind=SEGMENT,
    data=f"a folder or bucket in ADE20K's format, or {SHAPES}, a small generated set",
    small=SMALL_SEGMENT,
    open=_open_segment,
    fit=fitted_segment,
    num_steps=lambda recipe, images: recipe.steps,
    num_evaluations=lambda recipe: math.ceil(recipe.steps / recipe.eval_every_steps),
    cost=lambda recipe, sets: recipe.cost(sets.num_classes),
    check_micro_batch=_check_of_segment,
)
