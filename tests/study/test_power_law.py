"""The least squares of the laws: they find the optimum that a general optimizer finds."""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares

from mambaout.study.law.power_law import EXPONENTS, SHIFTS, Array, solve, value

SETS = 120


def low_noise_set(random: np.random.Generator) -> tuple[Array, Array]:
    """Costs of order one and the errors of a law with little noise."""
    count = random.integers(5, 10)
    costs = np.exp(np.sort(random.uniform(-2.5, 2.5, count)))
    costs /= np.exp(np.log(costs).mean())
    a, b = np.exp(random.uniform(*np.log([1, 30]))), np.exp(random.uniform(*np.log([0.1, 1.5])))
    d = 0.0 if random.random() < 0.3 else np.exp(random.uniform(*np.log([0.02, 0.8])))
    errors = a * (costs + d) ** -b + random.uniform(0, 15) + random.normal(0, 0.02, count)
    return costs, errors


def root_mean_square(residual: Array) -> float:
    return float(np.sqrt((residual**2).mean()))


def best_of_scipy(costs: Array, errors: Array, found: Array) -> float:
    """The least misfit from `found` and from six points more."""
    low, high = [0, EXPONENTS[0], 0, 0], [np.inf, EXPONENTS[1], np.inf, SHIFTS[1]]
    starts = [found, *([10, b, 1, d] for b in (0.1, 0.5, 1.5) for d in (0.05, 0.5))]
    misfits = []
    for start in starts:
        inside = np.clip(start, np.array(low) + 1e-9, np.minimum(high, 1e9) - 1e-9)
        solved = least_squares(
            lambda p: p[0] * (costs + p[3]) ** -p[1] + p[2] - errors,
            inside,
            bounds=(low, high),
            xtol=1e-12,
            ftol=1e-12,
            max_nfev=1000,
        )
        misfits.append(root_mean_square(solved.fun))
    return min(misfits)


def test_the_fit_finds_the_optimum_of_sets_with_little_noise():
    random = np.random.default_rng(0)
    missed = []
    for _ in range(SETS):
        costs, errors = low_noise_set(random)
        (found,) = solve(costs, errors[None], np.ones((1, len(errors))))
        ours = root_mean_square(value(found[None], costs)[0] - errors)
        best = best_of_scipy(costs, errors, found)
        if ours > 1.02 * best + 1e-4:
            missed.append(ours / best)
    assert len(missed) <= 1, missed
    assert max(missed, default=1.0) < 1.2


def test_many_sets_at_once_are_fitted_as_each_alone():
    random = np.random.default_rng(1)
    costs, errors = low_noise_set(random)
    many = errors + random.normal(0, 0.3, (20, len(errors)))
    weights = random.uniform(0.5, 2, many.shape)
    together = solve(costs, many, weights)
    for row, one, weight in zip(together, many, weights, strict=True):
        np.testing.assert_allclose(
            value(row[None], costs), value(solve(costs, one[None], weight[None]), costs), rtol=1e-6
        )


def test_without_a_shift_the_shift_stays_zero():
    costs, errors = low_noise_set(np.random.default_rng(2))
    (found,) = solve(costs, errors[None], np.ones((1, len(errors))), shift=False)
    assert found[3] == 0.0
