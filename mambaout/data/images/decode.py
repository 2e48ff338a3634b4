"""Decodes images to pixels, and only the part that a crop needs.

jpeg_crop.c decodes baseline JPEGs. If `pack` has re-cut the JPEG, it decodes only the segments that
the crop covers (jpeg.py). JPEGs that jpeg_crop.c does not decode go to libjpeg-turbo, which decodes
them whole to the same pixels; if C cannot run, all JPEGs do. Pillow decodes everything else,
including a JPEG that libjpeg-turbo warns about. As in timm, convert("RGB") converts palette, CMYK
and 16-bit images, and EXIF rotation is ignored. Grey images stay grey until they are resized, which
gives the same pixels for a third of the work.

A small split whose images all have one size is decoded once on a machine. Its pixels lie in the
cache as one memory-mapped array.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from typing import Protocol

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from mambaout.data.bar import progress_bar
from mambaout.data.images.jpeg import segment_lengths
from mambaout.data.images.jpeg_crop import Box, decoded_box, room
from mambaout.data.shards.data_set import DataSet
from mambaout.data.shards.encoded import EncodedImage, EncodedImages, place
from mambaout.data.shards.files import DataError, stored_array

PIXEL_BYTES = 256 << 20  # a split with more bytes of pixels is not kept decoded

_COLOURS = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}  # that libjpeg-turbo converts as Pillow


class UndecodableImage(DataError):
    """An image cannot be decoded: its row in the split, and a text with shard, row and reason."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(row, text)
        self.row, self.text = row, text

    def __str__(self) -> str:
        return self.text


class Picture(Protocol):
    """An image from which a crop can be decoded."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        ...

    def crop(self, box: Box, least: int | None = None) -> np.ndarray:
        """The pixels of the box: uint8 (height, width), or (height, width, 3).

        With `least` the pixels are approximate: chroma is repeated if that is faster than to
        interpolate it. A crop that is at least twice as large as `least` is reduced to a half, a
        quarter or an eighth of its size, with no side below `least`. The pixels are valid until
        another picture is cropped in this thread. A decoder's errors for a damaged image are not
        caught.
        """
        ...


class DecodedPicture:
    """A picture that is decoded already, (H, W) or (H, W, 3)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.size = pixels.shape[1], pixels.shape[0]

    def crop(self, box: Box, least: int | None = None) -> np.ndarray:
        left, top, width, height = box
        return _shrunk(self.pixels[top : top + height, left : left + width], least)


def _shrunk(pixels: np.ndarray, least: int | None) -> np.ndarray:
    """The image reduced by means over squares of 2, 4 or 8 pixels.

    It takes the largest square that leaves both sides at least `least`; if none does, the image
    stays as it is.
    """
    height, width = pixels.shape[:2]
    shrink = 1
    while least is not None and shrink < 8 and min(width, height) >= 2 * shrink * least:
        shrink *= 2
    if shrink == 1:
        return pixels
    size = width // shrink, height // shrink
    pixels = pixels[: size[1] * shrink, : size[0] * shrink]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


class JpegPicture:
    """A JPEG that libjpeg-turbo reads; `space` is its name for the file's colour space."""

    def __init__(self, encoded: EncodedImage, size: tuple[int, int], space: str) -> None:
        self.encoded, self.size, self.space = encoded, size, space

    def crop(self, box: Box, least: int | None = None) -> np.ndarray:
        smooth = least is None
        pixels = self._by_us(box, smooth) if self.space != "RGB" else None
        if pixels is None:
            pixels = self._by_libjpeg(box, smooth)
        if pixels is None:
            return PillowPicture(self.encoded.image).crop(box, least)
        return _shrunk(pixels, least)

    def _by_us(self, box: Box, smooth: bool) -> np.ndarray | None:
        encoded, segments = self.encoded
        lengths = None if segments is None else segment_lengths(encoded, segments)
        return decoded_box(encoded, lengths, box, is_grey=self.space == "Gray", smooth=smooth)

    def _by_libjpeg(self, box: Box, smooth: bool) -> np.ndarray | None:
        left, top, width, height = box
        try:
            pixels = simplejpeg.decode_jpeg(
                self.encoded.image,
                _COLOURS[self.space],
                fastupsample=not smooth,
                buffer=room("pixels", 3 * math.prod(self.size)),
            )
        except ValueError:  # also for a mere warning, which Pillow ignores
            return None
        pixels = pixels[top : top + height, left : left + width]
        return pixels[..., 0] if self.space == "Gray" else pixels


class PillowPicture:
    """Any image that Pillow reads; it is decoded when it is cropped."""

    def __init__(self, encoded: bytes | memoryview) -> None:
        self.image = Image.open(io.BytesIO(encoded))
        self.size = self.image.size

    def crop(self, box: Box, least: int | None = None) -> np.ndarray:
        image = self.image
        if image.mode == "P" and "transparency" in image.info:
            # Pillow advises RGBA here; timm's loader, and so every published number, goes to RGB.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Palette images with Transparency")
                image = image.convert("RGB")
        elif image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        return DecodedPicture(np.asarray(image)).crop(box, least)


def picture(encoded: EncodedImage) -> Picture:
    """The image as a Picture: it knows its size, and decodes pixels when they are asked for.

    Pillow's errors for a damaged image are not caught, neither here nor in `crop`.
    """
    with contextlib.suppress(ValueError):  # not a JPEG, or one that libjpeg-turbo does not read
        height, width, colour, _ = simplejpeg.decode_jpeg_header(encoded.image)
        if colour in _COLOURS:
            return JpegPicture(encoded, (int(width), int(height)), colour)
    return PillowPicture(encoded.image)


class Images:
    """The images of a data set's "train" or "val" rows."""

    def __init__(self, data: DataSet, split: str) -> None:
        self.shards = data.shards[split]
        self.encoded = EncodedImages(self.shards)
        self.pixels: np.ndarray | None = None
        file = data.cache / f"pixels-3-{data.fingerprint}-{split}.npy"
        pixels = stored_array(file, self._decode_all)
        # uint8 (rows, H, W) or (rows, H, W, 3); None if too large, or if image sizes differ
        self.pixels = pixels if pixels.ndim > 1 else None

    def __getitem__(self, row: int) -> Picture:
        """Raises UndecodableImage if the image's header cannot be read."""
        if self.pixels is not None:
            return DecodedPicture(self.pixels[row])
        encoded = self.encoded[row]
        try:
            return picture(encoded)
        except Exception as error:  # Pillow's plug-ins raise many kinds of errors for damaged files
            raise self.undecodable(row, error) from error

    def undecodable(self, row: int, error: Exception) -> UndecodableImage:
        """The error to raise if the image of `row` fails with `error`."""
        if isinstance(error, MemoryError):  # the machine's fault, not the image's
            raise error
        reason = re.sub(r" object at 0x[0-9a-f]+", "", " ".join(str(error).split()))
        path = self.encoded.path(row)
        came = f"; it came from {path}" if path else ""
        return UndecodableImage(
            row,
            f"{place(self.shards, row)} is not an image that can be decoded "
            f"({type(error).__name__}: {reason}){came}",
        )

    def _decode_all(self) -> np.ndarray:
        # loader.py handles an image that cannot be decoded, when a batch needs it.
        with contextlib.suppress(UndecodableImage):
            for channels in ((), (3,)):
                pixels = self._decode_as(channels)
                if pixels is not None:
                    return pixels
        return np.zeros(1, np.uint8)

    def _decode_as(self, channels: tuple[int, ...]) -> np.ndarray | None:
        num_rows = sum(shard.num_rows for shard in self.shards)
        width, height = self[0].size
        shape = (num_rows, height, width, *channels)
        if np.prod(shape) > PIXEL_BYTES:
            return None
        pixels = np.empty(shape, np.uint8)
        # It takes seconds, once on a machine. The bar appears after three of them.
        for row in progress_bar(range(num_rows), desc="decode", unit=" images", delay=3):
            image = self[row]
            if image.size != (width, height):
                return None
            try:
                found = image.crop((0, 0, width, height))
            except Exception as error:
                raise self.undecodable(row, error) from error
            if found.ndim == 3 and not channels:
                return None
            pixels[row] = found[..., None] if found.ndim < pixels.ndim - 1 else found
        return pixels
