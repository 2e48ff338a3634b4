"""Resampling: two ways to crop, resize, flip, rotate, shear and shift an image.

`ExactPixels` does one operation after the other. Its pixels differ from Pillow's by at most one
grey level nearly everywhere, and it is several times faster. It resizes with torch's uint8 kernels,
which are Pillow's algorithm in vector code. It moves pixels with affine.c, which gives exactly
Pillow's bits.

`FastPixels` combines all operations into one map of places and reads the crop once. It is bilinear,
or bicubic if it only resizes, and does not use the wider filter with which Pillow shrinks images.
Instead a crop that is at least twice as large is first averaged to a half, a quarter or an eighth
(decode.py), so that it shrinks by at most a factor of two here.

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

cv2.setNumThreads(0)  # one process for each core is faster than threads in each process


def as_rgb(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


class ExactPixels:
    """An image during crop, flip and operations; each operation is done immediately."""

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
    """`image` resized to `size`, (height, width), like in Pillow's resize."""
    if image.shape[:2] == size:
        return image
    # Imported here, because it takes two seconds and `FastPixels` does not need it.
    import torch

    if not image.flags.writeable:  # torch warns about such arrays
        image = image.copy()
    values = torch.from_numpy(image if image.ndim == 3 else image[..., None])
    # The layout is torch's channels_last, which takes half the time. numpy's image[None] would not
    # have that layout.
    batch = values.unsqueeze(0).permute(0, 3, 1, 2)
    mode = "bicubic" if bicubic else "bilinear"
    found = torch.nn.functional.interpolate(batch, size=size, mode=mode, antialias=True)
    found = found.permute(0, 2, 3, 1)[0].numpy()
    return found if image.ndim == 3 else found[..., 0]


def moved(image: np.ndarray, places: Map, *, bicubic: bool) -> np.ndarray:
    """uint8 (H, W, 3) with its pixels taken from other places; bit for bit Pillow's transform."""
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
    """Turn a map of places counted from the corner into one between the centres of pixels."""
    a, b, c, d, e, f = places
    return np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])


def _after(first: Map, then: Map) -> Map:
    """The map of both operations together. Maps lead back, so `then` is applied before `first`."""
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
    """An image during crop, flip and operations. Moves are only collected in a map, until a colour
    operation or the end needs pixels."""

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
        self.part = part  # the part of the crop that `crop` holds; None: all of it
        self.places: Map | None = None  # the moves since the last pixels were computed

    def move(self, name: str, amount: float, *, bicubic: bool) -> None:
        """Rotate, shear or shift (randaugment.PLACES); always bilinear: `bicubic` is ignored."""
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
        across, down = width / part.width, height / part.height  # below 1 for a reduced crop
        crop = _into_crop(self.size, part.crop_width, part.crop_height, flipped=self.flipped)
        inside = (across, 0, -part.left * across, 0, down, -part.top * down)
        seen = _after(inside, _after(crop, places))
        if image.ndim == 2 or image.shape[2] == 3:  # cv2 takes half the time with four channels
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
    """The map from a result of (size, size) to a crop of (width, height)."""
    across, down = width / size, height / size
    return (-across if flipped else across, 0, width if flipped else 0, 0, down, 0)


def seen_part(
    moves: list[tuple[str, float]], size: int, width: int, height: int, *, flipped: bool
) -> ImagePart:
    """The part of a crop of (width, height) that is still visible after `moves`.

    A shift moves up to 45 % of a crop out of sight; that part need not be decoded.
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
    """The range of pixels, within 0 to `most`, that bilinear interpolation at the places needs."""
    first = min(max(math.floor(min(places)) - 1, 0), most - 1)
    return first, max(min(math.ceil(max(places)) + 1, most), first + 1)
