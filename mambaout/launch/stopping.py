"""How a launch stops before its trials are over: the reason, and the time to save.

A signal, a spent budget or an error in the driver stops a launch. A file tells the running trials
to save and end. A trial that does not end in time is abandoned. The next launch continues it from
its last checkpoint.
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

GRACE_SECONDS = 20.0  # for running trials to save and end after a stop
# A signal to the whole process group also ends Ray's own processes. A driver without them waits for
# a minute until it is aborted. So it ends itself this long after the grace time.
LEAVE_SECONDS = 10.0

T = TypeVar("T")


class EarlyEnd(Exception):
    """Raised in Tune's event loop when the study must end early."""


class EarlyStop:
    """Whether a launch stops early, and why."""

    def __init__(
        self,
        stop_file: Path,
        problems: Problems,
        budget_hours: float | None,
        leave: Callable[[], None],
    ) -> None:
        """`leave` ends the process. It is called if the event loop does not end in time."""
        self.stop_file, self.problems, self.budget_hours = stop_file, problems, budget_hours
        self.signals = Signals()
        self.started = time.monotonic()
        self.why: str | None = None
        self._leave, self._stopped_at = leave, 0.0

    @property
    def is_due(self) -> bool:
        """Whether no more trials may begin."""
        return self.why is not None or bool(self.problems.found)

    def look(self, num_running: int, screen: Screen) -> None:
        """Called very often by the event loop. Raises EarlyEnd if the loop must end."""
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
    """Wraps a method that Tune's event loop calls. An error in it would kill the running trials.

    So the error is kept, the trials save and stop, and the launch raises the error at its end.
    """

    @functools.wraps(method)
    def call(self: HasProblems, *args: Any) -> T | None:
        try:
            return method(self, *args)
        except EarlyEnd:
            raise
        except Exception as error:
            if not self.problems.found:  # later errors may be caused by the first
                self.problems.found.append(error)
            return None

    return call
