"""What is wrong with data that are not in COCO's format, and what to do: texts for errors.

The reader (coco.py) finds that something is missing. These functions look at what there is instead.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaout.dense.coco_masks import is_whole, short_text

SHOWN_IDS = 5  # ids of categories in an error
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# An entry of each list of a file.
ENTRIES = {
    "images": '{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480}',
    "annotations": '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [left, top, width, height]}',
    "categories": '{"id": 1, "name": "cat"}',
}


def wrong_root(root: str) -> str | None:
    """Why `root` cannot be the folder of a set, or None."""
    if os.path.isfile(root):
        folder = Path(root).parent
        above = folder.parent if folder.name == "annotations" else folder
        return f"{root} is a file; give the folder that has annotations/ and the images: {above}"
    return None


def missing_annotations(root: str, split: str, there: Collection[str]) -> str:
    """What to do for a split's annotations, which are not among the files `there` below `root`."""
    expected = f"annotations/instances_{split}2017.json"
    text = (
        f"{root} has no {expected}; a data set in COCO format has it, or instances_{split}.json, "
        "in annotations/"
    )
    files = sorted(name for name in there if name.endswith(".json"))
    if any(name.startswith("annotations/instances_") for name in files):
        return (
            f"{text}; there is {files[0]}. Write a part of the images into a file of their own, on "
            "which the detector is validated and not trained"
        )
    if "://" not in root and (Path(root).absolute().parent / "annotations").is_dir():
        return f"{text}; give the folder above, {Path(root).parent}"
    for name in files:
        above, _, file = name.rpartition("/annotations/")
        if above and file.startswith("instances_"):
            return f"{text}; there is {name}: give {root}/{above}"
    if files:
        return f"{text}; there is {files[0]}: rename it, and put its images into {split}/"
    if any(name.startswith("labels/") and name.endswith(".txt") for name in there):
        return f"{text}; its labels/ are in YOLO's format: convert them"
    if any(name.lower().startswith("annotations/") and name.endswith(".xml") for name in there):
        return f"{text}; its annotations are in Pascal VOC's format: convert them"
    images = (name for name in there if name.lower().endswith(IMAGE_ENDINGS))
    if any(name.startswith("train/") and name.count("/") == 2 for name in images):
        return (
            f"{text}; it seems to hold a folder for each class, which is for classification: train "
            "without --task detect"
        )
    return text


def missing_image(name: str, names: Collection[str]) -> str:
    """What to do for an image file that is not among the `names` in the folder of images."""
    short = name.rpartition("/")[2]
    if short != name and short in names:
        return f"file_name is without a folder, as {short}"
    return "copy it there, or take the image and its annotations out"


def unknown_category(wrong: Any, labels: Mapping[int, int], categories: Sequence[Any]) -> str:
    """What is wrong with a category_id that no category has."""
    text = f"category_id {short_text(wrong)} is not in the list categories"
    ids = [each["id"] for each in categories if each.get("name") == wrong]
    if isinstance(wrong, str) and ids:
        return f"{text}; it is a name, whose id is {ids[0]}: write the id"
    if isinstance(wrong, str) and wrong.isdecimal() and int(wrong) in labels:
        return f"{text}, because it is a text; write {wrong} without quotes"
    more = " and more" if len(labels) > SHOWN_IDS else ""
    return f"{text}, whose ids are {', '.join(map(str, sorted(labels)[:SHOWN_IDS]))}{more}"


def wrong_category(categories: Sequence[Any]) -> str | None:
    """What is wrong with the ids in the list categories, or None."""
    for place, each in enumerate(categories):
        number = each.get("id") if isinstance(each, dict) else None
        if not is_whole(number):
            return (
                f"a category without a whole number as its id: entry {place} has "
                f"{short_text(number)}; write it like {ENTRIES['categories']}"
            )
    if not categories:
        return f"no categories; give a list like [{ENTRIES['categories']}]"
    ids = [each["id"] for each in categories]
    twice = next((number for number in ids if ids.count(number) > 1), None)
    return None if twice is None else f"two categories with one id, {twice}; give each its own"
