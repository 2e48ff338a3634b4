"""The options --image-column and --label-column, for every command that reads data."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypedDict

KINDS = ("image", "label")


class GivenColumns(TypedDict, total=False):
    """The columns that the user names for `open_data` and `pack`; a plain dict, ready for JSON."""

    image_column: str
    label_column: str


def add_column_options(add: Callable[..., argparse.Action]) -> None:
    """Add both options; `add` is the add_argument of a parser or a group."""
    for kind in KINDS:
        text = f"the {kind}'s column of Parquet shards, where names and types do not tell it"
        add(f"--{kind}-column", metavar="NAME", help=text)


def given_columns(options: argparse.Namespace) -> GivenColumns:
    given = GivenColumns()
    if options.image_column is not None:
        given["image_column"] = options.image_column
    if options.label_column is not None:
        given["label_column"] = options.label_column
    return given
