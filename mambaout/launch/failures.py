"""The kinds of failures, and which are tried again: pure functions over a trial's failures.

| kind | tried again |
|---|---|
| PREEMPTED | as long as the trial makes progress between losses |
| OUT_OF_MEMORY | once, because another trial may have ended by then |
| BROKEN | once, if the error is new; the same error twice is a bug |

Each failure is a line of failures.jsonl in the run directory. The lines of earlier launches stay
for people to read. They do not count any more, because the code may have been fixed since.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mambaout.durable import append_lines, read_lines
from mambaout.endings import Ending
from mambaout.memory import says_out_of_memory

Kind = Literal[Ending.PREEMPTED, Ending.OUT_OF_MEMORY, Ending.BROKEN]

FAILURES_FILE = "failures.jsonl"
STUCK_PREEMPTIONS = 5  # losses in a row at the same step: the trial kills the worker
MOST_OUT_OF_MEMORY = 2
MOST_BROKEN = 3

# The errors are listed by name, so that neither Ray nor torch is imported.
_LOST = {
    "RayActorError",
    "NodeDiedError",
    "OwnerDiedError",
    "WorkerCrashedError",
    "LocalRayletDiedError",
    "ActorPlacementGroupRemoved",
    "ActorUnschedulableError",
    "TaskPlacementGroupRemoved",
    "HostLost",
    "HostsDisagree",
}
_MEMORY = {"OutOfMemoryError", "MemoryError"}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One time that a trial's worker ended without an outcome."""

    kind: Kind
    error: str  # one line: the type and its message
    step: int  # optimizer steps recorded by then
    launch: str  # the launch in which it happened
    trace: str = ""
    time: str = ""  # UTC


def cause_of(error: BaseException) -> BaseException:
    """The original error inside Ray's report of another process. Any other error is unchanged."""
    cause = getattr(error, "cause", None)
    return cause_of(cause) if isinstance(cause, BaseException) else error


def classify(error: BaseException) -> Kind:
    """The kind of failure that ended a trial's worker."""
    error = cause_of(error)
    names = {base.__name__ for base in type(error).__mro__}
    if names & _MEMORY or says_out_of_memory(str(error)):
        return Ending.OUT_OF_MEMORY
    if names & _LOST:
        return Ending.PREEMPTED
    return Ending.BROKEN


def retried(failures: Sequence[Failure]) -> bool:
    """Whether a trial is tried again after these failures of one launch, oldest first."""
    if not failures:
        return True
    last = failures[-1]
    same_kind = [failure for failure in failures if failure.kind == last.kind]
    match last.kind:
        case Ending.PREEMPTED:
            recent = same_kind[-STUCK_PREEMPTIONS:]
            stuck = all(failure.step >= last.step for failure in recent)
            return len(recent) < STUCK_PREEMPTIONS or not stuck
        case Ending.OUT_OF_MEMORY:
            return len(same_kind) < MOST_OUT_OF_MEMORY
        case Ending.BROKEN:
            seen_before = any(failure.error == last.error for failure in same_kind[:-1])
            return not seen_before and len(same_kind) < MOST_BROKEN


def one_line(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    text = (str(error).strip().splitlines() or [""])[0]
    name = type(error).__name__
    return text[:300] if text.startswith(name) else f"{name}: {text}"[:300]


def add_failure(run_directory: Path, failure: Failure) -> None:
    """Append the failure, with the time, to the run directory's failures.jsonl."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run_directory.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(failure) | {"time": stamp})
    append_lines(run_directory / FAILURES_FILE, [line], sync=True)


def read_failures(run_directory: Path, launch: str) -> list[Failure]:
    """The failures of one launch, oldest first."""
    found = read_lines(run_directory / FAILURES_FILE, _failure)
    return [failure for failure in found if failure.launch == launch]


def _failure(line: str) -> Failure:
    body = json.loads(line)
    return Failure(**body | {"kind": Ending(body["kind"])})
