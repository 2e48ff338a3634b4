"""The driver's view of a running study: MLflow, the live table and the report, on its own thread.

Tune's event loop only reports which trial began and which ended. All else is read from the run
directories, so a slow tracking server or the upload of a checkpoint never delays a trial. If one of
the three fails, the others go on. The failure is reported once and tried again later.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambaout.endings import Ending
from mambaout.launch.failures import Failure, one_line, read_failures, retried
from mambaout.launch.progress import (
    Job,
    Screen,
    done_fraction,
    ended_line,
    seconds_left,
    status_lines,
)
from mambaout.study.study import Run, Study, StudyFolder

if TYPE_CHECKING:
    from mambaout.study.tracking.tracked_run import MlflowStatus
    from mambaout.study.tracking.tracker import Tracker

REPORT_MODULE = "mambaout.study.report.study_report"  # imports matplotlib, which takes a second

POLL_SECONDS = 1.0
CATCH_UP_SECONDS = 3.0  # between two readings of the running trials' records
REPORT_SECONDS = 60.0  # least time between two reports while the study runs
REPORT_PAUSE = 30.0  # the least pause, as a multiple of the last report's time


class Duty:
    """One of the tasks of a follower. If it fails, the others go on.

    Failed work is kept under its name, until it succeeds or other work of the same name does.
    """

    def __init__(self, name: str, screen: Screen) -> None:
        self.name, self.screen = name, screen
        self._owed: dict[Hashable, tuple[Callable[[], object], Exception]] = {}
        self._said: set[type[Exception]] = set()

    @property
    def problems(self) -> list[Exception]:
        """The errors that keep failed work from being done, each error once."""
        return list(dict.fromkeys(error for _, error in self._owed.values()))

    def do(self, name: Hashable, work: Callable[[], object]) -> bool:
        """Do the work. False if it fails, which is reported once for each type of error."""
        try:
            work()
        except Exception as error:
            self._owed[name] = (work, error)
            if type(error) not in self._said:
                self._said.add(type(error))
                with suppress(OSError):  # the terminal may be closed
                    self.screen.say(
                        f"{self.name}: failed ({one_line(error)}); the rest goes on, and this is "
                        "tried again later"
                    )
            return False
        self._owed.pop(name, None)
        return True

    def try_again(self) -> None:
        """Do all failed work again."""
        for name, (work, _) in list(self._owed.items()):
            self.do(name, work)


class Follower:
    """Follows a study from its run directories until `finish`."""

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        jobs: Sequence[Job],
        *,
        launch: str,
        slots: int,
        num_undecided: Callable[[], int],
        tracking_uri: str,
        tags: Mapping[str, str],
        screen: Screen,
    ) -> None:
        self.study, self.folder, self.jobs = study, folder, {job.trial.key: job for job in jobs}
        self.launch, self.slots, self.tags, self.screen = launch, slots, tags, screen
        self.tracking_uri, self.num_undecided = tracking_uri, num_undecided
        self.tracking, self.table = Duty("MLflow", screen), Duty("the live lines", screen)
        self.report = Duty("the report", screen)
        self._tracker: Tracker | None = None  # None until MLflow has accepted the study
        self._refusal: Exception | None = None  # why MLflow refused the study
        self._fault: Exception | None = None  # the error that ended the thread too early
        self._runs = {key: folder.run(job.trial) for key, job in self.jobs.items()}
        self._at_start = self._fractions()
        self._running: dict[str, None] = {}  # keys in the order in which they began
        self._failed: set[str] = set()
        self._started, self._training_since = time.monotonic(), None
        self._report_pause = REPORT_SECONDS
        self._files: list[Path] = []
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._tracked = threading.Event()  # MLflow has accepted or refused the study
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_for_tracking(self) -> None:
        """Return when MLflow has accepted the study and one of its files.

        If MLflow refuses, end the thread and raise the error.
        """
        self._tracked.wait()
        if self._refusal is not None:
            self._events.put(("leave", None))
            self._thread.join()
            raise self._refusal

    @property
    def problems(self) -> list[Exception]:
        """The errors of work that is not done when the follower has finished."""
        alone = [error for error in (self._refusal, self._fault) if error is not None]
        duties = (self.tracking, self.table, self.report)
        return [*alone, *(error for duty in duties for error in duty.problems)]

    def add(self, job: Job) -> None:
        """Another trial was chosen."""
        self._events.put(("added", job))

    def began(self, key: str) -> None:
        """A worker has started the trial."""
        self._events.put(("began", key))

    def retrying(self, key: str) -> None:
        """The trial's worker failed, and the trial starts again."""
        self._events.put(("retrying", key))

    def ended(self, key: str) -> None:
        """The trial has left its worker and will not start again in this launch."""
        self._events.put(("ended", key))

    def finish(self, status: MlflowStatus) -> list[Path]:
        """Log and report all results and end the thread. Returns the report's files."""
        self._events.put(("finish", status))
        self._thread.join()
        return self._files

    def runs(self) -> list[Run]:
        """Every trial as its run directory shows it, with its failures."""
        return [self._read(key) for key in self.jobs]

    # -- on the thread

    def _follow(self) -> None:
        try:
            self._begin_tracking()
            self._tracked.set()
            self._go_on()
        except Exception as error:
            self._fault = error  # the launch raises it when the trials are over
            with suppress(OSError):
                self.screen.say(f"no more reports ({one_line(error)}); training goes on")
        finally:
            self._tracked.set()

    def _begin_tracking(self) -> None:
        # The import and the making of sqlite's tables take seconds. They run while Ray starts.
        try:
            from mambaout.study.tracking.tracker import Tracker

            artifacts = self.folder.path.parent / "mlartifacts"
            tracker = Tracker(
                self.tracking_uri,
                self.folder.path.name,
                self.study.question,
                artifacts,
                self.study.kind,
            )
            tracker.describe(self.folder)
        except Exception as error:
            self._refusal = error
        else:
            self._tracker = tracker

    def _track(self, name: Hashable, work: Callable[[Tracker], object]) -> None:
        """Let the tracker do the work. It replaces failed work of this name (a trial's key)."""
        if (tracker := self._tracker) is not None:
            self.tracking.do(name, lambda: work(tracker))

    def _go_on(self) -> None:
        self.report.do("its code", lambda: import_module(REPORT_MODULE))
        self._track("the study", lambda tracker: tracker.sync(self.folder, closely=False))
        caught_up = reported = time.monotonic()
        stale = False  # whether trials have ended since the last report
        while True:
            event, what = self._next_event()
            now = time.monotonic()
            if event == "added":
                self._on_added(what)
            elif event == "began":
                self._on_begin(what)
            elif event == "retrying":
                self.table.do(("retrying", what), lambda key=what: self._say_retry(key))
            elif event == "ended":
                self._on_end(what)
                stale = True
            elif event == "finish":
                self._on_finish(what)
                return
            elif event == "leave":
                return
            if now - caught_up >= CATCH_UP_SECONDS:
                caught_up = now
                for key in self._running:
                    self._catch_up(key)
                self.table.do("table", self._show)
            if stale and self._running and now - reported >= self._report_pause:
                self.tracking.try_again()
                stale, reported = not self._report(), time.monotonic()
                # The report of a large study takes seconds of the driver's time, so it is written
                # rarely.
                self._report_pause = max(REPORT_SECONDS, REPORT_PAUSE * (reported - now))

    def _next_event(self) -> tuple[str, Any]:
        try:
            return self._events.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return "nothing", None

    def _on_added(self, job: Job) -> None:
        key = job.trial.key
        self.jobs[key], self._runs[key] = job, Run(trial=job.trial, status=Ending.UNFINISHED)
        self.table.do(("added", key), lambda: self._look(key))

    def _on_begin(self, key: str) -> None:
        if key in self._running:
            return
        self._running[key] = None
        if self._training_since is None:
            self._training_since = time.monotonic()
        self._track(key, lambda tracker: tracker.begin(self.jobs[key].trial, self.tags))

    def _catch_up(self, key: str) -> None:
        trial, directory = self.jobs[key].trial, self._directory(key)
        self._track(key, lambda tracker: tracker.catch_up(trial, directory))

    def _say_retry(self, key: str) -> None:
        last = self._failures(key)[-1]
        name = self.jobs[key].trial.name
        self.screen.say(f"    {name}: {last.kind} at step {last.step} ({last.error}); trying again")

    def _on_end(self, key: str) -> None:
        self._running.pop(key, None)
        trial, directory = self.jobs[key].trial, self._directory(key)
        self.table.do(("ended", key), lambda: self._say_end(key))
        self._track(key, lambda tracker: tracker.end(trial, self._read(key), directory))

    def _say_end(self, key: str) -> None:
        run = self._look(key)
        if run.status is Ending.UNFINISHED:
            return
        if run.status.is_failure:
            self._failed.add(key)
        over = sum(run.status is not Ending.UNFINISHED for run in self._runs.values())
        width = max(len(job.trial.name) for job in self.jobs.values())
        seconds = time.monotonic() - self._started
        self.screen.say(ended_line(run, seconds, over, self._num_trials(), width))

    def _on_finish(self, status: MlflowStatus) -> None:
        for key in list(self._running):
            self._on_end(key)
        self._report()
        self.table.try_again()
        self.tracking.try_again()
        self._track("its end", lambda tracker: tracker.close(status))

    def _report(self) -> bool:
        """Write the report and attach it. Returns whether it could be written."""
        done = self.report.do("files", self._write)
        if done:
            self.report.try_again()
            self._track("files", lambda tracker: tracker.attach(self._files))
        return done

    def _write(self) -> None:
        from mambaout.study.report.study_report import write_report

        self._files = write_report(self.folder)

    def _show(self) -> None:
        for key in self._running:
            self._look(key)
        now = time.monotonic()
        left = None
        if self._training_since is not None:
            left = seconds_left(
                list(self.jobs.values()),
                self._fractions(),
                at_start=self._at_start,
                seconds=now - self._training_since,
                slots=self.slots,
                num_undecided=self.num_undecided(),
            )
        lines = status_lines(
            list(self.jobs.values()),
            self._runs,
            list(self._running),
            seconds=now - self._started,
            left=left,
            failed=len(self._failed),
            num_undecided=self.num_undecided(),
        )
        self.screen.show(lines)

    def _num_trials(self) -> int:
        return len(self.jobs) + self.num_undecided()

    def _look(self, key: str) -> Run:
        """Read the trial's run, and keep it for the table."""
        self._runs[key] = run = self._read(key)
        return run

    def _read(self, key: str) -> Run:
        """The trial's run. If this launch has given it up, its last failure is its ending."""
        run = self.folder.run(self.jobs[key].trial)
        failures = self._failures(key)
        if run.status is Ending.UNFINISHED and not retried(failures):
            last = failures[-1]
            error = f"{last.kind} at step {last.step}: {last.error}"
            return replace(run, status=last.kind, facts={**run.facts, "error": error})
        return run

    def _failures(self, key: str) -> list[Failure]:
        return read_failures(self._directory(key), self.launch)

    def _directory(self, key: str) -> Path:
        return self.folder.run_directory(self.jobs[key].trial)

    def _fractions(self) -> dict[str, float]:
        return {key: done_fraction(job, self._runs[key]) for key, job in self.jobs.items()}
