"""A sheet of images with what a detector found: boxes, masks, classes and scores, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mambaout.dense.evaluate import Detections

COLUMNS = 4
TILE = 320  # px: the longer side of an image on the sheet
GAP = 8  # px between images
LEAST_SCORE = 0.5  # of what is drawn
TINT = 0.45  # share of the colour in a mask
# Colours that people with any colour vision tell apart (Okabe and Ito), red, green, blue.
COLOURS = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0)),
    *((204, 121, 167), (86, 180, 233), (240, 228, 66)),
)


def contact_sheet(
    images: Sequence[np.ndarray], found: Sequence[Detections], class_names: Sequence[str]
) -> bytes:
    """The PNG. `images` are uint8 (H, W, 3), red first; `found` has one prediction for each."""
    return png_of([_tile(*pair, class_names) for pair in zip(images, found, strict=True)], COLUMNS)


def png_of(tiles: Sequence[np.ndarray], columns: int) -> bytes:
    """A PNG of the tiles, uint8 (H, W, 3) with no side above TILE, in rows of so many columns."""
    columns = min(columns, len(tiles))
    rows = [tiles[at : at + columns] for at in range(0, len(tiles), columns)]
    heights = [max(len(tile) for tile in row) for row in rows]
    shape = sum(heights) + GAP * (len(rows) + 1), columns * (TILE + GAP) + GAP, 3
    sheet = np.full(shape, 255, np.uint8)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = GAP + column * (TILE + GAP)
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        top += height + GAP
    return cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()


def tile_size(height: int, width: int) -> tuple[int, int]:
    """The (width, height) of an image on the sheet."""
    scale = TILE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _tile(image: np.ndarray, found: Detections, class_names: Sequence[str]) -> np.ndarray:
    height, width = image.shape[:2]
    size, scale = tile_size(height, width), TILE / max(height, width)
    tile = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    drawn = [n for n in range(len(found.scores)) if found.scores[n] >= LEAST_SCORE]
    masks = found.masks()
    for n in reversed(drawn):  # the best is drawn last, so it lies on top
        colour = COLOURS[(int(found.labels[n]) - 1) % len(COLOURS)]
        if len(masks):
            mask = cv2.resize(masks[n].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            tile[mask] = ((1 - TINT) * tile[mask] + TINT * np.array(colour)).astype(np.uint8)
        left, top, right, bottom = (round(float(v) * scale) for v in found.boxes[n])
        cv2.rectangle(tile, (left, top), (right, bottom), colour, 2)
        text = f"{class_names[int(found.labels[n]) - 1]} {100 * float(found.scores[n]):.0f}"
        place = left + 2, max(top + 13, 13)
        for thickness, ink in ((3, (255, 255, 255)), (1, (0, 0, 0))):
            cv2.putText(tile, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, ink, thickness)
    return tile
