"""By how much sizes lie beside their law: draws of the noise, its change with cost, and the shapes.

The variance of the mean of n runs at cost C is modelled as

    scale (C / middle)^(2 growth) v / n + scatter

where v is the variance of one run in the report's noise (noise.py). `growth` is there because large
networks can be noisier than small ones, or less noisy. `scatter` is the variance between shapes of
equal cost, which more seeds do not make smaller. None of the three is known. So each resample of a
fit draws them anew, from what the seeds and the residuals of the fit leave possible.

- The seeds tell scale and growth. With few seeds the growth stays near 0, its prior.
- The residuals tell the scatter. With few sizes it stays near its prior.
- If no recipe has two seeds, the binomial spread of val's images stands in for the seeds. All sizes
  see the same images, so a part of that spread is common to them and moves no size beside another.
  The scale is then between the bounds of SHARE.
- If not even the images are known, only the residuals tell the spread.

This model is meant for laws (fit.py, joint.py), which predict sizes that are not there. What
compares or averages only the sizes that are there needs less: one factor for all of them, by
scatter.py.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mambaout.study.law.noise import SeedMean, SeedNoise
from mambaout.study.law.power_law import Array

# The standard deviation of the growth's prior around 0. Noise that doubles while the cost grows by
# x16 has a growth of 0.25.
GROWTH_SD = 0.25
# The mean of an exponential prior of the shapes' standard deviation, in units of one run's noise.
# Such scatter is as likely as not, and four sizes cannot show it.
SCATTER_MEAN = 0.75
SHARE = (0.2, 1.0)  # of the binomial variance
_POOL = 4000  # draws of the prior
_GROWTHS = np.linspace(-0.8, 0.8, 81)


@dataclass(frozen=True)
class SpreadDraws:
    """Draws of scale, growth and scatter. nan if nothing tells them."""

    scale: Array  # (R,)
    growth: Array  # (R,)
    scatter: Array  # (R,) points^2
    middle: float  # cost

    def variances(self, costs: Array, variances: Array) -> Array:
        """Of means at `costs` (n,) that have `variances` (n,) or (R, n) in the noise: (R, n)."""
        return self.of_seeds(costs, variances) + self.scatter[:, None]

    def of_seeds(self, costs: Array, variances: Array) -> Array:
        """The same without the scatter between shapes."""
        grown = (costs / self.middle) ** (2 * self.growth[:, None])
        return self.scale[:, None] * grown * variances

    def first(self, count: int) -> SpreadDraws:
        """The first `count` draws."""
        return SpreadDraws(
            self.scale[:count], self.growth[:count], self.scatter[:count], self.middle
        )

    @property
    def are_known(self) -> bool:
        return bool(np.isfinite(self.scatter).all())


def spread_draws(
    costs: Array,
    means: Sequence[SeedMean],
    noise: SeedNoise,
    residuals: Array,
    degrees: int,
    rng: np.random.Generator,
    count: int,
    num_shapes: int | None = None,
) -> SpreadDraws:
    """Draws of the spread of sizes.

    `costs` (n,) and `means` are those of all sizes. `residuals` (n,) are those of a fit with
    `degrees` degrees of freedom; nan where a size is no part of it. With `num_shapes`, several
    sizes are of one shape, and its residuals tell the scatter only once.
    """
    nothing = np.full(count, math.nan)
    used = np.isfinite(residuals)
    if not noise.is_known:
        if degrees == 0:
            return SpreadDraws(nothing, nothing, nothing, 1.0)
        scatter = (residuals[used] ** 2).sum() / rng.chisquare(degrees, count)
        return SpreadDraws(np.zeros(count), np.zeros(count), scatter, 1.0)
    variances = noise.variances(means)
    one_run = float(np.mean(noise.variances([_one_of(mean) for mean in means])))
    growth, scale, middle = _of_seeds(costs, means, noise, rng)
    scatter = scale * one_run * rng.exponential(SCATTER_MEAN, _POOL) ** 2
    pool = SpreadDraws(scale, growth, scatter, middle)
    if degrees:
        expected = pool.variances(costs[used], variances[used])  # (P, n)
        share = degrees / used.sum()
        told = 1.0 if num_shapes is None else num_shapes / len(costs)
        misfit = share * np.log(expected) + residuals[used] ** 2 / expected
        logs = -0.5 * told * misfit.sum(axis=1)
        chances = np.exp(logs - logs.max())
        drawn = rng.choice(_POOL, count, p=chances / chances.sum())
    else:
        drawn = rng.choice(_POOL, count)
    return SpreadDraws(scale[drawn], growth[drawn], scatter[drawn], middle)


def _one_of(mean: SeedMean) -> SeedMean:
    return SeedMean((mean.value,), mean.epochs)


def _of_seeds(
    costs: Array, means: Sequence[SeedMean], noise: SeedNoise, rng: np.random.Generator
) -> tuple[Array, Array, float]:
    """Draws of growth and scale (P,), and the cost at which growth changes nothing."""
    several = [
        (
            cost,
            len(mean.values) - 1,
            statistics.variance(mean.values) / noise.variance(_one_of(mean)),
        )
        for cost, mean in zip(costs, means, strict=True)
        if len(mean.values) > 1
    ]
    if not several:
        middle = float(np.exp(np.log(costs).mean()))
        growth = np.clip(GROWTH_SD * rng.standard_normal(_POOL), _GROWTHS[0], _GROWTHS[-1])
        return growth, _scale(noise.degrees(means), rng), middle
    where, degrees, squares = (np.array(column, float) for column in zip(*several, strict=True))
    middle = float(np.exp((degrees * np.log(where)).sum() / degrees.sum()))
    squares = degrees * np.maximum(squares, 1e-12)
    # The sum of squares that the growth leaves, in units of that without growth.
    left = (squares * (where / middle) ** (-2 * _GROWTHS[:, None])).sum(axis=1) / squares.sum()
    logs = -0.5 * ((_GROWTHS / GROWTH_SD) ** 2 + degrees.sum() * np.log(left))
    chances = np.exp(logs - logs.max())
    drawn = rng.choice(len(_GROWTHS), _POOL, p=chances / chances.sum())
    return _GROWTHS[drawn], left[drawn] * _scale(noise.degrees(means), rng), middle


def _scale(degrees: float, rng: np.random.Generator) -> Array:
    """The true variance of the noise divided by the estimated one."""
    if math.isinf(degrees):
        return rng.uniform(*SHARE, _POOL)
    return degrees / rng.chisquare(degrees, _POOL)
