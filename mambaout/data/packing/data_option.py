"""The option --data of every command that reads images; its help and error list the named sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from mambaout.data.packing.named_sets import NAMED
from mambaout.errors import WrongRequest

SMOKE_DATA = "digits"  # the data of --smoke if no --data is given


def add_data_option(
    add: Callable[..., argparse.Action], name: str = "--data", **settings: Any
) -> None:
    """Add the option; `add` is the add_argument of a parser or a group."""
    add(name, help=f"{', '.join(NAMED)}, a folder of images, a tar, or Parquet shards", **settings)


def given_data(options: argparse.Namespace) -> str:
    """The --data of a command that also has --smoke; WrongRequest if neither is given."""
    if options.data:
        return options.data
    if options.smoke:
        return SMOKE_DATA
    raise missing_data()


def missing_data() -> WrongRequest:
    return WrongRequest(f"--data is missing: give {', '.join(NAMED)}, or a folder of images")
