"""How uncertain the noise itself is: the factors by which a fit's resamples multiply it.

A spread that is estimated from few seeds is uncertain, with wide tails (Student's t). The sizes may
also scatter around a law for other reasons than seeds. The size of this scatter is drawn too, as
far as the residuals of the fit allow it.

One factor multiplies the noise of all sizes alike. That is meant for what compares or averages the
sizes that are there: the contrast (shape.py), exponents, slices and plateaus. The other model,
spread.py, is meant for a law that speaks of sizes that are not there (fit.py, joint.py): there the
noise may change with cost, and a new shape brings a scatter of its own that its seeds do not make
smaller.

`noise_degrees` are SeedNoise.degrees: infinite if the noise is not estimated, 0 if it is not known.
A factor is the true standard deviation of a mean, divided by the estimated one.
"""

from __future__ import annotations

import math

import numpy as np

from mambaout.study.law.power_law import Array

_POOL = 1000
# The scatter of sizes beyond their seeds, in units of the seeds' scatter. It has an exponential
# prior of mean 1, because such scatter is as likely as not, and four sizes cannot show it.
_SCATTER = np.linspace(0.0, 10.0, 101)


def seed_factors(noise_degrees: float, rng: np.random.Generator, count: int) -> Array:
    """Factors for sizes that scatter only by their seeds; nan if the noise is not known."""
    if noise_degrees == 0:
        return np.full(count, math.nan)
    if math.isinf(noise_degrees):
        return np.ones(count)
    return np.sqrt(noise_degrees / rng.chisquare(noise_degrees, count))


def scatter_factors(
    noise_degrees: float, rng: np.random.Generator, count: int, misfit: float, degrees: int
) -> Array:
    """Factors for sizes that may scatter around a law by more than their seeds.

    `misfit` is the sum of squared residuals, each divided by its variance; it has `degrees` degrees
    of freedom. The factors are nan if neither seeds nor residuals give information.
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
