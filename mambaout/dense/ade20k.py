"""Reads segmentation data in ADE20K's format from a folder or a bucket.

    data = read_ade20k("gs://bucket/ADEChallengeData2016", "train")
    print(data.report)                       # what is there, and what was left out
    pixels, labels = data.pair(3)            # uint8 (H, W, 3) and uint8 (H, W)

Layout: ROOT/images/{training,validation}/NAME.jpg and ROOT/annotations/{training,validation}/
NAME.png, with the names of the classes in ROOT/objectInfo150.txt. ROOT may be a folder above that,
if ADEChallengeData2016 or ade20k is the folder below it.

An annotation has one byte a pixel: 0 is not evaluated, and 1 to N are the classes. The labels here
are 0 to N - 1, and 255 is not evaluated. That an annotation fits its image and the classes is
checked when it is read. Data that cannot be right is a DataError, which names the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from mambaout.data.images.class_map import NoClassMap, class_map
from mambaout.data.images.decode import picture
from mambaout.data.shards.encoded import EncodedImage
from mambaout.data.shards.files import DataError, file_size, read_range, sizes_below
from mambaout.numbers import counted

SegmentSplit = Literal["train", "val"]

FOLDERS: Mapping[SegmentSplit, str] = {"train": "training", "val": "validation"}
BELOW = ("", "ADEChallengeData2016/", "ade20k/")  # where images/ and annotations/ may lie
NAMES = "objectInfo150.txt"
ENDINGS = (".jpg", ".jpeg", ".png")
IGNORED = 255  # the label of a pixel that is not evaluated
MOST_CLASSES = 254


@dataclass(frozen=True)
class SegmentData:
    """One split of a data set in ADE20K's format."""

    split: SegmentSplit
    folder: str  # that has images/ and annotations/
    names: tuple[str, ...]  # of the image files
    class_names: tuple[str, ...]  # of the labels 0, 1, ...
    left_out: Mapping[str, int]  # reason -> number
    fingerprint: str  # of the names and sizes of the files, and of the classes

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def report(self) -> str:
        """One line: the number of images and classes, and what was left out."""
        text = (
            f"{self.folder}/images/{FOLDERS[self.split]}: {counted(len(self), 'image')}, "
            f"{counted(self.num_classes, 'class', 'classes')}"
        )
        reasons = [f"{number:,} {reason}" for reason, number in self.left_out.items() if number]
        return f"{text}; left out: {', '.join(reasons)}" if reasons else text

    def image_file(self, index: int) -> str:
        return f"{self.folder}/images/{FOLDERS[self.split]}/{self.names[index]}"

    def annotation_file(self, index: int) -> str:
        name = PurePosixPath(self.names[index]).with_suffix(".png")
        return f"{self.folder}/annotations/{FOLDERS[self.split]}/{name}"

    def pixels(self, index: int) -> np.ndarray:
        """The image as uint8 (height, width, 3), red first."""
        file = self.image_file(index)
        try:
            found = picture(EncodedImage(_content(file), None))
            pixels = found.crop((0, 0, *found.size))
        except (MemoryError, DataError):
            raise
        except Exception as error:  # Pillow's plug-ins raise many kinds of errors
            raise DataError(f"{file} cannot be decoded: {error}; replace it") from error
        # A copy, because the decoder writes the next picture into the same memory.
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels.copy()

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image and its labels, uint8 (height, width, 3) and (height, width)."""
        pixels, file = self.pixels(index), self.annotation_file(index)
        labels = annotation(file)
        if labels.shape != pixels.shape[:2]:
            height, width = pixels.shape[:2]
            raise DataError(
                f"{file} has {labels.shape[1]} x {labels.shape[0]} px, and its image has "
                f"{width} x {height}; mend the one that is wrong"
            )
        labels = labels - np.uint8(1)  # 0 becomes 255
        wrong = labels[labels != IGNORED]
        if wrong.size and (largest := int(wrong.max())) >= self.num_classes:
            raise DataError(
                f"{file} has the value {largest + 1}, and there are {self.num_classes} classes; "
                f"mend it, or name all classes in {NAMES}"
            )
        return pixels, labels


def annotation(file: str) -> np.ndarray:
    """The bytes of an annotation, uint8 (height, width), as they are in the file."""
    try:
        return class_map(_content(file))
    except NoClassMap as error:
        raise DataError(
            f"{file}: {error}; write the number of a class, 0 to {MOST_CLASSES}, into each pixel "
            "of an 8-bit PNG"
        ) from None
    except (MemoryError, DataError):
        raise
    except Exception as error:
        raise DataError(f"{file} cannot be decoded: {error}; replace it") from error


def _content(file: str) -> memoryview:
    return memoryview(read_range(file, 0, file_size(file)))


# -- the folder -----------------------------------------------------------------------------------


def read_ade20k(root: str) -> tuple[SegmentData, SegmentData]:
    """The training and the validation split. DataError if a part is missing or broken."""
    root = root.rstrip("/")
    if os.path.isfile(root):
        raise DataError(f"{root} is a file; give the folder that has images/ and annotations/")
    there = sizes_below(root)
    inside = [part for part in BELOW if any(_is_in(name, part) for name in there)]
    if not inside:
        raise DataError(
            f"{root} has no images/training and images/validation; a data set in ADE20K's format "
            "has them, and annotations/training and annotations/validation"
        )
    part = inside[0]
    folder = f"{root}/{part}".rstrip("/")
    below = {n.removeprefix(part): size for n, size in there.items() if n.startswith(part)}
    found: dict[SegmentSplit, tuple[int, list[tuple[str, str]]]]
    found = {split: _pairs(folder, split, below) for split in FOLDERS}
    names = _class_names(f"{folder}/{NAMES}") if NAMES in below else None
    if names is None:
        files = [annotated for _, pairs in found.values() for _, annotated in pairs]
        names = _numbered_classes([f"{folder}/{file}" for file in files])
    splits = []
    for split, (num_other, pairs) in found.items():
        said = [f"{name} {below[name]}" for pair in pairs for name in pair]
        content = "\n".join([*said, *names]).encode()
        start = f"images/{FOLDERS[split]}/"
        splits.append(
            SegmentData(
                split=split,
                folder=folder,
                names=tuple(image.removeprefix(start) for image, _ in pairs),
                class_names=names,
                left_out={"files that are no JPEG or PNG": num_other} if num_other else {},
                fingerprint=blake2b(content, digest_size=8).hexdigest(),
            )
        )
    return splits[0], splits[1]


def _is_in(name: str, part: str) -> bool:
    return name.startswith(f"{part}images/training/")


def _pairs(
    folder: str, split: SegmentSplit, below: Mapping[str, int]
) -> tuple[int, list[tuple[str, str]]]:
    """How many files are left out, and the (image, annotation) files of a split, in order."""
    start, other = f"images/{FOLDERS[split]}/", f"annotations/{FOLDERS[split]}/"
    files = sorted(name for name in below if name.startswith(start))
    images = [name for name in files if name.lower().endswith(ENDINGS)]
    if not images:
        raise DataError(f"{folder}/{start} has no images; put the JPEG or PNG files there")
    pairs: dict[str, str] = {}
    for image in images:
        annotated = str(PurePosixPath(other + image.removeprefix(start)).with_suffix(".png"))
        if annotated not in below:
            raise DataError(
                f"{folder}/{image} has no annotation {annotated}; copy it there, or take the image "
                "out"
            )
        if annotated in pairs:
            raise DataError(
                f"{folder}/{image} and {pairs[annotated]} have one annotation, {annotated}; rename "
                "one image and its annotation"
            )
        pairs[annotated] = image
    lone = sorted(n for n in below if n.startswith(other) and n.endswith(".png") and n not in pairs)
    if lone:
        raise DataError(
            f"{folder}/{lone[0]} has no image in {start}; copy it there, or take the annotation out"
        )
    return len(files) - len(images), [(image, annotated) for annotated, image in pairs.items()]


# -- the classes ----------------------------------------------------------------------------------


def _class_names(file: str) -> tuple[str, ...]:
    """The names in the file: ADE20K's table, whose last column has them, or one name a line."""
    try:
        text = bytes(_content(file)).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file} is no text in UTF-8; give one name a line") from None
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    is_table = bool(lines) and "\t" in lines[0]
    names = tuple(line.split("\t")[-1].strip() for line in (lines[1:] if is_table else lines))
    if not 1 <= len(names) <= MOST_CLASSES:
        raise DataError(f"{file} names {len(names)} classes; give 1 to {MOST_CLASSES}, one a line")
    return names


def _numbered_classes(files: list[str]) -> tuple[str, ...]:
    """Numbers as names, up to the largest value in the annotations, which are all read."""
    with ThreadPoolExecutor() as threads:
        largest = max(threads.map(lambda file: int(annotation(file).max()), files))
    if not 1 <= largest <= MOST_CLASSES:
        raise DataError(
            f"the largest value in the annotations is {largest}, not 1 to {MOST_CLASSES}; give the "
            f"names of the classes in {NAMES}"
        )
    return tuple(str(number) for number in range(1, largest + 1))
