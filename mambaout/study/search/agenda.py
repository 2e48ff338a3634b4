"""What a study runs next, decided from what has come out so far.

The launcher asks `next` whenever a worker is free and tells of every trial that ends. An agenda
keeps nothing that is not in the study's folder: made anew after a kill, it goes on where it was.
"""

from __future__ import annotations

from typing import Protocol

from mambaout.study.study import Run, Trial


class Agenda(Protocol):
    """The trials of a study, one by one."""

    def next(self) -> Trial | None:
        """A trial to start now (begun in an earlier launch or new), or None: none before another
        ends, or none any more, which `over` tells apart."""
        ...

    @property
    def over(self) -> bool:
        """Nothing will come out of `next` any more, whatever the running trials do."""
        ...

    @property
    def num_undecided(self) -> int:
        """Trials still to come whose recipe is not known yet, for the ETA."""
        ...

    def observe(self, trial: Trial, epoch: float, value: float) -> str | None:
        """Take in a running trial's objective at `epoch`; why to stop it early, or None."""
        ...

    def ended(self, run: Run) -> None:
        """Take in that a trial is over: by its own ending, or given up after a failure."""
        ...
