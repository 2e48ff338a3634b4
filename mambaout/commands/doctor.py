"""`mambaout doctor`: does this machine train, and is a cluster file right?"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_doctor(commands: argparse._SubParsersAction) -> None:
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
        from mambaout.launch.files.cluster_files import check, not_checked

        found = check(options.cluster)
        for text in found:
            print(f"wrong: {text}")
        for text in not_checked(options.cluster):
            print(f"not checked: {text}")
        print(f"{options.cluster}: {'no fault found' if not found else f'{len(found)} wrong'}")
        return 2 if found else 0
    from mambaout.train.doctor import doctor

    return doctor(options.backend)
