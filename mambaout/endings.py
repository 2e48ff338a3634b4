"""The endings of a run: one list for the run's files, MLflow, Optuna and all texts.

outcome.json and failures.jsonl hold these values. train/outcomes.py has the values that a training
returns. study/study.py reads a run's ending from its files. launch/failures.py tells the failures
apart. study/tracking and study/search translate an ending into MLflow's and Optuna's words.
"""

from __future__ import annotations

from enum import StrEnum


class Ending(StrEnum):
    """How a run stands, or why its worker failed.

    A run whose worker failed is unfinished, and the launch tries it again. If the launch gives the
    run up, the failure becomes the run's ending.
    """

    FINISHED = "finished"  # trained to its last step, and evaluated on val
    DIVERGED = "diverged"  # a loss was not finite; to repeat the steps would give the same
    STOPPED = "stopped"  # a search stopped it early; its checkpoint stays
    UNFINISHED = "unfinished"  # none of the others yet; the next launch continues it
    PREEMPTED = "preempted"  # the worker or its machine went away
    OUT_OF_MEMORY = "out_of_memory"  # the device or the host had too little memory
    BROKEN = "broken"  # any other error

    @property
    def is_over(self) -> bool:
        """Whether the run is over, so that no launch continues it."""
        return self in (Ending.FINISHED, Ending.DIVERGED, Ending.STOPPED)

    @property
    def is_failure(self) -> bool:
        """Whether the launch has given the run up; the next launch continues it."""
        return self in (Ending.PREEMPTED, Ending.OUT_OF_MEMORY, Ending.BROKEN)

    @property
    def has_no_result(self) -> bool:
        """Whether the run ended without a result to rank or average: it diverged or failed."""
        return self is Ending.DIVERGED or self.is_failure

    @property
    def text(self) -> str:
        """The text that people see. All failures share one text; the error tells which it was."""
        if self.is_failure:
            return "failed"
        return "stopped early" if self is Ending.STOPPED else self.value
