"""Where growing stopped paying: steps of a ladder that gain far less than promised.

The promise is a law of the smaller sizes, without the shift d (error = a C^-b + c). It has three
parameters, so four smaller sizes leave one degree of freedom to judge the fit. A step is a plateau
if two things hold. It falls short of its promise by more than noise. And its gain is within noise
or under a quarter of the promise. If the promise itself is within noise, no plateau can be seen. If
the smaller sizes already show a floor c, that floor is part of the promise and no plateau.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mambaout.numbers import count_text
from mambaout.study.law import power_law
from mambaout.study.law.fit import MIN_SIZES, Size
from mambaout.study.law.noise import SeedNoise
from mambaout.study.law.scatter import scatter_factors, seed_factors

FALSE_ALARMS = 0.05  # share of ladders without a plateau, over all steps
PAID = 0.25  # a step has paid if it gained this share of its promise
SAME_COST = 1.1  # costs within this factor are one step of the ladder


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """A step that did not pay."""

    first: Size
    second: Size
    gain_points: float  # of top-1
    expected_points: float  # by the law of the sizes up to `first`
    sigmas: float  # how far it falls short

    def text(self) -> str:
        factor = self.second.cost / self.first.cost
        return (
            f"growth stopped paying from {self.first.label} to {self.second.label}: x{factor:.2f} "
            f"in cost (to {count_text(self.second.cost)}) gained {self.gain_points:+.2f} points "
            f"where the law of the smaller sizes promises {self.expected_points:+.2f} "
            f"({self.sigmas:.1f} sigma short)"
        )


def plateaus(
    sizes: Sequence[Size], noise: SeedNoise, *, num_resamples: int = 1000, seed: int = 0
) -> list[Plateau]:
    """The steps of the ladder that did not pay. The step to the fifth size is the first one tested.

    If several sizes have the same cost, the best of them is used.
    """
    ladder = _ladder(sizes)
    found = []
    # The allowed rate of false alarms is divided among the steps.
    chance = FALSE_ALARMS / max(len(ladder) - MIN_SIZES, 1)
    for position in range(MIN_SIZES, len(ladder)):
        costs = np.array([size.cost for size in ladder[: position + 1]])
        errors = np.array([[size.error for size in ladder[: position + 1]]])
        means = [size.seeds for size in ladder[: position + 1]]
        variances = noise.variances(means)[None]
        x = costs / np.exp(np.log(costs).mean())
        weights = np.where(np.arange(position + 1) < position, 1 / variances, 0)
        best = power_law.solve(x, errors, weights, shift=False)
        misfit = float((weights * (power_law.value(best, x) - errors) ** 2).sum())
        degrees = position - 2 - int(best[0, 2] > 0)
        rng = np.random.default_rng(seed)
        known = noise.degrees(means)
        if noise.has_seeds:
            raised = max(1.0, misfit / degrees) ** 0.5
            factors = raised * seed_factors(known, rng, num_resamples)
        else:
            # One seed of each size: how far they scatter is seen in the residuals alone.
            factors = scatter_factors(0, rng, num_resamples, misfit, degrees)
            factors = np.maximum(factors, 1.0) if noise.is_known else factors
        spread = np.sqrt(variances) * factors[:, None]
        moved = np.concatenate([errors, errors + spread * rng.standard_normal(spread.shape)])
        laws = power_law.solve(x, moved, np.repeat(weights, len(moved), 0), shift=False)
        promised = power_law.value(laws, x[-2:])
        expected = promised[:, 0] - promised[:, 1]
        gain = moved[:, -2] - moved[:, -1]
        short = expected - gain
        spread_of_short = _sigma(short[1:])
        spread_of_gain = _sigma(gain[1:])
        visible = 1.645 * spread_of_gain
        promised_more = expected[0] > visible and np.quantile(short[1:], chance) > 0
        if promised_more and gain[0] < max(visible, PAID * expected[0]):
            found.append(
                Plateau(
                    first=ladder[position - 1],
                    second=ladder[position],
                    gain_points=float(gain[0]),
                    expected_points=float(expected[0]),
                    sigmas=float(short[0] / spread_of_short),
                )
            )
    return found


def _ladder(sizes: Sequence[Size]) -> list[Size]:
    steps: list[list[Size]] = []
    for size in sorted(sizes, key=lambda size: size.cost):
        if steps and size.cost <= SAME_COST * steps[-1][0].cost:
            steps[-1].append(size)
        else:
            steps.append([size])
    return [min(step, key=lambda size: size.error) for step in steps]


def _sigma(draws: power_law.Array) -> float:
    """Half the width of the middle 68 %, so that a few extreme refits do not count."""
    low, high = np.percentile(draws, (15.87, 84.13))
    return max(float(high - low) / 2, 1e-9)
