"""`mambaout ui`: links to each study, a server that ends with the command."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from study_files import mixed_study, scaling_study

from mambaout.__main__ import main
from mambaout.launch.ending import ui_command as ui_line
from mambaout.launch.progress import Job
from mambaout.launch.request import Request
from mambaout.study.tracking.store import default_tracking_uri
from mambaout.study.tracking.tracker import Tracker
from mambaout.study.tracking.ui import _free_port
from mambaout.study.tracking.views import study_pages

MARK = "MAMBAOUT_TEST_OF_UI"


@pytest.fixture
def storage(empty_store, tmp_path) -> Path:
    storage = tmp_path / "a b?c=d%20#e"
    storage.mkdir()
    shutil.copy(empty_store, storage / "mlflow.db")
    folder = mixed_study(storage)
    tracker = Tracker(default_tracking_uri(storage), "scale", "Does it scale?")
    tracker.sync(folder)
    tracker.close()
    return storage


def marked(value: str) -> list[int]:
    """The processes, of whatever parent, whose environment has our mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={value}\0".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:  # it has ended, or it is another user's
            continue
    return found


def test_a_port_that_is_taken_is_one_line_with_another_port(storage, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--storage", str(storage), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"mambaout ui: port {port} cannot be used .* --port \d+\n", said)


def test_a_port_that_no_machine_has_is_one_line(storage, capsys):
    assert main(["ui", "--storage", str(storage), "--port", "70000"]) == 2
    assert "port 70000 cannot be used" in capsys.readouterr().err


def test_the_pages_of_every_study_are_named_the_one_launched_last_at_the_end(storage):
    uri = default_tracking_uri(storage)
    other = Tracker(uri, "other", "And this?")
    first, last = study_pages(uri, port=5012)
    assert (first.name, last.name) == ("scale", "other")
    start = f"http://127.0.0.1:5012/#/experiments/{other.experiment_id}/runs?"
    assert last.trials.startswith(start)
    assert last.charts.startswith(start)
    assert "compareRunsMode=CHART" in last.charts


def ready_ui(storage: Path, mark: str) -> tuple[subprocess.Popen[str], int, str]:
    """The command `mambaout ui` once it is ready, its port and what it said."""
    command = [sys.executable, "-m", "mambaout", "ui", "--storage", str(storage)]
    for _ in range(3):  # another process may take the free port before the server does
        port, said = _free_port(), ""
        ui = subprocess.Popen(
            [*command, "--port", str(port)],
            env=os.environ | {MARK: mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert ui.stdout is not None
        for line in ui.stdout:
            said += line
            if line.startswith("ready"):
                return ui, port, said
        ui.wait(timeout=60)
    raise AssertionError("three servers ended before they were ready")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_all_its_processes(storage, number):
    value = str(os.getpid())
    ui, port, said = ready_ui(storage, value)
    try:
        assert "trials side by side" in said
        assert "learning curves" in said
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=30) as answer:
            assert answer.status == 200
        assert len(marked(value)) > 1
        ui.send_signal(number)
        assert ui.wait(timeout=60) == (130 if number == signal.SIGINT else 0)
        assert marked(value) == []
    finally:
        for process in marked(value):
            os.kill(process, signal.SIGKILL)
        ui.communicate()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (default_tracking_uri("/a b?"), ["--storage", "/a b?"]),
        ("sqlite:////c d/other.db", ["--tracking-uri", "sqlite:////c d/other.db"]),
        ("http://host:5000", ["--tracking-uri", "http://host:5000"]),
        ("http://ann:s3cret@host:5000", ["--tracking-uri", "http://***@host:5000"]),
    ],
)
def test_the_line_at_the_end_of_a_study_opens_its_store_from_a_shell(uri, words):
    request = Request(
        study=scaling_study(),
        trials=[],
        job=lambda trial: Job(trial=trial, num_steps=1, train_macs=1),
        num_images=lambda *_: 1,
        fingerprint="f",
        data="digits",
        data_name="digits",
        storage=Path("/a b?"),
        name="scale",
        tracking_uri=uri,
    )
    assert shlex.split(ui_line(request))[-3:] == ["ui", *words]
