"""Least squares for error = c + A x^-a + B y^-b with c, A, B >= 0, for many data sets at once.

For given (a, b) the law is linear in (c, A, B), so only the two exponents are searched (variable
projection): first on a grid, then by damped Gauss-Newton steps. The search needs no starting
values. The linear part has three numbers, so the bounds are met by trying all their subsets.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from mambaout.study.law.power_law import EXPONENTS, Array

_GRID = np.log(np.geomspace(*EXPONENTS, 16))
_STEPS = 30
_DIFFERENCE = 1e-6  # of a log exponent, for derivatives
_RIDGE = 1e-12  # of the diagonal; with a tiny exponent a power is nearly constant
_SUBSETS = tuple(part for count in (3, 2, 1) for part in combinations(range(3), count))


def solve(x: Array, y: Array, errors: Array, weights: Array) -> Array:
    """Fit (c, A, a, B, b) to every row of `errors`: (R, n) with `weights` (n,) to (R, 5).

    `x` and `y` (n,) should be of order one.
    """
    log_a, log_b = (grid.ravel() for grid in np.meshgrid(_GRID, _GRID))
    _, misfit = _linear(_basis(x, y, np.stack([log_a, log_b], axis=1)), errors[:, None], weights)
    best = misfit.argmin(axis=1)
    point = np.stack([log_a[best], log_b[best]], axis=1)  # (R, 2)
    roots = np.sqrt(weights)

    def residuals(points: Array) -> Array:
        """Weighted, (R, G, n), at log exponents (R, G, 2)."""
        basis = _basis(x, y, points)
        linear, _ = _linear(basis, errors[:, None], weights)
        return ((basis @ linear[..., None])[..., 0] - errors[:, None]) * roots

    damping = np.full(len(errors), 1e-2)
    here = residuals(point[:, None])[:, 0]
    for _ in range(_STEPS):
        # A difference goes to the side where there is room.
        sides = np.where(point + _DIFFERENCE <= _GRID[-1], _DIFFERENCE, -_DIFFERENCE)  # (R, 2)
        near = residuals(point[:, None] + sides[:, None] * np.eye(2))
        slope = (near - here[:, None]) / sides[..., None]  # (R, 2, n)
        curve = slope @ slope.transpose(0, 2, 1)
        scale = np.einsum("rii->ri", curve) + 1e-300
        curve = curve + (damping[:, None] * scale)[..., None] * np.eye(2) + 1e-300 * np.eye(2)
        step = np.linalg.solve(curve, -(slope @ here[..., None]))[..., 0]
        tried = np.clip(point + step, _GRID[0], _GRID[-1])
        there = residuals(tried[:, None])[:, 0]
        better = (there**2).sum(axis=1) < (here**2).sum(axis=1)
        point = np.where(better[:, None], tried, point)
        here = np.where(better[:, None], there, here)
        damping = np.clip(np.where(better, damping / 4, damping * 6), 1e-9, 1e9)
    linear, _ = _linear(_basis(x, y, point[:, None]), errors[:, None], weights)
    c, large_a, large_b = linear[:, 0].T
    a, b = np.exp(point).T
    return np.stack([c, large_a, a, large_b, b], axis=1)


def value(parameters: Array, x: Array, y: Array) -> Array:
    """The law of each row of `parameters` (R, 5) at points `x`, `y` (n,) or (R, n): (R, n)."""
    c, large_a, a, large_b, b = (column[:, None] for column in parameters.T)
    return c + large_a * x**-a + large_b * y**-b


def _basis(x: Array, y: Array, logs: Array) -> Array:
    """The columns 1, x^-a, y^-b at log exponents (..., 2): (..., n, 3)."""
    a, b = np.exp(logs[..., 0, None]), np.exp(logs[..., 1, None])
    return np.stack(np.broadcast_arrays(1.0, x**-a, y**-b), axis=-1)


def _linear(basis: Array, errors: Array, weights: Array) -> tuple[Array, Array]:
    """The best (c, A, B) >= 0, (R, G, 3), and the misfit up to a constant of the row, (R, G).

    `basis` is (G, n, 3), the same for every row, or (R, G, n, 3); `errors` is (R, 1, n).
    """
    weighted = basis * weights[:, None]
    gram = weighted.swapaxes(-1, -2) @ basis  # (..., 3, 3)
    gram = gram + _RIDGE * np.einsum("...ii->...i", gram)[..., None] * np.eye(3)
    if basis.ndim == 3:
        right = np.einsum("rn,gnk->rgk", errors[:, 0], weighted)
    else:
        right = (errors[..., None, :] @ weighted)[..., 0, :]
    best = (
        np.linalg.solve(gram, right[..., None])[..., 0]
        if basis.ndim == 4
        else (np.einsum("gjk,rgk->rgj", np.linalg.inv(gram), right))
    )
    wrong = (best < 0).any(axis=-1)
    misfit = -(best * right).sum(axis=-1)
    if not wrong.any():
        return best, misfit
    grams = np.broadcast_to(gram, (*wrong.shape, 3, 3))[wrong]  # (W, 3, 3)
    rights = right[wrong]
    found, least = np.zeros_like(rights), np.full(len(rights), np.inf)
    for part in _SUBSETS[1:]:
        index = list(part)
        some = np.linalg.solve(grams[:, index][:, :, index], rights[:, index, None])[..., 0]
        off = -(some * rights[:, index]).sum(axis=-1)
        better = (some >= 0).all(axis=-1) & (off < least)
        least = np.where(better, off, least)
        whole = np.zeros_like(rights)
        whole[:, index] = some
        found = np.where(better[:, None], whole, found)
    best[wrong], misfit[wrong] = found, least
    return best, misfit
