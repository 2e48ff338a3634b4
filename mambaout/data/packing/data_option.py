"""--data, for every command that reads any images: its help and its error list the named sets.

Which sets there are is asked for late: the table of their readers (sources.NAMED) takes a while to
import, and `mambaout --help` does not wait for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from mambaout.errors import WrongRequest

SMOKE_DATA = "digits"  # what --smoke trains on where no --data is given


def add_data_option(
    add: Callable[..., argparse.Action], name: str = "--data", **settings: Any
) -> None:
    """Add it to a parser or a group, by its add_argument."""
    add(name, action=_DataAction, **settings)


def given_data(options: argparse.Namespace) -> str:
    """The --data of a command that has --smoke as well; WrongRequest where there is none."""
    if options.data:
        return options.data
    if options.smoke:
        return SMOKE_DATA
    raise missing_data()


def missing_data() -> WrongRequest:
    return WrongRequest(f"--data is missing: give {_NamedSets()}, or a folder of images")


class _NamedSets:
    """The names of all named sets, once they are wanted as text."""

    def __str__(self) -> str:
        from mambaout.data.packing.sources import NAMED

        return ", ".join(NAMED)


class _DataAction(argparse._StoreAction):
    def __init__(self, **settings: Any) -> None:
        text = "%(named_sets)s, a folder of images, a tar, or Parquet shards"
        super().__init__(**settings, help=text)
        self.named_sets = _NamedSets()
