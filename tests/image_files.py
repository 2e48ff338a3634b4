"""Small real pictures as files and shards, for the tests of the data path."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mambaout.data.packing.image_tree import read_image_folder
from mambaout.data.packing.pack import Source
from mambaout.data.shards.files import DataError


def encoded(pixels: np.ndarray, form: str = "png") -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form)
    return target.getvalue()


@functools.cache
def _portrait() -> np.ndarray:
    import matplotlib

    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as image:
        return np.asarray(image.convert("RGB"))  # (606, 512, 3)


def photograph(height: int, width: int) -> np.ndarray:
    """A colour photograph that matplotlib carries, cut to size."""
    return np.ascontiguousarray(_portrait()[150 : 150 + height, 150 : 150 + width])


def pictures(count: int, *, size: int = 12, seed: int = 0) -> list[bytes]:
    """`count` PNG cuts of the photograph, all different."""
    whole = _portrait()
    places = np.random.default_rng(seed).permutation(500 * 400)[:count]
    cuts = [divmod(int(place), 400) for place in places]
    return [encoded(np.ascontiguousarray(whole[y : y + size, x : x + size])) for y, x in cuts]


def image_folder(
    root: Path,
    layout: str = "train/{}/{}",
    *,
    count: int = 24,
    classes: Sequence[str] = "abc",
    seed: int = 0,
) -> Path:
    """`count` pictures, dealt out to the folders of the classes in turn."""
    for i, image in enumerate(pictures(count, seed=seed)):
        path = root / layout.format(classes[i % len(classes)], f"{i:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return root


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    paths: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
    compression: str = "snappy",
    row_group_size: int = 7,
    label_type: pa.DataType | None = None,
) -> Path:
    """A shard as the `datasets` library writes it: snappy, small row groups, its own metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "int64"}
    metadata = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    paths = paths if paths is not None else [None] * len(images)
    rows = [{"bytes": b, "path": p} for b, p in zip(images, paths, strict=True)]
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", label_type or pa.int64()),
        ],
        metadata={"huggingface": json.dumps(metadata)},
    )
    table = pa.Table.from_pydict({"image": rows, "label": list(labels)}, schema=schema)
    pq.write_table(table, path, compression=compression, row_group_size=row_group_size)
    return path


def write_folder(
    root: Path, *, count: int = 50, num_val: int = 10, **options
) -> tuple[list[bytes], list[int]]:
    """A Hugging Face folder of `count` training pictures in two shards, `num_val` in one."""
    images = pictures(count + num_val)
    labels = [i % 5 for i in range(count + num_val)]
    half = count // 2
    parts = (
        ("data/train-00000-of-00002.parquet", slice(0, half)),
        ("data/train-00001-of-00002.parquet", slice(half, count)),
        ("data/validation-00000-of-00001.parquet", slice(count, None)),
    )
    paths = options.pop("paths", None)
    for name, part in parts:
        own = None if paths is None else paths[part]
        write_parquet(root / name, images[part], labels[part], paths=own, **options)
    return images, labels


# -- what is read of a folder of images ----------------------------------------------------------


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def remark(root: Path) -> str:
    return read_image_folder(root)[0].remark


def refused(root: Path) -> str:
    with pytest.raises(DataError) as raised:
        source_of(root)
    message = str(raised.value)
    assert "\n" not in message
    return message


def source_of(root: Path) -> Source:
    return read_image_folder(root)[0].source()


def counts(root: Path) -> tuple[int, int]:
    source = source_of(root)
    return len(source.train), len(source.val)


# -- permissions, for root too --------------------------------------------------------------------

NOBODY = 65534


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """No permission goes beyond its bits here, which root's would."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)
