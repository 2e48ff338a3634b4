"""A trained segmenter from its run's checkpoint, its figures on a set, and its maps of photographs.

    segmenter = trained_segmenter(read_weights("runs/maps/last.ckpt"))
    data = segment_sets("ade20k").val
    segmenter.require_classes_of(data)
    confusion, maps = segmenter.evaluated(data, backend("cpu"), keep=[0, 7])
    print(table_text(confusion.figures(), confusion.class_iou(), data.class_names))

`photograph_data` makes such data of a folder of images without annotations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mambaout.dense.ade20k import IGNORED, SegmentData
from mambaout.dense.confusion import (
    MEAN_ACCURACY,
    MIOU,
    MIOU_MULTI_SCALE,
    PIXEL_ACCURACY,
    Confusion,
)
from mambaout.dense.segment import RATIOS, evaluate, predictions
from mambaout.dense.segment_sheet import image_tile, map_tile, segment_sheet
from mambaout.dense.segment_step import SegmenterSteps
from mambaout.dense.trained import ABSENT, TrainedNetwork, class_names_in, photographs_in
from mambaout.dense.upernet import UperNet, upernet
from mambaout.errors import WrongRequest
from mambaout.model.weights import Weights
from mambaout.segment_recipe import SegmentRecipe, segment_recipe_from_json
from mambaout.train.backend import Backend

SEGMENT = "segment"  # the task of a segmentation's checkpoint
SHOWN_SHARES = 3  # classes in the line of a photograph


@dataclass(frozen=True, kw_only=True)
class TrainedSegmenter(TrainedNetwork):
    """A segmenter with the weights of a run's checkpoint."""

    recipe: SegmentRecipe
    network: UperNet

    @property
    def num_classes(self) -> int:
        return self.network.classifier.out_channels

    def require_classes_of(self, data: SegmentData) -> None:
        """Raise WrongRequest if the data have other classes, or the same in another order."""
        remedy = (
            "give a set with the same classes in the same order, or train on this one, with --init "
            "to start from the backbone of this segmenter"
        )
        self.require_classes(data.class_names, data.folder, remedy)

    def evaluated(
        self,
        data: SegmentData,
        backend: Backend,
        num_workers: int = 0,
        *,
        multi_scale: bool = False,
        keep: Collection[int] = (),
    ) -> tuple[Confusion, dict[int, np.ndarray]]:
        """The counts, as the evaluations of its run count, and the maps of the images in `keep`.

        With `multi_scale` they are those of its multi-scale evaluation.
        """
        return evaluate(
            self._steps(backend),
            data,
            RATIOS if multi_scale else (1.0,),
            with_mirrors=multi_scale,
            num_workers=num_workers,
            keep=frozenset(keep),
        )

    def maps(
        self, data: SegmentData, backend: Backend, num_workers: int = 0
    ) -> Iterator[np.ndarray]:
        """The map of classes of each image, uint8 (H, W), in their order."""
        found = predictions(self._steps(backend), data, num_workers=num_workers)
        return (classes for _, classes in found)

    def _steps(self, backend: Backend) -> SegmenterSteps:
        return SegmenterSteps(backend.move(self.network), backend, self.recipe, seed=0)


def trained_segmenter(weights: Weights) -> TrainedSegmenter:
    """The segmenter in a checkpoint that `read_weights` has read. WrongRequest if it is none."""
    saved, path = weights.checkpoint, weights.path
    if weights.task != SEGMENT:
        raise WrongRequest(f"{path} is no checkpoint of a segmentation run")
    recipe = segment_recipe_from_json(str(saved.get("recipe")), str(path))
    state = saved["model"]
    try:
        network = upernet(
            recipe.model,
            len(state["classifier.weight"]),
            channels=recipe.head_channels,
            dropout=recipe.dropout,
        )
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise WrongRequest(f"{path} does not fit the segmenter of its recipe: {text}") from error
    return TrainedSegmenter(
        path=path,
        recipe=recipe,
        network=network,
        class_names=class_names_in(saved),
        step=int(saved["step"]),
    )


# -- what is shown --------------------------------------------------------------------------------

LINES = {
    MIOU: "mIoU",
    MIOU_MULTI_SCALE: "mIoU at six scales, each with its mirror",
    MEAN_ACCURACY: "mean accuracy",
    PIXEL_ACCURACY: "pixel accuracy",
}


def table_text(
    values: Mapping[str, float], class_iou: Sequence[float] | np.ndarray, names: Sequence[str]
) -> str:
    """The figures in percent, a line for each, and then the IoU of each class."""
    lines = [_row(f"{values[name]:.1f}", text) for name, text in LINES.items() if name in values]
    lines += ["", _row("IoU", "class")]
    for iou, name in zip(class_iou, names, strict=True):
        lines.append(_row(ABSENT if math.isnan(iou) else f"{iou:.1f}", name))
    if np.isnan(class_iou).any():
        lines.append(f"{ABSENT}: neither annotated nor predicted, and left out of the mean")
    return "\n".join(lines)


def _row(value: str, name: str) -> str:
    return f"{value:>6}  {name}"


def shares_text(classes: np.ndarray, names: Sequence[str]) -> str:
    """The largest classes of a map and their share of its pixels: "sky 61.2 %, wall 20.0 %"."""
    counts = np.bincount(classes.ravel(), minlength=len(names))
    largest = [n for n in np.argsort(-counts, kind="stable")[:SHOWN_SHARES] if counts[n]]
    return ", ".join(f"{names[n]} {100 * counts[n] / classes.size:.1f} %" for n in largest)


def sheet_of(data: SegmentData, maps: Mapping[int, np.ndarray], names: Sequence[str]) -> bytes:
    """The sheet of the images whose maps are given, as a PNG. Maps may be tiles of the sheet."""
    images, labels = [], []
    for index in maps:
        pixels, annotated = data.pair(index)
        images.append(image_tile(pixels))
        labels.append(map_tile(annotated))
    has_labels = not isinstance(data, PhotographData)
    return segment_sheet(images, labels if has_labels else None, [*maps.values()], names)


# -- images without annotations -------------------------------------------------------------------


class PhotographData(SegmentData):
    """Images without annotations: none of their pixels is evaluated."""

    def image_file(self, index: int) -> str:
        return f"{self.folder}/{self.names[index]}"

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = self.pixels(index)
        return pixels, np.full(pixels.shape[:2], IGNORED, np.uint8)


def photograph_data(folder: str, class_names: Sequence[str]) -> PhotographData:
    """The images in a folder or bucket, and in the folders in it.

    Raises DataError if there is none, or if one cannot be read.
    """
    folder, found = photographs_in(folder)
    return PhotographData(
        split="val",
        folder=folder,
        names=tuple(each.name for each in found),
        class_names=tuple(class_names),
        left_out={},
        fingerprint="",
    )
