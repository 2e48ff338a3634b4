"""Reads idx files: arrays of bytes, often gzipped. MNIST and similar sets are published so.

A folder holds four of them: the images and labels of train, and those of t10k, which is read as
val.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from mambaout.data.packing.pack import Source
from mambaout.data.packing.storing import Sample
from mambaout.data.packing.walk import listed, shown
from mambaout.data.shards.files import DataError

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def find_idx_files(folder: Path) -> dict[str, list[Path]] | None:
    """The files of both splits: images and labels, gzipped or not; None if there is none of them.

    Raises DataError if only some of the four exist.
    """
    found: dict[str, list[Path]] = {}
    missing: list[str] = []
    for split, names in IDX_FILES.items():
        for name in names:
            there = [p for p in (folder / name, folder / f"{name}.gz") if os.path.isfile(p)]
            found.setdefault(split, []).extend(there[:1])
            missing += [] if there else [name]
    if not any(found.values()):
        return None
    if missing:
        raise DataError(
            f"{shown(folder)} lacks {listed(missing)} of the four idx files, gzipped or not; put "
            "it there too"
        )
    return found


def read_idx_folder(folder: Path, names: tuple[str, ...] | None) -> Source:
    """The labelled images of the four files; DataError for an incomplete file."""
    splits: dict[str, list[Sample]] = {}
    files = find_idx_files(folder)
    if files is None:
        raise DataError(f"{folder} holds none of the four idx files of train and t10k")
    for split, (images_file, labels_file) in files.items():
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        if len(images) != len(labels):
            raise DataError(
                f"{images_file} has {len(images)} images, {labels_file} {len(labels)} labels"
            )
        splits[split] = array_samples(images, labels)
    return Source(folder.name, names, splits["train"], splits["val"])


def array_samples(images: np.ndarray, labels: np.ndarray) -> list[Sample]:
    return [
        Sample(f"{index:06d}.png", int(label), partial(images.__getitem__, index))
        for index, label in enumerate(labels)
    ]


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """The uint8 array in an idx file.

    The file begins with two zero bytes, the type 8 and the number of dimensions. Then comes the
    size of each dimension as a big-endian u32, then the values.
    """
    wrong = f"{path} is not a whole idx file of bytes in {num_dimensions} dimensions; get it again"
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(wrong) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); make it readable") from error
    start = 4 + 4 * num_dimensions
    if len(data) < start or data[:4] != bytes([0, 0, 8, num_dimensions]):
        raise DataError(wrong)
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    if len(data) - start != math.prod(shape):
        raise DataError(wrong)
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
