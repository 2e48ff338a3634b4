"""labelme's three annotated photographs of VOC 2011 as a set in COCO format.

They come with Debian's package labelme-examples, which `apt install labelme-examples` puts here.
Polygons with one `group_id` are one object, a polygon without is one of its own, and `__ignore__`
is void.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambaout.dense.coco_masks import area_of

LABELME = Path("/usr/share/doc/labelme-examples/examples/instance_segmentation/data_annotated")
VOID = "__ignore__"

needs_labelme = pytest.mark.skipif(
    not LABELME.exists(), reason="wants Debian's labelme-examples: apt install labelme-examples"
)


def write_labelme_as_coco(root: Path) -> None:
    """The same three images in both splits: what is tested is whether they can be learned."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: list[str] = []
    for number, file in enumerate(sorted(LABELME.glob("*.json")), 1):
        body = json.loads(file.read_text())
        size = body["imageHeight"], body["imageWidth"]
        image = {"id": number, "file_name": body["imagePath"]}
        images.append(image | {"height": size[0], "width": size[1]})
        objects: dict[Any, list[list[float]]] = {}
        for place, shape in enumerate(body["shapes"]):
            if shape["label"] == VOID:
                continue
            group = place if shape["group_id"] is None else f"group {shape['group_id']}"
            polygon = [float(value) for point in shape["points"] for value in point]
            objects.setdefault((shape["label"], group), []).append(polygon)
        for (label, _), polygons in objects.items():
            if label not in names:
                names.append(label)
            corners = np.concatenate([np.reshape(each, (-1, 2)) for each in polygons])
            left, top = corners.min(0)
            width, height = np.ptp(corners, axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(label) + 1,
                    "bbox": [float(v) for v in (left, top, width, height)],
                    "area": area_of(polygons, size),
                    "iscrowd": 0,
                    "segmentation": polygons,
                }
            )
    categories = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    body = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(body))
        (root / f"{split}2017").mkdir()
        for image in images:
            shutil.copy(LABELME / image["file_name"], root / f"{split}2017")
