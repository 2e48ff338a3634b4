"""Packing images into Parquet shards: `mambaout pack SOURCE OUT`.

Rows are written in a hashed order, so that a row group is a fair sample of the source; packing
twice gives the same bytes. Files are stored as they are; arrays of pixels become PNG.

Writes: OUT/train-00000-of-0000N.parquet, OUT/validation-...; the whole folder or nothing.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from mambaout.data.draws import draw, hash64
from mambaout.data.files import DataError
from mambaout.data.shards import CONTENT, HUGGING_FACE

VAL_FRACTION = 0.2  # of a source without a validation split

SHARD_BYTES = 256 << 20
GROUP_BYTES = 16 << 20  # about 150 ImageNet photographs
GROUP_ROWS = 4096

SPLIT_FILES = {"train": "train", "val": "validation"}  # Hugging Face's names


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image of a source, read when it is asked for."""

    path: str  # unique within the source; the sample's identity
    label: int
    read: Callable[[], bytes | np.ndarray]  # an image file, or uint8 pixels (H, W) or (H, W, 3)


@dataclass(frozen=True, slots=True)
class Source:
    """The labelled images of both splits."""

    name: str
    class_names: tuple[str, ...] | None
    train: Sequence[Sample]
    val: Sequence[Sample]
    num_bytes: int = 0  # that the shards will take, where it is known


def write_shards(source: Source, out: Path, *, progress: bool = True) -> None:
    """Write `source` as shards into the folder `out`, which must not exist or be empty.

    Raises DataError for an empty split or class, an unreadable image or a folder in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there and not an empty folder; pack into a new one")
    _check(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if source.num_bytes > free:
        raise DataError(
            f"packing {source.name} takes {source.num_bytes / 2**30:.1f} GiB, and {out.parent} has "
            f"{free / 2**30:.1f} GiB left; `mambaout pack SOURCE OUT` writes where there is room"
        )
    aside = out.with_name(f".{out.name}.packing-{uuid4().hex[:8]}")
    aside.mkdir()
    try:
        total = len(source.train) + len(source.val)
        with tqdm(
            total=total, unit="image", desc=f"pack {source.name}", disable=not progress
        ) as bar:
            for split, samples in (("train", source.train), ("val", source.val)):
                _write_split(aside, split, samples, source.class_names, bar)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check(source: Source) -> None:
    for split in ("train", "val"):
        if not getattr(source, split):
            raise DataError(f"{source.name} has no {split} images")
    if source.class_names is not None:
        present = {sample.label for sample in source.train}
        empty = [name for label, name in enumerate(source.class_names) if label not in present]
        if empty:
            raise DataError(
                f"{source.name}: no training image of {len(empty)} of "
                f"{len(source.class_names)} classes, {empty[0]!r} first; remove the class's folder "
                "or fill it"
            )


def _write_split(
    folder: Path, split: str, samples: Sequence[Sample], names: Sequence[str] | None, bar: tqdm
) -> None:
    schema = _schema(names)
    ordered = sorted(samples, key=lambda sample: (hash64(sample.path.encode()), sample.path))
    written: list[Path] = []
    writer: _ShardWriter | None = None
    for sample in ordered:
        if writer is None:
            writer = _ShardWriter(folder / f"{split}-{len(written)}", schema)
            written.append(writer.path)
        writer.add(sample)
        bar.update()
        if writer.num_bytes >= SHARD_BYTES:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    for index, path in enumerate(written):
        name = f"{SPLIT_FILES[split]}-{index:05d}-of-{len(written):05d}.parquet"
        path.rename(folder / name)


def split_by_hash(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Train and val of samples that come without a split; a sample's side depends on its path."""
    train: list[Sample] = []
    val: list[Sample] = []
    for sample in samples:
        held_out = draw("val", hash64(sample.path.encode())) < VAL_FRACTION * 2**64
        (val if held_out else train).append(sample)
    return train, val


class _ShardWriter:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        # Compressed images do not compress, and their statistics would copy whole images.
        self.writer = pq.ParquetWriter(
            path, schema, compression="none", use_dictionary=False, write_statistics=False
        )
        self.content = blake2b(digest_size=16)
        self.rows: list[dict] = []
        self.group_bytes = self.num_bytes = 0

    def add(self, sample: Sample) -> None:
        image = sample.read()
        encoded = _png(image) if isinstance(image, np.ndarray) else image
        content = image.tobytes() if isinstance(image, np.ndarray) else image
        for part in (sample.path.encode(), str(sample.label).encode(), content):
            self.content.update(len(part).to_bytes(8, "little") + part)
        self.rows.append({"image": {"bytes": encoded, "path": sample.path}, "label": sample.label})
        self.group_bytes += len(encoded)
        self.num_bytes += len(encoded)
        if self.group_bytes >= GROUP_BYTES or len(self.rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows, self.group_bytes = [], 0

    def close(self) -> None:
        self._flush()
        self.writer.add_key_value_metadata({CONTENT.decode(): self.content.hexdigest()})
        self.writer.close()


def _schema(names: Sequence[str] | None) -> pa.Schema:
    label: dict = {"dtype": "int64", "_type": "Value"}
    if names is not None:
        label = {"names": list(names), "_type": "ClassLabel"}
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={HUGGING_FACE: json.dumps(features).encode()},
    )


def _png(pixels: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "png")
    return target.getvalue()
