"""How a run stands or has ended: the one list that files, MLflow, Optuna and texts are read from.

The values are what outcome.json and failures.jsonl hold. train/outcomes.py has what a training
returns, study/study.py reads how a run stands from its files, launch/failures.py tells the failures
apart; study/tracking and study/search say it in MLflow's words and in Optuna's.
"""

from __future__ import annotations

from enum import StrEnum


class Ending(StrEnum):
    """How a run stands, or why a worker that had it failed.

    A run whose worker failed is unfinished, and is tried again. It has that failure as its ending
    once a launch has given it up.
    """

    FINISHED = "finished"  # trained to its last step, and evaluated on val
    DIVERGED = "diverged"  # a loss was not finite; the same steps would come again
    STOPPED = "stopped"  # early, by a search; its checkpoint stays
    UNFINISHED = "unfinished"  # none of the others yet; the next launch goes on with it
    PREEMPTED = "preempted"  # the worker or its machine went away
    OUT_OF_MEMORY = "out_of_memory"  # the memory of the device or of the host did not do
    BROKEN = "broken"  # any other error

    @property
    def is_over(self) -> bool:
        """No launch takes such a run up again."""
        return self in (Ending.FINISHED, Ending.DIVERGED, Ending.STOPPED)

    @property
    def is_failure(self) -> bool:
        """The launch has given the run up; the next launch goes on with it."""
        return self in (Ending.PREEMPTED, Ending.OUT_OF_MEMORY, Ending.BROKEN)

    @property
    def has_no_result(self) -> bool:
        """It came to an end that no choice and no mean takes in, and that nobody asked for."""
        return self is Ending.DIVERGED or self.is_failure

    @property
    def text(self) -> str:
        """What people are shown; a failure's own error says which one it was."""
        if self.is_failure:
            return "failed"
        return "stopped early" if self is Ending.STOPPED else self.value
