"""The `mambaout` command.

    mambaout train femto --data gs://bucket/imagenet --out runs/femto   train one recipe, or go on
    mambaout list scale                                                 a study's trials, or studies
    mambaout evaluate scale/w16-d4-s0                                   top-1 and top-5 of weights
    mambaout evaluate tiny.safetensors --data DIR                       the same of a file's
    mambaout account small base --image-size 288                        parameters, MACs, TPU v3
    mambaout account --depths 1,1,3,1 --dims 16,32,64,96                the same of an own shape
    mambaout pack SOURCE OUT                                            Parquet shards
    mambaout export runs/femto femto.safetensors                        weights for timm, and how
    mambaout report scale                                               a study's report, made anew
    mambaout sync scale --tracking-uri http://HOST:5000                 a study into another MLflow
    mambaout ui                                                         the MLflow UI on the studies
    mambaout doctor --backend xla                                       does this machine train?

Exit status: 0 done, 1 not finished (the same command goes on), 2 the request was wrong, 130
interrupted. Each subcommand imports what it needs: train and evaluate know no Ray and no MLflow.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mambaout.command_line import WRONG, Parser, check_working_directory
from mambaout.commands.account import add_account
from mambaout.commands.evaluate import add_evaluate
from mambaout.commands.export import add_export
from mambaout.commands.list import add_list
from mambaout.commands.named import study_folder
from mambaout.commands.options import DEFAULT_STORAGE
from mambaout.commands.train import add_train

if TYPE_CHECKING:
    from mambaout.study.study import StudyFolder


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input is one line on stderr, or a line a fault, and status 2."""
    parser = Parser(
        prog="mambaout",
        description="MambaOut: train, evaluate, account, and read studies.",
        epilog="Help of one: mambaout COMMAND --help. Studies are the scripts of sweeps/.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        *(add_train, add_evaluate, add_list, add_account, _pack, add_export),
        *(_report, _sync, _ui, _doctor),
    ):
        add(commands)
    options = parser.parse_args(argv)
    try:
        check_working_directory()
        return options.run(options)
    except (
        ValueError,
        FileNotFoundError,
        PermissionError,
        FileExistsError,
        IsADirectoryError,
        NotADirectoryError,
    ) as error:
        print(f"mambaout {options.command}: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        again = "; the same command continues it" if options.command == "train" else ""
        print(f"mambaout {options.command}: interrupted{again}", file=sys.stderr)
        return 130


class _Version(argparse.Action):
    """--version: what a report of a fault should name."""

    def __init__(self, **settings: Any) -> None:
        text = "print the versions of mambaout, Python and torch"
        super().__init__(**settings, nargs=0, help=text)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        found = {}
        for name in ("mambaout", "torch"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "not installed"
        python = platform.python_version()
        print(f"mambaout {found['mambaout']}, Python {python}, torch {found['torch']}")
        parser.exit()


def _pack(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "pack",
        help="images into Parquet shards whose crops decode fast",
        description="JPEGs are re-cut with restart markers, which changes no pixel: a crop then "
        "decodes only the part of a file that it covers.",
        epilog="--short-side and --quality re-encode every image as JPEG, which loses some of it; "
        "the shards, and every trial on them, say so.",
    )
    parser.add_argument("source", help="an image folder, a tar, a Parquet folder or a named set")
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
    parser.set_defaults(run=_run_pack)


def _run_pack(options: argparse.Namespace) -> int:
    from mambaout.data.sources import pack
    from mambaout.data.storing import Lossy

    asked = {"short_side": options.short_side, "quality": options.quality}
    asked = {name: value for name, value in asked.items() if value is not None}
    lossy = Lossy(**asked) if asked else None
    print(
        pack(
            *(options.source, options.out),
            as_is=options.as_is,
            lossy=lossy,
            class_order=options.class_order,
        )
    )
    return 0


def _report(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("report", help="write a study's report and tables anew")
    parser.add_argument("study", help="its name")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE)
    parser.set_defaults(run=_run_report)


def _run_report(options: argparse.Namespace) -> int:
    from mambaout.study.report import summary, write_report

    folder = _study_folder(options)
    print(summary(folder))
    for path in write_report(folder):
        print(path)
    return 0


def _study_folder(options: argparse.Namespace) -> StudyFolder:
    return study_folder(options.storage, options.study)


def _sync(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("sync", help="log what MLflow lacks of a study")
    parser.add_argument("study", help="its name")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE)
    parser.add_argument("--tracking-uri", help="default: the store under --storage")
    parser.set_defaults(run=_run_sync)


def _run_sync(options: argparse.Namespace) -> int:
    from mambaout.study.report import write_report
    from mambaout.study.store import check_tracking, default_tracking_uri

    folder = _study_folder(options)
    uri = options.tracking_uri or default_tracking_uri(options.storage)
    check_tracking(uri)
    from mambaout.study.tracking import Tracker

    tracker = Tracker(uri, options.study, folder.read()["question"])
    missing = tracker.sync(folder)
    tracker.attach(write_report(folder))
    unfinished = any(run.status == "unfinished" for run in folder.runs())
    whole = tracker.close("FAILED" if unfinished else "FINISHED")
    print(f"{uri}: {missing} trials of {options.study} were missing")
    return 0 if whole else 1


def _ui(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("ui", help="open the MLflow UI on the studies' store")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE)
    parser.add_argument("--tracking-uri", help="default: the store under --storage")
    parser.add_argument("--port", type=int, default=5000)
    parser.set_defaults(run=_run_ui)


def _run_ui(options: argparse.Namespace) -> int:
    from mambaout.study.tracking import compare_url, default_tracking_uri, ui_command

    uri = options.tracking_uri or default_tracking_uri(options.storage)
    print(f"side by side: {compare_url(uri, options.port)}\nCtrl-C ends it", flush=True)
    return subprocess.run(ui_command(uri, options.port), env=os.environ, check=False).returncode


def _doctor(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine has, what is wrong with it, and a step of training on it",
        epilog="Exit status: 0 all well, 1 it trains but something is wrong, 2 it cannot train, or "
        "the cluster file is wrong. The first command on a new TPU: --backend xla.",
    )
    parser.add_argument("--backend", choices=["cpu", "cuda", "xla"], help="default: what is there")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="check a cluster's file alone")
    parser.set_defaults(run=_run_doctor)


def _run_doctor(options: argparse.Namespace) -> int:
    if options.cluster is not None:
        from mambaout.launch.cluster_files import check, not_checked

        found = check(options.cluster)
        for text in found:
            print(f"wrong: {text}")
        for text in not_checked(options.cluster):
            print(f"not checked: {text}")
        print(f"{options.cluster}: {'no fault found' if not found else f'{len(found)} wrong'}")
        return 2 if found else 0
    from mambaout.train.doctor import doctor

    return doctor(options.backend)


if __name__ == "__main__":
    sys.exit(main())
