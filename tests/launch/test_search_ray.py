"""A search on a real Ray: its driver is killed, and it comes to what an unharmed one comes to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from places import TESTS

from mambaout.study.search.memory import OPTUNA_FILE, open_store
from mambaout.study.study import StudyFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(590)]

SCRIPT = TESTS / "tiny_search.py"
NAME = "search-digits"
NUM_TRIALS = 5  # one more than is killed, and one of them is stopped early
COMMAND = [sys.executable, str(SCRIPT), "--data", "digits", "--max-concurrent", "1"]


def launch(storage: Path) -> subprocess.Popen[str]:
    """The driver, in a process group of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["TINY_TRIALS"] = str(NUM_TRIALS)
    storage.parent.mkdir(exist_ok=True)
    with (storage.parent / f"driver-{time.monotonic_ns()}.log").open("w") as log:
        return subprocess.Popen(
            [*COMMAND, "--storage", str(storage)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=SCRIPT.parent.parent,
            env=environment,
            text=True,
            start_new_session=True,
        )


def quiet(storage: Path) -> str:
    """Run to the end; what was printed."""
    process = launch(storage)
    status = process.wait(timeout=280)
    printed = max(storage.parent.glob("driver-*.log"), key=lambda path: path.name).read_text()
    assert status == 0, printed
    return printed


def killed_once(storage: Path, what: Callable[[], bool]) -> None:
    """Start, and kill the driver with all its processes as soon as `what` is true."""
    process = launch(storage)
    deadline = time.monotonic() + 200
    while not what():
        assert process.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < deadline, "not within 200 s"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def told(storage: Path) -> list[tuple[str, dict, list[float] | None]]:
    """What Optuna's study holds: the state, the values tried and what came of them."""
    import optuna

    store = open_store(storage / NAME / OPTUNA_FILE)
    trials = optuna.load_study(study_name="thin", storage=store).get_trials(deepcopy=False)
    return [(t.state.name, t.params, t.values) for t in trials]


def test_a_killed_search_goes_on_with_the_sampler_s_memory(tmp_path):
    """With one trial at a time all is determined: the same recipes and stops, the same bits.

    And nothing lies beside the storage folder, whatever its name means in an address.
    """
    lived, died = tmp_path / "lived" / "runs", tmp_path / "died" / "a b?c=d%20#e"
    quiet(lived)
    folder = StudyFolder(died, NAME)

    def in_the_middle_of_the_fourth() -> bool:
        trials = [trial for trial in folder.trials() if trial.label == "thin-t003"]
        return any(folder.run(trial).records for trial in trials)

    killed_once(died, in_the_middle_of_the_fourth)
    assert told(died)[3][0] == "RUNNING"
    quiet(died)
    assert told(died) == told(lived)
    states = [state for state, _, _ in told(lived)]
    assert states[0] == "COMPLETE"
    assert "PRUNED" in states
    ended = [(run.trial.name, run.status) for run in StudyFolder(lived, NAME).runs()]
    assert [(run.trial.name, run.status) for run in folder.runs()] == ended
    assert len(ended) == 1 + NUM_TRIALS + 1
    assert {status for _, status in ended} == {"finished", "stopped"}
    before = {path: path.stat().st_mtime for path in folder.path.glob("trials/*/*")}
    assert "starting Ray" not in quiet(died)
    assert {path: path.stat().st_mtime for path in folder.path.glob("trials/*/*")} == before
    assert [path.name for path in died.parent.iterdir() if path.is_dir()] == [died.name]
    assert {path.name for path in died.iterdir()} == {NAME, "mlflow.db", "mlartifacts"}
    assert {"report.html", OPTUNA_FILE} <= {path.name for path in folder.path.iterdir()}
    assert list((died / "mlartifacts").glob("*/artifacts/report.html"))
