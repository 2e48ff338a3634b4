"""The driver's view of a running study: MLflow, the live table, the report, on a thread of its own.

Tune's event loop only says which trial began and which ended. All else is read from the run
directories, so that a slow tracking server or the upload of a checkpoint never holds a trial up.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mambaout.launch.outcomes import Failure, one_line, read_failures, retried
from mambaout.launch.progress import (
    Job,
    Screen,
    done_fraction,
    ended_line,
    seconds_left,
    status_lines,
)
from mambaout.study.study import Run, Study, StudyFolder

POLL_SECONDS = 1.0
CATCH_UP_SECONDS = 3.0  # between two readings of the running trials' records
REPORT_SECONDS = 60.0  # least time between two report files while the study runs
REPORT_PAUSE = 30.0  # and the least, in times of what the last one took


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
        self.problem: BaseException | None = None  # what ended the thread before its time
        self._runs = {key: folder.run(job.trial) for key, job in self.jobs.items()}
        self._at_start = self._fractions()
        self._running: dict[str, None] = {}  # keys in the order they began
        self._failed: set[str] = set()
        self._started, self._training_since = time.monotonic(), None
        self._report_pause = REPORT_SECONDS
        self._files: list[Path] = []
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._tracked = threading.Event()  # MLflow has taken the study, or it never will
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_for_tracking(self) -> None:
        """Return once MLflow has taken the study and a file of it; raise where it does not."""
        self._tracked.wait()
        if self.problem is not None:
            raise self.problem

    def add(self, job: Job) -> None:
        """One more trial has been decided on."""
        self._events.put(("added", job))

    def began(self, key: str) -> None:
        """A worker has the trial now."""
        self._events.put(("began", key))

    def retrying(self, key: str) -> None:
        """The trial's worker failed and the trial is started again."""
        self._events.put(("retrying", key))

    def ended(self, key: str) -> None:
        """No worker has the trial any more and none will get it in this launch."""
        self._events.put(("ended", key))

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> list[Path]:
        """Log and report what there is, end the thread; the report's files."""
        self._events.put(("finish", status))
        self._thread.join()
        return self._files

    def runs(self) -> list[Run]:
        """Every trial as its run directory has it, failures named."""
        return [self._read(key) for key in self.jobs]

    # -- on the thread

    def _follow(self) -> None:
        try:
            self._track()
        except BaseException as error:
            self.problem = error  # raised by the launch: at once, or when the trials are over
            if self._tracked.is_set():
                self.screen.say(f"no more reports ({one_line(error)}); training goes on")
        finally:
            self._tracked.set()

    def _track(self) -> None:
        # Seconds of import and of making sqlite's tables, spent while Ray starts.
        from mambaout.study.report import write_report
        from mambaout.study.tracking import Tracker

        self._write_report = write_report
        artifacts = self.folder.path.parent / "mlartifacts"
        self._tracker = Tracker(
            self.tracking_uri, self.folder.path.name, self.study.question, artifacts
        )
        self._tracker.describe(self.folder)
        self._tracked.set()
        self._tracker.sync(self.folder, closely=False)
        caught_up = reported = time.monotonic()
        stale = False  # trials have ended since the last report
        while True:
            event, what = self._next_event()
            now = time.monotonic()
            if event == "added":
                self.jobs[what.trial.key] = what
                self._runs[what.trial.key] = self._read(what.trial.key)
            elif event == "began":
                self._on_begin(what)
            elif event == "retrying":
                self._on_retry(what)
            elif event == "ended":
                self._on_end(what)
                stale = True
            elif event == "finish":
                self._on_finish(what)
                return
            if now - caught_up >= CATCH_UP_SECONDS:
                caught_up = now
                for key in self._running:
                    self._runs[key] = self._read(key)
                    self._tracker.catch_up(self.jobs[key].trial, self._directory(key))
                self._show()
            if stale and self._running and now - reported >= self._report_pause:
                self._report()
                stale, reported = False, time.monotonic()
                # A large study's report takes seconds of the driver's time; spend little on it.
                self._report_pause = max(REPORT_SECONDS, REPORT_PAUSE * (reported - now))

    def _next_event(self) -> tuple[str, Any]:
        try:
            return self._events.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return "nothing", None

    def _on_begin(self, key: str) -> None:
        if key in self._running:
            return
        self._running[key] = None
        if self._training_since is None:
            self._training_since = time.monotonic()
        self._tracker.begin(self.jobs[key].trial, self.tags)

    def _on_retry(self, key: str) -> None:
        last = self._failures(key)[-1]
        name = self.jobs[key].trial.name
        self.screen.say(f"    {name}: {last.kind} at step {last.step} ({last.error}); trying again")

    def _on_end(self, key: str) -> None:
        self._running.pop(key, None)
        run = self._runs[key] = self._read(key)
        if run.status != "unfinished":
            if run.status == "failed":
                self._failed.add(key)
            over = sum(run.status != "unfinished" for run in self._runs.values())
            width = max(len(job.trial.name) for job in self.jobs.values())
            seconds = time.monotonic() - self._started
            self.screen.say(ended_line(run, seconds, over, self._num_trials(), width))
        self._tracker.end(self.jobs[key].trial, run, self._directory(key))

    def _on_finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        for key in list(self._running):
            self._on_end(key)
        self._report()
        self._tracker.close(status)

    def _report(self) -> None:
        self._files = self._write_report(self.folder)
        self._tracker.attach(self._files)

    def _show(self) -> None:
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

    def _read(self, key: str) -> Run:
        """The trial's run; "failed" where this launch has given it up."""
        run = self.folder.run(self.jobs[key].trial)
        failures = self._failures(key)
        if run.status == "unfinished" and not retried(failures):
            last = failures[-1]
            error = f"{last.kind} at step {last.step}: {last.error}"
            return replace(run, status="failed", facts={**run.facts, "error": error})
        return run

    def _failures(self, key: str) -> list[Failure]:
        return read_failures(self._directory(key), self.launch)

    def _directory(self, key: str) -> Path:
        return self.folder.run_directory(self.jobs[key].trial)

    def _fractions(self) -> dict[str, float]:
        return {key: done_fraction(job, self._runs[key]) for key, job in self.jobs.items()}
