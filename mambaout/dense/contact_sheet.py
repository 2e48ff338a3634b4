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
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45  # 10 px high
LUMINANCE = (0.299, 0.587, 0.114)  # shares of red, green and blue (BT.601)
TINT = 0.45  # share of the colour in a mask
# Colours that people with any colour vision tell apart (Okabe and Ito), red, green, blue.
COLOURS = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0)),
    *((204, 121, 167), (86, 180, 233), (240, 228, 66)),
)

Box = tuple[int, int, int, int]  # left, top, width, height


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


def label_text(found: Detections, place: int, class_names: Sequence[str]) -> str:
    """The class and the score in percent of one detection: "circle 98"."""
    return f"{class_names[int(found.labels[place]) - 1]} {100 * float(found.scores[place]):.0f}"


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
        colour = _colour(found, n)
        if len(masks):
            mask = cv2.resize(masks[n].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            inside = mask > 0
            tile[inside] = ((1 - TINT) * tile[inside] + TINT * np.array(colour)).astype(np.uint8)
            edges, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(tile, edges, -1, colour, 1, cv2.LINE_AA)
        left, top, right, bottom = (round(float(v) * scale) for v in found.boxes[n])
        cv2.rectangle(tile, (left, top), (right, bottom), colour, 2)
    labels: list[Box] = []
    for n in drawn:  # after all boxes, so that none lies over a text
        left, top, _, _ = (round(float(v) * scale) for v in found.boxes[n])
        _write(tile, label_text(found, n, class_names), (left, top), _colour(found, n), labels)
    if not drawn:
        best = f"; best: {label_text(found, 0, class_names)}" if len(found.scores) else ""
        _write(tile, f"nothing over {100 * LEAST_SCORE:.0f}{best}", (0, 0), (255, 255, 255), [])
    return tile


def _colour(found: Detections, place: int) -> tuple[int, int, int]:
    return COLOURS[(int(found.labels[place]) - 1) % len(COLOURS)]


def _write(
    tile: np.ndarray,
    text: str,
    corner: tuple[int, int],
    colour: tuple[int, int, int],
    labels: list[Box],
) -> None:
    """Write on a label of `colour`, in place: above the corner (x, y), and inside of the tile.

    A label that would lie over one of `labels` goes below that. `labels` gets the new one.
    """
    (width, height), below = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
    width, height = width + 6, height + below + 4
    left = max(0, min(corner[0], tile.shape[1] - width))
    top = max(0, min(corner[1] - height, tile.shape[0] - height))
    while hit := [each for each in labels if _overlap(each, (left, top, width, height))]:
        top = max(each[1] + each[3] for each in hit)
    if top + height > tile.shape[0]:
        return  # the tile is full of labels: the box has to do
    labels.append((left, top, width, height))
    cv2.rectangle(tile, (left, top), (left + width - 1, top + height - 1), colour, cv2.FILLED)
    is_light = np.dot(colour, LUMINANCE) > 110
    ink = (0, 0, 0) if is_light else (255, 255, 255)
    place = left + 3, top + height - below - 1
    cv2.putText(tile, text, place, FONT, FONT_SCALE, ink, 1, cv2.LINE_AA)


def _overlap(one: Box, other: Box) -> bool:
    return all(
        one[side] < other[side] + other[side + 2] and other[side] < one[side] + one[side + 2]
        for side in (0, 1)
    )
