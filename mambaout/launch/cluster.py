"""Start Ray for the time of a study, or join a running cluster, and turn off Ray's output."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mambaout.errors import WrongRequest
from mambaout.launch.failures import one_line
from mambaout.launch.resources import Node

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the driver of a submitted job
ADDRESS_VARIABLE = "RAY_ADDRESS"  # set by `ray job submit` in its jobs
CONNECT_SECONDS = 5.0
BOOTSTRAP_CONFIG = "~/ray_bootstrap_config.yaml"  # Ray's launcher writes it on the head
_NO_CLUSTER = (
    "no Ray cluster answers at {} ({}); start one with `ray start --head`, or leave --address out "
    "to run on this machine"
)
_OTHER_VERSIONS = (
    "the Ray cluster at {} runs Ray {} and Python {}, this process Ray {} and Python {}, and Ray "
    "wants the same of both; start the study with the cluster's own Python, for example by "
    "`ray job submit`, or install both sides by cluster/setup.sh"
)
OBJECT_STORE_BYTES = 128 * 2**20  # trials share files, not objects

# Ray and Tune print their own tables, warnings and stack traces. The study's lines and
# failures.jsonl already have what a user needs.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same as in the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # records.jsonl has all values
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `Signals` handles it
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read back
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # an explicit value avoids a warning
}
# By default Ray starts a worker on each core when the driver connects. That takes 0.8 s of CPU time
# for each, and a study with fewer trials at a time never uses them.
LEAN = {"RAY_prestart_worker_first_driver": "0"}


def cluster_address(given: str | None) -> str | None:
    """The cluster to join, or None to start Ray here for the time of the study.

    Only --address (`given`) and RAY_ADDRESS count. A Ray that happens to run on this machine is not
    used. ValueError for an address through which a study cannot run.
    """
    found = given or os.environ.get(ADDRESS_VARIABLE) or "local"
    source = "--address" if given else ADDRESS_VARIABLE
    if found == "local":
        return None
    if found.startswith(("http://", "https://")):
        away = "leave it out" if given else f"unset {ADDRESS_VARIABLE}"
        raise WrongRequest(
            f"{source}={found} is the address for `ray job submit`; from here give the cluster's "
            f"HOST:6379, or {away} to run on this machine"
        )
    if found.startswith("ray://"):
        raise WrongRequest(
            f"{source}={found} is a Ray Client address, which Tune does not run through; submit "
            "the study with `ray job submit`, or give HOST:6379 on a machine of the cluster"
        )
    if found != "auto" and not found.rpartition(":")[2].isdecimal():
        raise WrongRequest(f"{source}={found}: give HOST:PORT, for example 10.0.0.1:6379")
    return found


def join(address: str) -> list[Node]:
    """Connect to a running cluster and return its machines.

    They include those that its autoscaler may still start. ValueError if no cluster answers, or if
    it has another version of Python or Ray.
    """
    if address != "auto":
        _knock(address)
    ray = _quiet_ray()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        versions = re.findall(r"(?:Ray|Python): (\S+)", str(error))  # the cluster's, then ours
        if str(error).startswith("Version mismatch") and len(versions) == 4:
            raise WrongRequest(_OTHER_VERSIONS.format(address, *versions)) from error
        raise WrongRequest(_NO_CLUSTER.format(address, one_line(error))) from error
    alive = [
        Node(node["Resources"], node["Labels"], node["NodeID"])
        for node in ray.nodes()
        if node["Alive"]
    ]
    config = Path(BOOTSTRAP_CONFIG).expanduser()
    if not config.exists() or not _is_of_this_machine(ray):
        return alive
    return alive + still_to_come(yaml.safe_load(config.read_text()), alive)


def _is_of_this_machine(ray: Any) -> bool:
    """Whether this machine is the head of the joined cluster."""
    gcs = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    return gcs in ("127.0.0.1", ray.util.get_node_ip_address())


def still_to_come(config: Mapping[str, Any], alive: Sequence[Node]) -> list[Node]:
    """The machines that Ray's launcher may start with this configuration, beyond those alive."""
    found: list[Node] = []
    for name, kind in (config.get("available_node_types") or {}).items():
        resources, labels = kind.get("resources") or {}, kind.get("labels") or {}
        most = kind.get("max_workers", config.get("max_workers", 0))
        if name == config.get("head_node_type") or not resources:
            continue
        there = sum(
            resources.items() <= dict(node.resources).items()
            and labels.items() <= dict(node.labels).items()
            for node in alive
        )
        found += [Node(resources, labels)] * max(0, most - there)
    return found


def _knock(address: str) -> None:
    """Find out in seconds if nobody answers. Ray itself tries for minutes and prints a lot."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise WrongRequest(_NO_CLUSTER.format(address, error)) from error


class RayDidNotStart(RuntimeError):
    """Ray gave up on this machine before a trial began."""


def start(node: Node) -> None:
    """Start Ray on this machine with the node's cores and devices.

    Raises RayDidNotStart if Ray gives up twice. Ray waits 30 s for its own start, which no setting
    changes, and a machine that is busy with other work can take longer.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in LEAN.items()})
    ray = _quiet_ray()
    try:
        _start(ray, node)
    except Exception:  # Ray raises a plain Exception
        ray.shutdown()
        try:
            _start(ray, node)
        except Exception as error:
            raise RayDidNotStart(
                f"Ray did not start on this machine ({one_line(error)}); where other work keeps "
                "it busy, wait for that and run the same command again"
            ) from error


def _start(ray: Any, node: Node) -> None:
    ray.init(
        address="local",
        num_cpus=int(node.has("CPU")),
        num_gpus=int(node.has("GPU")),
        resources={"TPU": node.has("TPU")} if node.has("TPU") else None,
        labels=dict(node.labels) or None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=OBJECT_STORE_BYTES,
    )


def leave() -> None:
    """Stop a Ray that `start` started, or disconnect from a cluster that `join` joined."""
    _quiet_ray().shutdown()


def _quiet_ray():
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    import ray
    from ray._private import worker

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # The raylet reports every lost worker, even with log_to_driver off.
    worker.print_to_stdstream = lambda data, ignore_prefix: None
    return ray


class Signals:
    """Treats SIGINT and SIGTERM as a request to stop. A second one ends the process at once."""

    def __init__(self) -> None:
        self.seen = False
        self._before: dict[int, Callable | int | None] = {}

    def listen(self) -> None:
        """Handle the signals. Needed again after Ray's start, because Ray takes SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self._take)
            self._before.setdefault(number, before)

    def give_back(self) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _take(self, number: int, frame: object) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True
