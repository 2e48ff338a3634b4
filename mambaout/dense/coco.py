"""Reads detection data in COCO format from a folder or a bucket, with mmdetection's filters.

    data = read_coco("gs://bucket/coco", "train")     # annotations/instances_train2017.json
    print(data.report)                                 # what was left out, and how much of it
    data.labels_to_ids[3]                              # label 3 is this category id of the file

Layout: ROOT/annotations/instances_SPLIT*.json and the images in ROOT/SPLIT* or ROOT/images/SPLIT*.

For training, mmdetection (mmdet/datasets/coco.py) leaves out these, and so does this reader:
- a box that is marked `ignore`, is outside of its image, has no area, or has a side under 1 px;
- a crowd, which has no instances to learn;
- an image without annotations, and an image with a side under 32 px.
For evaluation all images stay, and COCO's own rules decide about crowds. `report` says how many
were left out. Data that cannot be right is a DataError, which names the file, the image id and the
annotation id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from mambaout.data.images.decode import picture
from mambaout.data.shards.encoded import EncodedImage
from mambaout.data.shards.files import DataError, file_size, read_range, sizes_below
from mambaout.dense.coco_hints import (
    ENTRIES,
    missing_annotations,
    missing_image,
    unknown_category,
    wrong_category,
    wrong_root,
)
from mambaout.dense.coco_masks import (
    area_of,
    is_finite,
    is_whole,
    mask_of,
    segmentation_fault,
    short_text,
)
from mambaout.numbers import counted

CocoSplit = Literal["train", "val"]

LEAST_SIDE = 32  # px of an image that is trained on; mmdetection's filter_cfg
LEAST_BOX_SIDE = 1  # px of a box; mmdetection
BEYOND = 2  # px by which a box may reach beyond its image; rounding does so
MANY_BEYOND = 0.05  # of all boxes; more of them are a mistake in the file
YEARS = ("2017", "", "2014")  # endings of a split's name, in the order in which they are tried


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One object of an image. `box` is (left, top, right, bottom) in pixels of the image file."""

    annotation: int  # its id in the file
    label: int  # 1 to the number of classes
    box: tuple[float, float, float, float]
    segmentation: Any  # polygons or an RLE, as in the file; None if there is none

    def mask(self, size: tuple[int, int], resized: tuple[int, int]) -> np.ndarray:
        """The mask, uint8 (height, width), in an image of `size` that is now `resized`.

        Both sizes are (height, width). Polygons are resized before they are drawn.
        """
        return mask_of(self.segmentation, size, resized)


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image file with its objects."""

    id: int
    file_name: str
    height: int
    width: int
    objects: tuple[CocoObject, ...]


@dataclass(frozen=True)
class CocoData:
    """One split of a data set in COCO format."""

    split: CocoSplit
    file: str  # of the annotations
    folder: str  # of the images
    images: Sequence[CocoImage]
    class_names: tuple[str, ...]  # of the labels 1, 2, ...
    category_ids: tuple[int, ...]  # of the same labels, in the file
    left_out: Mapping[str, int]  # reason -> number
    has_masks: bool
    body: Mapping[str, Any]  # of val, the file's content, which COCO's evaluation reads; else empty
    fingerprint: str
    warning: str = ""  # what seems to be wrong and is no error

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def labels_to_ids(self) -> dict[int, int]:
        return dict(enumerate(self.category_ids, 1))

    @property
    def report(self) -> str:
        """One line: the number of images, objects and classes, and what was left out."""
        num_objects = sum(len(image.objects) for image in self.images)
        text = (
            f"{self.file}: {counted(len(self.images), 'image')}, "
            f"{counted(num_objects, 'object')}, {counted(self.num_classes, 'class', 'classes')}"
        )
        left_out = _counts_text(self.left_out)
        text = f"{text}; left out: {left_out}" if left_out else text
        return f"{text}; {self.warning}" if self.warning else text

    def pixels(self, image: CocoImage) -> np.ndarray:
        """The image as uint8 (height, width, 3). DataError if it cannot be read or decoded."""
        location = f"{self.folder}/{image.file_name}"
        encoded = memoryview(read_range(location, 0, file_size(location)))
        try:
            found = picture(EncodedImage(encoded, None))
            width, height = found.size
            pixels = found.crop((0, 0, width, height))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plug-ins raise many kinds of errors
            raise DataError(f"{location} cannot be decoded: {error}; replace it") from error
        if (height, width) != (image.height, image.width):
            raise DataError(
                f"{location} has {width} x {height} px, and image {image.id} of {self.file} says "
                f"{image.width} x {image.height}; mend the one that is wrong"
            )
        # A copy, because the decoder writes the next picture into the same memory.
        if pixels.ndim == 2:
            return np.repeat(pixels[..., None], 3, axis=2)
        return pixels.copy()


def _counts_text(counts: Mapping[str, int]) -> str:
    """{"crowds": 1, "boxes without area": 2} -> "1 crowd, 2 boxes without area"."""
    words = []
    for reason, number in counts.items():
        many, space, rest = reason.partition(" ")
        one = "box" if many == "boxes" else many.removesuffix("s")
        words += [f"{counted(number, one, many)}{space}{rest}"] * bool(number)
    return ", ".join(words)


# -- the file -------------------------------------------------------------------------------------


def read_coco(root: str, split: CocoSplit) -> CocoData:
    """The split in the folder or bucket `root`. DataError if a part is missing or broken."""
    root = root.rstrip("/")
    if fault := wrong_root(root):
        raise DataError(fault)
    there = sizes_below(root)
    years = [year for year in YEARS if f"annotations/instances_{split}{year}.json" in there]
    if not years:
        raise DataError(missing_annotations(root, split, there))
    name = f"{split}{years[0]}"
    file = f"{root}/annotations/instances_{name}.json"
    content = read_range(file, 0, file_size(file)).to_pybytes()
    body = _parsed(file, content)
    folders = [f"{part}{name}/" for part in ("", "images/")]
    inside = {folder: sum(path.startswith(folder) for path in there) for folder in folders}
    folder = max(folders, key=lambda each: inside[each])
    if not inside[folder]:
        raise DataError(f"{root} has no images for {file}: expected them in {' or '.join(folders)}")
    names = {path.removeprefix(folder) for path in there if path.startswith(folder)}
    # An image that is replaced has another size in all but the rarest cases. To read all images of
    # COCO, 19 GB, would take minutes at each start.
    images = "".join(f"{path} {there[path]}\n" for path in sorted(there) if path.startswith(folder))
    fingerprint = blake2b(content + images.encode(), digest_size=8).hexdigest()
    return _Reader(split, file, body).read(f"{root}/{folder.rstrip('/')}", names, fingerprint)


def _parsed(file: str, content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} is no whole JSON ({error}); it may have been cut off: copy it again"
        ) from None
    for part, entry in ENTRIES.items():
        if not isinstance(body, dict) or not isinstance(body.get(part), list):
            raise DataError(
                f"{file} has no list {part!r}, so it is not in COCO's format; add it, with entries "
                f"like {entry}"
            )
    return body


class _Reader:
    """Checks a file's content piece by piece. It counts what it leaves out."""

    def __init__(self, split: CocoSplit, file: str, body: dict[str, Any]) -> None:
        self.split: CocoSplit = split
        self.file, self.body = file, body
        self.counts: Counter[str] = Counter()
        self.num_beyond = 0  # boxes that reach beyond their image
        self.labels = self._labels()

    def read(self, folder: str, names: set[str], fingerprint: str) -> CocoData:
        infos = self._infos(folder, names)
        of_image: dict[int, list[dict[str, Any]]] = {number: [] for number in infos}
        seen: set[int] = set()
        for place, annotation in enumerate(self.body["annotations"]):
            self._check(annotation, place, infos, seen)
            of_image[annotation["image_id"]].append(annotation)
        has_masks = any(a.get("segmentation") for a in self.body["annotations"])
        if has_masks and self.split == "val":
            self._check_masks()
        images = []
        for number, info in infos.items():
            if self._keeps_image(info, of_image[number]):
                found = [self._object(info, each, has_masks) for each in of_image[number]]
                objects = tuple(each for each in found if each is not None)
                size = info["height"], info["width"]
                images.append(CocoImage(number, info["file_name"], *size, objects))
        if not images or (self.split == "train" and not any(each.objects for each in images)):
            raise DataError(
                f"{self.file} has no {'object' if images else 'image'} to use; left out: "
                f"{_counts_text(self.counts) or 'nothing'}; a bbox is [left, top, width, height] "
                "in pixels"
            )
        ordered = sorted(self.body["categories"], key=lambda each: self.labels[each["id"]])
        return CocoData(
            split=self.split,
            file=self.file,
            folder=folder,
            images=images,
            class_names=tuple(str(each.get("name", each["id"])) for each in ordered),
            category_ids=tuple(each["id"] for each in ordered),
            left_out=dict(self.counts),
            has_masks=has_masks,
            body=self.body if self.split == "val" else {},
            fingerprint=fingerprint,
            warning=self._warning(),
        )

    def _warning(self) -> str:
        """A sentence if the boxes seem to be [left, top, right, bottom]; "" if not."""
        total = len(self.body["annotations"])
        if self.num_beyond <= MANY_BEYOND * total:
            return ""
        return (
            f"{self.num_beyond:,} of {total:,} boxes reach beyond their image; is each bbox [left, "
            "top, width, height] in pixels?"
        )

    def _labels(self) -> dict[int, int]:
        """The label, 1 to N, of each category id. The file's ids may have gaps."""
        if fault := wrong_category(self.body["categories"]):
            raise DataError(f"{self.file} has {fault}")
        ids = [each["id"] for each in self.body["categories"]]
        return {number: label for label, number in enumerate(sorted(ids), 1)}

    def _infos(self, folder: str, names: set[str]) -> dict[int, dict[str, Any]]:
        """The entries of `images`, by id."""
        infos: dict[int, dict[str, Any]] = {}
        for place, info in enumerate(self.body["images"]):
            number: Any = info.get("id") if isinstance(info, dict) else None
            if not is_whole(number):
                raise DataError(f"{self.file}: entry {place} of images has no whole number as id")
            if number in infos:
                raise DataError(f"{self.file}: two images have the id {number}")
            sizes: list[Any] = [info.get(side) for side in ("height", "width")]
            if not all(is_whole(size) and size > 0 for size in sizes):
                height, width = map(short_text, sizes)
                raise DataError(
                    f"{self.file}: image {number} has no height and width in pixels: the height is "
                    f"{height} and the width {width}; write two whole numbers"
                )
            if not isinstance(info.get("file_name"), str):
                raise DataError(f"{self.file}: image {number} has no file_name")
            if info["file_name"] not in names:
                raise DataError(
                    f"{self.file}: the file of image {number}, {info['file_name']}, is not in "
                    f"{folder}; {missing_image(info['file_name'], names)}"
                )
            infos[number] = info
        return infos

    def _check(self, annotation: Any, place: int, infos: Mapping[int, Any], seen: set[int]) -> None:
        """Raise DataError if an annotation is broken. A missing area is filled in."""
        if not isinstance(annotation, dict) or not is_whole(annotation.get("id")):
            raise DataError(f"{self.file}: entry {place} of annotations has no whole number as id")
        number: int = annotation["id"]
        image: Any = annotation.get("image_id")
        if number in seen:
            raise DataError(f"{self.file}: two annotations have the id {number}")
        seen.add(number)
        if not is_whole(image) or image not in infos:
            raise self._broken(annotation, "its image is not in the list images")
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
            raise self._broken(
                annotation, f"bbox is {short_text(box)}, not [left, top, width, height]"
            )
        category: Any = annotation.get("category_id")
        if not is_whole(category) or category not in self.labels:
            said = unknown_category(category, self.labels, self.body["categories"])
            raise self._broken(annotation, said)
        segmentation = annotation.get("segmentation")
        size = infos[image]["height"], infos[image]["width"]
        left, top, width, height = box
        begins_inside = left < size[1] and top < size[0]
        beyond = max(left + width - size[1], top + height - size[0])
        self.num_beyond += begins_inside and beyond > BEYOND
        if segmentation and (fault := segmentation_fault(segmentation, size)):
            raise self._broken(annotation, fault)
        annotation.setdefault("iscrowd", 0)
        if not is_finite(annotation.get("area")):
            if "area" in annotation:
                raise self._broken(
                    annotation, f"area is {short_text(annotation['area'])}, no number"
                )
            annotation["area"] = area_of(segmentation, size) if segmentation else box[2] * box[3]

    def _check_masks(self) -> None:
        """Raise DataError if an object has no mask, because then no figure of masks is right."""
        for annotation in self.body["annotations"]:
            if not annotation.get("segmentation"):
                raise self._broken(annotation, "it has no segmentation, and others have one")

    def _broken(self, annotation: Mapping[str, Any], what: str) -> DataError:
        return DataError(
            f"{self.file}: image {annotation.get('image_id')!r}, annotation {annotation['id']}: "
            f"{what}; mend it or take it out"
        )

    def _keeps_image(self, info: Mapping[str, Any], annotations: Sequence[Any]) -> bool:
        if self.split != "train":
            return True
        reason = None
        if not annotations:
            reason = "images without annotations"
        elif min(info["height"], info["width"]) < LEAST_SIDE:
            reason = f"images under {LEAST_SIDE} px"
        if reason is not None:
            self.counts[reason] += 1
        return reason is None

    def _object(
        self, info: Mapping[str, Any], annotation: Mapping[str, Any], has_masks: bool
    ) -> CocoObject | None:
        """The object of an annotation; None if it is left out."""
        left, top, width, height = annotation["bbox"]
        inside = (
            min(left + width, info["width"]) - max(left, 0),
            min(top + height, info["height"]) - max(top, 0),
        )
        segmentation = annotation.get("segmentation") or None
        reason = None
        if annotation.get("ignore"):
            reason = "boxes marked ignore"
        elif min(inside) <= 0:
            reason = "boxes outside of the image"
        elif annotation["area"] <= 0 or min(width, height) < LEAST_BOX_SIDE:
            reason = "boxes without area"
        elif annotation["iscrowd"]:
            reason = "crowds"
        elif has_masks and segmentation is None:
            reason = "objects without a mask"
        if reason is not None:
            if self.split == "train":  # the evaluation has rules of its own for each of them
                self.counts[reason] += 1
            return None
        label = self.labels[annotation["category_id"]]
        box = (float(left), float(top), float(left + width), float(top + height))
        return CocoObject(annotation["id"], label, box, segmentation)
