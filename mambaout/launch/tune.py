"""A study as a Ray Tune run: train its remaining trials on the available workers.

The run directories are the only source. A launch makes the study's agenda anew from them. The
agenda gives the trials that are not over to a new Tuner, and each continues from its own last.ckpt.
No state of Tune is restored. So a study survives the loss of any process, including the driver. A
launch of a finished study starts nothing, not even Ray.

Writes: STORAGE/NAME/ (see study.study), and .launch/ in it while it runs.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.launch.cluster import JOB_VARIABLE, RayDidNotStart, cluster_address, join, leave
from mambaout.launch.cluster import start as start_ray
from mambaout.launch.ending import Problems, left_lines, ui_command
from mambaout.launch.failures import (
    Failure,
    add_failure,
    classify,
    one_line,
    read_failures,
    retried,
)
from mambaout.launch.feed import KEY, TASK, callback, error_of, searcher
from mambaout.launch.follow import Follower
from mambaout.launch.lock import held
from mambaout.launch.precision_wanted import seeds_until
from mambaout.launch.progress import Screen
from mambaout.launch.request import Request, check_share, hello
from mambaout.launch.rerun import Rerun
from mambaout.launch.resources import Node, Share, share, this_machine
from mambaout.launch.stopping import EarlyEnd, EarlyStop, kept
from mambaout.launch.task import Task
from mambaout.launch.trial import Retry, recorded_step, run_trial
from mambaout.numbers import clock_text, counted
from mambaout.study.kept_weights import kept_weights
from mambaout.study.law.prediction import predict
from mambaout.study.search.study_agenda import agenda
from mambaout.study.study import Run, StudyFolder, Trial

DONE, UNFINISHED, INTERRUPTED = 0, 1, 130  # exit status; the caller returns 2 for a wrong request
LAUNCH_FOLDER = ".launch"


def run_study(request: Request) -> int:
    """Run the remaining trials of the study. Returns the exit status.

    Raises WrongRequest if the study cannot start: the cluster does not answer or lacks what a trial
    needs, or another driver runs the study. Then nothing has been started or written. If an error
    comes up after trials began, it is a StudyBroke if a user can fix it; a bug raises its own
    error. Both are raised after the rest of the launch's end is done.
    """
    folder = StudyFolder(request.storage, request.name)
    rerun = Rerun(folder)
    address = cluster_address(request.address)
    with ExitStack() as cleanup:
        nodes = [this_machine(request.accelerator)]
        # A finished study is reported without its cluster. But a search may still add trials.
        if address and (
            request.study.searches
            or rerun.begins_with(request)
            or _unfinished(folder, request.trials)
        ):
            nodes = join(address)
            cleanup.callback(leave)
        part = share(request.accelerator, nodes)
        check_share(request, part)
        cleanup.enter_context(held(folder.path, f"study {folder.path}"))
        anew = rerun.begin(request)
        folder.reuse = request.reuse and not rerun.is_under_way
        if not anew:
            request = replace(request, trials=[*request.trials, *folder.added(request.trials)])
        decided = {trial.key for trial in request.trials}
        searched = [] if anew else folder.searched(request.study.searches)
        searched = [trial for trial in searched if trial.key not in decided]
        for weights in request.weights:
            weights.keep(kept_weights(request.storage, weights.digest))
        kept = folder.texts()
        folder.write(
            request.study,
            [*request.trials, *searched],
            data=request.data,
            data_name=request.data_name,
            columns=request.columns,
            command=request.command,
            **request.facts,
        )
        try:
            launch = _Launch(request, folder, nodes, part, rerun, joined=bool(address))
        except WrongRequest:  # a search began here with other axes, goals or data
            folder.put_back(kept)
            raise
        rerun.confirm()
        launch.signals.listen()
        cleanup.callback(launch.signals.give_back)
        try:
            return launch.run(cleanup)
        except KeyboardInterrupt:
            launch.say_how_to_go_on()
            raise


def _unfinished(folder: StudyFolder, trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if folder.run(trial).status is Ending.UNFINISHED]


class _Launch:
    """One launch: the Tuner, its callbacks and its end."""

    def __init__(
        self,
        request: Request,
        folder: StudyFolder,
        nodes: Sequence[Node],
        part: Share,
        rerun: Rerun,
        joined: bool,
    ) -> None:
        self.request, self.folder, self.nodes, self.part = request, folder, nodes, part
        self.rerun, self.joined = rerun, joined
        self.id = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + uuid4().hex[:4]
        self.path = folder.path / LAUNCH_FOLDER / self.id
        self.began = self.fitted = False  # whether Tune has begun, and has ended
        self.problems = Problems()
        self.early_stop = EarlyStop(
            self.path / "stop", self.problems, request.budget_hours, self._leave
        )
        self.signals = self.early_stop.signals
        self.screen = Screen()
        for trial in _unfinished(folder, request.trials):
            if study := folder.adopt(trial):
                self.screen.say(f"{trial.name} has been trained in study {study}: taken from there")
        self.agenda = agenda(
            request.study,
            folder,
            request.fingerprint,
            request.trials,
            before_predicted=self._predict,
            more_seeds=seeds_until(request, folder),
        )
        self.known = {trial.key: trial for trial in folder.trials()}
        unfinished = _unfinished(folder, request.trials)
        self.num_todo = len(unfinished) + self.agenda.num_undecided
        places = part.slots(nodes)
        self.slots = max(1, min(request.max_concurrent or places, places, self.num_todo or 1))
        self.active: set[str] = set()

    def run(self, cleanup: ExitStack) -> int:
        shutil.rmtree(self.folder.path / LAUNCH_FOLDER, ignore_errors=True)  # from a killed driver
        self.follower = Follower(
            self.request.study,
            self.folder,
            [self.request.job(trial) for trial in self.known.values()],
            launch=self.id,
            slots=self.slots,
            num_undecided=lambda: self.agenda.num_undecided,
            tracking_uri=self.request.tracking_uri,
            tags={"launch": self.id},
            screen=self.screen,
        )
        self._say_hello()
        self.follower.start()
        if not self.agenda.over:
            self.path.mkdir(parents=True)
            cleanup.callback(shutil.rmtree, self.folder.path / LAUNCH_FOLDER, ignore_errors=True)
            if not self.joined:
                cleanup.callback(leave)
                try:
                    start_ray(self.nodes[0])
                except RayDidNotStart:
                    self.follower.finish("FAILED")
                    raise
            self.signals.listen()
            self.follower.wait_for_tracking()  # MLflow was prepared while Ray started
            if self.signals.seen:
                self.screen.say("interrupted before a trial began")
            else:
                self.began = True
                self.problems.tried(self._tune, None)
        return self._end()

    def _say_hello(self) -> None:
        num_known = len(self.known) + self.agenda.num_undecided
        todo = self.num_todo
        over = f", {num_known - todo} of them over" if todo < num_known else ""
        machines = counted(len(self.nodes), "machine")
        where = f"the cluster's {machines}" if self.joined else "this machine"
        at_once = f"; {self.slots} at a time on {where} ({self.part.accelerator})" if todo else ""
        self.screen.say(f"study {self.request.name}: {counted(num_known, 'trial')}{over}{at_once}")
        self.screen.say(f"folder {self.folder.path}")
        for line in hello(self.request):
            self.screen.say(line)
        if todo and not self.joined:
            self.screen.say("starting Ray; the first trial begins in about 10 s")

    def task(self) -> Task:
        """The settings for every trial."""
        from mambaout.train.facts import git_commit

        return Task.of(
            self.request,
            self.part,
            study=self.request.name,
            launch=self.id,
            stop_file=str(self.early_stop.stop_file),
            commit=git_commit(),
            trainer=self.request.trainer,
        )

    def _tune(self) -> None:
        from ray import tune

        tuner = tune.Tuner(
            tune.with_resources(run_trial, self.part.placement()),
            param_space={TASK: asdict(self.task())},
            tune_config=tune.TuneConfig(
                search_alg=searcher(self),
                num_samples=-1,
                max_concurrent_trials=self.slots,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.path),
                verbose=0,
                callbacks=[callback(self)],
                # `retried` decides. This only limits failures that it cannot see.
                failure_config=tune.FailureConfig(max_failures=1000),
            ),
        )
        with suppress(EarlyEnd):
            tuner.fit()
        self.fitted = True

    # -- called by Tune's event loop

    @kept
    def next_trial(self) -> Trial | None:
        if self.early_stop.is_due:
            return None
        trial = self.agenda.next()
        if trial is not None and trial.key not in self.known:
            self.known[trial.key] = trial
            self.follower.add(self.request.job(trial))
        return trial

    def no_more_trials(self) -> bool:
        return self.early_stop.is_due or self.agenda.over

    @kept
    def on_start(self, tune_trial: Any) -> None:
        self.active.add(tune_trial.config[KEY])
        self.follower.began(tune_trial.config[KEY])

    @kept
    def on_result(self, tune_trial: Any, result: dict[str, Any]) -> None:
        """Report a trial's progress to the agenda, and stop the trial if the agenda says so."""
        trial = self.known[tune_trial.config[KEY]]
        value = result.get(trial.kind.watched)
        if value is None:
            return
        why = self.agenda.observe(trial, result["epoch"], value)
        if why is not None:
            self.folder.stop(trial, why)

    @kept
    def on_failure(self, tune_trial: Any) -> None:
        """Record why Tune will start the trial again, and prevent it if the trial is over."""
        key = tune_trial.config[KEY]
        directory = self._directory(key)
        error = error_of(tune_trial)
        cause = getattr(error, "cause", None) or error
        if not isinstance(cause, Retry):  # the worker has already recorded that one
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
            # run_trial will return at once. If it cannot even start, Tune ends the trial.
            tune_trial.max_failures = 0

    @kept
    def on_end(self, tune_trial: Any) -> None:
        key = tune_trial.config[KEY]
        self.active.discard(key)
        self.follower.ended(key)
        run = self.folder.run(self.known[key])
        if run.status is not Ending.UNFINISHED:
            self.agenda.ended(run)
        elif self.early_stop.why is None:
            failures = read_failures(self._directory(key), self.id)
            ending = failures[-1].kind if failures else Ending.BROKEN
            self.agenda.ended(replace(run, status=ending))

    @kept
    def on_step(self) -> None:
        self.early_stop.look(len(self.active), self.screen)

    def _leave(self) -> None:
        """End the process if Ray does not end. All results are in the run directories."""
        if not self.fitted:
            try:
                status = self._end()
            except Exception:
                traceback.print_exc()
                status = UNFINISHED
            sys.stdout.flush()
            os._exit(status)

    def _predict(self) -> None:
        """Write the prediction for the size that is about to be trained."""
        self.screen.say(predict(self.folder))

    def _directory(self, key: str) -> Path:
        return self.folder.path / "trials" / key

    # -- the end

    def _end(self) -> int:
        """Log and print the results. Returns the exit status."""
        unfinished = self.problems.tried(self._is_unfinished, True)
        interrupted = self.signals.seen and unfinished
        status = "KILLED" if interrupted else "FAILED" if unfinished else "FINISHED"
        files = self.follower.finish(status)
        self.problems.found += self.follower.problems
        runs = self.problems.tried(self.follower.runs, [])
        self.problems.tried(lambda: self._say_result(runs), None)
        self.problems.tried(lambda: self._say_what_is_left(runs), None)
        self.problems.tried(lambda: self._say_where(files), None)
        if not unfinished:
            self.problems.tried(self.rerun.end, None)
        self.problems.raise_all(self.request.name, began=self.began)
        return INTERRUPTED if interrupted else UNFINISHED if unfinished else DONE

    def _is_unfinished(self) -> bool:
        for trial in self.folder.trials():  # some were reused from other studies
            if trial.key not in self.known:
                self.known[trial.key] = trial
                self.follower.add(self.request.job(trial))
                self.follower.ended(trial.key)
        return bool(_unfinished(self.folder, list(self.known.values()))) or not self.agenda.over

    def _say_result(self, runs: Sequence[Run]) -> None:
        from mambaout.study.report.study_report import (
            summary,  # imports matplotlib, which --plan does not need
        )

        self.screen.say("\n" + summary(self.folder, runs))
        for notice in self.agenda.notices:
            self.screen.say(f"\n{notice}")

    def _say_what_is_left(self, runs: Sequence[Run]) -> None:
        undecided, over = self.agenda.num_undecided, self.agenda.over
        if lines := left_lines(self.folder, runs, num_undecided=undecided, is_over=over):
            for line in [*lines, self._how_to_go_on]:
                self.screen.say(line)

    def _say_where(self, files: Sequence[Path]) -> None:
        seconds = clock_text(time.monotonic() - self.early_stop.started)
        reports = [str(path) for path in files if path.suffix == ".html"]
        self.screen.say(f"\n{seconds} in all; report: {reports[0] if reports else 'none'}")
        self.screen.say(f"MLflow: {ui_command(self.request)}")

    @property
    def _how_to_go_on(self) -> str:
        again = "submit the job again" if os.environ.get(JOB_VARIABLE) else self.request.command
        return f"to go on: {again}"

    def say_how_to_go_on(self) -> None:
        """Print the command to go on, after a second signal has ended the launch."""
        runs = [self.folder.run(trial) for trial in self.known.values()]
        over = sum(run.status is not Ending.UNFINISHED for run in runs)
        self.screen.say(f"\nstopped at once: {over} of {counted(len(runs), 'trial')} are over")
        self.screen.say("a running trial goes on from its last checkpoint")
        self.screen.say(self._how_to_go_on)
