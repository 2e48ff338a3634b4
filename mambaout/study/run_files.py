"""Helps to read the files of a run: errors name the file, and a changed file is seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mambaout.durable import DamagedLine
from mambaout.errors import WrongRequest
from mambaout.train.metrics import Record

OF_A_RUN = "; put it back from a copy, or move its folder away and run the study's command again"


@contextmanager
def named(path: Path, remedy: str = OF_A_RUN) -> Iterator[None]:
    """Turn an error in a file (another version, or damage) into a ValueError that names it."""
    try:
        yield
    except DamagedLine as error:
        raise WrongRequest(f"{error}{remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ValueError) else repr(error)
        raise WrongRequest(f"{path} cannot be read: {reason}{remedy}") from error


def look(path: Path) -> tuple[int, ...] | None:
    """Numbers that change if the file changes; None if there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def without_val(record: Record) -> str:
    """The record as a line, without the metrics that are measured only at a run's end."""
    kept = {name: value for name, value in record.values.items() if not name.startswith("val/")}
    return replace(record, values=kept).to_json()
