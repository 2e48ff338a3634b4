"""Studies in real MLflow stores: a run a trial, each exactly once, through kills and outages."""

from __future__ import annotations

import math
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from mlflow.tracking import MlflowClient
from study_files import (
    diverge,
    finish,
    mixed_study,
    record,
    scaling_study,
    sized,
    start,
    write_outcome,
    write_records,
    write_study,
)

from mambaout.endings import Ending
from mambaout.recipe import flat_fields, tuned
from mambaout.study.study import Run, Study, StudyFolder, Trial
from mambaout.study.tracking import outage
from mambaout.study.tracking.store import check_tracking, default_tracking_uri
from mambaout.study.tracking.tracker import Tracker, compare_url, ui_command
from mambaout.study.tracking.views import StudyPages, study_pages, ui_variables

QUESTION = "Does it scale?"


@pytest.fixture
def uri(empty_store, tmp_path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    return write_study(tmp_path)


def open_tracker(uri: str) -> Tracker:
    return Tracker(uri, "scale", QUESTION)


def children(uri: str) -> dict[str, list]:
    """The trial runs that a user of the store finds, by key."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mambaout/scale")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`mambaout.role` = 'trial'")
    found: dict[str, list] = {}
    for run in runs:
        found.setdefault(run.data.tags["mambaout.key"], []).append(run)
    return found


def child(uri: str, trial: Trial):
    (run,) = children(uri)[trial.key]
    return run


def series(uri: str, trial: Trial, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=uri).get_metric_history(child(uri, trial).info.run_id, name)
    return [(metric.step, metric.value) for metric in history]


def ended(folder: StudyFolder, tracker: Tracker, trial: Trial) -> None:
    tracker.end(trial, folder.run(trial), folder.run_directory(trial))


def test_a_study_says_above_its_trials_which_images_the_seeds_see(uri, tmp_path):
    part = tuned(sized(8, 4), train_images=1000, subset="seed")
    study = Study(name="part", question=QUESTION, recipes={"part": part})
    tracker = open_tracker(uri)
    tracker.describe(write_study(tmp_path, study))
    client = MlflowClient(tracking_uri=uri)
    (parent,) = client.search_runs([tracker.experiment_id], "tags.`mambaout.role` = 'study'")
    experiment = client.get_experiment(tracker.experiment_id)
    for tags in (parent.data.tags, experiment.tags):
        assert tags["mlflow.note.content"].startswith(
            f"{QUESTION}\n\nEach seed draws its own 1,000"
        )


# -- one run a trial ------------------------------------------------------------------------------


def test_a_study_is_one_parent_run_and_one_child_run_a_trial(uri, folder):
    tracker = open_tracker(uri)
    for trial in folder.trials()[:3]:
        finish(folder, trial)
        tracker.begin(trial, {"launch": "1"})
        tracker.catch_up(trial, folder.run_directory(trial))
        ended(folder, tracker, trial)
    assert tracker.close("FINISHED")

    client = MlflowClient(tracking_uri=uri)
    (parent,) = client.search_runs([tracker.experiment_id], "tags.`mambaout.role` = 'study'")
    assert (parent.info.run_name, parent.info.status) == ("scale", "FINISHED")
    assert parent.data.tags["mlflow.note.content"] == QUESTION
    found = children(uri)
    assert sorted(found) == sorted(trial.key for trial in folder.trials()[:3])
    for trial in folder.trials()[:3]:
        run = child(uri, trial)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.info.run_name, run.info.status) == (trial.name, "FINISHED")


def test_a_trials_run_says_how_its_images_were_re_encoded(uri, folder):
    way = "short side 288, quality 90"
    tracker = open_tracker(uri)
    for trial, lossy in zip(folder.trials(), (way, None), strict=False):
        write_outcome(
            folder.run_directory(trial), "finished", {"top1": 80.0}, {"data_lossy": lossy}
        )
        tracker.begin(trial)
        ended(folder, tracker, trial)
        assert child(uri, trial).data.tags["data_lossy"] == str(lossy)


def test_a_trials_run_holds_its_recipe_what_it_ran_on_and_what_it_reached(uri, folder):
    trial = folder.trials()[0]
    finish(folder, trial)
    tracker = open_tracker(uri)
    tracker.begin(trial)
    ended(folder, tracker, trial)
    run = child(uri, trial)
    assert set(run.data.params) == {*flat_fields(trial.recipe), "seed"}
    assert run.data.params["dims"] == "8,16,32,48"
    assert run.data.params["peak_lr"] == "0.001"
    for tag, value in {
        "variant": "w8-d2",
        "data": trial.data,
        "git_commit": "abcdef123456",
        "device": "cpu",
        "host": "box",
        "outcome": "finished",
    }.items():
        assert run.data.tags[tag] == value
    final = folder.run(trial).metrics
    for name in ("top1", "top5", "macs", "params", "activations", "train_device_hours"):
        assert run.data.metrics[name] == final[name], name
    client = MlflowClient(tracking_uri=uri)
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"recipe.json", "outcome.json", "last.ckpt"}
    local = Path(client.download_artifacts(run.info.run_id, "last.ckpt"))
    assert local.read_bytes() == b"weights of " + trial.key.encode()


def test_a_final_metric_is_the_last_value_of_a_series_of_its_name(uri, folder):
    trial = folder.trials()[0]
    finish(folder, trial)
    tracker = open_tracker(uri)
    tracker.begin(trial)
    tracker.catch_up(trial, folder.run_directory(trial))
    assert child(uri, trial).data.metrics["images_per_second"] == 910
    ended(folder, tracker, trial)
    final = folder.run(trial).metrics["images_per_second"]
    assert child(uri, trial).data.metrics["images_per_second"] == final != 910


def test_a_diverged_trial_is_failed_and_keeps_its_values_that_are_not_finite(uri, folder):
    trial = folder.trials()[0]
    diverge(folder, trial)
    with (folder.run_directory(trial) / "records.jsonl").open("a") as out:
        out.write(record(93, 2.3, {"train/loss": float("nan")}).to_json() + "\n")
    tracker = open_tracker(uri)
    tracker.begin(trial)
    ended(folder, tracker, trial)
    run = child(uri, trial)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "the loss was not finite at step 93"
    assert [step for step, _ in series(uri, trial, "train/loss")] == [40, 80, 93]


def test_a_trial_that_can_go_on_is_killed_not_failed(uri, folder):
    trial = folder.trials()[0]
    start(folder, trial)
    tracker = open_tracker(uri)
    tracker.begin(trial)
    ended(folder, tracker, trial)
    assert child(uri, trial).info.status == "KILLED"


# -- every record once ----------------------------------------------------------------------------


@pytest.mark.parametrize("kill_every", [1, 3])
def test_every_record_is_logged_once_however_often_the_driver_is_killed(uri, folder, kill_every):
    trial = folder.trials()[0]
    directory = folder.run_directory(trial)
    start(folder, trial, num_epochs=7)
    path = directory / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("")
    for first in range(0, len(lines), kill_every):
        with path.open("a") as out:
            out.writelines(lines[first : first + kill_every])
        tracker = open_tracker(uri)  # the one before it is gone without a word
        tracker.begin(trial)
        tracker.catch_up(trial, directory)
    for name in ("train/loss", "minival/top1", "epoch"):
        assert [step for step, _ in series(uri, trial, name)] == [40 * e for e in range(1, 8)]


def test_steps_trained_again_after_a_resume_are_logged_once(uri, folder):
    trial = folder.trials()[0]
    directory = folder.run_directory(trial)
    start(folder, trial, num_epochs=5)
    tracker = open_tracker(uri)
    tracker.begin(trial)
    tracker.catch_up(trial, directory)
    path = directory / "records.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    for epoch in (3, 4, 5, 6):
        with path.open("a") as out:
            values = {"minival/top1": 50.0, "images_per_second": 1.0 * epoch}
            out.write(record(40 * epoch, epoch, values).to_json() + "\n")
    tracker.catch_up(trial, directory)
    assert [step for step, _ in series(uri, trial, "minival/top1")] == [40, 80, 120, 160, 200, 240]


@pytest.mark.parametrize("driver", ["the same", "a new one"])
def test_a_series_keeps_the_order_of_its_steps_if_a_resumed_run_is_faster(uri, folder, driver):
    """MLflow orders a series by time. The killed run had needed 20 s for step 200."""
    trial = folder.trials()[0]
    directory = folder.run_directory(trial)
    start(folder, trial, num_epochs=5)
    tracker = open_tracker(uri)
    tracker.begin(trial)
    tracker.catch_up(trial, directory)
    path = directory / "records.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    if driver == "a new one":
        tracker = open_tracker(uri)
    tracker.begin(trial)
    for epoch in (3, 4, 5, 6, 7):
        faster = replace(record(40 * epoch, epoch, {"minival/top1": 50.0}), seconds=8.0 + epoch)
        with path.open("a") as out:
            out.write(faster.to_json() + "\n")
        tracker.catch_up(trial, directory)
    write_outcome(directory, "finished", {"top1": 80.0})
    ended(folder, tracker, trial)
    steps = [step for step, _ in series(uri, trial, "minival/top1")]
    assert steps == [40, 80, 120, 160, 200, 240, 280]
    assert child(uri, trial).data.metrics["top1"] == 80.0


def test_two_records_of_one_step_are_both_logged(uri, folder):
    trial = folder.trials()[0]
    directory = folder.run_directory(trial)
    directory.mkdir(parents=True)
    tracker = open_tracker(uri)
    tracker.begin(trial)
    for values in ({"train/loss": 2.0}, {"minival/top1": 60.0}, {"val/top1": 61.0}):
        with (directory / "records.jsonl").open("a") as out:
            out.write(record(40, 1.0, values).to_json() + "\n")
        tracker.catch_up(trial, directory)
    found = child(uri, trial).data.metrics
    assert (found["train/loss"], found["minival/top1"], found["val/top1"]) == (2, 60, 61)


def test_nothing_new_is_nothing_logged(uri, folder):
    trial = folder.trials()[0]
    tracker = open_tracker(uri)
    tracker.begin(trial)
    assert tracker.catch_up(trial, folder.run_directory(trial)) == 0
    start(folder, trial, num_epochs=2)
    assert tracker.catch_up(trial, folder.run_directory(trial)) == 20
    assert tracker.catch_up(trial, folder.run_directory(trial)) == 0


def test_more_values_than_one_batch_of_mlflow_holds_are_all_logged(uri, folder):
    trial = folder.trials()[0]
    write_records(folder.run_directory(trial), trial.recipe, 80, num_epochs=250)
    tracker = open_tracker(uri)
    tracker.begin(trial)
    assert tracker.catch_up(trial, folder.run_directory(trial)) == 2500
    assert len(series(uri, trial, "train/loss")) == 250


# -- kills, relaunches, reruns --------------------------------------------------------------------


def test_a_resumed_trial_goes_on_in_its_run(uri, folder):
    trial = folder.trials()[0]
    start(folder, trial, num_epochs=4)
    tracker = open_tracker(uri)
    tracker.begin(trial, {"launch": "1"})
    ended(folder, tracker, trial)
    tracker.close("KILLED")
    before = child(uri, trial).info.run_id

    again = open_tracker(uri)
    assert again.run_id == tracker.run_id
    again.begin(trial, {"launch": "2"})
    run = child(uri, trial)
    assert (run.info.run_id, run.info.status) == (before, "RUNNING")
    assert run.data.tags["launch"] == "2"
    (folder.run_directory(trial) / "records.jsonl").unlink()
    finish(folder, trial)
    ended(folder, again, trial)
    assert child(uri, trial).info.status == "FINISHED"
    assert [step for step, _ in series(uri, trial, "minival/top1")] == list(range(40, 401, 40))


def test_a_launch_logs_what_a_killed_driver_left_unlogged(uri, folder):
    done, half_logged, cut, *_ = folder.trials()
    tracker = open_tracker(uri)
    tracker.begin(half_logged)
    start(folder, half_logged)
    tracker.catch_up(half_logged, folder.run_directory(half_logged))
    (folder.run_directory(half_logged) / "records.jsonl").unlink()
    for trial in (done, half_logged):  # they finish while nobody logs
        finish(folder, trial)
    start(folder, cut)

    again = open_tracker(uri)
    assert again.sync(folder) == 3
    assert {key: [run.info.status for run in runs] for key, runs in children(uri).items()} == {
        done.key: ["FINISHED"],
        half_logged.key: ["FINISHED"],
        cut.key: ["KILLED"],
    }
    assert len(series(uri, half_logged, "minival/top1")) == 10
    assert len(series(uri, cut, "minival/top1")) == 3
    assert again.sync(folder) == 0
    assert open_tracker(uri).sync(folder) == 0


def test_a_trial_set_aside_gets_a_new_run(uri, folder):
    trial, other, *_ = folder.trials()
    tracker = open_tracker(uri)
    for each in (trial, other):
        finish(folder, each)
        tracker.begin(each)
        ended(folder, tracker, each)
    before = child(uri, trial).info.run_id
    tracker.set_aside([trial.key, "never begun"])
    assert list(children(uri)) == [other.key]
    tracker.begin(trial)
    assert child(uri, trial).info.run_id != before


def test_a_trial_that_goes_on_before_its_end_was_logged_is_running(uri, folder, tmp_path):
    trial = folder.trials()[0]
    tracker = open_tracker(uri)
    tracker.begin(trial)
    start(folder, trial)
    (tmp_path / "mlartifacts").write_text("a file where the artifacts' folder should be")
    ended(folder, tracker, trial)
    (tmp_path / "mlartifacts").unlink()
    tracker._patience.end_pause()
    tracker.begin(trial)
    tracker.catch_up(trial, folder.run_directory(trial))
    assert child(uri, trial).info.status == "RUNNING"


def test_a_run_that_was_made_though_nobody_heard_of_it_is_found_not_doubled(uri, folder):
    trial = folder.trials()[0]
    start(folder, trial)
    tracker, another = open_tracker(uri), open_tracker(uri)
    another.begin(trial)  # as by a request whose answer was lost
    tracker.begin(trial)
    assert len(children(uri)[trial.key]) == 2
    tracker.catch_up(trial, folder.run_directory(trial))
    assert open_tracker(uri).sync(folder) == 0
    assert child(uri, trial).data.metrics, "the one with values stays"


def test_a_tracker_travels_by_pickle(uri, folder):
    trial = folder.trials()[0]
    tracker = open_tracker(uri)
    tracker.begin(trial)
    start(folder, trial, num_epochs=2)
    copy = pickle.loads(pickle.dumps(tracker))
    assert copy.catch_up(trial, folder.run_directory(trial)) == 20


def test_files_on_the_parent_run_are_replaced(uri, tmp_path):
    tracker = open_tracker(uri)
    path = tmp_path / "report.html"
    for text in ("first", "second"):
        path.write_text(text)
        tracker.attach([path])
    client = MlflowClient(tracking_uri=uri)
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["report.html"]
    local = client.download_artifacts(tracker.run_id, "report.html")
    assert Path(local).read_text() == "second"


def test_an_end_that_the_store_did_not_take_is_made_good(uri, folder, tmp_path, caplog):
    trial, other, *_ = folder.trials()
    tracker = open_tracker(uri)
    tracker.begin(trial)
    tracker.begin(other)
    finish(folder, trial)
    start(folder, other)
    (tmp_path / "mlartifacts").write_text("a file where the artifacts' folder should be")
    ended(folder, tracker, trial)
    ended(folder, tracker, trial)
    assert child(uri, trial).info.status == "RUNNING"
    assert [r.message for r in caplog.records if "did not take a report" in r.message] != []
    assert len(caplog.records) == 1, "said once an outage"
    assert not tracker.close("FINISHED")
    assert trial.name in caplog.records[-1].message

    (tmp_path / "mlartifacts").unlink()
    assert tracker.close("FINISHED")
    assert child(uri, trial).info.status == "FINISHED"
    assert len(series(uri, trial, "minival/top1")) == 10
    assert len(series(uri, trial, "top1")) == 1


# -- what is refused before anything starts -------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("{tmp}/mlruns", "no longer keeps runs in a plain folder"),
        ("file:{tmp}", "no longer keeps runs in a plain folder"),
        ("ftp://somewhere", "no store of the kind 'ftp'"),
        ("http://127.0.0.1:{free}", "no tracking server answers"),
        ("http://127.0.0.1:99999", "is no address"),
        ("sqlite:///{tmp}", "is a folder"),
        ("sqlite:///{tmp}/file/mlflow.db", "cannot be written"),
        ("sqlite:////proc/mlflow.db", "cannot be written"),
        ("sqlite:///{tmp}/file", "not a sqlite file"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_with_the_remedy(tmp_path, uri, message):
    (tmp_path / "file").write_text("some words that are no database")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message) as refusal:
        check_tracking(uri.format(tmp=tmp_path, free=free))
    assert any(
        word in str(refusal.value) for word in ("give", "choose", "start one", "no address", "name")
    )
    assert sorted(tmp_path.rglob("*")) == before, "nothing was created"


def test_studies_that_start_at_once_share_a_new_store(tmp_path):
    code = (
        "import sys\n"
        "from mambaout.study.tracking.tracker import Tracker\n"
        "Tracker(*sys.argv[1:3], 'Why?')"
    )
    uri = default_tracking_uri(tmp_path / "runs")
    started = [subprocess.Popen([sys.executable, "-c", code, uri, name]) for name in ("a", "b")]
    assert [process.wait(timeout=240) for process in started] == [0, 0]
    found = {one.name for one in MlflowClient(tracking_uri=uri).search_experiments()}
    assert {"mambaout/a", "mambaout/b"} <= found


def test_a_store_that_can_be_used_is_left_untouched_by_the_check(tmp_path, empty_store):
    check_tracking(default_tracking_uri(tmp_path / "not" / "yet"))
    assert list(tmp_path.iterdir()) == []
    before = empty_store.read_bytes()
    check_tracking(f"sqlite:///{empty_store}")
    assert empty_store.read_bytes() == before


def test_something_else_that_answers_http_is_no_tracking_server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}", seconds=30)
        with pytest.raises(ValueError, match="not as an MLflow server"):
            check_tracking(f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()


# -- the page -------------------------------------------------------------------------------------


def test_the_page_to_compare_on_is_the_study_launched_last(uri):
    with pytest.raises(ValueError, match="there is no study"):
        compare_url(uri)
    first = Tracker(uri, "one", QUESTION)
    address = compare_url(uri, port=5012)
    assert address.startswith(f"http://127.0.0.1:5012/#/experiments/{first.experiment_id}/runs?")
    second = Tracker(uri, "two", QUESTION)
    assert f"/experiments/{second.experiment_id}/" in compare_url(uri)
    assert f"/experiments/{first.experiment_id}/" in compare_url(uri, study_name="one")
    with pytest.raises(ValueError, match="'three'"):
        compare_url(uri, study_name="three")


def test_a_store_without_a_file_is_not_made_by_looking(tmp_path):
    with pytest.raises(ValueError, match="run a study first"):
        compare_url(default_tracking_uri(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_ui_is_served_to_this_machine_alone():
    command = ui_command("sqlite:////x/mlflow.db", 5012)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5012"
    with pytest.raises(ValueError, match="is a server already"):
        ui_command("http://somewhere:5000")


# -- a real server, and a browser on it -----------------------------------------------------------


def _wait_for(address: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


@pytest.fixture(scope="module")
def server(empty_store, tmp_path_factory) -> Iterator[tuple[str, subprocess.Popen]]:
    home = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, home / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (home / "log").open("w")
    process = subprocess.Popen(
        ui_command(f"sqlite:///{home}/mlflow.db", port),
        cwd=home,
        env=os.environ | ui_variables(f"sqlite:///{home}/mlflow.db"),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", seconds=120)
        yield f"http://127.0.0.1:{port}", process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.mark.slow
def test_a_server_that_stops_answering_costs_no_trial_and_gets_everything_later(
    server, tmp_path, monkeypatch, caplog
):
    address, process = server
    check_tracking(address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(outage, "FIRST_PAUSE_SECONDS", math.inf)
    folder = write_study(tmp_path)
    one, two, *_ = folder.trials()
    tracker = Tracker(address, "scale", QUESTION)
    tracker.begin(one)
    start(folder, one, num_epochs=3)
    assert tracker.catch_up(one, folder.run_directory(one)) == 30

    sent = []
    send = requests.Session.send
    monkeypatch.setattr(
        requests.Session, "send", lambda *args, **kinds: sent.append(args) or send(*args, **kinds)
    )
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        diverge(folder, two)
        with (folder.run_directory(two) / "records.jsonl").open("a") as out:
            out.write(record(93, 2.3, {"train/loss": float("nan")}).to_json() + "\n")
        tracker.begin(two)  # the one call that finds out waits; the others know
        for _ in range(20):
            tracker.catch_up(two, folder.run_directory(two))
        ended(folder, tracker, two)
        tracker.attach([folder.path / "study.json"])
        assert len(sent) == 1
        assert len([r for r in caplog.records if "did not take" in r.message]) == 1
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

    assert tracker.close("FINISHED"), "what is owed is paid before the study is closed"
    assert child(address, two).info.status == "FAILED"
    assert len(series(address, two, "train/loss")) == 3
    assert len(children(address)[two.key]) == 1


@pytest.fixture(scope="module")
def shown_study(server, tmp_path_factory) -> tuple[StudyPages, StudyFolder]:
    address, _ = server
    folder = mixed_study(tmp_path_factory.mktemp("page"))
    tracker = Tracker(address, "page", QUESTION)
    tracker.sync(folder)
    tracker.close("FINISHED")
    (pages,) = [pages for pages in study_pages(address) if pages.name == "page"]
    return pages, folder


def in_a_browser(address: str, home: Path, drawn: Callable[[str], bool]) -> str:
    """Return the page's elements once its scripts have run and `drawn` says that they are there.

    Chromium's virtual time goes on while a busy server has not answered, so it may look too early.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--window-size=1800,1200 --virtual-time-budget=30000 --dump-dom"
    )
    command = [browser, *options.split(), f"--user-data-dir={home / 'browser'}", address]
    page = ""
    for _ in range(5):
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        page = ran.stdout
        if drawn(page):
            break
    return page


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_shows_trials_side_by_side_with_accuracy_macs_and_throughput(
    shown_study, tmp_path
):
    pages, folder = shown_study
    cells = [f">{run.trial.name}<" for run in folder.runs()]
    page = in_a_browser(pages.trials, tmp_path, lambda page: all(cell in page for cell in cells))
    places = dict(
        re.findall(r'role="columnheader"[^>]*aria-colindex="(\d+)" col-id="([^"]+)"', page)
    )
    columns = [re.sub(r"\w+\.`(.*)`", r"\1", places[place]) for place in sorted(places, key=int)]
    metrics = ["minival/top1", "top1", "macs", "images_per_second", "device", "params"]
    assert columns[columns.index("minival/top1") :][: len(metrics)] == metrics
    names = [run.trial.name for run in rank(folder.runs())]
    assert [page.index(f">{name}<") for name in names] == sorted(
        page.index(f">{n}<") for n in names
    )
    for run in folder.runs():
        if run.status == "finished":
            assert f"{run.metrics['macs']:.0f}" in page


@pytest.mark.slow
@pytest.mark.browser
def test_the_charts_page_draws_learning_curves(shown_study, tmp_path):
    pages, _ = shown_study
    # The page names its charts a while before it draws them.
    page = in_a_browser(pages.charts, tmp_path, lambda page: page.count("js-plotly-plot") >= 3)
    assert "Search metric charts" in page
    assert "minival/top1" in page
    assert page.count("js-plotly-plot") >= 3


def rank(runs: list[Run]) -> list[Run]:
    finished = [run for run in runs if run.status == "finished"]
    return sorted(finished, key=lambda run: -run.metrics["minival/top1"])


def test_a_run_without_records_ends_too(uri, folder):
    trial = folder.trials()[0]
    tracker = open_tracker(uri)
    tracker.begin(trial)
    run = Run(trial=trial, status=Ending.BROKEN, facts={"error": "broken at step 0"})
    tracker.end(trial, run, folder.run_directory(trial))
    assert child(uri, trial).info.status == "FAILED"
    assert child(uri, trial).data.tags["error"] == "broken at step 0"


def test_the_questions_text_is_the_experiments_description(uri):
    tracker = Tracker(uri, "scale", scaling_study().question)
    experiment = MlflowClient(tracking_uri=uri).get_experiment(tracker.experiment_id)
    assert experiment.tags["mlflow.note.content"] == scaling_study().question
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
