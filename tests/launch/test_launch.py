"""Launching a study: failures, locks, the live lines, and requests that are refused."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from places import ROOT, TESTS
from starts import start_of
from tiny_sweep import recipe, tiny

from mambaout.endings import Ending
from mambaout.launch import cli, progress
from mambaout.launch.cluster import cluster_address
from mambaout.launch.failures import (
    STUCK_PREEMPTIONS,
    Failure,
    add_failure,
    classify,
    one_line,
    read_failures,
    retried,
)
from mambaout.launch.lock import FolderHeld, held
from mambaout.launch.progress import Job, Screen, done_fraction, seconds_left
from mambaout.launch.request import Request
from mambaout.launch.rerun import Rerun
from mambaout.launch.tune import run_study
from mambaout.recipe import BASELINE, tuned
from mambaout.study.axes import Axis, Search, WholeRange
from mambaout.study.start import Start
from mambaout.study.study import Run, Study, StudyFolder, Trial
from mambaout.train.metrics import Record

# -- failures -------------------------------------------------------------------------------------


def failed(kind, step=10, error="RuntimeError: x", launch="a") -> Failure:
    return Failure(kind=kind, error=error, step=step, launch=launch)


def test_errors_are_told_apart_as_ray_and_torch_raise_them():
    import ray.exceptions
    import torch

    assert classify(ray.exceptions.ActorDiedError()) is Ending.PREEMPTED
    assert classify(ray.exceptions.NodeDiedError("gone")) is Ending.PREEMPTED
    assert classify(ray.exceptions.OutOfMemoryError("host")) is Ending.OUT_OF_MEMORY
    assert classify(torch.OutOfMemoryError("CUDA out of memory")) is Ending.OUT_OF_MEMORY
    assert (
        classify(RuntimeError("DefaultCPUAllocator: can't allocate memory")) is Ending.OUT_OF_MEMORY
    )
    assert classify(ValueError("a corrupt image")) is Ending.BROKEN


def test_a_lost_worker_is_tried_again_as_long_as_the_trial_gets_on():
    moving = [failed(Ending.PREEMPTED, step=step) for step in range(0, 400, 10)]
    assert retried(moving)
    stuck = [failed(Ending.PREEMPTED, step=400)] * STUCK_PREEMPTIONS
    assert retried(moving + stuck[:-1])
    assert not retried(moving + stuck)


def test_the_same_error_twice_is_not_tried_again():
    first, other, third = (failed(Ending.BROKEN, error=f"KeyError: {name}") for name in "abc")
    assert retried([first])
    assert not retried([first, first])
    assert not retried([first, failed(Ending.PREEMPTED), first])
    assert retried([first, other])
    assert not retried([first, other, third])


def test_memory_is_tried_once_more():
    assert retried([])
    assert retried([failed(Ending.OUT_OF_MEMORY)])
    assert not retried([failed(Ending.OUT_OF_MEMORY)] * 2)


def test_failures_are_kept_and_only_those_of_this_launch_count(tmp_path):
    for launch in ("a", "a", "b"):
        add_failure(tmp_path / "run", failed(Ending.BROKEN, launch=launch))
    with (tmp_path / "run" / "failures.jsonl").open("a") as file:
        file.write('{"kind": "broken", "err')  # what a kill leaves
    assert len(read_failures(tmp_path / "run", "a")) == 2
    (only,) = read_failures(tmp_path / "run", "b")
    assert only.time.endswith("Z")
    assert read_failures(tmp_path / "no run", "a") == []
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"


# -- the lock -------------------------------------------------------------------------------------


def holder_of(folder: Path) -> subprocess.Popen:
    """A process that holds the folder until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from mambaout.launch.lock import held\n"
        "with held(Path(sys.argv[1]), 'x'):\n    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_a_held_folder_names_its_holder_and_a_dead_holder_holds_nothing(tmp_path):
    process = holder_of(tmp_path)
    words = f"study x is in use by process {process.pid} on {socket.gethostname()}"
    with pytest.raises(FolderHeld, match=words), held(tmp_path, "study x"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(2):
        with held(tmp_path, "study x"):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


# -- the live lines -------------------------------------------------------------------------------


def record(step: int, **values: float) -> Record:
    named = {
        name.replace("_top1", "/top1").replace("_loss", "/loss"): v for name, v in values.items()
    }
    return Record(step=step, epoch=step / 10, images_seen=step, seconds=float(step), values=named)


def job(label: str, macs: float, steps: int = 100) -> Job:
    mine = Trial(label=label, recipe=recipe("thin"), seed=len(label), data="d")
    return Job(trial=mine, num_steps=steps, train_macs=macs)


def test_the_time_left_weighs_work_by_macs_and_waits_for_the_longest_trial():
    jobs = [job("a", 10.0), job("bb", 30.0), job("ccc", 60.0)]
    a, b, c = (j.trial.key for j in jobs)
    start = {a: 0.0, b: 0.0, c: 0.0}
    left = seconds_left(jobs, {a: 1.0, b: 0.5, c: 0.0}, at_start=start, seconds=25, slots=1)
    assert left == pytest.approx(75)  # 25 of 100 in 25 s
    left = seconds_left(jobs, {a: 1.0, b: 1.0, c: 0.0}, at_start=start, seconds=20, slots=2)
    assert left == pytest.approx(60)  # two did 40 in 20 s; the last one runs on one share
    resumed = {a: 1.0, b: 0.5, c: 0.0}
    left = seconds_left(jobs, {a: 1.0, b: 1.0, c: 0.0}, at_start=resumed, seconds=15, slots=1)
    assert left == pytest.approx(60)  # what was done before this launch is no measure of its pace
    assert seconds_left(jobs, start, at_start=start, seconds=9, slots=1) is None


def test_the_lines_show_every_running_trial_and_the_counts():
    jobs = [job("a", 10.0), job("bb", 30.0), job("ccc", 60.0)]
    a, b, c = (j.trial.key for j in jobs)
    runs = {
        a: Run(trial=jobs[0].trial, status=Ending.FINISHED),
        b: Run(
            trial=jobs[1].trial,
            status=Ending.UNFINISHED,
            records=(record(25, train_loss=2.0, minival_top1=40.0), record(50, train_loss=1.5)),
        ),
        c: Run(trial=jobs[2].trial, status=Ending.UNFINISHED),
    }
    assert done_fraction(jobs[1], runs[b]) == 0.5
    head, *rows = progress.status_lines(jobs, runs, [b], seconds=75, left=600)
    assert head == "[1:15] 1 done, 1 running, 1 left | 25 % of the work, about 10.0 min left"
    (row,) = rows
    for part in ("bb-s2", "50/100", "5.0/5", "loss 1.500", "minival 40.00 %"):
        assert part in row


def test_a_terminal_is_redrawn_in_place_and_a_log_is_appended_to():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    screen = Screen(shown)
    screen.show(["one", "two"])
    screen.say("done")
    assert shown.getvalue() == "one\ntwo\n\x1b[2A\x1b[Jdone\n"
    log = io.StringIO()
    screen = Screen(log)
    screen.show(["one"])
    screen.show(["two"])  # too soon for a log
    screen.say("done")
    assert log.getvalue() == "one\ndone\n"


# -- requests -------------------------------------------------------------------------------------


def test_only_the_given_address_and_ray_jobs_are_joined(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address(None) is None
    assert cluster_address("10.0.0.1:6379") == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert cluster_address(None) == "10.0.0.2:6379"
    assert cluster_address("local") is None
    with pytest.raises(ValueError, match="ray job submit"):
        cluster_address("http://127.0.0.1:8265")
    with pytest.raises(ValueError, match="Ray Client"):
        cluster_address("ray://10.0.0.1:10001")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def too_large(start: Start) -> Study:
    large = tuned(recipe("thin"), train_images=None, global_batch=8192)
    return Study(name="large", question="?", recipes={"large": large})


def too_many(start: Start) -> Study:
    return Study(name="many", question="?", recipes={"x": tuned(recipe("thin"), train_images=9999)})


def twins(start: Start) -> Study:
    return Study(name="twins", question="?", recipes={"x": recipe("thin"), "y": recipe("thin")})


def out_of_range(start: Start) -> Study:
    return Study(name="range", question="?", recipes={"x": tuned(BASELINE, peak_lr=-1.0)})


def searched(axis: Axis) -> Callable[[Start], Study]:
    def searching(start: Start) -> Study:
        search = Search(label="few", base=recipe("thin"), axes=(axis,), num_trials=3)
        return Study(name="searching", question="?", recipes={}, searches=(search,))

    return searching


@pytest.mark.parametrize(
    ("build", "options", "says"),
    [
        (tiny, [], "--data is missing"),
        (tiny, ["--data", "digitz"], "digitz"),
        (tiny, ["--data", "/no/such/folder"], "/no/such/folder"),
        (tiny, ["--data", "digits", "--storage", "/proc/none"], "--storage /proc/none"),
        (tiny, ["--data", "digits", "--storage", "gs://bucket/x"], "gs://bucket/x"),
        (tiny, ["--data", "digits", "--tracking-uri", "http://127.0.0.1:{port}"], "{port}"),
        (tiny, ["--data", "digits", "--tracking-uri", "ftp://x"], "ftp"),
        (tiny, ["--data", "digits", "--accelerator", "tpu-v3-8"], "tpu-v3-8"),
        (tiny, ["--data", "digits", "--accelerator", "abacus"], "abacus"),
        (tiny, ["--data", "digits", "--seeds", "0"], "'0' must be a whole number"),
        (tiny, ["--data", "digits", "--max-concurrent", "two"], "'two'"),
        (tiny, ["--data", "digits", "--budget-hours", "-1"], "'-1' must be a number above 0"),
        (tiny, ["--data", "digits", "--price-per-hour", "2"], "add --plan"),
        (tiny, ["--data", "digits", "--grant-hours", "9"], "--grant-hours 9 is for the plan"),
        (tiny, ["--data", "digits", "--name", "a/b"], "a/b"),
        (tiny, ["--data", "digits", "--address", "http://x:8265"], "ray job submit"),
        (tiny, ["--date", "digits"], "--date"),
        (too_large, ["--data", "digits"], "global_batch=8192"),
        (too_many, ["--data", "digits"], "train_images=9999"),
        (twins, ["--data", "digits"], "x-s0 and y-s0 are the same"),
        (out_of_range, ["--data", "digits"], "peak_lr=-1.0"),
        # What a search could suggest, wherever it starts.
        (searched(WholeRange("global_batch", 8, 600)), ["--data", "digits"], "global_batch=600"),
        (searched(WholeRange("train_images", 64, 9999)), ["--data", "digits"], "train_images=9999"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_is_one_line_and_starts_and_writes_nothing(
    build, options, says, tmp_path, monkeypatch, capsys, digits
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    port = str(free_port())
    options = [option.replace("{port}", port) for option in options]
    try:
        status = cli.main(build, options)
    except SystemExit as exit_:  # argparse leaves by itself
        status = exit_.code
    shown = capsys.readouterr()
    assert status == 2
    assert says.replace("{port}", port) in shown.err
    assert shown.err.count("\n") == 1, shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(tmp_path, capsys, digits):
    options = ["--data", "digits", "--accelerator", "gpu", "--storage", str(tmp_path / "runs")]
    assert cli.main(tiny, options) == 2
    assert "needs 1 CPU and 1 GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_ray_that_does_not_start_is_one_line_and_the_study_can_go_on(
    tmp_path, monkeypatch, capsys, digits
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    options = ["--data", "digits", "--storage", str(tmp_path / "runs"), "--accelerator", "cpu"]
    assert cli.main(tiny, options) == 1
    error = capsys.readouterr().err
    assert re.search(r"Ray did not start .*file.* run the same command again\n$", error)
    assert error.count("\n") == 1


def test_a_field_that_the_study_varies_is_not_told_to_follow_the_data(tmp_path, capsys, digits):
    def sizes(start: Start) -> Study:
        recipes = {f"{side}": tuned(start.recipe(), image_size=side) for side in (16, 32)}
        return Study(name="sizes", question="?", recipes=recipes)

    options = ["--data", "digits", "--storage", str(tmp_path / "runs"), "--plan"]
    assert cli.main(sizes, options) == 0
    shown = capsys.readouterr().out
    assert "minival_fraction 0.1" in shown
    assert "image_size 28" not in shown


def test_a_study_goes_to_the_mlflow_that_the_environment_names_unless_told(
    tmp_path, monkeypatch, capsys, digits
):
    # A job that is submitted finds the cluster's server so.
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    options = ["--data", "digits", "--storage", str(tmp_path / "runs")]
    assert cli.main(tiny, options) == 2
    assert address in capsys.readouterr().err
    assert cli.main(tiny, [*options, "--tracking-uri", "ftp://x"]) == 2
    assert "ftp://x" in capsys.readouterr().err


def test_a_second_driver_of_a_study_is_refused(tmp_path, capsys, digits):
    process = holder_of(tmp_path / "runs" / "tiny-digits")
    assert cli.main(tiny, ["--data", "digits", "--storage", str(tmp_path / "runs")]) == 2
    assert f"in use by process {process.pid}" in capsys.readouterr().err
    process.kill()
    process.wait()


def test_the_plan_costs_nothing_to_see(tmp_path, data_cache):
    code = (
        "import sys; from tiny_sweep import tiny; from mambaout.launch.cli import main\n"
        "status = main(tiny, ['--data', 'digits', '--plan', '--seeds', '2'])\n"
        "print([m for m in ('ray', 'torch', 'mlflow', 'matplotlib') if m in sys.modules])\n"
        "sys.exit(status)"
    )
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    *table, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert "to run       6 trials" in done.stdout
    assert "Do studies survive?" in table[0]
    assert list(tmp_path.iterdir()) == []


def test_trials_start_seed_by_seed_and_the_longest_first(digits):
    study = replace(tiny(start_of(4000, 28)), seeds=(0, 1))
    trials = cli._in_order(study.trials(digits.fingerprint), digits)
    jobs = [cli._job(digits, trial) for trial in trials]
    assert [j.trial.seed for j in jobs] == [0, 0, 0, 1, 1, 1]
    work = [j.train_macs for j in jobs[:3]]
    assert work == sorted(work, reverse=True)
    assert all(j.num_steps == 5 * 512 // 32 for j in jobs)


def request_of(study: Study, storage: Path, **fields: Any) -> Request:
    """A request for the study whose trials are one step long."""
    return Request(
        study=study,
        trials=study.trials("d"),
        job=lambda trial: Job(trial=trial, num_steps=1, train_macs=1),
        num_images=lambda split, recipe: 1000,
        fingerprint="d",
        data="d",
        data_name="d",
        storage=storage,
        name=study.name,
        **fields,
    )


def test_a_search_begun_with_other_axes_is_refused_and_nothing_is_written(tmp_path):
    from mambaout.study.axes import LogRange, Search
    from mambaout.study.search.study_agenda import agenda

    def asked(high: float) -> Request:
        axes = (LogRange("peak_lr", 1e-3, high),)
        found = Search(label="rate", base=recipe("thin"), axes=axes, num_trials=3)
        study = Study(name="s", question="?", recipes={}, searches=(found,))
        return request_of(study, tmp_path, tracking_uri="none", accelerator="cpu")

    folder = StudyFolder(tmp_path, "s")
    folder.write(asked(1e-2).study, [])
    assert agenda(asked(1e-2).study, folder, "d", []).next() is not None
    before = folder.texts()
    with pytest.raises(ValueError, match="begun with other values of axes; give"):
        run_study(asked(2e-2))
    assert folder.texts() == before


def test_the_live_lines_of_a_search_that_has_decided_on_nothing_yet():
    (line,) = progress.status_lines([], {}, [], seconds=1, left=None, num_undecided=7)
    assert line == "[0:01] 0 done, 0 running, 7 left | 0 % of the work"
    assert seconds_left([], {}, at_start={}, seconds=9, slots=2, num_undecided=7) is None


# MLflow 3.17 calls what SQLAlchemy 2.1 is about to drop.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_a_rerun_moves_run_directories_aside_and_deletes_nothing(tmp_path):
    from mambaout.study.tracking.store import default_tracking_uri
    from mambaout.study.tracking.tracker import Tracker

    study = tiny(start_of(4000, 28))
    trials = study.trials("d")
    folder = StudyFolder(tmp_path, "tiny")
    for mine in trials[:2]:
        folder.run_directory(mine).mkdir(parents=True)
        (folder.run_directory(mine) / "last.ckpt").write_text(mine.label)
    uri = default_tracking_uri(tmp_path)
    Tracker(uri, "tiny", "?").begin(trials[0])
    request = request_of(study, tmp_path, tracking_uri=uri, rerun=True)
    assert Rerun(folder).begin(request)
    (aside,) = (folder.path / "aside").iterdir()
    kept = {path.parent.name: path.read_text() for path in aside.glob("*/last.ckpt")}
    assert kept == {mine.key: mine.label for mine in trials[:2]}
    assert not any(folder.run_directory(mine).exists() for mine in trials)
    tracker = Tracker(uri, "tiny", "?")
    assert trials[0].key not in tracker._study.runs
    assert Rerun(folder).begin(request)  # nothing is there any more: nothing to move
    assert len(list((folder.path / "aside").iterdir())) == 1
