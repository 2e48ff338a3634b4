"""The `mambaout` command.

    mambaout train femto --data gs://bucket/imagenet --out runs/femto   train or resume one recipe
    mambaout list scale                                                 a study's trials, or studies
    mambaout evaluate scale/w16-d4-s0                                   top-1 and top-5 of a trial
    mambaout evaluate tiny.safetensors --data DIR                       top-1 and top-5 of a file
    mambaout evaluate runs/boxes --data COCO                            a detector's 24 figures
    mambaout account small base --image-size 288                        parameters, MACs, TPU v3
    mambaout account --depths 1,1,3,1 --dims 16,32,64,96                the same for your own shape
    mambaout pack SOURCE OUT                                            write Parquet shards
    mambaout export runs/femto femto.safetensors                        write weights for timm
    mambaout report scale                                               write a study's report anew
    mambaout sync scale --tracking-uri http://HOST:5000                 copy a study to an MLflow
    mambaout ui                                                         open MLflow on the studies
    mambaout doctor --backend xla                                       can this machine train?

Exit status: 0 done; 1 not finished (the same command continues); 2 the request was wrong; 130
interrupted. Each subcommand imports only what it needs: train and evaluate import neither Ray nor
MLflow.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mambaout import __version__
from mambaout.command_line import WRONG, Parser, check_working_directory
from mambaout.commands.account import add_account
from mambaout.commands.doctor import add_doctor
from mambaout.commands.evaluate import add_evaluate
from mambaout.commands.export import add_export
from mambaout.commands.list import add_list
from mambaout.commands.pack import add_pack
from mambaout.commands.studies import add_report, add_sync, add_ui
from mambaout.commands.train import add_train
from mambaout.errors import WrongRequest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status.

    For a wrong request it prints one line for each fault on stderr and returns 2.
    """
    options = command_parser().parse_args(argv)
    try:
        check_working_directory()
        status = options.run(options)
        sys.stdout.flush()
        return status
    except WrongRequest as error:
        print(f"mambaout {options.command}: {error}", file=sys.stderr)
        return WRONG
    except BrokenPipeError:  # the reader has closed the pipe, like head in `mambaout list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        again = "; the same command continues it" if options.command == "train" else ""
        print(f"mambaout {options.command}: interrupted{again}", file=sys.stderr)
        return 130


def command_parser() -> Parser:
    """The parser of `mambaout` and of all its subcommands."""
    parser = Parser(
        prog="mambaout",
        description="MambaOut: train, evaluate, account, and read studies.",
        epilog="Help of one: mambaout COMMAND --help. Studies are the scripts of sweeps/ in the "
        "repository.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        *(add_train, add_evaluate, add_list, add_account, add_pack, add_export),
        *(add_report, add_sync, add_ui, add_doctor),
    ):
        add(commands)
    return parser


class _Version(argparse.Action):
    """--version prints the versions that a bug report should name."""

    def __init__(self, **settings: Any) -> None:
        text = "print the versions of mambaout, Python and torch"
        super().__init__(**settings, nargs=0, help=text)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            torch = version("torch")
        except PackageNotFoundError:
            torch = "not installed"
        print(f"mambaout {__version__}, Python {platform.python_version()}, torch {torch}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
