"""Serve MLflow's UI as long as the command runs.

The server consists of several processes in a session of their own. When `mambaout ui` ends, by
Ctrl-C, SIGTERM or a closed terminal, all of them end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from types import FrameType
from urllib.error import URLError
from urllib.request import urlopen

from mambaout.errors import WrongRequest
from mambaout.study.tracking.views import ui_command, ui_variables

END_SECONDS = 5.0  # that the server gets to end by itself


def check_port(port: int) -> None:
    """Raise ValueError if another program uses the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WrongRequest(
                f"port {port} cannot be used ({reason}); give another with --port, "
                f"for example --port {_free_port()}"
            ) from error


def serve(uri: str, port: int) -> int:
    """Serve the UI until a signal comes or the server ends. Returns the exit status."""
    seen: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        seen.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    server = subprocess.Popen(
        ui_command(uri, port), env=os.environ | ui_variables(uri), start_new_session=True
    )
    try:
        ready = False
        while not seen and server.poll() is None:
            if not ready and _answers(port):
                ready = True
                print("ready; Ctrl-C ends it", flush=True)
            time.sleep(0.2)
    finally:
        _end(server)
        for number, handler in before.items():
            signal.signal(number, handler)
    if not seen:
        print(f"the MLflow server ended by itself (status {server.returncode})", flush=True)
        return 1
    return 130 if seen[0] == signal.SIGINT else 0


def _answers(port: int) -> bool:
    try:
        urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
    except (URLError, OSError):
        return False
    return True


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and every process that it has started."""
    for number, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, END_SECONDS)):
        deadline = time.monotonic() + seconds
        try:
            os.killpg(server.pid, number)
            while time.monotonic() < deadline:
                server.poll()  # otherwise an ended process would still count
                os.killpg(server.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            break  # none is left
    server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
