"""How much a number means: the noise between seeds, intervals of means, and what differs.

An interval here says where the mean over ever more seeds lies, with 95 % confidence by Student's
t. The spread is pooled over recipes trained equally long, so that a recipe with one seed has an
interval too; where too few of that length have a second seed, over all recipes. The images of
val are the same for every recipe: what their number adds to the noise is not in it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mambaout.study.report.rows import Row
from mambaout.train.metrics import TOP1

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T95 = (
    12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
# A spread from fewer degrees of freedom is too uncertain to be preferred to that of all recipes:
# with four its own 95 % interval still goes from 0.6 to 2.9 times it.
LEAST_DEGREES = 4


@dataclass(frozen=True)
class Pool:
    """A standard deviation over seeds and how well it is known."""

    spread: float  # points
    degrees: int  # of freedom


@dataclass(frozen=True)
class Noise:
    """The noise between seeds of one metric."""

    metric: str
    all: Pool
    by_epochs: Mapping[int, Pool] = field(default_factory=dict)  # lengths with enough seeds

    @property
    def spread(self) -> float:
        return self.all.spread

    @property
    def degrees(self) -> int:
        return self.all.degrees

    def pool(self, row: Row) -> Pool:
        return self.by_epochs.get(row.epochs, self.all)

    def half_width(self, row: Row) -> float:
        """Half the 95 % interval of the row's mean over seeds."""
        pool = self.pool(row)
        return quantile(pool.degrees) * pool.spread / math.sqrt(len(row.mean(self.metric).values))

    def bound(self, first: Row, second: Row) -> float:
        """Points that two recipes' means must differ by to be told apart (Welch's test)."""
        pools = [self.pool(row) for row in (first, second)]
        counts = [len(row.mean(self.metric).values) for row in (first, second)]
        parts = [pool.spread**2 / n for pool, n in zip(pools, counts, strict=True)]
        if pools[0] == pools[1] or not all(parts):
            degrees = min(pool.degrees for pool in pools)
        else:
            weights = (p**2 / pool.degrees for p, pool in zip(parts, pools, strict=True))
            degrees = int(sum(parts) ** 2 / sum(weights))
        return quantile(degrees) * math.sqrt(sum(parts))


def quantile(degrees: int) -> float:
    """The 97.5 % point of Student's t."""
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96 + 2.5 / degrees


def seed_noise(table: Sequence[Row], metric: str = TOP1) -> Noise | None:
    """None where no recipe has two finished seeds."""
    everything = _pooled(table, metric)
    if everything is None:
        return None
    lengths = {row.epochs for row in table}
    pools = {
        epochs: _pooled([row for row in table if row.epochs == epochs], metric)
        for epochs in lengths
    }
    known = {e: pool for e, pool in pools.items() if pool and pool.degrees >= LEAST_DEGREES}
    return Noise(metric, everything, known)


def _pooled(table: Sequence[Row], metric: str) -> Pool | None:
    squares, degrees = 0.0, 0
    for row in table:
        values = row.mean_of_all(metric).values
        if len(values) > 1:
            squares += statistics.variance(values) * (len(values) - 1)
            degrees += len(values) - 1
    return Pool(math.sqrt(squares / degrees), degrees) if degrees else None


def judged(points: float, first: Row, second: Row, noise: Noise | None) -> str:
    """ "1.83 points, significant (1.02 is needed)"."""
    if noise is None:
        return f"{points:.2f} points"  # what that is worth is said once, at the end
    bound = noise.bound(first, second)
    verdict = "beyond seed noise" if points > bound else "within seed noise: not significant"
    return f"{points:.2f} points, {verdict} ({bound:.2f} is needed)"
