"""Deeper or wider: gains by depth and width, shapes at equal cost, SoViT's shape exponents.

All of it is computed from sizes with depth and width, and from the noise of the report (noise.py).
Intervals are 95 %. An interval that includes 0 means that the data do not decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mambaout.numbers import count_text
from mambaout.study.law.fit import Size, interval_of
from mambaout.study.law.noise import Difference, Interval, SeedNoise
from mambaout.study.law.power_law import Array
from mambaout.study.law.scatter import scatter_factors, seed_factors

# -- the gain per doubling of cost -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The gain in points of top-1 per doubling of cost, by depth and by width."""

    depth: Interval | None  # None if no two sizes differ only in depth
    width: Interval | None
    difference: Interval | None  # width minus depth
    num_depth: int  # sizes from which the depth gain is computed
    num_width: int

    @property
    def verdict(self) -> str:
        """ "wider", "deeper" or "not significant"; "" if depth or width was not varied."""
        if self.difference is None:
            return ""
        if not self.difference.excludes_zero:
            return "not significant"
        return "wider" if self.difference.value > 0 else "deeper"

    def text(self) -> str:
        parts = [
            f"{gain.value:+.2f} points ({gain.low:+.2f} to {gain.high:+.2f}, {count} sizes) when "
            f"spent on {axis}"
            for axis, gain, count in (
                ("depth", self.depth, self.num_depth),
                ("width", self.width, self.num_width),
            )
            if gain is not None
        ]
        if not parts:
            return "no two sizes differ in depth alone or in width alone"
        text = f"a doubling of MACs bought {' and '.join(parts)}"
        if self.difference is not None:
            d = self.difference
            text += f"; width over depth {d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f}), " + (
                "not significant" if not d.excludes_zero else f"{self.verdict} is better"
            )
        return text


def growth(sizes: Sequence[Size], noise: SeedNoise) -> Growth:
    """Gains per doubling by depth and by width. Each is one slope, with an offset for each line.

    A line is a set of sizes with one width (for depth) or with one depth (for width). A size on
    lines of both kinds counts in both, and its noise then cancels correctly in the difference.
    Curvature of the lines counts as noise, so the intervals are those of the mean gain over the
    range. If every line has only two sizes, a gain is a difference of two means, and its interval
    is that of such a difference.
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
    errors = _standard_errors(noise.degrees(means), misfit, degrees) if degrees > 0 else None

    def interval(weights: Array) -> Interval:
        value = float(weights @ y)
        if errors is None:
            half = noise.half_width_of_sum(means, weights.tolist())
        else:
            half = errors * math.sqrt(float((weights**2 * variances).sum()))
        return Interval(value, value - half, value + half)

    difference = None
    if by_depth is not None and by_width is not None:
        difference = interval(by_width.weights - by_depth.weights)
    return Growth(
        depth=interval(by_depth.weights) if by_depth else None,
        width=interval(by_width.weights) if by_width else None,
        difference=difference,
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


def _standard_errors(noise_degrees: float, misfit: float, degrees: int) -> float:
    """Standard errors in half a 95 % interval: more if the sizes scatter by more than noise."""
    rng = np.random.default_rng(0)
    factors = scatter_factors(noise_degrees, rng, 4000, misfit, degrees)
    return float(np.quantile(np.abs(factors * rng.standard_normal(4000)), 0.95))


# -- shapes at equal cost -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Shapes of about equal cost."""

    cost: float  # geometric mean
    sizes: tuple[Size, ...]  # deepest for its width first
    parabola: tuple[float, float, float] | None  # error over u = ln(depth / width): u^2, u, 1
    optimum: Interval | None  # depth / width of least error; None without an inner minimum
    difference: Difference  # in error, deepest minus widest; positive if the widest is better

    @property
    def best(self) -> Size:
        return min(self.sizes, key=lambda size: size.error)

    def curve(self, ratios: Sequence[float]) -> list[float]:
        """The parabola's error at each depth / width; empty without one."""
        if self.parabola is None:
            return []
        return [float(v) for v in np.polyval(self.parabola, np.log(np.asarray(ratios, float)))]

    def text(self) -> str:
        deep, wide = self.sizes[0], self.sizes[-1]
        d = self.difference
        better = wide if d.value > 0 else deep
        gap = f"{abs(d.value):.2f} points ({d.low:+.2f} to {d.high:+.2f})"
        told = f"{better.label} leads by {gap}" + (f", {d.doubt}" if d.doubt else "")
        text = f"at {count_text(self.cost)}, {deep.label} (deepest) against {wide.label} (widest): "
        text += told
        if self.optimum is not None:
            o = self.optimum
            text += f"; least error at depth / width {o.value:.3g} ({o.low:.3g} to {o.high:.3g})"
        elif self.parabola is not None:
            end = {deep.label: " (the deep end)", wide.label: " (the wide end)"}
            where = end.get(self.best.label, "")
            text += "; no minimum between the ends is shown: the least is at "
            text += f"{self.best.label}{where}"
        return text


def iso_mac(
    sizes: Sequence[Size],
    noise: SeedNoise,
    tolerance: float = 0.15,
    *,
    num_resamples: int = 400,
    seed: int = 0,
) -> list[Slice]:
    """Slices of at least two shapes whose costs are within `tolerance`, cheapest first.

    With three or more shapes, a parabola of error over ln(depth / width) is fitted. Its minimum
    counts as an optimum if at least 95 % of the resamples have a minimum between the ends.
    """
    shaped = [s for s in sizes if math.isfinite(s.depth) and math.isfinite(s.width)]
    groups: list[list[Size]] = []
    for size in sorted(shaped, key=lambda size: size.cost):
        if groups and size.cost <= (1 + tolerance) * groups[-1][0].cost:
            groups[-1].append(size)
        else:
            groups.append([size])
    return [
        _slice(sorted(group, key=_ratio, reverse=True), noise, num_resamples, seed)
        for group in groups
        if len({_ratio(size) for size in group}) > 1
    ]


def _ratio(size: Size) -> float:
    return size.depth / size.width


def _slice(sizes: Sequence[Size], noise: SeedNoise, num_resamples: int, seed: int) -> Slice:
    rng = np.random.default_rng(seed)
    u = np.log([_ratio(size) for size in sizes])
    means = [size.seeds for size in sizes]
    errors = np.array([mean.value for mean in means])
    variances = noise.variances(means)
    # The differences between shapes are the question, so only the seeds count as scatter.
    factors = seed_factors(noise.degrees(means), rng, num_resamples)
    moved = errors + factors[:, None] * np.sqrt(variances) * rng.standard_normal(
        (num_resamples, len(errors))
    )
    both = np.concatenate([errors[None], moved])
    parabola, optimum = None, None
    if len(set(np.round(u, 6))) >= 3:
        basis = np.stack([u**2, u, np.ones_like(u)], axis=1)
        weights = np.sqrt(1 / variances)[:, None]
        fitted = both @ (np.linalg.pinv(basis * weights) * np.transpose(weights)).T
        parabola = (float(fitted[0, 0]), float(fitted[0, 1]), float(fitted[0, 2]))
        with np.errstate(divide="ignore", invalid="ignore"):
            lowest = -fitted[:, 1] / (2 * fitted[:, 0])
        inside = (fitted[:, 0] > 0) & (lowest > u.min()) & (lowest < u.max())
        if inside[0] and inside[1:].mean() >= 0.95:
            optimum = interval_of(np.exp(np.concatenate([lowest[:1], lowest[1:][inside[1:]]])))
    return Slice(
        cost=math.exp(float(np.log([size.cost for size in sizes]).mean())),
        sizes=tuple(sizes),
        parabola=parabola,
        optimum=optimum,
        difference=noise.difference(means[0], means[-1]),
    )
