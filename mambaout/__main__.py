"""The `mambaout` command.

    mambaout train femto --data gs://bucket/imagenet --out runs/femto   train one recipe, or go on
    mambaout evaluate tiny.safetensors --data DIR                       top-1 and top-5 of weights
    mambaout account small base --image-size 288                        parameters, MACs, TPU v3
    mambaout pack SOURCE OUT                                            Parquet shards
    mambaout export runs/femto/last.ckpt femto.safetensors              weights that timm loads
    mambaout report scale                                               a study's report, made anew
    mambaout sync scale --tracking-uri http://HOST:5000                 a study into another MLflow
    mambaout ui                                                         the MLflow UI on the studies
    mambaout doctor --backend xla                                       does this machine train?

Exit status: 0 done, 1 not finished (the same command goes on), 2 the request was wrong, 130
interrupted. Each subcommand imports what it needs: train and evaluate know no Ray and no MLflow.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mambaout.command_line import WRONG, Parser, check_working_directory
from mambaout.commands.options import (
    DEFAULT_STORAGE,
    STAGE_HELP,
    WORKERS_HELP,
    folder,
    load_workers,
    whole_number,
)
from mambaout.commands.train import add_train
from mambaout.recipe import BASELINE, recipe_from_json, tuned
from mambaout.variants import VARIANTS, variant

if TYPE_CHECKING:
    from mambaout.study.study import StudyFolder

TRACKING_HELP = "default: MLFLOW_TRACKING_URI, else the store under --storage"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input is one line on stderr, or a line a fault, and status 2."""
    parser = Parser(
        prog="mambaout",
        description="MambaOut: train, evaluate, account, and read studies.",
        epilog="Help of one: mambaout COMMAND --help. Studies are the scripts of sweeps/.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_train, _evaluate, _account, _pack, _export, _report, _sync, _ui, _doctor):
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


def _evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate", help="top-1 and top-5 of a checkpoint: ours, timm's or the authors'"
    )
    parser.add_argument("weights", type=Path, help=".ckpt, .safetensors, .pth")
    parser.add_argument("--data", required=True)
    parser.add_argument("--stage", type=folder, metavar="DIR", help=STAGE_HELP)
    parser.add_argument("--split", default="val", choices=["train", "minival", "val"])
    parser.add_argument("--variant", help="the shape, where the file does not say it")
    parser.add_argument("--backend", choices=["cpu", "cuda", "xla"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=whole_number(0), metavar="N", help=WORKERS_HELP)
    parser.add_argument("--image-size", type=int, help="px; default: the checkpoint's, else 224")
    parser.set_defaults(run=_run_evaluate)


def _run_evaluate(options: argparse.Namespace) -> int:
    from mambaout.data.files import default_cache
    from mambaout.data.sources import open_data
    from mambaout.data.stage import stage
    from mambaout.model.network import build
    from mambaout.model.weights import load_weights, recipe_of
    from mambaout.train.backend import backend
    from mambaout.train.loop import evaluate

    data = open_data(options.data)
    recipe = recipe_of(options.weights) or BASELINE
    if options.variant is not None:
        recipe = replace(recipe, model=variant(options.variant))
    elif recipe_of(options.weights) is None:
        raise ValueError(f"{options.weights} does not say its shape; add --variant")
    if options.image_size:
        recipe = tuned(recipe, image_size=options.image_size)
    if options.stage:
        data = stage(data, options.stage, split=options.split)
    where = backend(options.backend, cache=default_cache() / "xla")
    model = build(recipe.model, data.num_classes)
    load_weights(model, options.weights)
    started = time.monotonic()
    values = evaluate(
        where.move(model),
        data,
        options.split,
        recipe,
        backend=where,
        batch_size=options.batch_size,
        num_workers=load_workers(options.workers, where.name),
    )
    count = data.num_images(options.split, recipe)
    print(
        f"{options.weights} on {data.name} {options.split} ({count} images): "
        f"top-1 {values[f'{options.split}/top1']:.3f} %, "
        f"top-5 {values[f'{options.split}/top5']:.3f} %, "
        f"loss {values[f'{options.split}/loss']:.4f}, "
        f"{count / (time.monotonic() - started):.0f} images/s"
    )
    return 0


def _account(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "account", help="parameters, MACs, memory of variants, and how they fit a TPU v3"
    )
    parser.add_argument("variants", nargs="*", help=f"default: all of {', '.join(VARIANTS)}")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.set_defaults(run=_run_account)


def _run_account(options: argparse.Namespace) -> int:
    from mambaout.accounting import account_table
    from mambaout.memory import tpu_table

    names = options.variants or list(VARIANTS)
    shapes = {name: variant(name) for name in names}
    print(account_table(shapes, options.image_size, options.num_classes))
    print(f"\n{tpu_table(shapes, options.image_size, options.num_classes)}")
    return 0


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


def _export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("export", help="a checkpoint's weights as safetensors for timm")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.set_defaults(run=_run_export)


def _run_export(options: argparse.Namespace) -> int:
    from mambaout.model.network import build
    from mambaout.model.weights import load_weights, save_weights
    from mambaout.train.checkpoint import load

    saved = load(options.checkpoint)
    recipe = recipe_from_json(saved["recipe"])
    model = build(recipe.model, saved["num_classes"])
    load_weights(model, options.checkpoint)
    save_weights(model, options.out, recipe)
    print(f"{options.out}: {sum(p.numel() for p in model.parameters()):,} parameters")
    return 0


def _report(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("report", help="write a study's report and tables anew")
    parser.add_argument("study", help="its name")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE)
    parser.set_defaults(run=_run_report)


def _run_report(options: argparse.Namespace) -> int:
    from mambaout.study.report import summary, write_report

    folder = _study_folder(options)
    print(summary(folder), flush=True)
    try:
        paths = write_report(folder)
    except OSError as error:
        raise _NotWritable(folder.path, error) from error
    for path in paths:
        print(path)
    return 0


class _NotWritable(ValueError):
    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(
            f"the report cannot be written to {folder} ({error.strerror or error}); for a report "
            "of your own copy the study's folder to a place that you can write to, and name that "
            "place with --storage"
        )


def _study_folder(options: argparse.Namespace) -> StudyFolder:
    """The folder of the study that was named; a ValueError lists those there are."""
    from mambaout.study.study import STUDY_FILE, StudyFolder

    folder = StudyFolder(options.storage, options.study)
    try:
        folder.read()
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder.path / STUDY_FILE} is no JSON ({error})") from error
    except (OSError, ValueError) as error:
        known = sorted(path.parent.name for path in options.storage.glob(f"*/{STUDY_FILE}"))
        raise ValueError(
            f"no study {options.study!r} under {options.storage}; there are: "
            f"{', '.join(known) or 'none'}"
        ) from error
    return folder


def _sync(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("sync", help="log what MLflow lacks of a study")
    parser.add_argument("study", help="its name")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE)
    parser.add_argument("--tracking-uri", help=TRACKING_HELP)
    parser.set_defaults(run=_run_sync)


def _run_sync(options: argparse.Namespace) -> int:
    from mambaout.launch.lock import held
    from mambaout.study.report import write_report
    from mambaout.study.store import check_tracking
    from mambaout.study.store_uri import chosen_uri, hidden

    folder = _study_folder(options)
    uri = chosen_uri(options.tracking_uri, options.storage)
    check_tracking(uri)
    with ExitStack() as cleanup:
        try:
            # A running study logs its trials itself.
            cleanup.enter_context(held(folder.path, f"study {folder.path}"))
            files = write_report(folder)
        except OSError as error:
            print(f"mambaout sync: {_NotWritable(folder.path, error)}", file=sys.stderr)
            files = [path for path in [folder.path / "report.html"] if path.exists()]
        from mambaout.study.tracking import Tracker

        name, question = folder.path.name, folder.read()["question"]
        tracker = Tracker(uri, name, question, options.storage / "mlartifacts")
        tracker.describe(folder)
        missing = tracker.sync(folder)
        tracker.attach(files)
        unfinished = any(run.status == "unfinished" for run in folder.runs())
        whole = tracker.close("FAILED" if unfinished else "FINISHED")
    print(f"{hidden(uri)}: {missing} trials of {name} were missing or incomplete")
    return 0 if whole else 1


def _ui(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("ui", help="open the MLflow UI on the studies' store")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE)
    parser.add_argument("--tracking-uri", help=TRACKING_HELP)
    parser.add_argument("--port", type=int, default=5000)
    parser.set_defaults(run=_run_ui)


def _run_ui(options: argparse.Namespace) -> int:
    from mambaout.study.store_uri import chosen_uri, hidden, is_server
    from mambaout.study.ui import check_port, serve
    from mambaout.study.views import study_pages

    uri = chosen_uri(options.tracking_uri, options.storage)
    pages = study_pages(uri, options.port)
    if not is_server(uri):
        check_port(options.port)
    for page in reversed(pages):
        print(
            f"{page.name}\n  trials side by side  {page.trials}\n  learning curves  {page.charts}"
        )
    if is_server(uri):
        print(f"{hidden(uri)} is a server already: open the links in a browser")
        return 0
    print(f"starting the MLflow UI on port {options.port}, which takes some seconds", flush=True)
    return serve(uri, options.port)


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
