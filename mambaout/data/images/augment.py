"""Augmentation on the host, one image at a time, uint8 to uint8.

Training does a random resized crop, a flip and RandAugment (`TrainAugment`). Evaluation does a
resize and a centre crop (`eval_crop`). device_augment.py has the part for a batch on the device.

The draws have timm's distributions. Every draw is a function of the image's key, which is made from
(seed, epoch, sample id). No generator has a state, so it does not matter who asks, nor in which
order. Both ways to compute the pixels use the same draws (`Augment.pixels`, resample.py).
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from mambaout.data.draws import uniforms
from mambaout.data.images.randaugment import AMOUNTS, COLOURS, MAX_LEVEL, PLACES
from mambaout.data.images.resample import (
    ExactPixels,
    FastPixels,
    ImagePart,
    as_rgb,
    resized,
    seen_part,
)
from mambaout.recipe import Augment, Recipe

ATTEMPTS = 10  # to find a crop that lies inside the image
APPLIED = 0.5  # the probability of each RandAugment operation, timm's default

Operation = tuple[str, float, bool]  # name, amount, whether bicubic


class ImageDraws:
    """The draws for some images, a row for each image."""

    def __init__(self, augment: Augment, keys: np.ndarray) -> None:
        self.augment = augment
        self._uniforms = functools.partial(_uniforms, keys)
        self.area = self._uniforms("crop area", ATTEMPTS)
        self.aspect = self._uniforms("crop aspect", ATTEMPTS)
        self.top, self.left = self._uniforms("crop top")[:, 0], self._uniforms("crop left")[:, 0]
        self.flipped = (self._uniforms("flip")[:, 0] < augment.hflip).tolist()
        self.bicubic = self._bicubic("crop filter", 1)[:, 0].tolist()
        self.operations: list[list[Operation]] = [[] for _ in keys]
        if augment.randaugment > 0 and augment.randaugment_layers > 0:
            self._draw_randaugment(augment.randaugment_layers)
        if augment.color_jitter > 0:
            self._draw_jitter(augment.color_jitter)

    def boxes(self, sizes: np.ndarray, which: slice = slice(None)) -> np.ndarray:
        """int64 (n, 4): left, top, width and height of each crop.

        `sizes` (n, 2) are the images' widths and heights in pixels.
        """
        width, height = sizes[:, :1], sizes[:, 1:]
        least = self.augment.crop_scale_min
        area = (least + self.area[which] * (1 - least)) * (width * height)
        steepest = -math.log(self.augment.crop_ratio_min)
        aspect = np.exp((2 * self.aspect[which] - 1) * steepest)
        widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (widths <= width) & (heights <= height)
        first = fits.argmax(axis=1)[:, None]
        cut = np.concatenate(
            [np.take_along_axis(found, first, axis=1) for found in (widths, heights)], axis=1
        )
        # At least one pixel in each direction: timm fails on images that are a few pixels wide.
        cut = np.maximum(cut, 1)
        spare = sizes - cut
        place = np.floor(np.stack([self.left[which], self.top[which]], axis=1) * (spare + 1))
        none = ~np.take_along_axis(fits, first, axis=1)
        whole = _widest(sizes, self.augment.crop_ratio_min)
        place = np.where(none, (sizes - whole) // 2, place)
        return np.concatenate([place, np.where(none, whole, cut)], axis=1).astype(np.int64)

    def _bicubic(self, purpose: str, count: int) -> np.ndarray:
        """bool (n, count): whether a resampling is bicubic; else it is bilinear."""
        if self.augment.interpolation == "random":
            return self._uniforms(purpose, count) >= 0.5
        bicubic = self.augment.interpolation == "bicubic"
        return np.full((len(self.area), count), bicubic)

    def _draw_randaugment(self, layers: int) -> None:
        names = list(AMOUNTS)
        chosen = np.floor(self._uniforms("operation", layers) * len(names)).astype(np.int64)
        applied = self._uniforms("operation applied", layers) < APPLIED
        # The Box-Muller transform makes a normal from two uniforms.
        radius = np.sqrt(-2 * np.log1p(-self._uniforms("level radius", layers)))
        normal = radius * np.cos(2 * np.pi * self._uniforms("level angle", layers))
        level = self.augment.randaugment + self.augment.randaugment_std * normal
        level = np.clip(level, 0, MAX_LEVEL)
        sign = np.where(self._uniforms("sign", layers) < 0.5, 1.0, -1.0)
        bicubic = self._bicubic("operation filter", layers)
        for image, layer in np.argwhere(applied).tolist():
            name = names[chosen[image, layer]]
            amount = AMOUNTS[name](float(level[image, layer]), float(sign[image, layer]))
            self.operations[image].append((name, amount, bool(bicubic[image, layer])))

    def _draw_jitter(self, most: float) -> None:
        """Draw brightness, contrast and saturation in random order, each times 1 +- `most`."""
        names = ("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing")
        least = max(0.0, 1 - most)
        factors = least + self._uniforms("jitter", 3) * (1 + most - least)
        order = self._uniforms("jitter order", 3).argsort(axis=1)
        for operations, factor, places in zip(self.operations, factors, order, strict=True):
            operations += [(names[i], float(factor[i]), False) for i in places]


def _uniforms(keys: np.ndarray, purpose: str, count: int = 1) -> np.ndarray:
    """float64 (n, count) in [0, 1)."""
    return uniforms(purpose, each=keys[:, None] + np.arange(count, dtype=np.uint64))


def _widest(sizes: np.ndarray, ratio: float) -> np.ndarray:
    """(n, 2): width and height of the largest centre crop whose aspect ratio is allowed."""
    width, height = sizes[:, 0], sizes[:, 1]
    narrow, wide = width / height < ratio, width / height > 1 / ratio
    return np.stack(
        [
            np.where(wide & ~narrow, np.rint(height / ratio), width),
            np.where(narrow, np.rint(width / ratio), height),
        ],
        axis=1,
    )


class TrainAugment:
    """The training augmentation of a recipe: turns a crop and its draws into (size, size, 3)."""

    def __init__(self, recipe: Recipe) -> None:
        self.augment, self.size = recipe.augment, recipe.image_size
        self.fast = recipe.augment.pixels == "fast"
        # A reduced crop must have sides of at least this; None: crops are not reduced.
        self.least = self.size if self.fast else None

    def draw(self, keys: np.ndarray) -> ImageDraws:
        """The draws for the images with these keys, uint64 (n,)."""
        return ImageDraws(self.augment, keys)

    def part(self, box: list[int], drawn: ImageDraws, index: int) -> ImagePart | None:
        """The part of the crop that the image will show; None: all of it."""
        if not self.fast:
            return None
        first = itertools.takewhile(lambda each: each[0] in PLACES, drawn.operations[index])
        moves = [(name, amount) for name, amount, _ in first]
        if not moves:
            return None
        return seen_part(moves, self.size, box[2], box[3], flipped=drawn.flipped[index])

    def __call__(
        self, crop: np.ndarray, drawn: ImageDraws, index: int, part: ImagePart | None = None
    ) -> np.ndarray:
        """uint8 (size, size, 3) of row `index`'s crop (H, W) or (H, W, 3), or of a part of it."""
        how = {"bicubic": drawn.bicubic[index], "flipped": drawn.flipped[index]}
        resampled = (
            FastPixels(crop, self.size, **how, part=part)
            if self.fast
            else ExactPixels(crop, self.size, **how)
        )
        for name, amount, bicubic in drawn.operations[index]:
            if name in PLACES:
                resampled.move(name, amount, bicubic=bicubic)
            else:
                resampled.image = COLOURS[name](resampled.pixels(), amount)
        return resampled.pixels()


def eval_crop(image: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Resize the image, bicubic, to a short side of size / eval_crop, and take the centre crop.

    uint8 (H, W) or (H, W, 3) to (size, size, 3). Sides are rounded like in torchvision's Resize and
    CenterCrop, which timm uses. The pixels are always the exact ones, even if training used `fast`.
    """
    height, width = image.shape[:2]
    size, short = recipe.image_size, int(recipe.image_size / recipe.eval_crop)
    if min(width, height) != short:
        if width <= height:
            width, height = short, int(short * height / width)
        else:
            width, height = int(short * width / height), short
        image = resized(image, (height, width), bicubic=True)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return as_rgb(np.ascontiguousarray(image[top : top + size, left : left + size]))
