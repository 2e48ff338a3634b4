"""A trained detector from its run's checkpoint, and what it finds.

    detector = trained_detector(read_weights("runs/boxes/last.ckpt"))
    detector.require_classes_of(read_coco("coco", "val"))
    found = detector.found(data, backend("cpu"))      # Detections of each image, in their order
    print(figures_text(figures(data, found)))

`photographs` makes such data of a folder of images without annotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mambaout.dense.coco import CocoData, CocoImage
from mambaout.dense.detect import predictions
from mambaout.dense.detect_step import DetectorSteps
from mambaout.dense.detector_plan import new_detector
from mambaout.dense.detector_start import DETECT
from mambaout.dense.evaluate import FIGURES, Detections
from mambaout.dense.mask_rcnn import MaskRCNN
from mambaout.dense.trained import ABSENT, TrainedNetwork, class_names_in, photographs_in
from mambaout.detect_recipe import DetectRecipe, detect_recipe_from_json
from mambaout.errors import WrongRequest
from mambaout.model.weights import Weights
from mambaout.train.backend import Backend


@dataclass(frozen=True, kw_only=True)
class TrainedDetector(TrainedNetwork):
    """A detector with the weights of a run's checkpoint."""

    recipe: DetectRecipe
    network: MaskRCNN

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    def require_classes_of(self, data: CocoData) -> None:
        """Raise WrongRequest if the data have other classes, or the same in another order."""
        remedy = (
            "give a set with the same classes in the order of their ids, or train on this one, "
            "with --init to start from this detector"
        )
        self.require_classes(data.class_names, data.file, remedy)

    def found(self, data: CocoData, backend: Backend, num_workers: int = 0) -> list[Detections]:
        """What it finds on each image of `data`, as the evaluations of its run find it."""
        backend.move(self.network)
        steps = DetectorSteps(self.network, backend, self.recipe.precision, seed=0)
        return predictions(steps, data, self.recipe, num_workers)


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
    return TrainedDetector(
        path=path,
        recipe=recipe,
        network=network,
        class_names=class_names_in(saved),
        step=int(saved["step"]),
    )


# -- what is shown --------------------------------------------------------------------------------

# A line of the table for each of FIGURES.
LINES = (
    *("AP", "AP at IoU 0.50", "AP at IoU 0.75", "AP small", "AP medium", "AP large"),
    *("AR, 1 an image", "AR, 10 an image", "AR, 100 an image"),
    *("AR small", "AR medium", "AR large"),
)


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
    folder, found = photographs_in(folder)
    images = [
        CocoImage(number, each.name, each.height, each.width, ())
        for number, each in enumerate(found, 1)
    ]
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
