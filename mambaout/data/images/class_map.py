"""Reads a map of classes from an image file: one number a pixel, which no conversion touches."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

MODES = ("L", "P")  # one byte a pixel: a grey value, or a place in a palette


class NoClassMap(Exception):
    """The image has no single byte a pixel; the text says what it has."""


def class_map(encoded: bytes | memoryview) -> np.ndarray:
    """The bytes of the pixels, uint8 (height, width). Of a palette image they are the places in the
    palette, not its colours.

    Raises NoClassMap for an image of another kind. Pillow's errors for a damaged file are not
    caught.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode not in MODES:
            raise NoClassMap(f"it is a {image.mode} image, not one of 8 bits a pixel")
        return np.array(image)
