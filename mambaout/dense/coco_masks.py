"""Masks of COCO's files: polygons and run lengths (RLE), checked, and drawn at any size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

LEAST_CORNERS = 3  # of a polygon


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a `segmentation` of an image of `size` (height, width), or None."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or not all(map(is_finite, polygon)):
                return f"segmentation is no polygon: {short_text(polygon)}"
            if len(polygon) % 2 or len(polygon) < 2 * LEAST_CORNERS:
                return (
                    f"segmentation is no polygon: {len(polygon)} numbers, not x and y of at least "
                    f"{LEAST_CORNERS} corners"
                )
        return None
    if not isinstance(segmentation, dict) or not isinstance(
        segmentation.get("counts"), (list, str)
    ):
        return f"segmentation is no polygon and no RLE: {short_text(segmentation)}"
    if segmentation.get("size") != [*size]:
        return f"the RLE has the size {segmentation.get('size')}, and its image {[*size]}"
    counts = segmentation["counts"]
    if isinstance(counts, list):
        is_right = all(is_whole(c) and c >= 0 for c in counts) and sum(counts) == math.prod(size)
        return None if is_right else "the counts of the RLE do not add up to the image's pixels"
    return _string_fault(counts, size)


def _string_fault(counts: str, size: tuple[int, int]) -> str | None:
    """Like `segmentation_fault`, for a compressed RLE. pycocotools would read past its end."""
    lengths: list[int] = []
    number = shift = 0
    for letter in counts:
        code = ord(letter) - 48
        if not 0 <= code < 64:
            return f"the RLE holds the letter {letter!r}, which no RLE has"
        number |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                number |= -1 << shift
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number = shift = 0
    if shift or min(lengths, default=0) < 0 or sum(lengths) != math.prod(size):
        return "the RLE is cut off or altered: it does not add up to the image's pixels"
    return None


def encoded_mask(segmentation: Any, size: tuple[int, int]) -> Any:
    """The RLE, as pycocotools has it, of polygons or of an RLE in an image of `size`."""
    if isinstance(segmentation, list):
        return coco_masks.merge(coco_masks.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return coco_masks.frPyObjects(segmentation, *size)
    return {"size": segmentation["size"], "counts": segmentation["counts"].encode()}


def area_of(segmentation: Any, size: tuple[int, int]) -> float:
    """The pixels that a mask covers."""
    return float(coco_masks.area(encoded_mask(segmentation, size)))


def mask_of(segmentation: Any, size: tuple[int, int], resized: tuple[int, int]) -> np.ndarray:
    """The mask of a `segmentation` of an image of `size`, as uint8 of the shape `resized`.

    Polygons are resized before they are drawn; an RLE is drawn, and then resized to the nearest
    pixel.
    """
    if isinstance(segmentation, list):
        scale = np.array([resized[1] / size[1], resized[0] / size[0]])  # of x and y
        moved = [
            (np.asarray(polygon, float).reshape(-1, 2) * scale).ravel().tolist()
            for polygon in segmentation
        ]
        return coco_masks.decode(encoded_mask(moved, resized))
    mask = coco_masks.decode(encoded_mask(segmentation, size))
    if size == resized:
        return mask
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(int)
        for new, old in zip(resized, size, strict=True)
    )
    return mask[rows][:, columns]


# -- values of the JSON -------------------------------------------------------------------------


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def short_text(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
