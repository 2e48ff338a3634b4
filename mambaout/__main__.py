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
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mambaout.data.column_options import add_column_options, given_columns
from mambaout.recipe import (
    BASELINE,
    Recipe,
    field_types,
    parse_field,
    recipe_from_json,
    tuned,
    with_global_batch,
)
from mambaout.variants import VARIANTS, variant

if TYPE_CHECKING:
    from mambaout.study.study import StudyFolder

DEFAULT_STORAGE = Path("runs")
STAGE_HELP = "copy the shards that are read to this folder first, for example /dev/shm"
WORKERS_HELP = "processes that load images; default: none on a CPU, else one less than the cores"


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; bad input is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(
        prog="mambaout", description="MambaOut: train, evaluate, account, and read studies."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_train, _evaluate, _account, _pack, _export, _report, _sync, _ui, _doctor):
        add(commands)
    options = parser.parse_args(argv)
    try:
        return options.run(options)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"mambaout {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _train(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="train one recipe; the same command again continues it",
        epilog="Any field of a recipe is an option by its name, for example --peak-lr 1e-3 "
        "--depths 3,3,15,3. A changed --global-batch scales the learning rate linearly, unless "
        "--peak-lr is given too.",
    )
    parser.add_argument("variant", nargs="?", help=f"{', '.join(VARIANTS)} (default femto)")
    parser.add_argument("--data", help="digits, fashion-mnist, an image folder, a Parquet folder")
    add_column_options(parser.add_argument)
    parser.add_argument("--stage", type=Path, metavar="DIR", help=STAGE_HELP)
    parser.add_argument("--out", type=Path, help="the run directory")
    parser.add_argument("--recipe", type=Path, help="a recipe.json to train, or to start from")
    parser.add_argument("--backend", choices=["cpu", "cuda", "xla"], help="default: what is there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="stop after so many steps; resumable")
    parser.add_argument("--log-every-steps", type=int, default=50)
    parser.add_argument("--workers", type=_count, help=WORKERS_HELP)
    parser.add_argument("--smoke", action="store_true", help="a minute on the digits: does it run?")
    fields = parser.add_argument_group("recipe fields")
    for name in field_types():
        fields.add_argument(f"--{name.replace('_', '-')}", dest=f"field_{name}", metavar="VALUE")
    parser.set_defaults(run=_run_train)


def _run_train(options: argparse.Namespace) -> int:
    recipe = _recipe_from(options)
    data_name = options.data or ("digits" if options.smoke else None)
    if data_name is None:
        raise ValueError("--data is missing: digits, fashion-mnist, or a folder of images")
    out = options.out or (DEFAULT_STORAGE / "train-smoke" if options.smoke else None)
    if out is None:
        raise ValueError("--out is missing: the folder that the run writes to, like runs/femto")

    if options.workers or options.backend in ("cuda", "xla"):
        from mambaout.data.makers import warm_workers

        warm_workers()  # beside this process's own imports
    from mambaout.data.files import default_cache
    from mambaout.data.sources import open_data
    from mambaout.data.stage import stage
    from mambaout.recipe import steps_per_epoch
    from mambaout.train.backend import backend
    from mambaout.train.loop import train
    from mambaout.train.run import Diverged, Finished, OutOfMemory, Preempted

    data = open_data(data_name, **given_columns(options))
    if options.stage:
        data = stage(data, options.stage)
    per_epoch = steps_per_epoch(recipe, data.num_images("train", recipe))
    num_steps = per_epoch * recipe.schedule.total_epochs
    where = backend(options.backend, cache=default_cache() / "xla")
    stop = _stop_on_signal()
    print(
        f"{data.name}: {data.num_images('train', recipe)} training images, "
        f"{data.num_classes} classes; {num_steps} steps of {recipe.global_batch} into {out}"
    )
    outcome = train(
        recipe,
        data,
        out=out,
        backend=where,
        seed=options.seed,
        sinks=[_progress_printer(num_steps)],
        max_steps=options.max_steps,
        log_every_steps=options.log_every_steps,
        num_workers=_workers(options, where.name),
        stop=stop,
    )
    match outcome:
        case Finished(metrics=final):
            print(
                f"finished: top-1 {final['top1']:.2f} %, top-5 {final['top5']:.2f} %, "
                f"{final['images_per_second']:.0f} images/s; {out / 'outcome.json'}"
            )
            return 0
        case Preempted(step=step):
            print(f"stopped at step {step} of {num_steps}; the same command continues")
            return 1
        case Diverged(step=step):
            print(f"diverged: the loss was not finite at step {step}; try a smaller --peak-lr")
            return 1
        case OutOfMemory(micro_batch=size, error=error):
            print(f"out of memory even with a micro-batch of {size}: {error}")
            return 1


def _count(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _workers(options: argparse.Namespace, backend: str) -> int:
    """The processes that load images: what was asked for, or what the machine has to spare."""
    from mambaout.data.cores import usable_cores

    if options.workers is not None:
        return options.workers
    return 0 if backend == "cpu" else max(1, usable_cores() - 1)


def _recipe_from(options: argparse.Namespace) -> Recipe:
    """The recipe that the options of `train` describe."""
    given = {
        name: parse_field(name, text)
        for name in field_types()
        if (text := getattr(options, f"field_{name}")) is not None
    }
    recipe = recipe_from_json(options.recipe.read_text()) if options.recipe else BASELINE
    if options.smoke:
        small = {"dims": (16, 32, 48, 64), "depths": (1, 1, 2, 1), "stem_stride": 2}
        recipe = tuned(
            with_global_batch(recipe, 128),
            **small,
            image_size=28,
            epochs=4,
            warmup_epochs=1,
            peak_lr=2e-3,
            minival_fraction=0.1,
            randaugment=0,
            erasing=0,
            crop_scale_min=0.5,
            hflip=0,
        )
    if options.variant is not None:
        recipe = replace(recipe, model=variant(options.variant))
    if "global_batch" in given and "peak_lr" not in given:
        recipe = with_global_batch(recipe, given["global_batch"])
        print(f"global_batch {recipe.global_batch}: peak_lr scaled to {recipe.optim.peak_lr:.4g}")
    return tuned(recipe, **given)


def _stop_on_signal() -> Callable[[], bool]:
    """True once SIGTERM has come: a spot machine's notice, time enough for a checkpoint."""
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
    return lambda: bool(seen)


def _progress_printer(num_steps: int) -> Callable:
    def show(record) -> None:
        left = record.seconds / record.step * (num_steps - record.step)
        names = {
            "train/loss": ("loss", ".3f"),
            "minival/top1": ("minival top-1", ".2f"),
            "val/top1": ("val top-1", ".2f"),
            "images_per_second": ("images/s", ".0f"),
        }
        shown = [
            f"{label} {record.values[name]:{style}}"
            for name, (label, style) in names.items()
            if name in record.values
        ]
        print(
            f"step {record.step}/{num_steps}  epoch {record.epoch:.1f}  {'  '.join(shown)}"
            f"  ETA {left // 60:.0f}:{left % 60:02.0f}",
            flush=True,
        )

    return show


def _evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate", help="top-1 and top-5 of a checkpoint: ours, timm's or the authors'"
    )
    parser.add_argument("weights", type=Path, help=".ckpt, .safetensors, .pth")
    parser.add_argument("--data", required=True)
    add_column_options(parser.add_argument)
    parser.add_argument("--stage", type=Path, metavar="DIR", help=STAGE_HELP)
    parser.add_argument("--split", default="val", choices=["train", "minival", "val"])
    parser.add_argument("--variant", help="the shape, where the file does not say it")
    parser.add_argument("--backend", choices=["cpu", "cuda", "xla"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=_count, help=WORKERS_HELP)
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

    data = open_data(options.data, **given_columns(options))
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
        num_workers=_workers(options, where.name),
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
    add_column_options(parser.add_argument)
    parser.set_defaults(run=_run_pack)


def _run_pack(options: argparse.Namespace) -> int:
    from mambaout.data.sources import pack
    from mambaout.data.storing import Lossy

    asked = {"short_side": options.short_side, "quality": options.quality}
    asked = {name: value for name, value in asked.items() if value is not None}
    lossy = Lossy(**asked) if asked else None
    columns = given_columns(options)
    print(pack(options.source, options.out, as_is=options.as_is, lossy=lossy, **columns))
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
    from mambaout.study.report import ranked_table, write_report

    folder = _study_folder(options)
    print(ranked_table(folder.runs()))
    for path in write_report(folder):
        print(path)
    return 0


def _study_folder(options: argparse.Namespace) -> StudyFolder:
    """The folder of the study that was named; a ValueError lists those there are."""
    from mambaout.study.study import STUDY_FILE, StudyFolder

    folder = StudyFolder(options.storage, options.study)
    if not (folder.path / STUDY_FILE).exists():
        known = sorted(path.parent.name for path in options.storage.glob(f"*/{STUDY_FILE}"))
        raise ValueError(
            f"no study {options.study!r} under {options.storage}; there are: "
            f"{', '.join(known) or 'none'}"
        )
    return folder


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
