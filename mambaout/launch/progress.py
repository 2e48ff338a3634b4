"""The lines that a running study shows, and the time left. All is pure except `Screen`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from mambaout.endings import Ending
from mambaout.numbers import clock_text, count_text, hours_text, percent_text, rate_text
from mambaout.rules import LEAST_MINIVAL
from mambaout.study.study import Run, Trial
from mambaout.train.metrics import IMAGES_PER_SECOND, MACS, MINIVAL_TOP1, TOP1, TRAIN_LOSS
from mambaout.train.tasks import CLASSIFY

MOST_ROWS = 16  # running trials shown at once
# The passed time includes the start of the workers. Early on, this makes the time left far too
# long. So it is shown only after this share of the work or this time.
SETTLED_SHARE, SETTLED_SECONDS = 0.1, 120.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial and its amount of work."""

    trial: Trial
    num_steps: int
    train_macs: float  # multiply-adds of the training, without the shared steps
    shared_steps: int = 0  # the first ones, which a shorter trial takes


def done_fraction(job: Job, run: Run) -> float:
    """The recorded share of the trial's own steps; 1 if it has an outcome."""
    if run.status.is_over:
        return 1.0
    step = run.records[-1].step if run.records else 0
    return max(0, step - job.shared_steps) / (job.num_steps - job.shared_steps)


def seconds_left(
    jobs: Sequence[Job],
    fractions: Mapping[str, float],
    *,
    at_start: Mapping[str, float],
    seconds: float,
    slots: int,
    num_undecided: int = 0,
) -> float | None:
    """Time until the last trial ends, at the rate of this launch so far; None if it is too early.

    `fractions` and `at_start` are the done shares by key, now and at the start; `seconds` have
    passed in between. Work is counted in MACs. The study takes at least as long as its longest
    trial, because a trial cannot use two slots. A trial whose recipe is not chosen yet counts as
    the mean of the others.
    """
    sizes = {job.trial.key: job.train_macs for job in jobs}
    worked = sum((fractions[key] - at_start.get(key, 0)) * work for key, work in sizes.items())
    left = [(1 - fractions[key]) * work for key, work in sizes.items()]
    left += [sum(sizes.values()) / max(len(sizes), 1)] * num_undecided
    begun = sum(fractions[key] > at_start.get(key, 0) for key in sizes)
    if worked <= 0 or seconds <= 0:
        return None
    if worked < SETTLED_SHARE * (worked + sum(left)) and seconds < SETTLED_SECONDS:
        return None
    rate = worked / seconds
    return max(sum(left) / rate, max(left) * min(slots, begun) / rate)


def status_lines(
    jobs: Sequence[Job],
    runs: Mapping[str, Run],
    running: Sequence[str],
    *,
    seconds: float,
    left: float | None,
    failed: int = 0,
    num_undecided: int = 0,
) -> list[str]:
    """One line on the study and one on each trial in `running`, which holds keys."""
    ended = [job.trial.key for job in jobs if runs[job.trial.key].status.is_over]
    over = len(set(ended) - set(running))
    # A trial whose recipe is not chosen yet counts as the mean of the others.
    work = sum(job.train_macs for job in jobs) * (1 + num_undecided / max(len(jobs), 1))
    done = sum(done_fraction(job, runs[job.trial.key]) * job.train_macs for job in jobs)
    share = done / work if work else 0.0
    waiting = len(jobs) + num_undecided - over - len(running) - failed
    counts = f"{over} done, {len(running)} running, {waiting} left"
    counts += f", {failed} failed" if failed else ""
    eta = f", about {hours_text(left / 3600)} left" if left is not None and share < 1 else ""
    lines = [f"[{clock_text(seconds)}] {counts} | {percent_text(100 * share, 0)} of the work{eta}"]
    by_key = {job.trial.key: job for job in jobs}
    shown = [by_key[key] for key in running[:MOST_ROWS]]
    width = max((len(job.trial.name) for job in shown), default=0)
    lines += [trial_line(job, runs[job.trial.key], width) for job in shown]
    if len(running) > MOST_ROWS:
        lines.append(f"    and {len(running) - MOST_ROWS} more")
    return lines


def trial_line(job: Job, run: Run, width: int = 0) -> str:
    """The line of a running trial: step, epoch and its latest measurements."""
    if not run.records:
        return f"    {job.trial.name:{width}}  starting"
    latest = {}
    for record in run.records:
        latest |= record.values
    last = run.records[-1]
    kind = job.trial.kind
    of = f"/{kind.length(job.trial.recipe)}" if kind.unit == "epochs" else ""
    score = "minival" if kind is CLASSIFY else kind.score
    parts = [
        f"    {job.trial.name:{width}}",
        f"step {last.step:>{len(str(job.num_steps))}}/{job.num_steps}",
        f"epoch {last.epoch:.1f}{of}",
        f"loss {latest[TRAIN_LOSS]:.3f}" if TRAIN_LOSS in latest else "",
        f"{score} {percent_text(latest[kind.watched])}" if kind.watched in latest else "",
        f"{rate_text(latest[IMAGES_PER_SECOND])} images/s" if IMAGES_PER_SECOND in latest else "",
    ]
    return "  ".join(part for part in parts if part)


def ended_line(run: Run, seconds: float, number: int, of: int, width: int = 0) -> str:
    """The line of a trial that is over: its result."""
    head = f"[{clock_text(seconds)}] {number:>{len(str(of))}}/{of}  {run.trial.name:{width}}"
    if run.status is Ending.FINISHED:
        return (
            f"{head}  {_scores_text(run)}"
            f"  {count_text(run.metrics[MACS])} MACs"
            f"  {rate_text(run.metrics[IMAGES_PER_SECOND])} images/s"
        )
    why = run.facts.get("why" if run.status is Ending.STOPPED else "error", "no reason given")
    return f"{head}  {run.status.text}: {why}"


def _scores_text(run: Run) -> str:
    """The final scores of a finished run, in percent."""
    kind = run.trial.kind
    if kind is CLASSIFY:
        return f"top-1 {_minival_text(run)}, {percent_text(run.metrics[TOP1])} val"
    words = {kind.final: kind.score, **kind.more}
    return ", ".join(
        f"{text} {percent_text(run.metrics[name])}"
        for name, text in words.items()
        if name in run.metrics
    )


def _minival_text(run: Run) -> str:
    top1, num_images = run.metrics[MINIVAL_TOP1], run.facts.get("num_minival", LEAST_MINIVAL)
    if num_images < LEAST_MINIVAL:  # show the number of hits, as a percent would look too exact
        return f"{round(top1 * num_images / 100)} of {num_images} minival images"
    return f"{percent_text(top1)} minival"


class Screen:
    """Lines that stay and, below them, a few lines that are updated.

    On a terminal the lower lines are redrawn in place. Elsewhere they are appended, less and
    less often, so that the log of an hour stays readable.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.in_place = self.out.isatty()
        self._lock = threading.Lock()  # both threads of the driver write
        self._drawn = 0
        self._started = time.monotonic()
        self._shown_at = -float("inf")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._wipe()
            self._write(text + "\n")

    def show(self, lines: Sequence[str]) -> None:
        """Show the current lines, if enough time has passed."""
        now = time.monotonic()
        if now - self._shown_at < self._interval(now):
            return
        self._shown_at = now
        with self._lock:
            self._wipe()
            self._write("".join(line + "\n" for line in lines))
            self._drawn = len(lines) if self.in_place else 0

    def _interval(self, moment: float) -> float:
        if self.in_place:
            return 2.0
        return 10.0 if moment - self._started < 300 else 60.0

    def _wipe(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}A\x1b[J")
        self._drawn = 0

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
