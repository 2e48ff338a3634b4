"""From an image of an ADE20K set to what the segmenter takes: scaled, cropped, mirrored, tinted.

    places = batch_places(num_images, seed, recipe, first_step, last_step)  # (epoch, image) a step
    sample = training_sample(data, index, epoch, seed, recipe)

Everything is a pure function of the seed, the epoch and the image. So it does not matter which
worker, micro-batch or resumed run asks. The steps and their numbers are those of mmsegmentation
(configs/_base_/datasets/ade20k.py, mmseg/datasets/transforms): a random scale, a crop in which no
class has more than its share, a mirror, a photometric distortion, and padding at the right and at
the bottom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mambaout.data.draws import draws, uniforms
from mambaout.data.shards.files import DataError
from mambaout.dense.ade20k import IGNORED, SegmentData
from mambaout.segment_recipe import SegmentRecipe

TRIES = 10  # of a crop in which no class has more than its share
BRIGHTNESS = 32  # most that is added to or taken from a pixel's values
FACTORS = (0.5, 1.5)  # of contrast and of saturation
MOST_DRAWS = 40  # numbers that one sample may draw: 2 for each crop, and 11 others
HUE = 18  # most that the hue is turned, in OpenCV's 180 steps


@dataclass(frozen=True)
class SegmentSample:
    """A crop on its way to the segmenter."""

    pixels: Tensor  # uint8 (side, side, 3)
    labels: Tensor  # uint8 (side, side)
    inside: tuple[int, int]  # (height, width) of the part that is no padding


@dataclass(frozen=True)
class WholeSample:
    """An image that is evaluated."""

    index: int  # in its split
    scaled: tuple[Tensor, ...]  # the image at each scale, uint8 (H, W, 3)
    labels: np.ndarray  # uint8, of the image file's size


def resized_size(size: tuple[int, int], shorter: float, longer: float) -> tuple[int, int]:
    """The size (height, width) with the largest scale that keeps both bounds, as in mmcv."""
    scale = min(longer / max(size), shorter / min(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


# -- training -------------------------------------------------------------------------------------


def training_sample(
    data: SegmentData, index: int, epoch: int, seed: int, recipe: SegmentRecipe
) -> SegmentSample:
    """Image `index` as it is in `epoch`: a square of `crop_size`."""
    pixels, labels = data.pair(index)
    each = np.arange(MOST_DRAWS)
    random = iter(uniforms("segment-image", seed, epoch, index, each=each).tolist())
    pixels, labels = _scaled(pixels, labels, random, recipe)
    top, left = crop_place(labels, random, recipe)
    side = recipe.crop_size
    pixels, labels = (each[top : top + side, left : left + side] for each in (pixels, labels))
    if next(random) < recipe.hflip:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    pixels = distorted(np.ascontiguousarray(pixels), random, recipe.photometric)
    inside = labels.shape
    padded = np.zeros((side, side, 3), np.uint8)
    padded[: inside[0], : inside[1]] = pixels
    evaluated = np.full((side, side), IGNORED, np.uint8)
    evaluated[: inside[0], : inside[1]] = labels
    return SegmentSample(torch.from_numpy(padded), torch.from_numpy(evaluated), inside)


def _scaled(
    pixels: np.ndarray, labels: np.ndarray, random: Iterator[float], recipe: SegmentRecipe
) -> tuple[np.ndarray, np.ndarray]:
    ratio = _between(recipe.scale_min, recipe.scale_max, random)
    sides = ratio * recipe.shorter_side, ratio * recipe.longer_side
    size = resized_size((labels.shape[0], labels.shape[1]), *sides)[::-1]
    return (
        cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST),
    )


def crop_place(
    labels: np.ndarray, random: Iterator[float], recipe: SegmentRecipe
) -> tuple[int, int]:
    """The top and the left of a crop in which no class has `max_class_share` or more of the
    evaluated pixels, and which has two classes. After ten tries the next crop is taken as it is."""
    side = recipe.crop_size
    for _ in range(TRIES):
        top, left = _random_place(labels, random, side)
        if recipe.max_class_share == 1:
            return top, left
        counts = np.bincount(labels[top : top + side, left : left + side].ravel(), minlength=256)
        counts = counts[:IGNORED]
        if (counts > 0).sum() > 1 and counts.max() < recipe.max_class_share * counts.sum():
            return top, left
    return _random_place(labels, random, side)


def _random_place(labels: np.ndarray, random: Iterator[float], side: int) -> tuple[int, int]:
    top, left = (int(next(random) * (max(length - side, 0) + 1)) for length in labels.shape)
    return top, left


def distorted(pixels: np.ndarray, random: Iterator[float], chance: float) -> np.ndarray:
    """The image, uint8, with another brightness, contrast, saturation and hue, each by `chance`.

    Contrast comes before or after the colours. After each change values are cut to 0 to 255.
    """
    has_brightness, added = next(random) < chance, _between(-BRIGHTNESS, BRIGHTNESS, random)
    has_contrast, contrast = next(random) < chance, _between(*FACTORS, random)
    is_first = next(random) < 0.5
    has_saturation, saturation = next(random) < chance, _between(*FACTORS, random)
    has_hue, turn = next(random) < chance, math.floor(_between(-HUE, HUE, random))
    if has_brightness:
        pixels = _changed(pixels, add=added)
    if has_contrast and is_first:
        pixels = _changed(pixels, times=contrast)
    if has_saturation or has_hue:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        if has_saturation:
            hsv[..., 1] = _changed(hsv[..., 1], times=saturation)
        if has_hue:
            hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % 180
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if has_contrast and not is_first:
        pixels = _changed(pixels, times=contrast)
    return pixels


def _between(least: float, most: float, random: Iterator[float]) -> float:
    return least + (most - least) * next(random)


def _changed(values: np.ndarray, times: float = 1.0, add: float = 0.0) -> np.ndarray:
    return np.clip(values.astype(np.float32) * times + add, 0, 255).astype(np.uint8)


# -- evaluation -----------------------------------------------------------------------------------


def evaluation_sample(
    data: SegmentData, index: int, recipe: SegmentRecipe, ratios: Sequence[float] = (1.0,)
) -> WholeSample:
    """Image `index` as a whole, resized once for each ratio, by which both bounds of its sides are
    multiplied."""
    pixels, labels = data.pair(index)
    scaled = []
    for ratio in ratios:
        bounds = ratio * recipe.shorter_side, ratio * recipe.longer_side
        size = resized_size((labels.shape[0], labels.shape[1]), *bounds)[::-1]
        scaled.append(torch.from_numpy(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)))
    return WholeSample(index, tuple(scaled), labels)


# -- in which order -------------------------------------------------------------------------------


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The indices of all images, shuffled."""
    return np.argsort(
        draws("segment-order", seed, epoch, each=np.arange(num_images)), kind="stable"
    )


def batch_places(
    num_images: int, seed: int, recipe: SegmentRecipe, first_step: int, last_step: int
) -> Iterator[list[tuple[int, int]]]:
    """For each step, the (epoch, index) of its images.

    Epochs follow one another without a gap, as in mmsegmentation: a batch may have the end of one
    epoch and the beginning of the next.
    """
    order, of_epoch = np.zeros(0, int), -1
    for step in range(first_step, last_step):
        batch = []
        for place in range(step * recipe.global_batch, (step + 1) * recipe.global_batch):
            epoch, inside = divmod(place, num_images)
            if epoch != of_epoch:
                order, of_epoch = epoch_order(seed, epoch, num_images), epoch
            batch.append((epoch, int(order[inside])))
        yield batch


# -- by processes ---------------------------------------------------------------------------------


class SegmentTraining(Dataset):
    """The samples of a training by (epoch, index); a DataLoader's processes make them."""

    def __init__(self, data: SegmentData, seed: int, recipe: SegmentRecipe) -> None:
        self.data, self.seed, self.recipe = data, seed, recipe

    def __getitem__(self, place: tuple[int, int]) -> SegmentSample | DataError:
        epoch, index = place
        try:
            return training_sample(self.data, index, epoch, self.seed, self.recipe)
        except DataError as error:  # raised by a process, it would be wrapped in a traceback's text
            return error


class SegmentEvaluation(Dataset):
    """The samples of an evaluation by their index."""

    def __init__(
        self, data: SegmentData, recipe: SegmentRecipe, ratios: Sequence[float] = (1.0,)
    ) -> None:
        self.data, self.recipe, self.ratios = data, recipe, ratios

    def __getitem__(self, index: int) -> WholeSample | DataError:
        try:
            return evaluation_sample(self.data, index, self.recipe, self.ratios)
        except DataError as error:
            return error
