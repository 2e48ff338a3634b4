"""From an image of a COCO set to what the detector takes: resized, mirrored, with its masks.

    order = epoch_order(seed, epoch, num_images)       # which image stands where in an epoch
    sample = training_sample(data, index, epoch, seed, recipe)

Everything is a pure function of the seed, the epoch and the image. So it does not matter which
worker, micro-batch or resumed run asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mambaout.data.draws import draws, uniforms
from mambaout.data.shards.files import DataError
from mambaout.dense.coco import CocoData, CocoImage
from mambaout.dense.detect_recipe import DetectRecipe


@dataclass(frozen=True)
class DetectSample:
    """An image on its way to the detector."""

    image_id: int
    pixels: Tensor  # uint8 (3, H, W)
    boxes: Tensor  # float32 (N, 4): left, top, right, bottom, in these pixels
    labels: Tensor  # int64 (N,), 1 to the number of classes
    masks: Tensor  # uint8 (N, H, W)
    file_size: tuple[int, int]  # (height, width) of the image file

    @property
    def targets(self) -> dict[str, Tensor]:
        return {"boxes": self.boxes, "labels": self.labels, "masks": self.masks}


def resized_size(height: int, width: int, shorter: int, longer: int) -> tuple[int, int]:
    """The size (height, width) with the largest scale that keeps both bounds, as in mmdetection."""
    scale = min(longer / max(height, width), shorter / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def training_sample(
    data: CocoData, index: int, epoch: int, seed: int, recipe: DetectRecipe
) -> DetectSample:
    """Image `index` as it is in `epoch`."""
    image = data.images[index]
    chance = uniforms("detect-flip", seed, epoch, each=np.array([image.id]))[0]
    return _sample(data, image, recipe, flip=bool(chance < recipe.hflip))


def evaluation_sample(data: CocoData, index: int, recipe: DetectRecipe) -> DetectSample:
    """Image `index`, resized, without its objects."""
    image = data.images[index]
    bare = CocoImage(image.id, image.file_name, image.height, image.width, ())
    return _sample(data, bare, recipe, flip=False)


def _sample(data: CocoData, image: CocoImage, recipe: DetectRecipe, *, flip: bool) -> DetectSample:
    old = image.height, image.width
    new = resized_size(*old, recipe.shorter_side, recipe.longer_side)
    pixels = cv2.resize(data.pixels(image), new[::-1], interpolation=cv2.INTER_LINEAR)
    boxes = np.array([each.box for each in image.objects], np.float32).reshape(-1, 4)
    boxes *= np.tile(np.array([new[1] / old[1], new[0] / old[0]], np.float32), 2)
    boxes = np.clip(boxes, 0, np.array([new[1], new[0]] * 2, np.float32))
    masks = np.zeros((len(boxes), *new), np.uint8)
    if data.has_masks:
        for mask, each in zip(masks, image.objects, strict=True):
            mask[:] = each.mask(old, new)
    if flip:
        pixels, masks = pixels[:, ::-1], masks[..., ::-1]
        boxes[:, [0, 2]] = new[1] - boxes[:, [2, 0]]
    return DetectSample(
        image_id=image.id,
        pixels=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
        boxes=torch.from_numpy(boxes),
        labels=torch.tensor([each.label for each in image.objects], dtype=torch.int64),
        masks=torch.from_numpy(np.ascontiguousarray(masks)),
        file_size=old,
    )


# -- in which order -------------------------------------------------------------------------------


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The indices of all images, shuffled."""
    return np.argsort(draws("detect-order", seed, epoch, each=np.arange(num_images)), kind="stable")


def batch_places(
    data: CocoData, seed: int, recipe: DetectRecipe, first_step: int, last_step: int
) -> Iterator[list[tuple[int, int]]]:
    """For each step, the (epoch, index) of its images.

    Within a batch the images are sorted by their shape, so that a micro-batch pads little.
    """
    num_images = len(data.images)
    per_epoch = num_images // recipe.global_batch
    order, of_epoch = np.zeros(0, int), -1
    for step in range(first_step, last_step):
        epoch, place = divmod(step, per_epoch)
        if epoch != of_epoch:
            order, of_epoch = epoch_order(seed, epoch, num_images), epoch
        batch = order[place * recipe.global_batch : (place + 1) * recipe.global_batch]
        yield [(epoch, int(i)) for i in sorted(batch, key=lambda i: _shape(data.images[i]))]


def _shape(image: CocoImage) -> tuple[float, int]:
    return image.width / image.height, image.id


# -- by processes ---------------------------------------------------------------------------------


class TrainingSamples(Dataset):
    """The samples of a training by (epoch, index); a DataLoader's processes make them."""

    def __init__(self, data: CocoData, seed: int, recipe: DetectRecipe) -> None:
        self.data, self.seed, self.recipe = data, seed, recipe

    def __getitem__(self, place: tuple[int, int]) -> DetectSample | DataError:
        epoch, index = place
        try:
            return training_sample(self.data, index, epoch, self.seed, self.recipe)
        except DataError as error:  # raised by a process, it would be wrapped in a traceback's text
            return error


class EvaluationSamples(Dataset):
    """The samples of an evaluation by their index."""

    def __init__(self, data: CocoData, recipe: DetectRecipe) -> None:
        # Without the file's whole content, which each process would get a copy of.
        self.data, self.recipe = replace(data, body={}), recipe

    def __getitem__(self, index: int) -> DetectSample | DataError:
        try:
            return evaluation_sample(self.data, index, self.recipe)
        except DataError as error:
            return error

    def __len__(self) -> int:
        return len(self.data.images)
