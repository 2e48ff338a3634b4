"""Reads footers and columns of Parquet files, local or remote.

The bytes of a column chunk or a row group are first fetched in one ranged read (files.py), and then
parsed from memory. So an error of the store is never confused with a damaged file.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from mambaout.data.shards.files import (
    DataError,
    Footer,
    file_size,
    in_words,
    open_file,
    read_range,
)

HOLE_BYTES = 1 << 20  # a gap between two columns is read too: cheaper than a second request


@functools.lru_cache(maxsize=64)  # a parsed footer takes some 30 kB, its bytes 5 kB
def _parsed(tail: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(tail))


def footer_bytes(location: str, known: Footer | None = None) -> bytes:
    """The bytes of a file's footer, after `read_footer` has read it."""
    return open_file(location, known).tail


def read_footer(location: str, known: Footer | None = None) -> pq.FileMetaData:
    """The file's metadata; DataError if it is not a Parquet file or cannot be read."""
    try:
        return _parsed(open_file(location, known).tail)
    except OSError as error:
        raise DataError(
            f"{location} cannot be read as a Parquet file: {in_words(error)}"
        ) from error
    except pa.ArrowException as error:
        raise DataError(
            f"{location} cannot be read as a Parquet file: {_what_it_is(location, error)}"
        ) from error


def _what_it_is(location: str, error: pa.ArrowException) -> str:
    """Words that say why the file is not a complete Parquet file, and what to do about it."""
    size = file_size(location)
    head = read_range(location, 0, min(size, 64)).to_pybytes() if size else b""
    if head.startswith(b"version https://git-lfs"):
        return "it is the pointer that Git LFS keeps for it; run `git lfs pull` in its repository"
    if head.lstrip().startswith(b"<"):
        return "it is a web page, not the file that was asked for; download it again"
    if not size:
        return "it is empty; download it again"
    if head.startswith(b"PAR1"):
        return f"it is cut off or damaged ({size:,} bytes: {in_words(error)}); download it again"
    return f"{in_words(error)}; download it again"


def leaf_columns(location: str, known: Footer | None = None) -> dict[str, str]:
    """The stored columns with their physical types: {"image.bytes": "BYTE_ARRAY", ...}."""
    schema = read_footer(location, known).schema
    return {schema.column(i).path: schema.column(i).physical_type for i in range(len(schema))}


def read_columns(
    location: str,
    columns: Sequence[str],
    row_groups: Sequence[int] | None = None,
    known: Footer | None = None,
) -> pa.Table:
    """The stored columns of some row groups of a Parquet file, or of all.

    Raises DataError, which names the file and the row group, if it is damaged or cannot be read.
    """
    footer = read_footer(location, known)
    if row_groups is None:
        row_groups = range(footer.num_row_groups)
    parts = [_read_row_group(location, footer, group, columns, known) for group in row_groups]
    if not parts:
        return footer.schema.to_arrow_schema().empty_table()
    return pa.concat_tables(parts)


def _read_row_group(
    location: str,
    footer: pq.FileMetaData,
    group: int,
    columns: Sequence[str],
    known: Footer | None,
) -> pa.Table:
    what = f"row group {group}"
    try:
        file = open_file(location, known)
        part = _Part(file.size)
        for start, end in _byte_ranges(footer.row_group(group), columns):
            if not 0 <= start < end <= file.size:
                raise pa.ArrowInvalid(f"its columns lie at {start} to {end} of {file.size} bytes")
            part.add(start, file.read(start, end - start, what))
    except pa.ArrowInvalid as error:
        raise DataError(f"{what} of {location} is damaged: {error}; get it again") from error
    except OSError as error:
        raise DataError(
            f"{what} of {location} cannot be read: {in_words(error)}; the same command goes on "
            "once the store answers"
        ) from error
    try:
        # The bytes in memory and the footer are all that the reader needs, so opening takes 30 us.
        reader = pq.ParquetFile(pa.PythonFile(part, mode="r"), metadata=footer)
        return reader.read_row_group(group, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:  # a page that ends early is an OSError
        raise DataError(f"{what} of {location} is damaged: {error}; get it again") from error


def _byte_ranges(group: pq.RowGroupMetaData, columns: Sequence[str]) -> list[tuple[int, int]]:
    """The byte ranges of the columns in the file; neighbouring columns share one range."""
    ranges: list[tuple[int, int]] = []
    for column in (group.column(i) for i in range(group.num_columns)):
        if column.path_in_schema in columns:
            start = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset:
                start = min(start, column.dictionary_page_offset)
            ranges.append((start, start + column.total_compressed_size))
    together: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if together and start - together[-1][1] <= HOLE_BYTES:
            together[-1] = (together[-1][0], max(together[-1][1], end))
        else:
            together.append((start, end))
    return together


class _Part:
    """A file object for pyarrow that holds only some byte ranges of a file."""

    closed = False

    def __init__(self, size: int) -> None:
        self.size, self.position = size, 0
        self.ranges: list[tuple[int, memoryview]] = []

    def add(self, start: int, data: pa.Buffer) -> None:
        self.ranges.append((start, memoryview(data)))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, length: int) -> memoryview:
        for start, data in self.ranges:
            first = self.position - start
            if first >= 0 and first + length <= len(data):
                self.position += length
                return data[first : first + length]
        raise OSError(f"{length} bytes at {self.position} are outside its columns")

    def close(self) -> None:
        self.closed = True
