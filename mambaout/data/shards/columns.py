"""Finds the columns of a shard that hold the image, the label and the names of the classes.

Hugging Face's convention comes first: `image: struct<bytes, path>` and `label`. Then come the
columns that its metadata calls Image and ClassLabel, then the usual names. If two columns are
possible, this file does not guess: the user gives --image-column and --label-column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mambaout.data.shards.encoded import SEGMENTS, ImageColumn
from mambaout.data.shards.files import DataError, Footer
from mambaout.data.shards.parquet import read_columns

HUGGING_FACE = b"huggingface"  # the schema metadata that holds the features and the class names

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes")
LABEL_NAMES = (
    *("label", "labels", "fine_label", "coarse_label", "class", "class_label", "cls"),
    *("category", "target", "targets", "y"),
)

UNLABELLED = -1  # Hugging Face writes it as the label if the labels of a split are hidden


class Columns(NamedTuple):
    """The columns that are read."""

    image: ImageColumn
    label: str


CONVENTION = Columns(ImageColumn("image", is_struct=True), "label")


def find_columns(
    location: str, schema: pa.Schema, image: str | None = None, label: str | None = None
) -> Columns:
    """The image column and the label column of a shard.

    `image` and `label` are the names that the user gave. Raises DataError, with the candidates, if
    there is no such column or more than one is possible.
    """
    features, _ = read_features(schema)
    name = _chosen(
        location, schema, "image", image, _is_image, IMAGE_NAMES, _typed(features, "Image"),
        by_type=True,
        wanted="struct<bytes, path>, as Hugging Face stores an Image, or binary: the bytes of an "
        "image file; lists of pixels are not read",
    )  # fmt: skip
    label = _chosen(
        location, schema, "label", label, _is_label, LABEL_NAMES, _typed(features, "ClassLabel"),
        by_type=False,
        wanted="whole numbers or words",
    )  # fmt: skip
    return Columns(ImageColumn(name, is_struct=pa.types.is_struct(schema.field(name).type)), label)


def check_columns(location: str, schema: pa.Schema, columns: Columns, *, with_label: bool) -> None:
    """Raise DataError if the shard lacks a column. The label column is required only
    `with_label`, because a split with hidden labels may lack it."""
    image, label = columns.image.name, columns.label
    there = {field.name: field.type for field in schema}
    ok = image in there and _is_image(there[image])
    ok = ok and pa.types.is_struct(there[image]) == columns.image.is_struct
    ok = ok and (_is_label(there[label]) if label in there else not with_label)
    if not ok:
        raise DataError(
            f"{location} has the columns {_listed(schema)}; wanted {image} and {label} as in the "
            "first training shard"
        )


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _chosen(
    location: str,
    schema: pa.Schema,
    kind: str,
    given: str | None,
    is_kind: Callable[[pa.DataType], bool],
    usual: Iterable[str],
    by_feature: set[str],
    *,
    by_type: bool,
    wanted: str,
) -> str:
    columns = _listed(schema)
    if given is not None:
        if given not in schema.names:
            raise DataError(f"--{kind}-column {given}: {location} has the columns {columns}")
        if not is_kind(schema.field(given).type):
            raise DataError(
                f"--{kind}-column {given}: {location} has {schema.field(given).type} in it; "
                f"wanted {wanted}"
            )
        return given
    fitting = [
        field.name for field in schema if is_kind(field.type) and field.name != SEGMENTS
    ]  # fmt: skip
    choices = (
        [name for name in fitting if name == kind],
        [name for name in fitting if name in by_feature],
        [name for name in fitting if name.lower() in usual],
        fitting if by_type else [],
    )
    best = next((names for names in choices if names), [])
    if len(best) == 1:
        return best[0]
    if best:
        raise DataError(
            f"{location} has {len(best)} columns that may be the {kind}: {', '.join(best)}; name "
            f"one, for example --{kind}-column {best[0]}"
        )
    might = f"; if one of {', '.join(fitting)} is it, name it: --{kind}-column NAME"
    raise DataError(
        f"{location} has the columns {columns}, and none is known as the {kind}: wanted {wanted}"
        f"{might if fitting else ''}"
    )


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)  # all labels are missing
        or _is_text(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


# -- Hugging Face's metadata ----------------------------------------------------------------------


def read_features(schema: pa.Schema) -> tuple[Mapping[str, Mapping[str, Any]], str | None]:
    """Hugging Face's metadata of each column, and a text if the metadata is odd.

    The mapping is empty if there is no metadata, or if the `datasets` library did not write it.
    """
    text = (schema.metadata or {}).get(HUGGING_FACE)
    if text is None:
        return {}, None
    try:
        found: Any = json.loads(text)
        for name in ("info", "features"):
            found = {} if found is None else found.get(name)
        found = {} if found is None else found
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}, None
    except (ValueError, AttributeError):  # not JSON, or a list instead of an object
        return {}, "its huggingface metadata is not what the datasets library writes"


def _typed(features: Mapping[str, Mapping[str, Any]], kind: str) -> set[str]:
    return {name for name, feature in features.items() if feature.get("_type") == kind}


def class_names(schema: pa.Schema, label: str) -> tuple[tuple[str, ...] | None, str | None]:
    """The names of the classes, if the metadata has them, and a text if something is odd."""
    features, odd = read_features(schema)
    feature = features.get(label, {})
    if feature.get("_type") != "ClassLabel":
        return None, odd
    names, number = feature.get("names"), feature.get("num_classes")
    if isinstance(names, dict):  # {"0": "cat", "1": "dog"}, as in a data set's README
        by_number = {str(key): name for key, name in names.items()}
        names = [by_number.get(str(i)) for i in range(len(by_number))]
    if names is None and isinstance(number, int) and number > 0:
        names = range(number)
    if not names:
        return None, odd
    names = list(names) if isinstance(names, (list, range)) else [None]
    if any(name is None or isinstance(name, (list, dict)) for name in names):
        return None, f"the class names in its huggingface metadata cannot be read ({names!r:.60})"
    return tuple(str(name) for name in names), odd


# -- labels ---------------------------------------------------------------------------------------


def read_labels(
    location: str, schema: pa.Schema, label: str, num_rows: int, known: Footer | None = None
) -> np.ndarray:
    """The labels of a shard: int64, or an object array of str.

    All are UNLABELLED if the column is missing or has no value at all. Raises DataError if only
    some rows have a label.
    """
    if label not in schema.names:
        return np.full(num_rows, UNLABELLED)
    column = read_columns(location, [label], known=known).column(label)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count == len(column):
        return np.full(len(column), UNLABELLED)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{location} row {row} has no label")
    if not _is_text(column.type):
        try:
            return _numbers(column.cast(pa.int64()))
        except pa.ArrowInvalid as error:  # an unsigned label that is too large for int64
            raise DataError(f"{location}: the column {label} holds no labels: {error}") from error
    words = column.to_pylist()
    if "" in words:
        raise DataError(f"{location} row {words.index('')} has no label, but an empty text")
    return np.array(words, object)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """An int64 column without nulls as int64. pyarrow's `to_numpy` would import pandas, which takes
    half a second."""
    parts = [
        np.frombuffer(chunk.buffers()[1], np.int64, len(chunk), 8 * chunk.offset)
        for chunk in column.chunks
        if len(chunk)  # an empty one may have no buffer
    ]
    return np.concatenate([np.empty(0, np.int64), *parts])
