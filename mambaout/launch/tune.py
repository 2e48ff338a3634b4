"""A study as a Ray Tune run: what is left of it, over the workers there are, to its end.

The run directories are the truth. A launch skips the trials that have an outcome and gives the
rest to a fresh Tuner, and each goes on from its own last.ckpt; nothing of Tune's is restored. So
a study survives the loss of any process, the driver's too, and a launch of a finished study
starts nothing, Ray included.

Writes: STORAGE/NAME/ (see study.study), and .launch/ in it while it runs.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from mambaout.launch.cluster import JOB_VARIABLE, Signals, cluster_address, join, leave, start
from mambaout.launch.follow import Follower
from mambaout.launch.lock import held
from mambaout.launch.outcomes import (
    FAILURES_FILE,
    Failure,
    add_failure,
    classify,
    one_line,
    read_failures,
    retried,
)
from mambaout.launch.progress import Job, Screen, clock, counted
from mambaout.launch.resources import Node, Share, share, this_machine
from mambaout.launch.trial import Retry, Task, recorded_step, run_trial
from mambaout.study.study import Run, Study, StudyFolder, Trial

DONE, UNFINISHED, INTERRUPTED = 0, 1, 130  # exit status; 2, a wrong request, is the caller's
GRACE_SECONDS = 20.0  # that running trials have to save and end, once told to stop
# A signal to the whole process group takes Ray's own processes too, and a driver without them
# waits for a minute before it is aborted; it leaves by itself after so much more than the grace.
LEAVE_SECONDS = 10.0
LAUNCH_FOLDER = ".launch"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A study to run, checked: what the command line asked for."""

    study: Study
    trials: Sequence[Trial]
    jobs: Sequence[Job]  # of the trials, in the order to start them
    data: str  # what open_data is given on every machine
    data_name: str
    storage: Path
    name: str
    tracking_uri: str
    address: str | None = None
    accelerator: str | None = None
    max_concurrent: int | None = None
    budget_hours: float | None = None
    rerun: bool = False
    command: str = ""
    facts: Mapping[str, Any] | None = None


def run_study(request: Request) -> int:
    """Run what is left of the study; the exit status.

    Raises ValueError before anything has started or been written, where the study cannot start:
    the cluster does not answer or lacks what a trial needs, another driver has the study.
    """
    folder = StudyFolder(request.storage, request.name)
    address = cluster_address(request.address)
    with ExitStack() as cleanup:
        nodes = [this_machine(request.accelerator)]
        if address and (request.rerun or _unfinished(folder, request.jobs)):
            nodes = join(address)
            cleanup.callback(leave)
        part = share(request.accelerator, nodes)
        cleanup.enter_context(held(folder.path, f"study {folder.path}"))
        if request.rerun:
            _set_aside(request, folder)
        folder.write(
            request.study,
            request.trials,
            data=request.data,
            data_name=request.data_name,
            command=request.command,
            **(request.facts or {}),
        )
        launch = _Launch(request, folder, nodes, part, joined=bool(address))
        launch.signals.listen()
        cleanup.callback(launch.signals.give_back)
        return launch.run(cleanup)


def _unfinished(folder: StudyFolder, jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if folder.run(job.trial).status == "unfinished"]


def _set_aside(request: Request, folder: StudyFolder) -> None:
    """Take what the trials have done so far out of the way, in MLflow and on disk."""
    found = [trial for trial in request.trials if folder.run_directory(trial).exists()]
    if not found:
        return
    from mambaout.study.tracking import Tracker

    # MLflow first: a kill in between leaves runs that the next launch logs once more, not steps
    # of a new run in the series of the old one.
    tracker = Tracker(request.tracking_uri, request.name, request.study.question)
    tracker.set_aside(trial.key for trial in found)
    aside = folder.path / "aside" / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    aside.mkdir(parents=True)
    for trial in found:
        folder.run_directory(trial).rename(aside / trial.key)
    print(f"{len(found)} earlier run directories are now in {aside}", flush=True)


class _Stopped(Exception):
    """Raised out of Tune's event loop once the study is to end early."""


class _Launch:
    """One launch: the Tuner, its callbacks and how it ends."""

    def __init__(
        self,
        request: Request,
        folder: StudyFolder,
        nodes: Sequence[Node],
        part: Share,
        joined: bool,
    ) -> None:
        self.request, self.folder, self.nodes, self.part = request, folder, nodes, part
        self.joined = joined
        self.id = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + uuid4().hex[:4]
        self.path = folder.path / LAUNCH_FOLDER / self.id
        self.stop_file = self.path / "stop"
        self.signals = Signals()
        self.started = time.monotonic()
        self.why_stopped: str | None = None
        self.stopped_at = 0.0
        self.fitted = False  # Tune has come to an end
        self.todo = _unfinished(folder, request.jobs)
        places = part.slots(nodes)
        self.slots = max(1, min(request.max_concurrent or places, places, len(self.todo) or 1))
        self.active: set[str] = set()
        self.screen = Screen()

    def run(self, cleanup: ExitStack) -> int:
        shutil.rmtree(self.folder.path / LAUNCH_FOLDER, ignore_errors=True)  # of a killed driver
        self.follower = Follower(
            self.request.study,
            self.folder,
            self.request.jobs,
            launch=self.id,
            slots=self.slots,
            tracking_uri=self.request.tracking_uri,
            tags={"launch": self.id},
            screen=self.screen,
        )
        self._say_hello()
        self.follower.start()
        if self.todo:
            self.path.mkdir(parents=True)
            cleanup.callback(shutil.rmtree, self.folder.path / LAUNCH_FOLDER, ignore_errors=True)
            if not self.joined:
                cleanup.callback(leave)
                start(self.nodes[0])
            self.signals.listen()
            if self.signals.seen:
                self.screen.say("interrupted before a trial began")
            else:
                self._tune()
        return self._end()

    def _say_hello(self) -> None:
        jobs, todo = len(self.request.jobs), len(self.todo)
        over = f", {jobs - todo} of them over" if todo < jobs else ""
        machines = counted(len(self.nodes), "machine")
        where = f"the cluster's {machines}" if self.joined else "this machine"
        at_once = f"; {self.slots} at a time on {where} ({self.part.accelerator})" if todo else ""
        self.screen.say(f"study {self.request.name}: {counted(jobs, 'trial')}{over}{at_once}")
        self.screen.say(f"folder {self.folder.path}")
        if todo and not self.joined:
            self.screen.say("starting Ray; the first trial begins in about 10 s")

    def _tune(self) -> None:
        from ray import tune

        from mambaout.train.facts import git_commit

        task = Task(
            storage=str(self.folder.path.parent),
            study=self.folder.path.name,
            data=self.request.data,
            launch=self.id,
            stop_file=str(self.stop_file),
            backend=self.part.backend,
            cpus=self.part.cpus,
            num_workers=self.part.num_workers,
            commit=git_commit(),
        )
        tuner = tune.Tuner(
            tune.with_resources(run_trial, self.part.resources()),
            param_space=task.config(tune.grid_search([job.trial.key for job in self.todo])),
            tune_config=tune.TuneConfig(max_concurrent_trials=self.slots, reuse_actors=True),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.path),
                verbose=0,
                callbacks=[_callback(self)],
                # `retried` decides; this only bounds what it cannot see.
                failure_config=tune.FailureConfig(max_failures=1000),
            ),
        )
        with suppress(_Stopped):
            tuner.fit()
        self.fitted = True

    # -- called by Tune's event loop

    def on_start(self, tune_trial: Any) -> None:
        self.active.add(tune_trial.config["key"])
        self.follower.began(tune_trial.config["key"])

    def on_failure(self, tune_trial: Any) -> None:
        """Tune is about to start the trial again; write down why, and hold it where it is over."""
        key = tune_trial.config["key"]
        directory = self._directory(key)
        error = _error_of(tune_trial)
        cause = getattr(error, "cause", None) or error
        if not isinstance(cause, Retry):  # that one has been written down by the worker
            failure = Failure(
                kind=classify(cause),
                error=one_line(cause),
                step=recorded_step(directory),
                launch=self.id,
                trace=str(error),
            )
            add_failure(directory, failure)
        if retried(read_failures(directory, self.id)):
            self.follower.retrying(key)
        else:
            # run_trial will return at once; where it cannot even start, Tune ends the trial.
            tune_trial.max_failures = 0

    def on_end(self, tune_trial: Any) -> None:
        self.active.discard(tune_trial.config["key"])
        self.follower.ended(tune_trial.config["key"])

    def on_step(self) -> None:
        now = time.monotonic()
        budget = self.request.budget_hours
        if self.why_stopped is None:
            if self.signals.seen:
                self.why_stopped = "interrupted"
            elif budget is not None and now - self.started > budget * 3600:
                self.why_stopped = f"the budget of {budget:g} h is spent"
            if self.why_stopped is not None:
                self.stopped_at = now
                self.stop_file.touch()
                leave = threading.Timer(GRACE_SECONDS + LEAVE_SECONDS, self._leave)
                leave.daemon = True
                leave.start()
                at_once = " (Ctrl-C again: at once)" if self.signals.seen else ""
                stopping = counted(len(self.active), "running trial")
                self.screen.say(f"{self.why_stopped}: saving and stopping {stopping}{at_once}")
        elif not self.active or now - self.stopped_at > GRACE_SECONDS:
            raise _Stopped

    def _leave(self) -> None:
        """End the process where Ray does not: what there is lies in the run directories."""
        if not self.fitted:
            status = self._end()
            sys.stdout.flush()
            os._exit(status)

    def _directory(self, key: str) -> Path:
        return self.folder.path / "trials" / key

    # -- the end

    def _end(self) -> int:
        """Log and print what came out; the exit status."""
        from mambaout.study.report import ranked_table  # with matplotlib, which --plan needs not

        unfinished = _unfinished(self.folder, self.request.jobs)
        interrupted = self.signals.seen and bool(unfinished)
        status = "KILLED" if interrupted else "FAILED" if unfinished else "FINISHED"
        files = self.follower.finish(status)
        runs = self.follower.runs()
        self.screen.say("\n" + ranked_table(runs))
        self._say_what_is_left(runs)
        seconds = clock(time.monotonic() - self.started)
        reports = [str(path) for path in files if path.suffix == ".html"]
        self.screen.say(f"\n{seconds} in all; report: {reports[0] if reports else 'none'}")
        self.screen.say(f"MLflow: {ui_command(self.request)}")
        if self.follower.problem is not None:
            raise self.follower.problem
        return INTERRUPTED if interrupted else UNFINISHED if unfinished else DONE

    def _say_what_is_left(self, runs: Sequence[Run]) -> None:
        left = [run for run in runs if run.status in ("unfinished", "failed")]
        if not left:
            return
        self.screen.say(f"\n{len(left)} of {counted(len(runs), 'trial')} did not finish:")
        for run in left:
            step = run.records[-1].step if run.records else 0
            directory = self.folder.run_directory(run.trial)
            begun = f"stopped after step {step}" if step else "stopped before its first record"
            so_far = begun if (directory / "last.ckpt").exists() else "not begun"
            self.screen.say(f"    {run.trial.name}  {run.facts.get('error', so_far)}")
            if run.status == "failed":
                self.screen.say(f"        {directory / FAILURES_FILE}")
        again = "submit the job again" if os.environ.get(JOB_VARIABLE) else self.request.command
        self.screen.say(f"to go on: {again}")


def _error_of(tune_trial: Any) -> Exception:
    """What Tune wrote down of the trial's last failure; it hands callbacks no exception."""
    path = Path(tune_trial.pickled_error_file or "")
    if path.is_file():
        return pickle.loads(path.read_bytes())  # by this very process, a moment ago
    text = Path(tune_trial.error_file).read_text() if tune_trial.error_file else "no reason given"
    return RuntimeError(text.strip().splitlines()[-1])


def ui_command(request: Request) -> str:
    """The command that opens the MLflow UI on the study."""
    if request.tracking_uri.startswith("http"):
        return f"open {request.tracking_uri}"
    # `make demo` runs without the virtual environment's commands on the PATH.
    ours = "mambaout" if shutil.which("mambaout") else f"{sys.executable} -m mambaout"
    return f"{ours} ui --storage {request.storage}"


def _callback(launch: _Launch) -> Any:
    """Tune's callback for `launch`; a function, since its base class is Ray's."""
    from ray.tune.progress_reporter import TrialProgressCallback

    class Callback(TrialProgressCallback):  # or Tune adds that one, which prints
        def __reduce__(self) -> tuple[type, tuple]:
            return TrialProgressCallback, ()  # pickled for a restore that never comes

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_start(trial)

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
        ) -> None:
            pass

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_failure(trial)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_end(trial)

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_end(trial)

        def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
            launch.on_step()

    return Callback()
