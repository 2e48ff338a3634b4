"""How unsure the noise itself is: what the resamples of a fit multiply it by.

The few seeds that a spread is estimated from leave it uncertain, with wide tails, as Student's t.
The sizes may also scatter around a law for more reasons than seeds. How much is drawn too, as far
as the residuals of the fit allow it.

`noise_degrees` are SeedNoise.degrees: infinite where the noise is not estimated, 0 where nothing is
known of it. A factor is a true standard deviation of a mean over the estimated one.
"""

from __future__ import annotations

import math

import numpy as np

from mambaout.study.law.power_law import Array

_POOL = 1000
# Scatter of sizes beyond that of seeds, in units of the latter, for which an exponential prior of
# mean 1 is taken: as likely as not it is there, and four sizes cannot show it.
_SCATTER = np.linspace(0.0, 10.0, 101)


def seed_factors(noise_degrees: float, rng: np.random.Generator, count: int) -> Array:
    """For sizes that scatter by their seeds alone; nan where the noise is not known."""
    if noise_degrees == 0:
        return np.full(count, math.nan)
    if math.isinf(noise_degrees):
        return np.ones(count)
    return np.sqrt(noise_degrees / rng.chisquare(noise_degrees, count))


def scatter_factors(
    noise_degrees: float, rng: np.random.Generator, count: int, misfit: float, degrees: int
) -> Array:
    """For sizes that may scatter around a law beyond their seeds.

    `misfit` is the residuals' sum of squares over the variances, with `degrees` of freedom. nan
    where neither seeds nor residuals say anything.
    """
    if noise_degrees == 0:
        if degrees == 0:
            return np.full(count, math.nan)
        return np.sqrt(misfit / rng.chisquare(degrees, count))
    total = seed_factors(noise_degrees, rng, _POOL)[:, None] ** 2 * (1 + _SCATTER**2)
    logs = -_SCATTER - 0.5 * (degrees * np.log(total) + misfit / total)
    chances = np.exp(logs - logs.max()).ravel()
    drawn = rng.choice(chances.size, count, p=chances / chances.sum())
    return np.sqrt(total.ravel()[drawn])
