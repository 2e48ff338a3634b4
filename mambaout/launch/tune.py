"""A study as a Ray Tune run: what is left of it, over the workers there are, to its end.

The run directories are the truth. A launch skips the trials that have an outcome and gives the
rest to a fresh Tuner, and each goes on from its own last.ckpt; nothing of Tune's is restored. So
a study survives the loss of any process, the driver's too, and a launch of a finished study
starts nothing, Ray included.

Writes: STORAGE/NAME/ (see study.study), and .launch/ in it while it runs.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from mambaout.launch.follow import Follower
from mambaout.launch.lock import held
from mambaout.launch.outcomes import (
    Failure,
    add_failure,
    classify,
    one_line,
    read_failures,
    retried,
)
from mambaout.launch.progress import Job, Screen, clock
from mambaout.launch.resources import Node, Share, share, this_machine
from mambaout.launch.trial import Retry, Task, recorded_step, run_trial
from mambaout.study.report import ranked_table
from mambaout.study.study import Run, Study, StudyFolder, Trial

DONE, UNFINISHED, INTERRUPTED = 0, 1, 130  # exit status; 2, a wrong request, is the caller's
GRACE_SECONDS = 20.0  # that running trials have to save and end, once told to stop
# A signal to the whole process group takes Ray's own processes too, and a driver without them
# waits for a minute before it is aborted; it leaves by itself after so much more than the grace.
LEAVE_SECONDS = 10.0
LAUNCH_FOLDER = ".launch"
ADDRESS_VARIABLE = "RAY_ADDRESS"  # set by `ray job submit` in its jobs

# Ray and Tune print tables, warnings and stack traces of their own. What a reader needs of them
# is in the study's lines and in failures.jsonl.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they meant to the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # records.jsonl has it all
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `_Signals` has it
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read back
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # said aloud, it is no longer warned about
}


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


def cluster_address(address: str | None) -> str | None:
    """The cluster to join, or None to start Ray here for the time of the study.

    Only --address and RAY_ADDRESS count; a Ray that happens to run on this machine is left alone.
    """
    found = address or os.environ.get(ADDRESS_VARIABLE) or None
    source = "--address" if address else ADDRESS_VARIABLE
    if found in (None, "local"):
        return None
    if found.startswith(("http://", "https://")):
        raise ValueError(
            f"{source}={found} is the address for `ray job submit`; from here give the cluster's "
            "HOST:6379, or "
            + ("leave it out" if address else f"unset {ADDRESS_VARIABLE}")
            + " to run on this machine"
        )
    if found.startswith("ray://"):
        raise ValueError(
            f"{source}={found} is a Ray Client address, which Tune does not run through; submit "
            "the study with `ray job submit`, or give HOST:6379 on a machine of the cluster"
        )
    return found


def run_study(request: Request) -> int:
    """Run what is left of the study; the exit status.

    Raises ValueError before anything has started or been written, where the study cannot start:
    the cluster does not answer or lacks what a trial needs, another driver has the study.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    folder = StudyFolder(request.storage, request.name)
    address = cluster_address(request.address)
    with ExitStack() as cleanup:
        todo = request.rerun or any(_unfinished(folder, job.trial) for job in request.jobs)
        here = [this_machine(request.accelerator)]
        nodes = _join(address, cleanup) if address and todo else here
        part = share(request.accelerator, nodes)
        cleanup.enter_context(held(folder.path, f"study {folder.path}"))
        if request.rerun:
            aside = _move_aside(folder, request.trials)
            if aside is not None:
                print(f"earlier run directories are now in {aside}")
        folder.write(
            request.study,
            request.trials,
            data=request.data,
            data_name=request.data_name,
            command=request.command,
            **(request.facts or {}),
        )
        return _Launch(request, folder, nodes, part, joined=bool(address)).run(cleanup)


def _unfinished(folder: StudyFolder, trial: Trial) -> bool:
    return folder.run(trial).status == "unfinished"


def _join(address: str, cleanup: ExitStack) -> list[Node]:
    """Connect to a running cluster; the resources of its machines."""
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({one_line(error)}); start one with "
            "`ray start --head`, or leave --address out to run on this machine"
        ) from error
    cleanup.callback(ray.shutdown)
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _start_here(node: Node, cleanup: ExitStack) -> None:
    """Start Ray on this machine for the time of the study, whatever else runs on it."""
    import ray

    ray.init(
        address="local",
        num_cpus=int(node["CPU"]),
        num_gpus=int(node["GPU"]),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=128 * 2**20,  # trials share files, not objects
    )
    cleanup.callback(ray.shutdown)


def _move_aside(folder: StudyFolder, trials: Sequence[Trial]) -> Path | None:
    """Move the trials' run directories out of the way; where to, or None if there were none."""
    found = [path for t in trials if (path := folder.run_directory(t)).exists()]
    if not found:
        return None
    aside = folder.path / "aside" / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    aside.mkdir(parents=True)
    for path in found:
        path.rename(aside / path.name)
    return aside


class _Stopped(Exception):
    """Raised out of Tune's event loop once the study is to end early."""


class _Signals:
    """SIGINT and SIGTERM as a request to stop; a second one ends the process at once."""

    def __init__(self) -> None:
        self.seen: int | None = None

    def listen(self) -> None:
        """Ray takes SIGTERM for itself as it starts, so this is called after it too."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: object) -> None:
        if self.seen is not None:
            raise KeyboardInterrupt
        self.seen = number


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
        self.signals = _Signals()
        self.started = time.monotonic()
        self.why_stopped: str | None = None
        self.stopped_at = 0.0
        self.fitted = False  # Tune has come to an end
        self.todo = [job for job in request.jobs if _unfinished(folder, job.trial)]
        places = part.slots(nodes)
        self.slots = max(1, min(request.max_concurrent or places, places, len(self.todo) or 1))
        self.active: set[str] = set()
        self.screen = Screen()

    def run(self, cleanup: ExitStack) -> int:
        self.signals.listen()
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
                _start_here(self.nodes[0], cleanup)
                self.signals.listen()
            self._tune()
        return self._end()

    def _say_hello(self) -> None:
        jobs, todo = len(self.request.jobs), len(self.todo)
        over = f", {jobs - todo} of them finished before" if todo < jobs else ""
        where = f"the cluster's {len(self.nodes)} machines" if self.joined else "this machine"
        at_once = f"; {self.slots} at a time on {where} ({self.part.accelerator})" if todo else ""
        self.screen.say(f"study {self.request.name}: {jobs} trials{over}{at_once}")
        self.screen.say(f"folder {self.folder.path}")

    def _tune(self) -> None:
        from ray import tune

        from mambaout.train.facts import git_commit

        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
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
            tune_trial.max_failures = (
                0  # run_trial returns at once; if it cannot start, Tune ends it
            )

    def on_end(self, tune_trial: Any) -> None:
        self.active.discard(tune_trial.config["key"])
        self.follower.ended(tune_trial.config["key"])

    def on_step(self) -> None:
        now = time.monotonic()
        budget = self.request.budget_hours
        if self.why_stopped is None:
            if self.signals.seen is not None:
                self.why_stopped = "interrupted"
            elif budget is not None and now - self.started > budget * 3600:
                self.why_stopped = f"the budget of {budget:g} h is spent"
            if self.why_stopped is not None:
                self.stopped_at = now
                self.stop_file.touch()
                leave = threading.Timer(GRACE_SECONDS + LEAVE_SECONDS, self._leave)
                leave.daemon = True
                leave.start()
                self.screen.say(f"{self.why_stopped}: {len(self.active)} trials save and stop")
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
        runs = self.follower.runs()
        unfinished = [run for run in runs if run.status in ("unfinished", "failed")]
        interrupted = self.signals.seen is not None and bool(unfinished)
        files = self.follower.finish(
            "KILLED" if interrupted else "FAILED" if unfinished else "FINISHED"
        )
        runs = self.follower.runs()
        self.screen.say("")
        self.screen.say(ranked_table(runs))
        self._say_what_is_left(runs)
        self.screen.say(
            f"\n{clock(time.monotonic() - self.started)} in all; report: "
            + ", ".join(str(path) for path in files if path.suffix in (".html", ".md"))
        )
        self.screen.say(f"MLflow: {ui_command(self.request)}")
        if interrupted:
            return INTERRUPTED
        return UNFINISHED if unfinished else DONE

    def _say_what_is_left(self, runs: Sequence[Run]) -> None:
        left = [run for run in runs if run.status in ("unfinished", "failed")]
        if not left:
            return
        self.screen.say(f"\n{len(left)} of {len(runs)} trials did not finish:")
        for run in left:
            step = run.records[-1].step if run.records else 0
            so_far = f"stopped after step {step}" if step else "not begun, or no record yet"
            self.screen.say(f"    {run.trial.name}  {run.facts.get('error', so_far)}")
            if run.status == "failed":
                self.screen.say(f"        {self.folder.run_directory(run.trial)}/failures.jsonl")
        self.screen.say(f"to go on: {self.request.command}")


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
    return f"mambaout ui --storage {request.storage}"


def _callback(launch: _Launch) -> Any:
    """Tune's callback for `launch`; a function, since its base class is Ray's."""
    from ray import tune

    class Callback(tune.Callback):
        def __reduce__(self) -> tuple[type, tuple]:
            return tune.Callback, ()  # Tune pickles it for a restore that never comes

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_start(trial)

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_failure(trial)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_end(trial)

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_end(trial)

        def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
            launch.on_step()

    return Callback()
