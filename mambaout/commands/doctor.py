"""`mambaout doctor`: does this machine train, and is a cluster file right?"""

from __future__ import annotations

import argparse
from pathlib import Path

from mambaout.errors import WrongRequest


def add_doctor(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine has, what is wrong with it, and a step of training on it",
        epilog="Exit status: 0 all well, 1 it trains but something is wrong, 2 it cannot train, or "
        "the cluster file is wrong. The first command on a new TPU: --backend xla.",
    )
    parser.add_argument("--backend", choices=["cpu", "cuda", "xla"], help="default: what is there")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="check a cluster's file alone")
    parser.add_argument(
        "--tpu-quota",
        type=int,
        metavar="CORES",
        help="with --cluster: whether a launcher's file stays within so many TPU cores (8 a host)",
    )
    parser.set_defaults(run=_run_doctor)


def _run_doctor(options: argparse.Namespace) -> int:
    if options.cluster is not None:
        from mambaout.launch.files.cluster_files import check, not_checked

        found = check(options.cluster, quota_cores=options.tpu_quota)
        for text in found:
            print(f"wrong: {text}")
        for text in not_checked(options.cluster):
            print(f"not checked: {text}")
        print(f"{options.cluster}: {'no fault found' if not found else f'{len(found)} wrong'}")
        return 2 if found else 0
    if options.tpu_quota is not None:
        raise WrongRequest("--tpu-quota is about a cluster's file; give --cluster FILE too")
    from mambaout.train.doctor import doctor

    return doctor(options.backend)
