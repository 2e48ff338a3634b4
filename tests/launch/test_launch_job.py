"""A study as a submitted job on a Ray head: its log, its exit status, and `ray job stop`."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from places import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

BIN = Path(sys.executable).parent
# A private head without tokens, found by nobody else; the entry point's python is the head's.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
    "RAY_AUTH_MODE": "disabled",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
}


LAST_WORKER_PORT = 19999  # Ray keeps 10002 to it for its workers and refuses them elsewhere


def free_ports(number: int) -> list[int]:
    sockets, ports = [], []
    while len(ports) < number:
        sockets.append(socket.socket())
        sockets[-1].bind(("127.0.0.1", 0))
        port = sockets[-1].getsockname()[1]
        if port > LAST_WORKER_PORT:
            ports.append(port)
    for found in sockets:
        found.close()
    return ports


class Head(NamedTuple):
    """A Ray head started for the test."""

    jobs: str  # the address that jobs are submitted to
    gcs: str  # the one that a driver joins


@pytest.fixture(scope="module")
def ray_head() -> Iterator[Head]:
    port, dashboard, client, agent = free_ports(4)
    # A short path, for the sockets in it; dying workers may still write to it.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        options = {
            "port": port,
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": agent,
            "num-cpus": 2,
            "temp-dir": folder,
        }
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
            + [f"--{name}={value}" for name, value in options.items()],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for(lambda: answers(f"{address}/api/version") or process.poll() is not None)
            assert process.poll() is None, f"ray start ended with {process.returncode}"
            yield Head(address, f"127.0.0.1:{port}")
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its workers follow it
            process.wait()


@pytest.fixture
def head(ray_head) -> str:
    return ray_head.jobs


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_for(what, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.1)


def ray_job(head: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "ray"), "job", *words],
        env=ENVIRONMENT | {"RAY_ADDRESS": head},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


def told(head: str, path: str):
    """What the head says of its jobs, actors or placement groups."""
    return json.load(urllib.request.urlopen(f"{head}/api/{path}", timeout=20))


def alive(head: str, kind: str, over: set[str]) -> list[dict]:
    """Those that are not over."""
    found = told(head, f"v0/{kind}?limit=100&detail=false")["data"]["result"]["result"]
    return [each for each in found if each["state"] not in over]


def test_a_submitted_study_is_stopped_and_goes_on_and_says_how_it_ended(head, tmp_path):
    variables = yaml.safe_load((ROOT / "cluster" / "job.yaml").read_text())["env_vars"] | {
        "TINY_LABELS": "thin",
        "TINY_EPOCHS": "60",  # it is still at it when `ray job stop` has found its words
        "MAMBAOUT_CACHE": os.environ["MAMBAOUT_CACHE"],
    }
    runtime = ["--runtime-env-json", json.dumps({"env_vars": variables}), "--working-dir", "tests"]
    study = ["--", "python", "tiny_sweep.py", "--storage", str(tmp_path / "runs")]

    wrong = ray_job(
        head, "submit", "--submission-id", "wrong", *runtime, *study, "--data", "digitz"
    )
    assert wrong.returncode == 1, wrong.stderr  # Ray's own, whatever the study's
    assert told(head, "jobs/wrong")["driver_exit_code"] == 2
    assert "tiny_sweep.py: digitz is not there" in wrong.stdout + wrong.stderr
    assert not (tmp_path / "runs").exists()

    study += ["--data", "digits"]
    ray_job(head, "submit", "--no-wait", "--submission-id", "first", *runtime, *study)
    trials = tmp_path / "runs" / "tiny-digits" / "trials"
    wait_for(lambda: list(trials.glob("*/last.ckpt")))
    ray_job(head, "stop", "first")
    assert "was stopped" in ray_job(head, "status", "first").stdout
    log = ray_job(head, "logs", "first").stdout
    assert "interrupted: saving and stopping 1 running trial" in log, log
    assert "to go on: submit the job again" in log
    assert not list(trials.glob("*/outcome.json"))
    wait_for(lambda: not alive(head, "actors", {"DEAD"}), 30)
    wait_for(lambda: not alive(head, "placement_groups", {"REMOVED"}), 30)
    [records] = trials.glob("*/records.jsonl")
    begun = records.read_text().splitlines()

    second = ray_job(head, "submit", "--submission-id", "second", *runtime, *study)
    shown = second.stdout + second.stderr
    assert second.returncode == 0, shown
    assert told(head, "jobs/second")["driver_exit_code"] == 0
    assert "1/1  thin-s0  top-1" in shown
    assert len(list(trials.glob("*/outcome.json"))) == 1
    assert records.read_text().splitlines()[: len(begun)] == begun  # it went on from there


# Writes what a head started by another Python would have written about itself.
OTHER_PYTHON = """
import json, sys
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient
gcs = GcsClient(address=sys.argv[1])
found = json.loads(gcs.internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER))
found["python_version"] = sys.argv[2]
gcs.internal_kv_put(
    CLUSTER_METADATA_KEY, json.dumps(found).encode(), True, namespace=KV_NAMESPACE_CLUSTER
)
"""


def test_a_cluster_of_another_python_is_refused_in_one_line(ray_head, tmp_path):
    other = [sys.executable, "-c", OTHER_PYTHON, ray_head.gcs]
    subprocess.run([*other, "3.9.1"], env=ENVIRONMENT, check=True)
    words = ["--data", "digits", "--storage", str(tmp_path / "runs"), "--address", ray_head.gcs]
    done = subprocess.run(
        [sys.executable, "tests/tiny_sweep.py", *words],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    subprocess.run([*other, platform.python_version()], env=ENVIRONMENT, check=True)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"{ray_head.gcs} runs Ray {version('ray')} and Python 3.9.1, this process" in line
    assert f"and Python {platform.python_version()}" in line
    assert not (tmp_path / "runs").exists()
