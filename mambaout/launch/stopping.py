"""How a launch stops before its trials are over: why, and how long they have to save.

A signal, a spent budget, or what fails in the driver stops a launch. The running trials are told by
a file, save and end; those that do not are left behind, and go on from their last checkpoints.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mambaout.launch.cluster import Signals
from mambaout.launch.ending import Problems
from mambaout.launch.failures import one_line
from mambaout.launch.progress import Screen
from mambaout.numbers import counted

GRACE_SECONDS = 20.0  # that running trials have to save and end, once told to stop
# A signal to the whole process group takes Ray's own processes too, and a driver without them
# waits for a minute before it is aborted; it leaves by itself after so much more than the grace.
LEAVE_SECONDS = 10.0

T = TypeVar("T")


class EarlyEnd(Exception):
    """Raised out of Tune's event loop once the study is to end early."""


class EarlyStop:
    """Whether a launch stops early, and why."""

    def __init__(
        self,
        stop_file: Path,
        problems: Problems,
        budget_hours: float | None,
        leave: Callable[[], None],
    ) -> None:
        """`leave` ends the process; called where the event loop has not ended by then."""
        self.stop_file, self.problems, self.budget_hours = stop_file, problems, budget_hours
        self.signals = Signals()
        self.started = time.monotonic()
        self.why: str | None = None
        self._leave, self._stopped_at = leave, 0.0

    @property
    def is_due(self) -> bool:
        """No trial is to begin any more."""
        return self.why is not None or bool(self.problems.found)

    def look(self, num_running: int, screen: Screen) -> None:
        """What the event loop does every moment. Raises EarlyEnd where it is to end."""
        now = time.monotonic()
        if self.why is not None:
            if not num_running or now - self._stopped_at > GRACE_SECONDS:
                raise EarlyEnd
            return
        self.why = self._found(now)
        if self.why is not None:
            self._stopped_at = now
            self.stop_file.touch()
            leave = threading.Timer(GRACE_SECONDS + LEAVE_SECONDS, self._leave)
            leave.daemon = True
            leave.start()
            at_once = " (Ctrl-C again: at once)" if self.signals.seen else ""
            stopping = counted(num_running, "running trial")
            screen.say(f"{self.why}: saving and stopping {stopping}{at_once}")

    def _found(self, now: float) -> str | None:
        budget = self.budget_hours
        if self.signals.seen:
            return "interrupted"
        if self.problems.found:
            return f"the study cannot go on ({one_line(self.problems.found[0])})"
        if budget is not None and now - self.started > budget * 3600:
            return f"the budget of {budget:g} h is spent"
        return None


class HasProblems(Protocol):
    problems: Problems


def kept(method: Callable[..., T]) -> Callable[..., T | None]:
    """A method that Tune's event loop calls, which would kill the running trials for an error.

    What it raises is kept: the trials save and stop, and the launch raises it at its end.
    """

    @functools.wraps(method)
    def call(self: HasProblems, *args: Any) -> T | None:
        try:
            return method(self, *args)
        except EarlyEnd:
            raise
        except Exception as error:
            if not self.problems.found:  # those after it may come of it
                self.problems.found.append(error)
            return None

    return call
