"""A generated set with exact masks, in COCO's and in ADE20K's format: `--data shapes`.

Circles, rectangles and triangles lie on a photograph. Each is filled with a grey piece of a
photograph in a random tint, so that neither colour nor texture tells the class. The piece has half
its contrast, so that a shape differs from its surroundings by more than its own colours spread.
(In version 1 it had a photograph's colours. Then every fifth shape did not differ that much, and
neither our detector nor torchvision's learned them in 100 steps.) A shape that lies over another
cuts its mask. The same `ShapesSize` gives the same files on any machine that has the same
photographs (two, which scikit-learn's wheel carries).

    ROOT/annotations/instances_{train,val}.json, ROOT/{train,val}/000000.png          COCO
    ROOT/ade20k/{images,annotations}/{training,validation}/000000.png                 ADE20K

Masks are RLEs in COCO's format. In ADE20K's format the classes are 1 ground, 2 circle, 3 rectangle,
4 triangle; the pixels are the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_masks

from mambaout.cache import default_cache, locked
from mambaout.data.images.decode import picture
from mambaout.data.shards.encoded import EncodedImage
from mambaout.durable import replacing

SHAPES = ("circle", "rectangle", "triangle")
GROUND = "ground"  # ADE20K's class 1; 0 would not be evaluated
VERSION = 2  # of the generator; in the folder's name
MOST_SHAPES = 4  # on an image; at least one
RADIUS = (0.12, 0.28)  # of a shape, in sides of the image
LEAST_VISIBLE = 0.25  # share of a shape that another one may leave; below, it is painted over
LEAST_TINT = 0.35  # of a colour channel; the largest is 1
LEAST_GREY = 127.5  # of a texture; the largest is 255


@dataclass(frozen=True, kw_only=True)
class ShapesSize:
    """How many images of which side, and the seed of the drawing."""

    train: int = 300
    val: int = 60
    side: int = 96  # px
    seed: int = 0

    @property
    def folder_name(self) -> str:
        return f"shapes-{VERSION}-{self.train}-{self.val}-{self.side}px-seed{self.seed}"


def shapes_folder(size: ShapesSize = ShapesSize(), cache: Path | None = None) -> Path:
    """The folder of the set, in the cache. It is made if it is not there, in seconds."""
    cache = default_cache() if cache is None else cache
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / size.folder_name
    with locked(cache / f"{size.folder_name}.lock"):
        if not folder.exists():
            with replacing(folder) as aside:
                write_shapes(aside, size)
    return folder


def write_shapes(root: Path, size: ShapesSize) -> None:
    """Write the set in both formats below `root`."""
    ade20k = {"train": "training", "val": "validation"}
    for split, number in (("train", size.train), ("val", size.val)):
        files = root / split
        other = [root / "ade20k" / part / ade20k[split] for part in ("images", "annotations")]
        for folder in (files, *other, root / "annotations"):
            folder.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for index, (pixels, labels, masks) in enumerate(_scenes(split, number, size)):
            name = f"{index:06d}.png"
            content = _png(pixels[..., ::-1])
            (files / name).write_bytes(content)
            (other[0] / name).write_bytes(content)
            ground = np.ones(masks.shape[1:], np.uint8)
            for label, mask in zip(labels, masks, strict=True):
                ground[mask] = 1 + label
                annotations.append(_annotation(len(annotations) + 1, index + 1, label, mask))
            (other[1] / name).write_bytes(_png(ground))
            images.append(
                {"id": index + 1, "file_name": name, "height": size.side, "width": size.side}
            )
        body = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": n, "name": name} for n, name in enumerate(SHAPES, 1)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(body))
    names = "\n".join((GROUND, *SHAPES))
    (root / "ade20k" / "objectInfo150.txt").write_text(f"{names}\n")


def _annotation(number: int, image: int, label: int, mask: np.ndarray) -> dict:
    encoded: Any = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "id": number,
        "image_id": image,
        "category_id": label,
        "bbox": coco_masks.toBbox(encoded).tolist(),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": [*mask.shape], "counts": encoded["counts"].decode()},
    }


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()


# -- the drawing ----------------------------------------------------------------------------------


@cache
def _photographs() -> tuple[np.ndarray, ...]:
    spec = find_spec("sklearn")  # only the files: the import takes a second
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the set `shapes` needs scikit-learn's photographs")
    folder = Path(spec.origin).parent / "datasets" / "images"
    found = []
    for name in ("china.jpg", "flower.jpg"):
        image = picture(EncodedImage(memoryview((folder / name).read_bytes()), None))
        found.append(image.crop((0, 0, *image.size)).copy())
    return tuple(found)


def _scenes(
    split: str, number: int, size: ShapesSize
) -> Iterator[tuple[np.ndarray, list[int], np.ndarray]]:
    """Pixels (side, side, 3), labels 1 to 3, and masks (objects, side, side) of what is visible."""
    for index in range(number):
        random = np.random.default_rng([size.seed, split == "val", index])
        pixels = photograph_piece(random, size.side)
        labels: list[int] = []
        masks = np.zeros((0, size.side, size.side), bool)
        whole: list[int] = []  # pixels of each shape before another one covers it
        for _ in range(int(random.integers(1, MOST_SHAPES + 1))):
            label, mask = _shape(random, size.side)
            tint = random.uniform(LEAST_TINT, 1, 3)
            texture = tinted(photograph_piece(random, size.side).mean(-1), tint)
            left = (masks & ~mask).sum((1, 2))
            if any(now < LEAST_VISIBLE * first for now, first in zip(left, whole, strict=True)):
                continue  # it would hide another one
            pixels[mask] = texture[mask].astype(np.uint8)
            masks = np.concatenate([masks & ~mask, mask[None]])
            labels.append(label)
            whole.append(int(mask.sum()))
        yield pixels, labels, masks


def photograph_piece(random: np.random.Generator, side: int) -> np.ndarray:
    """A square cut of a photograph, scaled to `side`."""
    photographs = _photographs()
    photograph = photographs[random.integers(len(photographs))]
    cut = int(random.integers(side, min(photograph.shape[:2])))
    top, left = (int(random.integers(length - cut)) for length in photograph.shape[:2])
    square = photograph[top : top + cut, left : left + cut]
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)


def tinted(grey: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """A texture (H, W) of 0 to 255 with half its contrast, in a tint: (H, W, 3) of 0 to 255."""
    return (LEAST_GREY + (1 - LEAST_GREY / 255) * grey[..., None]) * (tint / tint.max())


def _shape(random: np.random.Generator, side: int) -> tuple[int, np.ndarray]:
    """The label and the mask of a shape that lies inside of the image."""
    label = int(random.integers(1, len(SHAPES) + 1))
    radius = random.uniform(*RADIUS) * side
    x, y = random.uniform(radius, side - radius, 2)
    columns, rows = np.meshgrid(np.arange(side) + 0.5 - x, np.arange(side) + 0.5 - y)
    if SHAPES[label - 1] == "circle":
        return label, columns**2 + rows**2 <= radius**2
    turn = random.uniform(0, 2 * math.pi)
    if SHAPES[label - 1] == "rectangle":
        half = random.uniform(0.5, 0.9)  # between its diagonals
        angles = [turn + half, turn - half, turn + half + math.pi, turn - half + math.pi]
    else:
        angles = [turn + part * 2 * math.pi / 3 for part in range(3)]
    return label, _inside(columns, rows, radius, np.sort(np.mod(angles, 2 * math.pi)))


def _inside(columns: np.ndarray, rows: np.ndarray, radius: float, angles: np.ndarray) -> np.ndarray:
    """The pixels inside of the convex polygon whose corners lie at these angles, in their order."""
    corners = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    inside = np.ones(columns.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
        inside &= (bx - ax) * (rows - ay) - (by - ay) * (columns - ax) >= 0
    return inside
