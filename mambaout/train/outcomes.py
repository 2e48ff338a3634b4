"""The results of a call of `train`. Each outcome has an ending, the word that files hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mambaout.endings import Ending


@dataclass(frozen=True)
class Finished:
    ending: ClassVar[Ending] = Ending.FINISHED
    metrics: dict[str, float]


@dataclass(frozen=True)
class Diverged:
    ending: ClassVar[Ending] = Ending.DIVERGED
    step: int  # the first step whose loss was not finite


@dataclass(frozen=True)
class Preempted:
    """The run stopped before its end and has saved everything; the same call resumes it."""

    ending: ClassVar[Ending] = Ending.UNFINISHED
    step: int
    began: int = field(default=0, compare=False)  # the step from which this call started


@dataclass(frozen=True)
class OutOfMemory:
    """Even the smallest micro-batch does not fit."""

    ending: ClassVar[Ending] = Ending.OUT_OF_MEMORY
    micro_batch: int
    error: str
    remedy: str = field(default="", compare=False)  # words for the user

    def as_error(self) -> MemoryError:
        return MemoryError(self.text)

    @property
    def text(self) -> str:
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"out of memory even with a micro-batch of {self.micro_batch}{remedy}: {self.error}"


Outcome = Finished | Diverged | Preempted | OutOfMemory
