"""Which trial a study runs next, decided from the results so far.

The launcher calls `next` whenever a worker is free, and `ended` for every trial that ends. An
agenda keeps all its state in the study's folder. After a kill, a new agenda continues from there.
"""

from __future__ import annotations

from typing import Protocol

from mambaout.study.study import Run, Trial


class Agenda(Protocol):
    """The trials of a study, one by one."""

    def next(self) -> Trial | None:
        """A trial to start now (new, or begun in an earlier launch), or None.

        None means that another trial must end first, or that no trial is left. `over` tells which.
        """
        ...

    @property
    def over(self) -> bool:
        """Whether `next` will return no trial any more, whatever the running trials do."""
        ...

    @property
    def num_undecided(self) -> int:
        """How many trials to come have no recipe yet; the ETA uses it."""
        ...

    def observe(self, trial: Trial, epoch: float, value: float) -> str | None:
        """Record a running trial's objective at `epoch`. Returns why to stop it early, or None."""
        ...

    def ended(self, run: Run) -> None:
        """Record that a trial is over: it has ended, or was given up after a failure."""
        ...
