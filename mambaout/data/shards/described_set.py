"""Describes a data set by opening each of its shards: it reads footers and labels, but no images.

Each shard is described by itself. The descriptions are combined to one fingerprint, one list of
classes, and labels that fit it. If shards contradict each other, a DataError names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from mambaout.data.shards.columns import (
    CONVENTION,
    UNLABELLED,
    Columns,
    check_columns,
    class_names,
    find_columns,
    read_labels,
)
from mambaout.data.shards.description import Description
from mambaout.data.shards.encoded import Shard, place
from mambaout.data.shards.files import DataError, Footer, Stamp, file_size, read_ends
from mambaout.data.shards.parquet import footer_bytes, read_footer
from mambaout.data.shards.shard_files import SplitFiles, described_split

CONTENT = b"mambaout.content"  # a hash in hex of the images that `pack` read
LOSSY = b"mambaout.lossy"  # the setting with which `pack` re-encoded, if it changed pixels

DESCRIBE_THREADS = 16  # a remote shard's footer and labels take one round trip each

WHOLE_FILE_BYTES = 16 << 20  # a shard by others is hashed whole up to this size (fingerprint)


def described_set(
    name: str,
    location: str,
    files: SplitFiles,
    image_column: str | None,
    label_column: str | None,
) -> Description:
    """Open each shard and combine their descriptions. Raises DataError if they contradict."""
    first = files.train[0]
    schema = read_footer(first, _known(files.stamps[first])).schema.to_arrow_schema()
    columns = find_columns(first, schema, image_column, label_column)
    left_out: list[str] = []
    remarks: list[str] = []
    known: dict[str, list[DescribedShard]] = {}
    with ThreadPoolExecutor(DESCRIBE_THREADS) as pool:

        def describe(locations: Sequence[str], *, is_train: bool = False) -> list[DescribedShard]:
            def each(shard: str) -> DescribedShard:
                return _describe(shard, columns, is_train, files.stamps[shard])

            return list(pool.map(each, locations))

        known["train"] = describe(files.train, is_train=True)
        if not any(shard.is_labelled for shard in known["train"]):
            raise DataError(
                f"the training images of {location} have no labels: {columns.label} is empty or -1 "
                "in every row; if the labels are in another column, name it: --label-column NAME"
            )
        for split, locations in files.val.items():
            unlabelled = ""
            if "val" not in known:
                found = describe(locations)
                if any(shard.is_labelled for shard in found):
                    known["val"] = found
                    if "test" in split:
                        remarks.append(f"{name}: the val split is its {split} shards")
                    continue
                unlabelled = ", without labels"
            left_out.append(described_split(split, len(locations)) + unlabelled)
    if "val" not in known:
        remarks.append(f"{name}: no validation split: one in five training images is held out")
    return _description(location, columns, known, left_out, remarks)


class DescribedShard(NamedTuple):
    shard: Shard
    identity: bytes  # stands for the content
    is_whole: bool  # True: two shards with the same identity are copies
    class_names: tuple[str, ...] | None
    odd: str | None  # a text about odd metadata
    lossy: str | None
    labels: np.ndarray  # int64, or an object array of str

    @property
    def is_labelled(self) -> bool:
        return self.labels.dtype == object or bool((self.labels != UNLABELLED).any())


def _describe(
    location: str, columns: Columns, is_train: bool, stamp: Stamp | None
) -> DescribedShard:
    """The facts about a shard that are known before an image is read."""
    known = _known(stamp)
    metadata = read_footer(location, known)
    schema = metadata.schema.to_arrow_schema()
    check_columns(location, schema, columns, with_label=is_train)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    shard = Shard(
        location,
        tuple(group.num_rows for group in groups),
        sum(group.total_byte_size for group in groups),
        columns.image,
        None if stamp is None else Footer(stamp, footer_bytes(location, known)),
    )
    written = metadata.metadata or {}
    # `pack` stores an identity that stays the same if another pyarrow packs the same images. For
    # other shards the identity is the whole file, or the footer with the place, the sizes and the
    # statistics of every column.
    identity = written.get(CONTENT) or read_ends(location, WHOLE_FILE_BYTES, known)
    names, odd = class_names(schema, columns.label)
    return DescribedShard(
        shard,
        sha256(identity).digest(),
        CONTENT in written or file_size(location, known) <= WHOLE_FILE_BYTES,
        names,
        odd,
        written[LOSSY].decode() if LOSSY in written else None,
        read_labels(location, schema, columns.label, shard.num_rows, known),
    )


def _known(stamp: Stamp | None) -> Footer | None:
    return None if stamp is None else Footer(stamp)


def _description(
    location: str,
    columns: Columns,
    known: dict[str, list[DescribedShard]],
    left_out: list[str],
    remarks: list[str],
) -> Description:
    digest = sha256()
    for split, described in known.items():
        _check_once(split, described)
        digest.update(f"{split} {len(described)}".encode())
        for shard in described:
            digest.update(shard.identity)
    if columns != CONVENTION:  # the same files with another label column are another data set
        digest.update(repr((columns.image.name, columns.label)).encode())
    every = [shard for described in known.values() for shard in described]
    lossy = {shard.lossy for shard in every}
    if len(lossy) > 1:
        raise DataError(
            f"the shards of {location} do not agree on how their images were re-encoded "
            f"({', '.join(sorted(str(way) for way in lossy))}); pack them together"
        )
    for shard in [shard for shard in every if shard.odd][:1]:
        remarks.append(f"{shard.shard.location}: {shard.odd}; its classes are named by number")
    shards = {split: tuple(d.shard for d in described) for split, described in known.items()}
    labels, names = _labels(shards, known, _class_names(every))
    _check_labels(shards, labels, names)
    if names is None:
        names = tuple(str(label) for label in range(int(labels["train"].max()) + 1))
    return Description(
        fingerprint=digest.hexdigest()[:12],
        class_names=names,
        shards=shards,
        labels=labels,
        lossy=lossy.pop(),
        left_out=left_out,
        remarks=remarks,
    )


def _check_once(split: str, described: Sequence[DescribedShard]) -> None:
    """Raise DataError if two shards of the split have the same content."""
    seen: dict[bytes, str] = {}
    for shard, identity, is_whole, *_ in described:
        other = seen.setdefault(identity, shard.location) if is_whole and shard.num_rows else None
        if other not in (None, shard.location):
            raise DataError(
                f"{other} and {shard.location} hold the same rows, both of {split}; remove one"
            )


def _class_names(every: Sequence[DescribedShard]) -> tuple[str, ...] | None:
    """The class names of the shards, or None if no shard has any. Raises DataError if they
    differ."""
    named = [shard for shard in every if shard.class_names]
    for other in named[1:]:
        if other.class_names != named[0].class_names:
            raise DataError(
                f"{named[0].shard.location} and {other.shard.location} do not agree on the names "
                "of the classes; take out the one that is not of this data set"
            )
    return named[0].class_names if named else None


def _labels(
    shards: dict[str, tuple[Shard, ...]],
    known: dict[str, list[DescribedShard]],
    names: tuple[str, ...] | None,
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """int64 labels, and the names of the classes. If labels are words, their sorted order numbers
    the classes."""
    labels = {
        split: np.concatenate([shard.labels for shard in described])
        for split, described in known.items()
    }
    for split, values in labels.items():
        if not len(values):
            raise DataError(f"the {split} shards, {shards[split][0].location} first, have no rows")
    in_words = [d.shard.location for of in known.values() for d in of if d.labels.dtype == object]
    if not in_words:
        return labels, names
    numbers = [d for of in known.values() for d in of if d.labels.dtype != object and len(d.labels)]
    for other in numbers:
        raise DataError(
            f"the labels of {in_words[0]} are words, and those of {other.shard.location} are "
            "numbers or missing; take out the one that is not of this data set"
        )
    names = names or tuple(sorted(set(labels["train"])))
    number = {word: label for label, word in enumerate(names)}
    for split, words in labels.items():
        unknown = np.array([word not in number for word in words])
        if unknown.any():
            row = int(np.flatnonzero(unknown)[0])
            raise DataError(
                f"{place(shards[split], row)} has the label {words[row]!r}, which no training "
                f"image has; {np.count_nonzero(unknown)} rows of {split} are like it"
            )
    return {
        split: np.array([number[word] for word in words], np.int64)
        for split, words in labels.items()
    }, names


def _check_labels(
    shards: dict[str, tuple[Shard, ...]],
    labels: dict[str, np.ndarray],
    names: Sequence[str] | None,
) -> None:
    train = labels["train"]
    num_classes = len(names) if names else int(train.max()) + 1
    for split, values in labels.items():
        wrong = np.flatnonzero((values < 0) | (values >= num_classes))
        if len(wrong):
            source = "the class names say" if names else "the training labels reach"
            raise DataError(
                f"{place(shards[split], int(wrong[0]))} has label {values[wrong[0]]}, outside 0 to "
                f"{num_classes - 1}, which {source}; {len(wrong)} rows of {split} are like it"
            )
    # With class names, a part of a large data set may lack a class. Without names, a missing number
    # means that the labels are wrong.
    empty = np.flatnonzero(np.bincount(train, minlength=num_classes) == 0)
    if len(empty) and names is None:
        raise DataError(
            f"no training image has label {empty[0]} ({len(empty)} of the {num_classes} classes "
            "are empty); labels must count from 0 without a gap"
        )
    if len(train) > 1 and num_classes - len(empty) == 1:
        raise DataError(
            f"every training image has label {train[0]}, and telling classes apart needs two or "
            "more; is another column the label (--label-column)?"
        )
