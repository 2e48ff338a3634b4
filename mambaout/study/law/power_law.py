"""Least squares for error = a (cost + d)^-b + c, for many data sets at once.

For a given (b, d) the law is linear in (a, c), so only b and d are searched: first on a grid, then
on smaller and smaller grids around the best point, and last by damped Gauss-Newton steps, because
the best points lie in a narrow bent valley (a larger d goes with a larger b). The search needs no
starting values. The hundreds of refits of a bootstrap are a few matrix products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXPONENTS = (0.02, 3.0)  # b; a smaller one is a logarithm, a larger one a step
# d in units of the geometric mean cost. With a larger d, the "power law" is an exponential. It
# falls to its floor within the fitted range and extrapolates as a flat line.
SHIFTS = (0.01, 1.0)
_ZOOMS = 12
_FINISHING = 30  # steps at the end
_DIFFERENCE = 1e-6  # of log b and of d, for derivatives


def solve(costs: Array, errors: Array, weights: Array, *, shift: bool = True) -> Array:
    """Fit (a, b, c, d) to every row of `errors`: (R, n) with `weights` (R, n) to (R, 4).

    `costs` (n,) should be of order one; a, c, d >= 0. Without `shift` d stays 0. A size of weight 0
    is ignored.
    """
    log_b = np.log(np.geomspace(*EXPONENTS, 25))
    log_d = np.log(np.geomspace(*SHIFTS, 9)) if shift else np.empty(0)
    b, d = (grid.ravel() for grid in np.meshgrid(np.exp(log_b), np.append(0.0, np.exp(log_d))))
    basis = (costs + d[:, None]) ** -b[:, None]  # (G, n)
    rows = np.arange(len(errors))
    a, c, misfit = _linear(basis, errors, weights)
    best = misfit.argmin(axis=1)
    b, d, a, c = b[best], d[best], a[rows, best], c[rows, best]
    step_b = log_b[1] - log_b[0]
    step_d = log_d[1] - log_d[0] if shift else 0.0
    offsets = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    offsets_d = offsets if shift else np.zeros(1)
    for _ in range(_ZOOMS):
        near_b = np.clip(b[:, None] * np.exp(step_b * offsets), *EXPONENTS)  # (R, 5)
        near_d = np.minimum(d[:, None] * np.exp(step_d * offsets_d), SHIFTS[1])
        many_b = np.repeat(near_b, len(offsets_d), axis=1)  # (R, 25)
        many_d = np.tile(near_d, (1, len(offsets)))
        basis = (costs + many_d[..., None]) ** -many_b[..., None]  # (R, 25, n)
        a, c, _ = _linear(basis, errors, weights)
        off = a[..., None] * basis + c[..., None] - errors[:, None]
        best = (off**2 @ weights[..., None])[..., 0].argmin(axis=1)
        b, d, a, c = many_b[rows, best], many_d[rows, best], a[rows, best], c[rows, best]
        step_b, step_d = step_b * 0.6, step_d * 0.6
    return _finished(costs, errors, weights, b, d, shift=shift)


def _finished(
    costs: Array, errors: Array, weights: Array, b: Array, d: Array, *, shift: bool
) -> Array:
    """Levenberg-Marquardt steps of (log b, d) from a point near the best one; (R, 4).

    The linear a and c are fitted anew at each point (variable projection), so the residual depends
    on b and d alone. Its derivatives are differences.
    """
    rows, roots = np.arange(len(errors)), np.sqrt(weights)

    def fitted(points: Array) -> tuple[Array, Array, Array]:
        """a and c (R, G) and the weighted residual (R, G, n) at points (R, G, 2)."""
        basis = (costs + points[..., 1:]) ** -np.exp(points[..., :1])
        a, c, _ = _linear(basis, errors, weights)
        off = a[..., None] * basis + c[..., None] - errors[:, None]
        return a, c, off * roots[:, None]

    low = np.array([np.log(EXPONENTS[0]), 0.0])
    high = np.array([np.log(EXPONENTS[1]), SHIFTS[1] if shift else 0.0])
    point = np.stack([np.log(b), d], axis=1)  # (R, 2)
    damping = np.full(len(errors), 1e-2)
    for _ in range(_FINISHING):
        # A difference goes to the side where there is room.
        sides = np.where(point + _DIFFERENCE <= high, _DIFFERENCE, -_DIFFERENCE)
        near = np.stack([point, point + sides * [1, 0], point + sides * [0, 1]], axis=1)
        _, _, off = fitted(np.maximum(near, low if shift else [low[0], -1.0]))
        slope = (off[:, 1:] - off[:, :1]) / sides[..., None]  # (R, 2, n)
        if not shift:
            slope[:, 1] = 0.0
        curve = slope @ slope.transpose(0, 2, 1)
        scale = np.einsum("rii->ri", curve) + 1e-300
        curve += (damping[:, None] * scale)[..., None] * np.eye(2) + 1e-300 * np.eye(2)
        step = np.linalg.solve(curve, -(slope @ off[:, 0, :, None]))[..., 0]
        tried = np.clip(point + step, low, high)
        _, _, there = fitted(tried[:, None])
        better = (there[:, 0] ** 2).sum(axis=1) < (off[:, 0] ** 2).sum(axis=1)
        point = np.where(better[:, None], tried, point)
        damping = np.clip(np.where(better, damping / 4, damping * 6), 1e-9, 1e9)
    a, c, _ = fitted(point[:, None])
    return np.stack([a[rows, 0], np.exp(point[:, 0]), c[rows, 0], point[:, 1]], axis=1)


def value(parameters: Array, costs: Array) -> Array:
    """The law of each row of `parameters` (R, 4) at each cost (n,): (R, n)."""
    a, b, c, d = (column[:, None] for column in parameters.T)
    return a * (costs + d) ** -b + c


def _linear(basis: Array, errors: Array, weights: Array) -> tuple[Array, Array, Array]:
    """The best a, c >= 0 of error = a basis + c, and the misfit up to rounding.

    `basis` is (G, n), the same for every row, or (R, G, n); the results are (R, G).
    """

    def total(values: Array, basis: Array) -> Array:
        if basis.ndim == 3:
            return (basis @ values[..., None])[..., 0]
        return values @ basis.T

    w = weights.sum(axis=1, keepdims=True)
    y = (weights * errors).sum(axis=1, keepdims=True)
    yy = (weights * errors**2).sum(axis=1, keepdims=True)
    f = total(weights, basis)
    ff = total(weights, basis**2)
    fy = total(weights * errors, basis)
    # Two sizes of equal cost tell no slope: what is left of the spread is rounding.
    spread = np.maximum(w * ff - f**2, 1e-14 * w * ff + 1e-300)
    a = (w * fy - f * y) / spread
    c = (ff * y - f * fy) / spread
    a = np.where(c < 0, fy / ff, a)  # the floor would be negative: fit without one
    c = np.where(a < 0, y / w, np.maximum(c, 0.0))  # the error would rise: fit a flat line
    a = np.maximum(a, 0.0)
    return a, c, yy - 2 * (a * fy + c * y) + a**2 * ff + 2 * a * c * f + c**2 * w
