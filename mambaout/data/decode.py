"""Encoded images to RGB pixels.

Pillow decodes, and its convert("RGB") decides what becomes of grey, palette, CMYK and 16-bit
images, as in timm. Small data sets whose images share one size are decoded once for a machine:
the pixels lie in the cache as one memory-mapped array that all its processes share.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mambaout.data.shards import DataError, DataSet, EncodedImages, place, stored_array

DECODED_BYTES = 256 << 20  # at most so many bytes of a split are kept decoded


def decode(encoded: bytes | memoryview) -> Image.Image:
    """The encoded image in RGB; whatever Pillow raises for a damaged one travels."""
    image = Image.open(io.BytesIO(encoded))
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "P" and "transparency" in image.info:
        # Pillow advises RGBA here; timm's loader, and so every published number, goes to RGB.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Palette images with Transparency")
            return image.convert("RGB")
    return image.convert("RGB")


class Images:
    """The images of a data set's "train" or "val" rows, in RGB."""

    def __init__(self, data: DataSet, split: str) -> None:
        self.shards = data.shards[split]
        self.encoded = EncodedImages(self.shards)
        pixels = stored_array(
            data.cache / f"pixels-1-{data.fingerprint}-{split}.npy", self._decode_all
        )
        # uint8 (rows, H, W, 3); None where they do not share a size or are too large together
        self.pixels = pixels if pixels.ndim == 4 else None

    def __getitem__(self, row: int) -> Image.Image:
        """Raises DataError, naming shard and row, for an image that cannot be decoded."""
        if self.pixels is not None:
            _, height, width, _ = self.pixels.shape
            return Image.frombuffer("RGB", (width, height), self.pixels[row], "raw", "RGB", 0, 1)
        return self._decoded(row)

    def _decoded(self, row: int) -> Image.Image:
        encoded = self.encoded[row]
        try:
            return decode(encoded)
        except Exception as error:  # Pillow's plug-ins raise many kinds for damaged files
            raise DataError(
                f"{place(self.shards, row)} is not an image that can be decoded "
                f"({type(error).__name__}: {error}); replace it or leave it out"
            ) from error

    def _decode_all(self) -> np.ndarray:
        not_kept = np.zeros(1, np.uint8)
        num_rows = sum(shard.num_rows for shard in self.shards)
        width, height = _size(self.encoded, self.shards)
        if num_rows * width * height * 3 > DECODED_BYTES:
            return not_kept
        pixels = np.empty((num_rows, height, width, 3), np.uint8)
        for row in range(num_rows):
            image = self._decoded(row)
            if image.size != (width, height):
                return not_kept
            pixels[row] = np.asarray(image)
        return pixels


def _size(encoded: EncodedImages, shards: Sequence) -> tuple[int, int]:
    try:
        return Image.open(io.BytesIO(encoded[0])).size
    except Exception as error:
        raise DataError(f"{place(shards, 0)} is not an image: {error}") from error
