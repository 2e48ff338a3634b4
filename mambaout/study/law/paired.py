"""Differences between two recipes within a seed: how large, how sure, and what can be seen.

Two recipes with the same seeds give one difference for each seed. The mean of these differences has
a 95 % interval by Student's t, from their own standard deviation: nothing is pooled over pairs,
because two recipes may share more of a seed than two others.

The gate is a pair whose first recipe must lose (pairing.py). It is open if the first loses by at
least five standard errors. A standard error of two seeds is too uncertain for that: even two equal
recipes differ by five of them in one study of eight. With three seeds it is one in 26, half of them
losses.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist

from mambaout.study.law.noise import Interval, t95
from mambaout.study.law.seeds import SeedMean
from mambaout.study.law.shape import POWER

LEVEL = 0.05  # of a test, over all comparisons of a study
GATE_ERRORS = 5.0  # standard errors by which the first recipe of the gate must lose
GATE_SEEDS = 3  # at least


@dataclass(frozen=True)
class PairedDifference:
    """The first recipe minus the second one, in points, for each seed that both have finished."""

    values: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def value(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def error(self) -> float:
        """The standard error of the mean; nan without a second seed."""
        count = len(self.values)
        return statistics.stdev(self.values) / math.sqrt(count) if count > 1 else math.nan

    @property
    def degrees(self) -> int:
        return len(self.values) - 1

    @property
    def interval(self) -> Interval:
        """The mean with its 95 % interval; the bounds are nan without a second seed."""
        half = t95(self.degrees) * self.error if self.degrees > 0 else math.nan
        return Interval(self.value, self.value - half, self.value + half)

    @property
    def in_errors(self) -> float:
        """The mean in standard errors; nan without a second seed."""
        if self.error == 0:  # every seed has the same difference
            return math.copysign(math.inf, self.value) if self.value else 0.0
        return self.value / self.error

    @property
    def p_value(self) -> float:
        """How often two equal recipes differ by as much, in standard errors; nan if unknown."""
        from scipy.special import stdtr

        if self.degrees < 1:
            return math.nan
        return float(2 * stdtr(self.degrees, -abs(self.in_errors)))

    def detectable(self, num_comparisons: int = 1) -> float:
        """The difference in points that 80 % of studies with these seeds find."""
        return least_found(self.error, self.degrees, num_comparisons)


def paired_difference(first: SeedMean, second: SeedMean) -> PairedDifference:
    """`first` minus `second` over the seeds that both have."""
    ones, others = _by_seed(first), _by_seed(second)
    seeds = tuple(sorted(ones.keys() & others.keys()))
    return PairedDifference(tuple(ones[seed] - others[seed] for seed in seeds), seeds)


def change(last: PairedDifference, first: PairedDifference) -> PairedDifference:
    """By how much a difference changes from one group to another, within a seed."""
    ends = (SeedMean(one.values, seeds=one.seeds) for one in (last, first))
    return paired_difference(*ends)


def _by_seed(mean: SeedMean) -> Mapping[int, float]:
    return dict(zip(mean.seeds, mean.values, strict=True))


# -- the gate -------------------------------------------------------------------------------------


class Gate(Enum):
    """Whether a study can say anything about what it compares."""

    OPEN = "open"
    SHUT = "shut"
    UNKNOWN = "not known"  # too few seeds


def gate_of(difference: PairedDifference) -> Gate:
    """Open if the recipe that must lose does so by at least five standard errors."""
    if len(difference.values) < GATE_SEEDS:
        return Gate.UNKNOWN
    return Gate.OPEN if difference.in_errors <= -GATE_ERRORS else Gate.SHUT


# -- several comparisons --------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for their number (Holm 1979); nan stays nan and counts.

    If each one below 5 % is called a difference, at most 5 % of studies call one that is not there.
    """
    order = sorted(
        (place for place, p in enumerate(p_values) if not math.isnan(p)),
        key=lambda place: p_values[place],
    )
    found, least = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = least
    return found


# -- power ----------------------------------------------------------------------------------------


def least_found(error: float, degrees: int, num_comparisons: int = 1) -> float:
    """The difference in points that 80 % of studies find, for a standard error; nan if unknown.

    Holm's strictest step has the level of one comparison divided by their number.
    """
    from scipy.special import stdtrit

    if degrees < 1:
        return math.nan
    quantile = float(stdtrit(degrees, 1 - LEVEL / 2 / max(num_comparisons, 1)))
    return (quantile + NormalDist().inv_cdf(POWER)) * error
