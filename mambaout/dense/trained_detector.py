"""A trained detector from its run's checkpoint, and what it finds.

    detector = trained_detector(read_weights("runs/boxes/last.ckpt"))
    detector.require_classes_of(read_coco("coco", "val"))
    found = detector.found(data, backend("cpu"))      # Detections of each image, in their order
    print(figures_text(figures(data, found)))

`photographs` makes such data of a folder of images without annotations.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mambaout.data.images.decode import picture
from mambaout.data.shards.encoded import EncodedImage
from mambaout.data.shards.files import DataError, file_size, names_below, read_range
from mambaout.dense.coco import CocoData, CocoImage
from mambaout.dense.coco_hints import IMAGE_ENDINGS
from mambaout.dense.detect import predictions
from mambaout.dense.detect_step import DetectorSteps
from mambaout.dense.detector_plan import new_detector
from mambaout.dense.detector_start import DETECT, class_names_in
from mambaout.dense.evaluate import FIGURES, Detections
from mambaout.dense.mask_rcnn import MaskRCNN
from mambaout.detect_recipe import DetectRecipe, detect_recipe_from_json
from mambaout.errors import WrongRequest
from mambaout.model.weights import Weights
from mambaout.train.backend import Backend

SHOWN_CLASSES = 5  # names of classes in a sentence


@dataclass(frozen=True)
class TrainedDetector:
    """A detector with the weights of a run's checkpoint."""

    path: Path
    recipe: DetectRecipe
    network: MaskRCNN
    class_names: tuple[str, ...] | None  # None: the checkpoint does not say them
    step: int

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def names_to_show(self) -> tuple[str, ...]:
        """The classes' names, or "class 1" and so on if the checkpoint does not say them."""
        return self.class_names or tuple(f"class {n}" for n in range(1, self.num_classes + 1))

    def require_classes_of(self, data: CocoData) -> None:
        """Raise WrongRequest if the data have other classes, or the same in another order."""
        ours, theirs = self.names_to_show, data.class_names
        if ours == theirs or (self.class_names is None and len(ours) == len(theirs)):
            return
        differs = ""
        if len(ours) == len(theirs):
            pairs = enumerate(zip(ours, theirs, strict=True), 1)
            differs = "; class {} is {!r} there and {!r} here".format(
                *next((n, one, other) for n, (one, other) in pairs if one != other)
            )
        raise WrongRequest(
            f"{self.path} was trained on {_classes_text(ours)}, and {data.file} has "
            f"{_classes_text(theirs)}{differs}: give a set with the same classes in the order of "
            "their ids, or train on this one, with --init to start from this detector"
        )

    def found(self, data: CocoData, backend: Backend, num_workers: int = 0) -> list[Detections]:
        """What it finds on each image of `data`, as the evaluations of its run find it."""
        backend.move(self.network)
        steps = DetectorSteps(self.network, backend, self.recipe.precision, seed=0)
        return predictions(steps, data, self.recipe, num_workers)


def _classes_text(names: Sequence[str]) -> str:
    # A name may have a comma in it.
    shown = ", ".join(map(repr, names[:SHOWN_CLASSES]))
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({shown}{more})"


def trained_detector(weights: Weights) -> TrainedDetector:
    """The detector in a checkpoint that `read_weights` has read. WrongRequest if it is none."""
    saved, path = weights.checkpoint, weights.path
    if weights.task != DETECT:
        raise WrongRequest(f"{path} is no checkpoint of a detection run")
    recipe = detect_recipe_from_json(str(saved.get("recipe")), str(path))
    state = saved["model"]
    try:
        num_classes = len(state["roi_heads.box_predictor.cls_score.weight"]) - 1
        has_masks = any(name.startswith("roi_heads.mask") for name in state)
        network = new_detector(recipe, num_classes, has_masks=has_masks)
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise WrongRequest(f"{path} does not fit the detector of its recipe: {text}") from error
    return TrainedDetector(path, recipe, network, class_names_in(saved), int(saved["step"]))


# -- what is shown --------------------------------------------------------------------------------

# A line of the table for each of FIGURES.
LINES = (
    *("AP", "AP at IoU 0.50", "AP at IoU 0.75", "AP small", "AP medium", "AP large"),
    *("AR, 1 an image", "AR, 10 an image", "AR, 100 an image"),
    *("AR small", "AR medium", "AR large"),
)
ABSENT = "-"  # the data have nothing that this figure is about


def figures_text(values: Mapping[str, float]) -> str:
    """COCO's figures as a table: a line for each, a column for boxes and one for masks."""
    kinds = [kind for kind in ("box", "mask") if any(n.startswith(f"{kind}_") for n in values)]
    lines = [f"{'':16}" + "".join(f"{kind:>7}" for kind in kinds)]
    for name, text in zip(FIGURES, LINES, strict=True):
        cells = [values.get(f"{kind}_{name}") for kind in kinds]
        shown = [ABSENT if value is None else f"{value:.1f}" for value in cells]
        lines.append(f"{text:16}" + "".join(f"{each:>7}" for each in shown))
    return "\n".join(lines)


# -- images without annotations -------------------------------------------------------------------


def photographs(folder: str, class_names: Sequence[str]) -> CocoData:
    """The images in a folder or bucket, and in the folders in it, as data without objects.

    Raises DataError if there is none, or if one cannot be read.
    """
    folder = folder.rstrip("/")
    if os.path.isfile(folder):
        raise DataError(f"{folder} is a file; give the folder that it is in")
    names = sorted(n for n in names_below(folder) if n.lower().endswith(IMAGE_ENDINGS))
    if not names:
        raise DataError(
            f"{folder} has no image; give a folder with files that end in "
            f"{', '.join(IMAGE_ENDINGS)}"
        )
    images = []
    for number, name in enumerate(names, 1):
        location = f"{folder}/{name}"
        encoded = memoryview(read_range(location, 0, file_size(location)))
        try:
            width, height = picture(EncodedImage(encoded, None)).size
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plug-ins raise many kinds of errors
            raise DataError(f"{location} cannot be decoded: {error}; take it out") from error
        images.append(CocoImage(number, name, height, width, ()))
    return CocoData(
        split="val",
        file=folder,
        folder=folder,
        images=images,
        class_names=tuple(class_names),
        category_ids=tuple(range(1, len(class_names) + 1)),
        left_out={},
        has_masks=False,
        body={},
        fingerprint="",
    )
