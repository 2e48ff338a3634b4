"""`mambaout pack`: write any images into Parquet shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from mambaout.command_line import writable_folder
from mambaout.data.packing.data_option import add_data_option
from mambaout.data.shards.column_options import add_column_options, given_columns


def add_pack(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "pack",
        help="images into Parquet shards whose crops decode fast",
        description="JPEGs are re-cut with restart markers, which changes no pixel: a crop then "
        "decodes only the part of a file that it covers.",
        epilog="--short-side and --quality re-encode every image as JPEG, which loses some of it; "
        "the shards, and every trial on them, say so.",
    )
    add_data_option(parser.add_argument, "source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--as-is", action="store_true", help="store the files as they are")
    parser.add_argument("--short-side", type=int, metavar="PX", help="reduce larger images to it")
    parser.add_argument("--quality", type=int, metavar="Q", help="1 to 100; with PX alone 90")
    parser.add_argument(
        "--class-order",
        choices=["text", "natural"],
        default="text",
        help="of the labels of class folders: 0, 1, 10, 2 (text), or 0, 1, 2, 10 as timm's readers",
    )
    add_column_options(parser.add_argument)
    parser.set_defaults(run=_run_pack)


def _run_pack(options: argparse.Namespace) -> int:
    from mambaout.data.packing.sources import pack
    from mambaout.data.packing.storing import LossyEncoding

    asked = {"short_side": options.short_side, "quality": options.quality}
    asked = {name: value for name, value in asked.items() if value is not None}
    lossy = LossyEncoding(**asked) if asked else None
    print(
        pack(
            *(options.source, writable_folder(str(options.out), "OUT")),
            as_is=options.as_is,
            lossy=lossy,
            class_order=options.class_order,
            **given_columns(options),
        )
    )
    return 0
