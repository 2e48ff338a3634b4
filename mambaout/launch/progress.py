"""What a running study shows: the lines, and the time that is left. Pure but for `Screen`."""

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

MOST_ROWS = 16  # running trials shown at once
# The start of workers is in the time that has passed. Before so much of the work or of time it
# makes the time left far too long, so none is told.
SETTLED_SHARE, SETTLED_SECONDS = 0.1, 120.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial and the work that it is."""

    trial: Trial
    num_steps: int
    train_macs: float  # multiply-adds of the whole training


def done_fraction(job: Job, run: Run) -> float:
    """Share of the trial's steps that is recorded; 1 once it has an outcome."""
    if run.status.is_over:
        return 1.0
    return run.records[-1].step / job.num_steps if run.records else 0.0


def seconds_left(
    jobs: Sequence[Job],
    fractions: Mapping[str, float],
    *,
    at_start: Mapping[str, float],
    seconds: float,
    slots: int,
    num_undecided: int = 0,
) -> float | None:
    """Time until the last trial ends, at the rate of this launch so far; None while it is early.

    `fractions` are what is done by key, now and `at_start`; `seconds` have passed in between.
    Work is weighed in MACs. The longest trial bounds the study: it cannot use two slots. A trial
    still to be decided on counts as the mean of the others.
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
    """One line on the study, and one on each running trial, by the keys of `running`."""
    ended = [job.trial.key for job in jobs if runs[job.trial.key].status.is_over]
    over = len(set(ended) - set(running))
    # A trial still to be decided on counts as the mean of the others.
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
    """A running trial: step, epoch, the latest of what it measures."""
    if not run.records:
        return f"    {job.trial.name:{width}}  starting"
    latest = {}
    for record in run.records:
        latest |= record.values
    last = run.records[-1]
    epochs = job.trial.recipe.schedule.total_epochs
    parts = [
        f"    {job.trial.name:{width}}",
        f"step {last.step:>{len(str(job.num_steps))}}/{job.num_steps}",
        f"epoch {last.epoch:.1f}/{epochs}",
        f"loss {latest[TRAIN_LOSS]:.3f}" if TRAIN_LOSS in latest else "",
        f"minival {percent_text(latest[MINIVAL_TOP1])}" if MINIVAL_TOP1 in latest else "",
        f"{rate_text(latest[IMAGES_PER_SECOND])} images/s" if IMAGES_PER_SECOND in latest else "",
    ]
    return "  ".join(part for part in parts if part)


def ended_line(run: Run, seconds: float, number: int, of: int, width: int = 0) -> str:
    """A trial that is over: what came out."""
    head = f"[{clock_text(seconds)}] {number:>{len(str(of))}}/{of}  {run.trial.name:{width}}"
    if run.status is Ending.FINISHED:
        return (
            f"{head}  top-1 {_minival_text(run)}, {percent_text(run.metrics[TOP1])} val"
            f"  {count_text(run.metrics[MACS])} MACs"
            f"  {rate_text(run.metrics[IMAGES_PER_SECOND])} images/s"
        )
    why = run.facts.get("why" if run.status is Ending.STOPPED else "error", "no reason given")
    return f"{head}  {run.status.text}: {why}"


def _minival_text(run: Run) -> str:
    top1, num_images = run.metrics[MINIVAL_TOP1], run.facts.get("num_minival", LEAST_MINIVAL)
    if num_images < LEAST_MINIVAL:  # hits are counted: a percent would say too much
        return f"{round(top1 * num_images / 100)} of {num_images} minival images"
    return f"{percent_text(top1)} minival"


class Screen:
    """Lines that stay and, under them, a few that are kept up to date.

    On a terminal the lower lines are redrawn in place. Elsewhere they are appended, less and
    less often, so that the log of an hour stays readable.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.in_place = self.out.isatty()
        self._lock = threading.Lock()  # the driver's two threads both write
        self._drawn = 0
        self._started = time.monotonic()
        self._shown_at = -float("inf")

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            self._wipe()
            self._write(text + "\n")

    def show(self, lines: Sequence[str]) -> None:
        """The lines as they are now, if it is time for them."""
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
