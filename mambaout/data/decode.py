"""Encoded images to pixels.

Pillow decodes, and its convert("RGB") decides what becomes of palette, CMYK and 16-bit images, as
in timm. Grey images stay grey until they have been cropped and resized, which gives the same
pixels for a third of the work.

A small split whose images share one size is decoded once for a machine: its pixels lie in the
cache as one memory-mapped array, which Pillow crops from without a copy (21 us less for each
28 px training image than a Pillow image a sample).
"""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from mambaout.data.files import DataError, stored_array
from mambaout.data.shards import DataSet, EncodedImages, place

PIXEL_BYTES = 256 << 20  # at most so many of a split are kept decoded


class Picture(NamedTuple):
    """A decoded image, "L", "RGB" or "RGBX", as the part of a sheet from line `top` on."""

    sheet: Image.Image
    top: int
    frame: Image.Image  # any image of the picture's own size


def decode(encoded: bytes | memoryview) -> Image.Image:
    """The image, "L" or "RGB"; whatever Pillow raises for a damaged one travels."""
    image = Image.open(io.BytesIO(encoded))
    if image.mode in ("L", "RGB"):
        image.load()
        return image
    if image.mode == "P" and "transparency" in image.info:
        # Pillow advises RGBA here; timm's loader, and so every published number, goes to RGB.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Palette images with Transparency")
            return image.convert("RGB")
    return image.convert("RGB")


class Images:
    """The images of a data set's "train" or "val" rows."""

    def __init__(self, data: DataSet, split: str) -> None:
        self.shards = data.shards[split]
        self.encoded = EncodedImages(self.shards)
        file = data.cache / f"pixels-2-{data.fingerprint}-{split}.npy"
        pixels = stored_array(file, self._decode_all)
        # uint8 (rows, H, W) grey or (rows, H, W, 4) RGBX; None where too large or of many sizes
        self.pixels = pixels if pixels.ndim > 1 else None
        if self.pixels is not None:
            num_rows, height, width = pixels.shape[:3]
            mode, size = "L" if pixels.ndim == 3 else "RGBX", (width, num_rows * height)
            self.sheet = Image.frombuffer(mode, size, self.pixels, "raw", mode, 0, 1)
            self.frame = Image.new("L", (width, height))

    def __getitem__(self, row: int) -> Picture:
        """Raises DataError, naming shard and row, for an image that cannot be decoded."""
        if self.pixels is not None:
            return Picture(self.sheet, row * self.pixels.shape[1], self.frame)
        image = self._decoded(row)
        return Picture(image, 0, image)

    def _decoded(self, row: int) -> Image.Image:
        encoded = self.encoded[row].image
        try:
            return decode(encoded)
        except Exception as error:  # Pillow's plug-ins raise many kinds for damaged files
            raise DataError(
                f"{place(self.shards, row)} is not an image that can be decoded "
                f"({type(error).__name__}: {error}); replace it or leave it out"
            ) from error

    def _decode_all(self) -> np.ndarray:
        for mode, channels in (("L", ()), ("RGBX", (4,))):
            pixels = self._decode_as(mode, channels)
            if pixels is not None:
                return pixels
        return np.zeros(1, np.uint8)

    def _decode_as(self, mode: str, channels: tuple[int, ...]) -> np.ndarray | None:
        num_rows = sum(shard.num_rows for shard in self.shards)
        width, height = self._decoded(0).size
        shape = (num_rows, height, width, *channels)
        if np.prod(shape) > PIXEL_BYTES:
            return None
        pixels = np.empty(shape, np.uint8)
        # Seconds, once a machine; a bar from the third on.
        for row in tqdm(range(num_rows), desc="decode", unit="image", delay=3):
            image = self._decoded(row)
            if image.size != (width, height) or (mode == "L" and image.mode != "L"):
                return None
            pixels[row] = np.asarray(image if image.mode == mode else image.convert(mode))
        return pixels
