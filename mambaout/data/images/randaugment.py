"""The operations of RandAugment, as in timm's "rand-m9-mstd0.5-inc1", and their colour arithmetic.

A colour operation here is one or two passes of arithmetic over the image. Pillow looks every value
up in a table, or makes a second image and blends the two, which takes four times as long. Blended
sums are rounded once here and twice in Pillow, so they may differ by one grey level. All other
results equal Pillow's. resample.py does the operations that move pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

MAX_LEVEL = 10.0
FILL = (124, 116, 104)  # ImageNet's mean colour, for places outside of the image

Colour = Callable[[np.ndarray, float], np.ndarray]  # uint8 (H, W, 3) and an amount to (H, W, 3)

_VALUES = np.arange(256)
# The weights of Rec. 601, like Pillow's convert("L"); both round to whole grey levels.
_LUMA = np.array([0.299, 0.587, 0.114])
# cv2 rounds to the nearest value, but Pillow truncates. To add this number first makes cv2 truncate
# too. It is a little less than a half, so that whole values stay.
TRUNCATES = -0.49


# -- from a level of 0 to 10 and a sign to the amount of an operation ------------------------------


def _nothing(_level: float, _sign: float) -> float:
    return 0.0


def _bits(level: float, _sign: float) -> float:
    # Noise raises level 9 to level 10 in one draw of 43. Level 10 means 0 bits, which Pillow 13
    # refuses and older versions turned into a black image. So at least one bit stays.
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
    """Stretch each channel so that its darkest value becomes 0 and its lightest 255."""
    lines = image.reshape(len(image), -1)  # in long rows numpy compares 32 values at a time
    low, high = (found.reshape(-1, 3) for found in (lines.min(axis=0), lines.max(axis=0)))
    low, high = low.min(axis=0).astype(np.float64), high.max(axis=0).astype(np.float64)
    flat = high <= low
    scale = np.where(flat, 1.0, 255.0 / np.where(flat, 1.0, high - low))
    return _mixed(image, np.diag(scale), np.where(flat, 0.0, -low * scale))


def equalize(image: np.ndarray, _amount: float = 0) -> np.ndarray:
    """Make each channel's histogram as even as a lookup table can."""
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
    return cv2.LUT(image, np.stack(tables, axis=-1).astype(np.uint8)[:, None])


def invert(image: np.ndarray, _amount: float = 0) -> np.ndarray:
    return cv2.bitwise_not(image)


def posterize(image: np.ndarray, bits: float) -> np.ndarray:
    """Keep only the upper `bits` bits of each value."""
    return image & np.uint8(256 - (1 << (8 - int(bits))))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Invert the values from `threshold` on."""
    if threshold > 255:
        return image
    return image ^ (image >= np.uint8(threshold)).view(np.uint8) * np.uint8(255)


def solarize_add(image: np.ndarray, added: float) -> np.ndarray:
    """Add `added` to the values below 128."""
    return image + (image < np.uint8(128)).view(np.uint8) * np.uint8(added)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply all values by `factor`."""
    return _mixed(image, factor * np.eye(3), np.zeros(3))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply each value's distance from the image's mean grey by `factor`."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _mixed(image, factor * np.eye(3), np.full(3, (1 - factor) * mean))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply each pixel's distance from its own grey by `factor`."""
    return _mixed(image, factor * np.eye(3) + (1 - factor) * np.tile(_LUMA, (3, 1)), np.zeros(3))


def _mixed(image: np.ndarray, mixing: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Multiply each pixel's colours by a matrix and add `added`; truncate and clip to 0 to 255."""
    return cv2.transform(image, np.column_stack([mixing, added + TRUNCATES]))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply each value's distance from the smoothed image by `factor`; the border stays."""
    if min(image.shape[:2]) < 3:
        return image
    # ImageFilter.SMOOTH has the weight 5 in the middle and 1 at its 8 neighbours. That equals 9
    # times the mean of all nine plus 4 times the middle, which takes half the time of that kernel.
    own, mean = factor + (1 - factor) * 4 / 13, (1 - factor) * 9 / 13
    sharper = cv2.addWeighted(image, own, cv2.blur(image, (3, 3)), mean, TRUNCATES)
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


# -- places: a map from a place in the result to its place in the image, x right and y down --------

Map = tuple[float, float, float, float, float, float]  # a, b, c, d, e, f: ax + by + c, dx + ey + f


def rotation(degrees: float, size: int) -> Map:
    """The rotation about the middle of an image of (size, size); places count from its corner."""
    turned = -math.radians(degrees % 360.0)  # with the same rounding as in Pillow's rotate
    cos, sin, middle = round(math.cos(turned), 15), round(math.sin(turned), 15), size / 2
    left, top = cos * -middle + sin * -middle + middle, -sin * -middle + cos * -middle + middle
    return cos, sin, left, -sin, cos, top


PLACES: dict[str, Callable[[float, int], Map]] = {
    "Rotate": rotation,
    "ShearX": lambda slope, _size: (1, slope, 0, 0, 1, 0),
    "ShearY": lambda slope, _size: (1, 0, 0, slope, 1, 0),
    "TranslateXRel": lambda share, size: (1, 0, share * size, 0, 1, 0),
    "TranslateYRel": lambda share, size: (1, 0, 0, 0, 1, share * size),
}

# In timm's order; each operation has the same probability.
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
