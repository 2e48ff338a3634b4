"""The subcommands on a finished or running study: `mambaout report`, `sync` and `ui`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from mambaout.commands.options import DEFAULT_STORAGE, STORAGE_HELP
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.launch.named import read_study, study_folder
from mambaout.numbers import counted
from mambaout.train.tasks import CLASSIFY, kind_named

OWN_COPY = (
    "for a report of your own copy the study's folder to a place that you can write to, and name "
    "that place with --storage"
)
TRACKING_HELP = "default: MLFLOW_TRACKING_URI, else the store under --storage"


def add_report(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("report", help="write a study's report and tables anew")
    parser.add_argument("study", help="its name, as `mambaout list` shows it")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE, help=STORAGE_HELP)
    parser.set_defaults(run=_run_report)


def _run_report(options: argparse.Namespace) -> int:
    from mambaout.study.report.study_report import NotWritten, summary, write_report

    folder = study_folder(options.storage, options.study)
    _, runs = read_study(folder)
    print(summary(folder, runs), flush=True)
    try:
        paths = write_report(folder)
    except NotWritten as error:
        raise WrongRequest(f"{error}; {OWN_COPY}") from error
    for path in paths:
        print(path)
    return 0


def add_sync(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("sync", help="log what MLflow lacks of a study")
    parser.add_argument("study", help="its name, as `mambaout list` shows it")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE, help=STORAGE_HELP)
    parser.add_argument("--tracking-uri", help=TRACKING_HELP)
    parser.set_defaults(run=_run_sync)


def _run_sync(options: argparse.Namespace) -> int:
    from mambaout.launch.lock import CannotHold, held
    from mambaout.study.report.study_report import NotWritten, write_report
    from mambaout.study.store_uri import chosen_uri, hidden
    from mambaout.study.tracking.store import check_tracking

    folder = study_folder(options.storage, options.study)
    uri = chosen_uri(options.tracking_uri, options.storage)
    study, runs = read_study(folder)
    check_tracking(uri)
    with ExitStack() as cleanup:
        try:
            # A running study logs its trials itself.
            cleanup.enter_context(held(folder.path, f"study {folder.path}"))
            files = write_report(folder)
        except (CannotHold, NotWritten) as error:
            print(f"mambaout sync: {error}; {OWN_COPY}", file=sys.stderr)
            files = [path for path in [folder.path / "report.html"] if path.exists()]
        from mambaout.study.tracking.tracker import Tracker

        name = folder.path.name
        kind = kind_named(study.get("task", CLASSIFY.name))
        tracker = Tracker(uri, name, study["question"], options.storage / "mlartifacts", kind)
        tracker.describe(folder)
        missing = tracker.sync(folder)
        tracker.attach(files)
        unfinished = any(run.status is Ending.UNFINISHED for run in runs)
        whole = tracker.close("FAILED" if unfinished else "FINISHED")
    trials, were = counted(missing, "trial"), "was" if missing == 1 else "were"
    print(f"{hidden(uri)}: {trials} of {name} {were} missing or incomplete")
    return 0 if whole else 1


def add_ui(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "ui",
        help="open the MLflow UI on the studies' store",
        description="Prints two links for each study, its trials side by side and its learning "
        "curves, and serves MLflow's pages until Ctrl-C.",
    )
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE, help=STORAGE_HELP)
    parser.add_argument("--tracking-uri", help=TRACKING_HELP)
    parser.add_argument("--port", type=int, default=5000, help="of this machine (default 5000)")
    parser.set_defaults(run=_run_ui)


def _run_ui(options: argparse.Namespace) -> int:
    from mambaout.study.store_uri import chosen_uri, hidden, is_server
    from mambaout.study.tracking.ui import check_port, serve
    from mambaout.study.tracking.views import study_pages

    uri = chosen_uri(options.tracking_uri, options.storage)
    pages = study_pages(uri, options.port)
    if not is_server(uri):
        check_port(options.port)
    for page in reversed(pages):
        print(f"{page.name}")
        print(f"  trials side by side  {page.trials}")
        print(f"  learning curves      {page.charts}")
    if is_server(uri):
        print(f"{hidden(uri)} is a server already: open the links in a browser")
        return 0
    print(f"starting the MLflow UI on port {options.port}, which takes some seconds", flush=True)
    return serve(uri, options.port)
