"""What a report says, before it is laid out: as a page, as Markdown and on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mambaout.study.report.rows import Row
from mambaout.study.report.tables import RankedTable
from mambaout.study.study import Run


@dataclass(frozen=True)
class Table:
    """A table of text. Columns in `long` hold sentences, which wrap."""

    header: Sequence[str]
    cells: Sequence[Sequence[str]]
    long: Sequence[int] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page: paragraphs, then tables, then charts by file name."""

    title: str
    said: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Content:
    """The content of one report."""

    study: Mapping[str, Any]  # study.json
    table: Sequence[Row]  # best first
    ranked: RankedTable  # one row of cells for each row of `table`
    heading: str  # of the ranked table
    said: Sequence[str]  # the answer's paragraphs
    sections: Sequence[Section]
    notes: Sequence[str]  # how to read the numbers
    best_run: Run | None
    pictures: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)  # PNG or JPEG, drawn
    captions: Mapping[str, str] = field(default_factory=dict)  # by file name, also of others
