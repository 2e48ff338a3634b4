"""Pixels from places between pixels: two ways to crop, resize, flip, rotate, shear and shift.

`ExactPixels` does one operation after the other. Its pixels differ from Pillow's by at most one
grey level nearly everywhere, and it is several times faster. It resizes with torch's uint8 kernels,
which are Pillow's own algorithm in vectors. It moves with affine.c, to Pillow's bits.

`FastPixels` gathers all operations into one map of places and reads the crop once: bilinear, or
bicubic where it only resizes, without the widened filter that Pillow shrinks images with. A crop
that is at least twice as large is first averaged to a half, a quarter or an eighth (decode.py), so
that at most a factor of two is left.

Both take uint8 (H, W) or (H, W, 3) and give (size, size, 3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mambaout import native
from mambaout.data.images.c_files import AFFINE
from mambaout.data.images.randaugment import FILL, PLACES, Map
from mambaout.native import NUMBER, POINTER, address

cv2.setNumThreads(0)  # a process a core does better than threads in each


def as_rgb(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


class ExactPixels:
    """An image on its way through crop, flip and operations, each done when it is asked for."""

    def __init__(self, crop: np.ndarray, size: int, *, bicubic: bool, flipped: bool) -> None:
        self.size = size
        image = as_rgb(resized(crop, (size, size), bicubic=bicubic))
        self.image = cv2.flip(image, 1) if flipped else image

    def move(self, name: str, amount: float, *, bicubic: bool) -> None:
        """Rotate, shear or shift (randaugment.PLACES)."""
        self.image = moved(self.image, PLACES[name](amount, self.size), bicubic=bicubic)

    def pixels(self) -> np.ndarray:
        return self.image


def resized(image: np.ndarray, size: tuple[int, int], *, bicubic: bool) -> np.ndarray:
    """`image` at (height, width) `size` as Pillow's resize gives it."""
    if image.shape[:2] == size:
        return image
    # Its import takes two seconds, which a process that only needs `FastPixels` is spared.
    import torch

    if not image.flags.writeable:  # which torch warns of
        image = image.copy()
    values = torch.from_numpy(image if image.ndim == 3 else image[..., None])
    # Laid out as torch's channels_last, which numpy's image[None] would not be: half the time.
    batch = values.unsqueeze(0).permute(0, 3, 1, 2)
    mode = "bicubic" if bicubic else "bilinear"
    found = torch.nn.functional.interpolate(batch, size=size, mode=mode, antialias=True)
    found = found.permute(0, 2, 3, 1)[0].numpy()
    return found if image.ndim == 3 else found[..., 0]


def moved(image: np.ndarray, places: Map, *, bicubic: bool) -> np.ndarray:
    """uint8 (H, W, 3) looked at in other places, as Pillow's transform gives it, to the bit."""
    affine = _affine()
    if affine is None:
        how = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
        size = image.shape[1], image.shape[0]
        found = Image.fromarray(image).transform(
            size, Image.Transform.AFFINE, places, resample=how, fillcolor=FILL
        )
        return np.asarray(found)
    height, width = image.shape[:2]
    wide, result = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), np.empty(image.shape, np.uint8)
    numbers = np.array(places, np.float64)
    affine(address(wide), height, width, address(numbers), address(_FILL), bicubic, address(result))
    return result


_FILL = np.array(FILL, np.uint8)


@functools.cache
def _affine() -> Callable[..., int] | None:
    arguments = [POINTER, NUMBER, NUMBER, POINTER, POINTER, NUMBER, POINTER]
    return native.function(AFFINE, "affine", arguments)


def _of_indices(places: Map) -> np.ndarray:
    """A map of places that count from the corner, as one between middles of pixels."""
    a, b, c, d, e, f = places
    return np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])


def _after(first: Map, then: Map) -> Map:
    """Where a place of the result of both operations comes from; the later one looks first."""
    a, b, c, d, e, f = first
    p, q, r, s, t, u = then
    return (
        a * p + b * s, a * q + b * t, a * r + b * u + c,
        d * p + e * s, d * q + e * t, d * r + e * u + f,
    )  # fmt: skip


class ImagePart(NamedTuple):
    """Some pixels of a crop, and the crop's size."""

    left: int
    top: int
    width: int
    height: int
    crop_width: int
    crop_height: int


class FastPixels:
    """An image on its way through crop, flip and operations: places are only noted down until
    colours, or the end, need pixels."""

    def __init__(
        self,
        crop: np.ndarray,
        size: int,
        *,
        bicubic: bool,
        flipped: bool,
        part: ImagePart | None = None,
    ) -> None:
        self.image, self.size, self.bicubic, self.flipped = crop, size, bicubic, flipped
        self.part = part  # that there is of the crop; None: all of it
        self.places: Map | None = None  # of the moves since there were pixels

    def move(self, name: str, amount: float, *, bicubic: bool) -> None:
        """Rotate, shear or shift (randaugment.PLACES); bilinear, whatever is asked for."""
        then = PLACES[name](amount, self.size)
        self.places = then if self.places is None else _after(self.places, then)

    def pixels(self) -> np.ndarray:
        size = self.size
        if self.places is not None:
            self.image = self._moved(self.places)
        else:
            if self.image.shape[:2] != (size, size):
                how = cv2.INTER_CUBIC if self.bicubic else cv2.INTER_LINEAR
                self.image = cv2.resize(self.image, (size, size), interpolation=how)
            if self.flipped:
                self.image = cv2.flip(self.image, 1)
        self.image = as_rgb(self.image)
        self.places, self.flipped, self.part = None, False, None
        return self.image

    def _moved(self, places: Map) -> np.ndarray:
        image = self.image
        height, width = image.shape[:2]
        part = self.part or ImagePart(0, 0, width, height, width, height)
        across, down = width / part.width, height / part.height  # below 1 where it came smaller
        crop = _into_crop(self.size, part.crop_width, part.crop_height, flipped=self.flipped)
        inside = (across, 0, -part.left * across, 0, down, -part.top * down)
        seen = _after(inside, _after(crop, places))
        if image.ndim == 2 or image.shape[2] == 3:  # four channels take half the time of three
            how = cv2.COLOR_GRAY2RGBA if image.ndim == 2 else cv2.COLOR_RGB2RGBA
            image = cv2.cvtColor(image, how)
        moved = cv2.warpAffine(
            image,
            _of_indices(seen),
            (self.size, self.size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(*FILL, 255),
        )
        return cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB)


def _into_crop(size: int, width: int, height: int, *, flipped: bool) -> Map:
    """From (size, size) to a crop of so many pixels."""
    across, down = width / size, height / size
    return (-across if flipped else across, 0, width if flipped else 0, 0, down, 0)


def seen_part(
    moves: list[tuple[str, float]], size: int, width: int, height: int, *, flipped: bool
) -> ImagePart:
    """What a crop of (width, height) shows after `moves`.

    A shift moves up to 45 % of a crop out of sight, which need not be decoded.
    """
    places = _into_crop(size, width, height, flipped=flipped)
    for name, amount in moves:
        places = _after(places, PLACES[name](amount, size))
    a, b, c, d, e, f = places
    xs = [a * x + b * y + c for x in (0, size) for y in (0, size)]
    ys = [d * x + e * y + f for x in (0, size) for y in (0, size)]
    left, right = _around(xs, width)
    top, bottom = _around(ys, height)
    return ImagePart(left, top, right - left, bottom - top, width, height)


def _around(places: list[float], most: int) -> tuple[int, int]:
    """The pixels of 0 to `most` that bilinear interpolation between the places looks at."""
    first = min(max(math.floor(min(places)) - 1, 0), most - 1)
    return first, max(min(math.ceil(max(places)) + 1, most), first + 1)
