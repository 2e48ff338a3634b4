"""Calls to a service that may be down. An outage is reported once; calls are retried later."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mambaout.study.store_uri import hidden

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 120.0  # doubled at every failed try

T = TypeVar("T")


class Patience:
    """Guards calls to `name`. `errors` mean an outage; any other error is raised.

    Its reports hide passwords in addresses.
    """

    def __init__(self, name: str, errors: tuple[type[Exception], ...]) -> None:
        self.name, self.errors = hidden(name), errors
        self._pause, self._again_at, self._away = FIRST_PAUSE_SECONDS, 0.0, False

    def guarded(self, act: Callable[[], T]) -> T | None:
        """Call `act`. None if it fails, or if the pause after a failure is not over."""
        if time.monotonic() < self._again_at:
            return None
        try:
            done = act()
        except self.errors as error:
            if not self._away:
                log.warning(
                    "%s did not take a report (%s); training goes on, and what is missing is "
                    "logged when it answers again",
                    self.name,
                    hidden(first_line(error)),
                )
            self._away = True
            self._again_at = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            return None
        if self._away:
            log.warning("%s answers again", self.name)
        self._away, self._pause = False, FIRST_PAUSE_SECONDS
        return done

    def end_pause(self) -> None:
        """Let the next call try at once."""
        self._again_at = 0.0


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
