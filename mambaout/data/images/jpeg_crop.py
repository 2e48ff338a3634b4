"""Decodes boxes of JPEGs with jpeg_crop.c: the pixels of libjpeg-turbo in half of its time."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable

import numpy as np

from mambaout import native
from mambaout.data.images.c_files import JPEG_CROP
from mambaout.native import LONG, NUMBER, POINTER, SIZE, address

DONE = 0  # the result of decode_box if it succeeded

Buffer = bytes | memoryview
Box = tuple[int, int, int, int]  # left, top, width, height


def decoded_box(
    encoded: Buffer, lengths: Buffer | None, box: Box, *, is_grey: bool, smooth: bool
) -> np.ndarray | None:
    """The pixels of `box`: uint8 (height, width) of a grey JPEG, (height, width, 3) of another.

    `encoded` is a baseline JPEG, grey or in YCbCr. `lengths` are the lengths of its restart
    segments (jpeg.segment_lengths), or None for a file without any. With `smooth` chroma is
    interpolated, like in libjpeg by default. The pixels are valid until the next call in this
    thread. The result is None if C cannot run here, or if jpeg_crop.c does not decode the file, for
    example because it is damaged.
    """
    decode = _decode_box()
    if decode is None:
        return None
    left, top, width, height = box
    shape = (height, width) if is_grey else (height, width, 3)
    pixels = room("pixels", max(3 * width * height, 0))
    file = np.frombuffer(encoded, np.uint8)
    table = file[:0] if lengths is None else np.frombuffer(lengths, np.uint8)
    scratch = room("scratch", 0)
    while (said := decode(
        *(address(file), file.size),
        *(None if lengths is None else address(table), table.size // 2),
        *(left, top, width, height, smooth),
        *(address(pixels), address(scratch), scratch.size),
    )) < 0:  # fmt: skip
        scratch = room("scratch", -said)
    return pixels[: math.prod(shape)].reshape(shape) if said == DONE else None


@functools.cache
def _decode_box() -> Callable[..., int] | None:
    arguments = [POINTER, SIZE, POINTER, SIZE, *[NUMBER] * 5, POINTER, POINTER, SIZE]
    return native.function(JPEG_CROP, "decode_box", arguments, LONG)


def room(purpose: str, num_bytes: int) -> np.ndarray:
    """At least `num_bytes` of this thread's memory, which is reused: new memory for each image
    takes 5 % longer."""
    found = _THREAD.__dict__.get(purpose)
    if found is None or found.size < num_bytes:
        found = _THREAD.__dict__[purpose] = np.empty(num_bytes * 5 // 4, np.uint8)
    return found


_THREAD = threading.local()
