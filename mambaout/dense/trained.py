"""What a trained detector and a trained segmenter share: their classes, and images to look at."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mambaout.data.images.decode import picture
from mambaout.data.shards.encoded import EncodedImage
from mambaout.data.shards.files import DataError, file_size, names_below, read_range
from mambaout.dense.coco_hints import IMAGE_ENDINGS
from mambaout.errors import WrongRequest
from mambaout.numbers import counted

SHOWN_CLASSES = 5  # names of classes in a sentence
ABSENT = "-"  # of a figure: the data have nothing that it is about


def class_names_in(saved: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes of a run's checkpoint, in the order of their labels; None: not said."""
    found = saved.get("classes")
    return tuple(map(str, found)) if isinstance(found, list) else None


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork(ABC):
    """A network with the weights of a run's checkpoint."""

    path: Path
    recipe: Any
    network: nn.Module
    class_names: tuple[str, ...] | None  # None: the checkpoint does not say them
    step: int

    @property
    @abstractmethod
    def num_classes(self) -> int: ...

    @property
    def names_to_show(self) -> tuple[str, ...]:
        """The classes' names, or "class 1" and so on if the checkpoint does not say them."""
        return self.class_names or tuple(f"class {n}" for n in range(1, self.num_classes + 1))

    def require_classes(self, theirs: Sequence[str], place: str, remedy: str) -> None:
        """Raise WrongRequest if the data at `place` have other classes or another order."""
        ours, theirs = self.names_to_show, tuple(theirs)
        if ours == theirs or (self.class_names is None and len(ours) == len(theirs)):
            return
        differs = ""
        if len(ours) == len(theirs):
            pairs = enumerate(zip(ours, theirs, strict=True), 1)
            differs = "; class {} is {!r} there and {!r} here".format(
                *next((n, one, other) for n, (one, other) in pairs if one != other)
            )
        raise WrongRequest(
            f"{self.path} was trained on {_classes_text(ours)}, and {place} has "
            f"{_classes_text(theirs)}{differs}: {remedy}"
        )


def _classes_text(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN_CLASSES]))  # a name may have a comma in it
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return f"{counted(len(names), 'class', 'classes')} ({shown}{more})"


# -- images without annotations -------------------------------------------------------------------


@dataclass(frozen=True)
class Photograph:
    """An image file, and its size in pixels."""

    name: str  # below the folder
    height: int
    width: int


def photographs_in(folder: str) -> tuple[str, list[Photograph]]:
    """The folder or bucket without a slash at its end, and the images in it, at any depth.

    Raises DataError if there is none, or if one cannot be read.
    """
    folder = folder.rstrip("/")
    if os.path.isfile(folder):
        raise DataError(f"{folder} is a file; give the folder that it is in")
    names = sorted(n for n in names_below(folder) if n.lower().endswith(IMAGE_ENDINGS))
    if not names:
        raise DataError(
            f"{folder} has no image; give a folder with files that end in "
            f"{', '.join(IMAGE_ENDINGS)}"
        )
    found = []
    for name in names:
        location = f"{folder}/{name}"
        encoded = memoryview(read_range(location, 0, file_size(location)))
        try:
            width, height = picture(EncodedImage(encoded, None)).size
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plug-ins raise many kinds of errors
            raise DataError(f"{location} cannot be decoded: {error}; take it out") from error
        found.append(Photograph(name, height, width))
    return folder, found
