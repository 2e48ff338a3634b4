"""RandAugment's operations as timm's "rand-m9-mstd0.5-inc1" has them, and its colour operations.

What an operation does to colours is a table of 256 entries a channel, a 3 x 4 matrix or one 3 x 3
filter, so that each is one pass over the image, where Pillow makes a second image and blends the
two. Tables are Pillow's to the digit; a matrix or a filter rounds once where Pillow rounds twice,
which one grey level bounds. What an operation does to places: resample.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

MAX_LEVEL = 10.0
FILL = (124, 116, 104)  # ImageNet's mean colour, where an operation looks outside of the image

Colour = Callable[[np.ndarray, float], np.ndarray]  # uint8 (H, W, 3) and an amount, to the same

_VALUES = np.arange(256)
# Of Rec. 601, as Pillow's convert("L"); both round to whole grey levels.
_LUMA = np.array([0.299, 0.587, 0.114])
# cv2 rounds to nearest where Pillow truncates; a hair less than a half, so that whole values stay.
TRUNCATES = -0.49
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # ImageFilter.SMOOTH
_IDENTITY = np.pad([[1.0]], 1)


# -- how much of an operation a level of 0 to 10 is, and with which sign ---------------------------


def _nothing(_level: float, _sign: float) -> float:
    return 0.0


def _bits(level: float, _sign: float) -> float:
    # Level 10, which noise on 9 reaches in one draw of 43, asks for 0 bits: Pillow 13 refuses them,
    # older ones gave a black image.
    return max(1, 4 - int(level / MAX_LEVEL * 4))


def _threshold(level: float, _sign: float) -> float:
    return 256 - int(level / MAX_LEVEL * 256)


def _added(level: float, _sign: float) -> float:
    return int(level / MAX_LEVEL * 110)


def _factor(level: float, sign: float) -> float:
    return max(0.1, 1 + sign * level / MAX_LEVEL * 0.9)


def _degrees(level: float, sign: float) -> float:
    return sign * level / MAX_LEVEL * 30


def _slope(level: float, sign: float) -> float:
    return sign * level / MAX_LEVEL * 0.3


def _share(level: float, sign: float) -> float:
    return sign * level / MAX_LEVEL * 0.45


# -- colours ---------------------------------------------------------------------------------------


def autocontrast(image: np.ndarray, _amount: float = 0) -> np.ndarray:
    """Each channel stretched from its darkest and lightest value to 0 and 255."""
    low, high = (
        cv2.reduce(image, 0, how).reshape(-1, 3) for how in (cv2.REDUCE_MIN, cv2.REDUCE_MAX)
    )
    tables = []
    for darkest, lightest in zip(low.min(0).tolist(), high.max(0).tolist(), strict=True):
        if lightest <= darkest:
            tables.append(_VALUES)
            continue
        scale = 255.0 / (lightest - darkest)
        tables.append(np.clip((_VALUES * scale - darkest * scale).astype(np.int64), 0, 255))
    return _by_channel(image, tables)


def equalize(image: np.ndarray, _amount: float = 0) -> np.ndarray:
    """Each channel with as even a histogram as a table can give it."""
    tables = []
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        present = np.flatnonzero(counts)
        step = int(counts.sum() - counts[present[-1]]) // 255
        if len(present) <= 1 or step == 0:
            tables.append(_VALUES)
            continue
        below = np.concatenate([[0], np.cumsum(counts)[:-1]])
        tables.append(np.minimum((step // 2 + below) // step, 255))
    return _by_channel(image, tables)


def _by_channel(image: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    return cv2.LUT(image, np.stack(tables, axis=-1).astype(np.uint8)[:, None])


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def invert(image: np.ndarray, _amount: float = 0) -> np.ndarray:
    return cv2.bitwise_not(image)


def posterize(image: np.ndarray, bits: float) -> np.ndarray:
    """Each value with only its upper `bits` bits."""
    return cv2.LUT(image, _table(_VALUES & ~((1 << (8 - int(bits))) - 1)))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Values from `threshold` on inverted."""
    return cv2.LUT(image, _table(np.where(int(threshold) > _VALUES, _VALUES, 255 - _VALUES)))


def solarize_add(image: np.ndarray, added: float) -> np.ndarray:
    """`added` on values below 128."""
    return cv2.LUT(image, _table(np.where(_VALUES < 128, _VALUES + int(added), _VALUES)))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Values times `factor`."""
    return cv2.LUT(image, _table(np.float32(factor) * _VALUES.astype(np.float32)))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Values' distance from the mean grey times `factor`."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(image, _table(mean + np.float32(factor) * (_VALUES - mean).astype(np.float32)))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Colours' distance from their grey times `factor`."""
    mixing = factor * np.eye(3) + (1 - factor) * np.tile(_LUMA, (3, 1))
    return cv2.transform(image, np.column_stack([mixing, np.full(3, TRUNCATES)]))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Values' distance from their smoothed neighbourhood times `factor`; borders stay."""
    if min(image.shape[:2]) < 3:
        return image
    kernel = factor * _IDENTITY + (1 - factor) * _SMOOTH
    sharper = cv2.filter2D(image, -1, kernel.astype(np.float32), delta=TRUNCATES)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharper[edge] = image[edge]
    return sharper


COLOURS: dict[str, Colour] = {
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
    "PosterizeIncreasing": posterize,
    "SolarizeIncreasing": solarize,
    "SolarizeAdd": solarize_add,
    "ColorIncreasing": color,
    "ContrastIncreasing": contrast,
    "BrightnessIncreasing": brightness,
    "SharpnessIncreasing": sharpness,
}


# -- places: from a pixel of the result to where it comes from, x right and y down ----------------


def rotation(degrees: float, size: int) -> np.ndarray:
    """(2, 3), about the middle of an image of (size, size), counted from its corner."""
    turned = math.radians(degrees)
    cos, sin, middle = math.cos(turned), math.sin(turned), size / 2
    return np.array(
        [
            [cos, -sin, middle - cos * middle + sin * middle],
            [sin, cos, middle - sin * middle - cos * middle],
        ]
    )


PLACES: dict[str, Callable[[float, int], np.ndarray]] = {
    "Rotate": rotation,
    "ShearX": lambda slope, _size: np.array([[1, slope, 0], [0, 1, 0]]),
    "ShearY": lambda slope, _size: np.array([[1, 0, 0], [slope, 1, 0]]),
    "TranslateXRel": lambda share, size: np.array([[1, 0, share * size], [0, 1, 0]]),
    "TranslateYRel": lambda share, size: np.array([[1, 0, 0], [0, 1, share * size]]),
}

# In timm's order, each as likely as another.
AMOUNTS: dict[str, Callable[[float, float], float]] = {
    "AutoContrast": _nothing,
    "Equalize": _nothing,
    "Invert": _nothing,
    "Rotate": _degrees,
    "PosterizeIncreasing": _bits,
    "SolarizeIncreasing": _threshold,
    "SolarizeAdd": _added,
    "ColorIncreasing": _factor,
    "ContrastIncreasing": _factor,
    "BrightnessIncreasing": _factor,
    "SharpnessIncreasing": _factor,
    "ShearX": _slope,
    "ShearY": _slope,
    "TranslateXRel": _share,
    "TranslateYRel": _share,
}
