"""Deeper or wider: the contrast of width and depth at equal MACs, and the gains by each.

Both come from sizes with depth and width, and from the noise of the report (noise.py). Intervals
are 95 %. An interval that includes 0 means that the data do not decide.

The contrast decides. The gains only describe: a line of widths begins at fewer MACs than a line of
depths, where accuracy still rises fast. So the gain by width is larger than the gain by depth even
if MACs alone matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from mambaout.study.law.fit import Size
from mambaout.study.law.noise import Interval, SeedNoise
from mambaout.study.law.power_law import Array
from mambaout.study.law.scatter import scatter_factors

# A column of the model counts as determined if this share of it is independent of the others.
_INDEPENDENT = 0.01
POWER = 0.8  # share of studies that find a difference that is called detectable
_LEAST_DOUBLINGS = 0.5  # of cost, from the cheapest size to the dearest, for a slope over cost

# -- the contrast at equal cost --------------------------------------------------------------------


@dataclass(frozen=True)
class CostModel:
    """accuracy = k0 + k1 x + k2 x^2 + k3 s over sizes: x is log2 cost, s is log2 (width / depth).

    k3 is the contrast. x is measured from its mean. Without five sizes, k2 is left out.
    """

    x: Array  # (n,)
    s: Array  # (n,)
    is_curved: bool
    weights: Array  # (n, number of terms): weights.T @ accuracies are the coefficients

    @property
    def contrast_weights(self) -> Array:
        """(n,): their product with the accuracies is the coefficient of s."""
        return self.weights[:, -1]

    @property
    def terms(self) -> Array:
        return _terms(self.x, self.s, self.is_curved)

    def residuals(self, y: Array) -> Array:
        return y - self.terms @ (self.weights.T @ y)

    def cost_weights(self, x: float, others: Array) -> Array:
        """(k, n): their product with the accuracies is what `others` (k,) gain from cost over x."""
        steps = [others - x] + ([others**2 - x**2] if self.is_curved else [])
        return np.stack(steps, 1) @ self.weights[:, 1 : 1 + len(steps)].T


def _terms(x: Array, s: Array, is_curved: bool) -> Array:
    columns = [np.ones_like(x), x, *([x**2] if is_curved else []), s]
    return np.stack(columns, axis=1)


def cost_model(sizes: Sequence[Size], noise: SeedNoise) -> CostModel | None:
    """The model of the sizes; None if they do not tell shape and cost apart."""
    if len({size.width for size in sizes}) < 2 or len({size.depth for size in sizes}) < 2:
        return None
    x = np.log2(np.array([size.cost for size in sizes]))
    s = np.log2(np.array([size.width / size.depth for size in sizes]))
    if not np.isfinite(s).all():
        return None
    if np.ptp(x) < _LEAST_DOUBLINGS:
        return None
    x = x - x.mean()
    for is_curved in (True, False):
        terms = _terms(x, s, is_curved)
        if len(sizes) <= terms.shape[1] and is_curved:
            continue
        if len(sizes) < terms.shape[1] or not _is_determined(terms):
            continue
        scale = np.sqrt(1 / noise.variances([size.seeds for size in sizes]))
        weights = np.asarray(np.linalg.pinv(terms * scale[:, None]).T * scale[:, None], float)
        return CostModel(x, s, is_curved, weights)
    return None


def _is_determined(terms: Array) -> bool:
    """Whether every column differs from all combinations of the others."""
    for place in range(1, terms.shape[1]):
        column, others = terms[:, place], np.delete(terms, place, axis=1)
        left = column - others @ np.linalg.lstsq(others, column, rcond=None)[0]
        centred = column - column.mean()
        if not (left**2).sum() > _INDEPENDENT * (centred**2).sum() > 0:
            return False
    return True


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Width against depth at equal cost."""

    gain: Interval  # points of top-1 if width / depth doubles and the cost stays
    detectable: float  # points: a true gain of so much is significant in 80 % of such studies
    num_sizes: int
    is_curved: bool  # whether the curve of accuracy over cost is allowed for
    without: Mapping[str, Interval | None]  # the gain without "width 8"; None if not determined

    @property
    def verdict(self) -> str:
        """ "wider", "deeper" or "not significant"."""
        if not self.gain.excludes_zero:
            return "not significant"
        return "wider" if self.gain.value > 0 else "deeper"

    @property
    def rests_on(self) -> list[str]:
        """The families of shapes without which the verdict is not significant any more."""
        if not self.gain.excludes_zero:
            return []
        return [
            name
            for name, gain in self.without.items()
            if gain is not None and (not gain.excludes_zero or gain.value * self.gain.value < 0)
        ]

    def text(self) -> str:
        gain = self.gain
        told = "not significant" if self.verdict == "not significant" else f"{self.verdict} wins"
        return f"{gain.value:+.2f} points ({gain.low:+.2f} to {gain.high:+.2f}), {told}"


def contrast(sizes: Sequence[Size], noise: SeedNoise) -> Contrast | None:
    """Width against depth at equal cost; None if the sizes do not determine it.

    Accuracy is modelled by CostModel. The sizes may scatter around it by more than their seeds.
    A family of shapes is all sizes of one width, or all of one depth.
    """
    shaped = [size for size in sizes if math.isfinite(size.depth) and math.isfinite(size.width)]
    found = _gain_of_shape(shaped, noise)
    if found is None:
        return None
    gain, error, model = found
    families = [(f"width {w:g}", w, None) for w in sorted({size.width for size in shaped})]
    families += [(f"depth {d:g}", None, d) for d in sorted({size.depth for size in shaped})]
    without = {}
    for name, width, depth in families:
        left = [size for size in shaped if size.width != width and size.depth != depth]
        without[name] = gain_of_shape(left, noise)
    return Contrast(
        gain=gain,
        detectable=(gain.high - gain.low) / 2 + NormalDist().inv_cdf(POWER) * error,
        num_sizes=len(shaped),
        is_curved=model.is_curved,
        without=without,
    )


def gain_of_shape(sizes: Sequence[Size], noise: SeedNoise) -> Interval | None:
    """What sizes gain if width / depth doubles at equal cost; None if they do not determine it."""
    found = _gain_of_shape(sizes, noise)
    return None if found is None else found[0]


def _gain_of_shape(
    sizes: Sequence[Size], noise: SeedNoise
) -> tuple[Interval, float, CostModel] | None:
    """The gain, its standard error by the noise alone, and the model."""
    model = cost_model(sizes, noise)
    if model is None:
        return None
    means = [size.seeds for size in sizes]
    y = np.array([-mean.value for mean in means])
    variances = noise.own_variances(means)  # what a seed gives to all shapes alike cancels
    misfit = float((model.residuals(y) ** 2 / variances).sum())
    degrees = len(sizes) - model.weights.shape[1]
    weights = model.contrast_weights
    value = float(weights @ y)
    error = math.sqrt(float((weights**2 * variances).sum()))
    if degrees > 0:
        half = math.hypot(
            error * half_in_errors(noise.own_degrees(means), misfit, degrees),
            noise.shared_half_width(means, weights.tolist()),
        )
    else:
        half = noise.half_width_of_sum(means, weights.tolist())
    return Interval(value, value - half, value + half), error, model


# -- the gain per doubling of cost -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The gain in points of top-1 per doubling of cost, by depth and by width."""

    depth: Interval | None  # None if no two sizes differ only in depth
    width: Interval | None
    contrast: Contrast | None  # at equal cost; None if the sizes do not determine it
    num_depth: int  # sizes from which the depth gain is computed
    num_width: int


def growth(sizes: Sequence[Size], noise: SeedNoise) -> Growth:
    """Gains per doubling by depth and by width. Each is one slope, with an offset for each line.

    A line is a set of sizes with one width (for depth) or with one depth (for width). Curvature of
    the lines counts as noise, so the intervals are those of the mean gain over the range. If every
    line has only two sizes, a gain is a difference of two means, and its interval is that of such a
    difference.
    """
    means = [size.seeds for size in sizes]
    y = np.array([-mean.value for mean in means])
    x = np.log2([size.cost for size in sizes])
    by_depth = _slope(sizes, x, lambda size: size.width)
    by_width = _slope(sizes, x, lambda size: size.depth)
    variances = noise.variances(means)
    misfit, degrees = 0.0, 0
    for slope in (by_depth, by_width):
        if slope is None:
            continue
        for line in slope.lines:
            centred = x[line] - x[line].mean(), y[line] - y[line].mean()
            residuals = centred[1] - slope.weights @ y * centred[0]
            misfit += float((residuals**2 / variances[line]).sum())
            degrees += len(line) - 1
        degrees -= 1
    errors = half_in_errors(noise.degrees(means), misfit, degrees) if degrees > 0 else None

    def interval(weights: Array) -> Interval:
        value = float(weights @ y)
        if errors is None:
            half = noise.half_width_of_sum(means, weights.tolist())
        else:
            half = errors * math.sqrt(float((weights**2 * variances).sum()))
        return Interval(value, value - half, value + half)

    return Growth(
        depth=interval(by_depth.weights) if by_depth else None,
        width=interval(by_width.weights) if by_width else None,
        contrast=contrast(sizes, noise),
        num_depth=sum(map(len, by_depth.lines)) if by_depth else 0,
        num_width=sum(map(len, by_width.lines)) if by_width else 0,
    )


@dataclass(frozen=True)
class _Slope:
    weights: Array  # (n,): weights @ accuracies is the slope
    lines: tuple[list[int], ...]


def _slope(sizes: Sequence[Size], x: Array, fixed: Callable[[Size], float]) -> _Slope | None:
    """One least-squares slope over all lines of sizes that share `fixed`."""
    groups: dict[float, list[int]] = {}
    for i, size in enumerate(sizes):
        if math.isfinite(size.depth) and math.isfinite(size.width):
            groups.setdefault(fixed(size), []).append(i)
    lines = tuple(line for line in groups.values() if len(line) > 1 and np.ptp(x[line]) > 0.01)
    if not lines:
        return None
    weights = np.zeros(len(sizes))
    for line in lines:
        weights[line] = x[line] - x[line].mean()
    return _Slope(weights / (weights**2).sum(), lines)


@lru_cache(maxsize=1000)
def half_in_errors(noise_degrees: float, misfit: float, degrees: int) -> float:
    """Half a 95 % interval in standard errors: more if the sizes scatter by more than noise.

    `misfit` is the sum of squared residuals, each divided by its variance, with `degrees` degrees
    of freedom.
    """
    rng = np.random.default_rng(0)
    factors = scatter_factors(noise_degrees, rng, 4000, misfit, degrees)
    return float(np.quantile(np.abs(factors * rng.standard_normal(4000)), 0.95))
