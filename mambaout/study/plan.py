"""What a study will cost before it starts: parameters, MACs and time of every trial.

The time comes from the rate at which finished trials of the study spent their MACs, taken at
the nearest network sizes; before any has finished it comes from an assumption, and the plan says
which of the two it is.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mambaout.accounting import CHIPS, FLOP_PER_MAC, TRAIN_FORWARDS, cost, find_chip, train_macs
from mambaout.study.rows import count_text, hours_text
from mambaout.study.study import Run, Trial
from mambaout.train.metrics import MACS, TRAIN_DEVICE_HOURS

# Assumed where nothing has been measured. On one core of a Xeon with AVX-512, fp32, a training
# image of MambaOuts from 1M to 1,150M MACs took within a third of 1 ms + 3 * MACs / 25e9 s; a
# little is taken off for trials that share the machine. Of a GPU's peak, a quarter.
CPU_SECONDS_PER_IMAGE = 1.1e-3
CPU_CORE_MACS_PER_SECOND = 20e9
SHARE_OF_PEAK = 0.25


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What one trial costs."""

    trial: Trial
    params: int
    macs: int  # one image, one forward
    train_macs: int  # the whole training, backward included
    seconds: float  # on one share of the machine; 0 for a trial that has finished
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study costs."""

    rows: Sequence[PlanRow]
    concurrency: int  # trials at a time
    basis: str  # where the seconds come from

    @property
    def device_seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    @property
    def wall_seconds(self) -> float:
        """Until the last trial ends, each started in order as soon as a share is free."""
        free = [0.0] * self.concurrency
        for row in self.rows:
            heapq.heapreplace(free, free[0] + row.seconds)
        return max(free)


def plan(
    trials: Sequence[Trial],
    num_train: int,
    num_classes: int,
    *,
    concurrency: int = 1,
    runs: Sequence[Run] = (),
    device: str = "cpu",
    macs_per_second: float | None = None,
) -> Plan:
    """Price `trials` on a data set of `num_train` training images.

    `runs` are what the study's folder holds: finished ones cost nothing more and give the rate.
    Otherwise the rate is `macs_per_second` (training MACs, one share), or the assumption for
    `device`: "cpu", or a name that the chip table knows.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency}: at least one trial runs at a time")
    done = {run.trial.key for run in runs if run.status == "finished"}
    measured = _measured_rates(runs, num_train, num_classes)
    if macs_per_second is not None:
        assumed = _Rate(macs_per_second, 0.0, f"a given {_rate_text(macs_per_second)}")
    else:
        assumed = _assumed_rate(device)
    basis = assumed.basis
    if measured:
        basis = f"the measured rate of {len(measured)} finished trial{'s'[: len(measured) > 1]}"
    rows = []
    for trial in trials:
        price = cost(trial.recipe.model, trial.recipe.image_size, num_classes)
        total = train_macs(trial.recipe, num_train, num_classes)
        if measured:
            seconds = total / _interpolated(measured, price.macs)
        else:
            images = total / (TRAIN_FORWARDS * price.macs)
            seconds = total / assumed.macs_per_second + images * assumed.seconds_per_image
        rows.append(
            PlanRow(
                trial=trial,
                params=price.params,
                macs=price.macs,
                train_macs=total,
                seconds=0.0 if trial.key in done else seconds,
                finished=trial.key in done,
            )
        )
    return Plan(rows=rows, concurrency=concurrency, basis=basis)


def _measured_rates(
    runs: Sequence[Run], num_train: int, num_classes: int
) -> list[tuple[float, float]]:
    """(MACs of an image, training MACs a second) of the finished runs, smallest network first."""
    rates = []
    for run in runs:
        hours = run.metrics.get(TRAIN_DEVICE_HOURS, 0)
        if run.status == "finished" and hours > 0:
            spent = train_macs(run.trial.recipe, num_train, num_classes)
            rates.append((run.metrics[MACS], spent / (hours * 3600)))
    return sorted(rates)


def _interpolated(rates: Sequence[tuple[float, float]], macs: float) -> float:
    """The rate at `macs`, straight between neighbours on logarithmic axes, level at the ends."""
    at = bisect.bisect_left(rates, (macs,))
    if at == 0 or at == len(rates):
        return rates[min(at, len(rates) - 1)][1]
    (low, low_rate), (high, high_rate) = rates[at - 1], rates[at]
    if low == high:
        return low_rate
    share = math.log(macs / low) / math.log(high / low)
    return low_rate ** (1 - share) * high_rate**share


@dataclass(frozen=True)
class _Rate:
    """What training an image is taken to cost."""

    macs_per_second: float
    seconds_per_image: float  # beside the MACs
    basis: str


def _assumed_rate(device: str) -> _Rate:
    unmeasured = "nothing has been measured yet"
    if device == "cpu":
        rate, each = CPU_CORE_MACS_PER_SECOND, CPU_SECONDS_PER_IMAGE
        text = f"an assumed {_rate_text(rate)} and {each * 1e3:g} ms an image on a core"
        return _Rate(rate, each, f"{text}; {unmeasured}")
    chip = find_chip(device)
    if chip is None:
        raise ValueError(
            f"no peak is known for device {device!r}; give macs_per_second, or one of "
            f"cpu, {', '.join(CHIPS)}"
        )
    rate = SHARE_OF_PEAK * max(chip.peak_flops.values()) / FLOP_PER_MAC
    share = f"{SHARE_OF_PEAK:.0%} of the peak of {chip.name}"
    return _Rate(rate, 0.0, f"an assumed {_rate_text(rate)} ({share}); {unmeasured}")


def _rate_text(macs_per_second: float) -> str:
    return f"{count_text(macs_per_second)}MAC/s"


def plan_table(plan: Plan) -> str:
    """The plan as text for a terminal, its sums below."""
    lines = [("trial", "MACs", "params", "training MACs", "estimated time")]
    for row in plan.rows:
        time = "finished" if row.finished else hours_text(row.seconds / 3600)
        figures = (count_text(row.macs), count_text(row.params), count_text(row.train_macs))
        lines.append((row.trial.name, *figures, time))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    text = [
        "  ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    todo = sum(not row.finished for row in plan.rows)
    sums = (
        f"{todo} of {len(plan.rows)} trials to run: "
        f"{hours_text(plan.device_seconds / 3600)} of one share, about "
        f"{hours_text(plan.wall_seconds / 3600)} with {plan.concurrency} at a time. "
        f"Time from {plan.basis}."
    )
    return "\n".join([text[0], "-" * len(text[0]), *text[1:], sums])
