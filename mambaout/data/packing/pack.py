"""Packs images into Parquet shards: `mambaout pack SOURCE OUT`.

Rows are written in a hashed order, so that a row group is a fair sample of the source. Only the
rows of Parquet shards keep their order. Packing twice gives the same bytes, on any number of cores.
JPEGs are re-cut without loss, so that a crop decodes only a part of them. Other files are stored as
they are, and arrays of pixels as PNG. `lossy` re-encodes all images, and the shards record that.

Writes: OUT/train-00000-of-0000N.parquet, OUT/validation-...; the whole folder or nothing.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mambaout.data.bar import progress_bar
from mambaout.data.draws import draw, hash64
from mambaout.data.packing.storing import LossyEncoding, RowMaker, Sample, ShardRow
from mambaout.data.shards.columns import HUGGING_FACE
from mambaout.data.shards.data_set import VAL_FRACTION
from mambaout.data.shards.described_set import CONTENT, LOSSY
from mambaout.data.shards.encoded import SEGMENTS
from mambaout.data.shards.files import DataError
from mambaout.durable import replacing
from mambaout.numbers import bytes_text, counted, rate_text

SHARD_BYTES = 256 << 20
GROUP_BYTES = 16 << 20  # about 150 ImageNet photographs
GROUP_ROWS = 4096

SPLIT_FILES = {"train": "train", "val": "validation"}  # Hugging Face's names


class Samples(Protocol):
    """The samples of a split. They have a length, and can be iterated over any number of times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """The labelled images of both splits."""

    name: str
    class_names: tuple[str, ...] | None
    train: Samples
    val: Samples
    num_bytes: int = 0  # the estimated size of the shards; 0: not known
    is_stream: bool = False  # True: rows keep their order, a class may be empty; else hashed order
    lossy: str | None = None  # how its images were re-encoded before
    remark: str = ""  # a line for the user: what was left out, and what is odd


@dataclass(slots=True)
class PackReport:
    """What `write_shards` did; `str` makes one line of it."""

    recut: bool
    lossy: str | None
    num_cores: int
    num_images: int = 0
    num_recut: int = 0
    bytes_before: int = 0  # of the files that were re-cut or re-encoded
    bytes_after: int = 0  # of the files stored instead, without their segments
    segments_bytes: int = 0
    kept: Counter[str] = field(default_factory=Counter)  # files stored unchanged, for each kind
    seconds: float = 0.0

    def add(self, row: ShardRow) -> None:
        self.num_images += 1
        if row.stored.kept_for is not None:
            self.kept[row.stored.kept_for] += 1
        if row.stored.segments is not None:
            self.num_recut += 1
            self.bytes_before += row.num_bytes
            self.bytes_after += len(row.stored.encoded)
            self.segments_bytes += len(row.stored.segments)

    def __str__(self) -> str:
        speed = self.num_images / max(self.seconds, 1e-9)
        text = f"packed {self.num_images:,} images in {self.seconds:,.0f} s, {rate_text(speed)} "
        text += f"images/s on {counted(self.num_cores, 'core')}"
        if not self.recut:
            return f"{text}; all stored as they are"
        if self.num_recut:
            what = "JPEGs re-cut" if self.lossy is None else f"re-encoded at {self.lossy}"
            bytes_change = 100 * (self.bytes_after / self.bytes_before - 1)
            index = 100 * self.segments_bytes / self.bytes_before
            text += f"; {self.num_recut:,} {what} ({bytes_change:+.1f} % bytes"
            text += f", {index:+.1f} % for the segments' index)"
        if self.kept:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.kept.items()))
            text += f"; {self.kept.total():,} stored as they are: {kinds}"
        return text


def write_shards(
    source: Source,
    out: Path,
    *,
    progress: bool = True,
    as_is: bool = False,
    lossy: LossyEncoding | None = None,
) -> PackReport:
    """Write `source` as shards into the folder `out`, which must be new or empty.

    Raises DataError for an empty split or class, an unreadable image, a folder that is not empty,
    or a JPEG that must be re-cut if jpegtran is missing.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there and not an empty folder; pack into a new one")
    if as_is and lossy is not None:
        raise DataError(f"images stored as they are cannot have {lossy}; leave one of both out")
    _check(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if source.num_bytes > free and lossy is None:
        raise DataError(
            f"packing {source.name} takes {bytes_text(source.num_bytes)}, and {out.parent} has "
            f"{bytes_text(free)} left; `mambaout pack SOURCE OUT` writes where there is room"
        )
    begun = time.monotonic()
    text = "; then ".join(str(step) for step in (source.lossy, lossy) if step is not None) or None
    total = len(source.train) + len(source.val)
    with replacing(out) as aside:
        aside.mkdir()
        with (
            RowMaker(as_is=as_is, lossy=lossy) as storing,
            progress_bar(
                total=total, unit=" images", desc=f"pack {source.name}", disable=not progress
            ) as bar,
        ):
            packed = PackReport(not as_is, text, storing.num_cores)
            schema = _schema(source.class_names, text)
            for split, samples in (("train", source.train), ("val", source.val)):
                rows = storing.rows(samples if source.is_stream else _in_hashed_order(samples))
                for row in _written(aside, split, rows, schema):
                    packed.add(row)
                    bar.update()
        if out.exists():
            out.rmdir()
    packed.seconds = time.monotonic() - begun
    return packed


def _check(source: Source) -> None:
    if not source.train:
        raise DataError(f"{source.name} has no training images")
    if not source.val:
        raise DataError(
            f"{source.name} has no validation images, and its {len(source.train)} images are too "
            "few to hold one in five out; add images, or make the split yourself: train/CLASS/ and "
            "val/CLASS/"
        )
    if source.class_names is not None and not source.is_stream:
        present = {sample.label for sample in source.train}
        empty = [name for label, name in enumerate(source.class_names) if label not in present]
        if empty:
            raise DataError(
                f"{source.name}: no training image of {len(empty)} of "
                f"{len(source.class_names)} classes, {empty[0]!r} first; remove the class's folder "
                "or fill it"
            )


def _in_hashed_order(samples: Samples) -> list[Sample]:
    return sorted(samples, key=lambda sample: (hash64(_name(sample)), sample.path or ""))


def _written(
    folder: Path, split: str, rows: Iterator[ShardRow], schema: pa.Schema
) -> Iterator[ShardRow]:
    """Write the rows and yield each row after it is written. The shards get their final names when
    all rows are written."""
    written: list[Path] = []
    writer: _ShardWriter | None = None
    for row in rows:
        if writer is None:
            writer = _ShardWriter(folder / f"{split}-{len(written)}", schema)
            written.append(writer.path)
        writer.add(row)
        yield row
        if writer.num_bytes >= SHARD_BYTES:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    for index, path in enumerate(written):
        name = f"{SPLIT_FILES[split]}-{index:05d}-of-{len(written):05d}.parquet"
        path.rename(folder / name)


def _name(sample: Sample) -> bytes:
    return (sample.path or "").encode()


def split_by_hash(samples: Samples) -> tuple[list[Sample], list[Sample]]:
    """Split samples that have no split into train and val; a sample's path decides its side.

    If a class would have no training image, all its images are training images.
    """
    sides = [draw("val", hash64(_name(sample))) < VAL_FRACTION * 2**64 for sample in samples]
    trained = {sample.label for sample, aside in zip(samples, sides, strict=True) if not aside}
    train: list[Sample] = []
    val: list[Sample] = []
    for sample, aside in zip(samples, sides, strict=True):
        (val if aside and sample.label in trained else train).append(sample)
    return train, val


class _ShardWriter:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        # Compressed images do not compress, and their statistics would copy whole images.
        self.writer = pq.ParquetWriter(
            path, schema, compression="none", use_dictionary=False, write_statistics=False
        )
        self.content = blake2b((schema.metadata or {}).get(LOSSY, b""), digest_size=16)
        self.rows: list[dict] = []
        self.group_bytes = self.num_bytes = 0

    def add(self, row: ShardRow) -> None:
        sample, stored = row.sample, row.stored
        for part in (_name(sample), str(sample.label).encode(), row.content):
            self.content.update(len(part).to_bytes(8, "little") + part)
        image = {"bytes": stored.encoded, "path": sample.path}
        self.rows.append({"image": image, "label": sample.label, SEGMENTS: stored.segments})
        # The size counts the files as they were read, so that re-cutting moves no row to another
        # shard.
        num_bytes = row.num_bytes if stored.reencoded is None else len(stored.encoded)
        self.group_bytes += num_bytes
        self.num_bytes += num_bytes
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


def _schema(names: Sequence[str] | None, lossy: str | None) -> pa.Schema:
    label: dict = {"dtype": "int64", "_type": "Value"}
    if names is not None:
        label = {"names": list(names), "_type": "ClassLabel"}
    segments = {"dtype": "binary", "_type": "Value"}
    columns = {"image": {"_type": "Image"}, "label": label, SEGMENTS: segments}
    metadata = {HUGGING_FACE: json.dumps({"info": {"features": columns}}).encode()}
    if lossy is not None:
        metadata[LOSSY] = lossy.encode()
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            (SEGMENTS, pa.binary()),
        ],
        metadata=metadata,
    )
