"""A sheet of images with their annotations and what a segmenter found, as a PNG with a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from mambaout.dense.ade20k import IGNORED
from mambaout.dense.contact_sheet import COLOURS, TILE, png_of, tile_size

MOST_NAMES = 36  # in the legend: the classes with the most pixels on the sheet
MOST_PAIRS = 2  # of an image and its prediction in a row, without annotations
LINE = 22  # px of a line of the legend
BOX = 14  # px of a colour's square
GOLDEN = 0.618034  # of the circle of hues, from a class to the next: neighbours differ most
INK = (0, 0, 0)


def class_colours(num_classes: int) -> np.ndarray:
    """A colour for each class, uint8 (N, 3). The first seven are told apart by anybody."""
    colours = list(COLOURS[:num_classes])
    for number in range(len(colours), num_classes):
        hue, value = number * GOLDEN % 1, (0.95, 0.75, 0.55)[number % 3]
        saturation = (0.85, 0.55)[number // 3 % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.array(colours, np.uint8)


def image_tile(image: np.ndarray) -> np.ndarray:
    """An image, uint8 (H, W, 3), of the size that it has on the sheet."""
    return cv2.resize(image, tile_size(*image.shape[:2]), interpolation=cv2.INTER_AREA)


def map_tile(classes: np.ndarray) -> np.ndarray:
    """A map of classes, uint8 (H, W), of the size that it has on the sheet."""
    size = tile_size(*classes.shape)
    return cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)


def segment_sheet(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None,
    found: Sequence[np.ndarray],
    class_names: Sequence[str],
) -> bytes:
    """The PNG: a row for each image, with the image, its annotation and the prediction.

    `images` are uint8 (H, W, 3); the maps of classes are uint8 (H, W). Pixels that are not
    evaluated are black in the annotation. Without annotations (None) two images share a row.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(class_names)] = class_colours(len(class_names))
    maps = [found] if labels is None else [labels, found]
    pair = ("image", "prediction")
    titles = ("image", "annotation", "prediction") if labels is not None else pair * MOST_PAIRS
    titles = titles[: len(images) * (1 + len(maps))]
    tiles = [_title(text) for text in titles]
    for image, *of_image in zip(images, *maps, strict=True):
        tiles.append(image_tile(image))
        tiles += [colours[map_tile(classes)] for classes in of_image]
    columns = len(titles)
    tiles += [_title("")] * (-len(tiles) % columns)  # so that the legend begins a row
    counts = sum(np.bincount(each.ravel(), minlength=256) for of in maps for each in of)
    return png_of([*tiles, *_legend(np.asarray(counts), colours, class_names, columns)], columns)


def _title(text: str) -> np.ndarray:
    tile = np.full((LINE, TILE, 3), 255, np.uint8)
    return _written(tile, text, (0, LINE - 6), INK)


def _legend(
    counts: np.ndarray, colours: np.ndarray, class_names: Sequence[str], columns: int
) -> list[np.ndarray]:
    """So many tiles with the names of the classes on the sheet, in the order of the classes."""
    there = [n for n in np.argsort(-counts, kind="stable") if counts[n] and n != IGNORED]
    shown = sorted(int(n) for n in there[:MOST_NAMES])
    lines = [(tuple(map(int, colours[n])), class_names[n]) for n in shown]
    if counts[IGNORED]:
        lines.append(((0, 0, 0), "not evaluated"))
    if len(there) > len(shown):
        lines.append(((255, 255, 255), f"and {len(there) - len(shown)} more"))
    height = -(-len(lines) // columns)
    tiles = []
    for column in range(columns):
        tile = np.full((max(1, height) * LINE, TILE, 3), 255, np.uint8)
        for row, (colour, name) in enumerate(lines[column * height : (column + 1) * height]):
            top = row * LINE + 3
            tile[top : top + BOX, :BOX] = colour
            text = name if len(name) <= 34 else f"{name[:33]}..."
            _written(tile, text, (BOX + 8, top + BOX - 2), INK)
        tiles.append(tile)
    return tiles


def _written(
    tile: np.ndarray, text: str, place: tuple[int, int], ink: tuple[int, int, int]
) -> np.ndarray:
    cv2.putText(tile, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.48, ink, 1, cv2.LINE_AA)
    return tile
