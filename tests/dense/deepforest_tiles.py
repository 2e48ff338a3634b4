"""deepforest's four annotated aerial photographs as a set of tiles in COCO format, without masks.

The photographs and their boxes of tree crowns lie in the wheel of deepforest 2.1.0, in the folder
`deepforest/data`. They are found if deepforest is installed. Else DEEPFOREST_DATA names that
folder; an unpacked wheel will do:

    pip download --no-deps deepforest==2.1.0 && unzip deepforest-2.1.0-py3-none-any.whl

A photograph is cut into whole tiles of 200 px. A box belongs to each tile that holds at least half
of it, and is cut off at the tile's edges. Tiles with fewer than three boxes are left out.

The split is by photograph: the tiles of one are all in `train` or all in `val`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

FOLDER_VARIABLE = "DEEPFOREST_DATA"
PHOTOGRAPHS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "SOAP_061"),
    "val": ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029"),
}
SIDE = 200  # px of a tile
LEAST_BOXES = 3  # of a tile
LEAST_INSIDE = 0.5  # share of a box's area that a tile holds
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def deepforest_data() -> Path | None:
    """The folder of the photographs; None if they are not here."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        spec = find_spec("deepforest")
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent / "data"
    names = [name for split in PHOTOGRAPHS.values() for name in split]
    return Path(folder) if all(Path(folder, f"{name}.xml").exists() for name in names) else None


needs_deepforest = pytest.mark.skipif(
    deepforest_data() is None,
    reason=f"wants deepforest's photographs: unpack its wheel and set {FOLDER_VARIABLE} to the "
    "wheel's deepforest/data",
)


def write_deepforest_tiles(root: Path, source: Path) -> None:
    """Write the tiles of the photographs in `source` below `root`; the class is `tree`."""
    (root / "annotations").mkdir(parents=True)
    for split, names in PHOTOGRAPHS.items():
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name in names:
            pixels = cv2.imread(str(source / f"{name}.png"), cv2.IMREAD_COLOR)
            assert pixels is not None, name
            height, width = pixels.shape[:2]
            for left, top, boxes in tiles(crowns(source / f"{name}.xml"), height, width):
                file_name = f"{name}-{left}-{top}.png"
                tile = np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])
                assert cv2.imwrite(str(root / split / file_name), tile)
                image = {"id": len(images) + 1, "file_name": file_name}
                images.append(image | {"height": SIDE, "width": SIDE})
                for x1, y1, x2, y2 in boxes.tolist():
                    annotation = {"id": len(annotations) + 1, "image_id": len(images)}
                    annotation |= {"category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                    annotation |= {"area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                    annotations.append(annotation)
        body = {"images": images, "annotations": annotations}
        body["categories"] = [{"id": 1, "name": "tree"}]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(body))


def crowns(file: Path) -> np.ndarray:
    """The boxes (N, 4) of a photograph's trees, dead ones too: left, top, right, bottom."""
    objects = ElementTree.parse(file).getroot().iter("object")
    rows = [[float(each.findtext(f"bndbox/{name}") or "") for name in CORNERS] for each in objects]
    return np.array(rows).reshape(-1, 4)


def tiles(boxes: np.ndarray, height: int, width: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Left, top and the boxes (N, 4) of each tile that has enough of them."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for top in range(0, height - SIDE + 1, SIDE):
        for left in range(0, width - SIDE + 1, SIDE):
            cut = np.clip(boxes - np.tile([left, top], 2), 0, SIDE)
            inside = (cut[:, 2:] - cut[:, :2]).prod(1) >= LEAST_INSIDE * areas
            if inside.sum() >= LEAST_BOXES:
                yield left, top, cut[inside]
