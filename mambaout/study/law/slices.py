"""Shapes of about equal cost: which is best, and is there an optimum between the ends?

A slice is a set of sizes whose costs differ little. What is left of the difference is taken out by
the model of all sizes (shape.CostModel). Otherwise the dearest shape of a slice would look best
where the cost alone matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mambaout.numbers import count_text
from mambaout.study.law.fit import Size, interval_of
from mambaout.study.law.noise import Difference, Interval, SeedNoise
from mambaout.study.law.power_law import Array
from mambaout.study.law.scatter import seed_factors
from mambaout.study.law.shape import CostModel, cost_model

EQUAL = 0.02  # costs that differ by this share need no model
_SURE = 0.975  # of the resamples, for each side of an optimum


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Shapes of about equal cost."""

    cost: float  # geometric mean
    sizes: tuple[Size, ...]  # deepest for its width first
    errors: tuple[float, ...]  # of the sizes, in percent, as if each had that cost
    parabola: tuple[float, float, float] | None  # error over u = ln(depth / width): u^2, u, 1
    optimum: Interval | None  # depth / width of least error; None without an inner minimum
    difference: Difference  # in error, deepest minus widest; positive if the widest is better

    @property
    def best(self) -> Size:
        return self.sizes[int(np.argmin(self.errors))]

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

    Errors are compared at the slice's mean cost. If the sizes do not tell shape and cost apart, a
    slice has only costs within 2 %.

    With three or more shapes, a parabola of error over ln(depth / width) is fitted. Its minimum
    counts as an optimum if error falls at the one end and rises at the other, each in 97.5 % of the
    resamples. Without a second seed there is no optimum.
    """
    shaped = [s for s in sizes if math.isfinite(s.depth) and math.isfinite(s.width)]
    model = cost_model(shaped, noise)
    tolerance = tolerance if model else min(tolerance, EQUAL)
    groups: list[list[int]] = []
    for place in sorted(range(len(shaped)), key=lambda place: shaped[place].cost):
        if groups and shaped[place].cost <= (1 + tolerance) * shaped[groups[-1][0]].cost:
            groups[-1].append(place)
        else:
            groups.append([place])
    return [
        _slice(
            shaped,
            sorted(group, key=lambda place: _ratio(shaped[place]), reverse=True),
            model,
            noise,
            np.random.default_rng(seed).standard_normal((num_resamples, len(shaped))),
            seed,
        )
        for group in groups
        if len({_ratio(shaped[place]) for place in group}) > 1
    ]


def _ratio(size: Size) -> float:
    return size.depth / size.width


def _slice(
    sizes: Sequence[Size],
    places: Sequence[int],
    model: CostModel | None,
    noise: SeedNoise,
    normals: Array,
    seed: int,
) -> Slice:
    """The slice of sizes[places]. `normals` (R, n) are the draws of the sizes' noise."""
    own = [sizes[place] for place in places]
    means = [size.seeds for size in sizes]
    raw = np.array([mean.value for mean in means])
    variances = noise.variances(means)
    shares = np.eye(len(sizes))[places]  # (k, n): shares @ errors are the errors at equal cost
    if model is not None:
        shares = shares - model.cost_weights(float(model.x[places].mean()), model.x[places])
    # The differences between shapes are the question, so only the seeds count as scatter.
    rng = np.random.default_rng(seed)
    factors = seed_factors(noise.degrees([size.seeds for size in own]), rng, len(normals))
    moved = raw + factors[:, None] * np.sqrt(variances) * normals
    both = np.concatenate([raw[None], moved]) @ shares.T
    u = np.log([_ratio(size) for size in own])
    parabola, optimum = None, None
    if len(set(np.round(u, 6))) >= 3:
        basis = np.stack([u**2, u, np.ones_like(u)], axis=1)
        weights = np.sqrt(1 / variances[places])[:, None]
        fitted = both @ (np.linalg.pinv(basis * weights) * np.transpose(weights)).T
        parabola = (float(fitted[0, 0]), float(fitted[0, 1]), float(fitted[0, 2]))
        falls = 2 * fitted[:, 0] * u.min() + fitted[:, 1] < 0
        rises = 2 * fitted[:, 0] * u.max() + fitted[:, 1] > 0
        inside = falls & rises
        sure = min(falls[1:].mean(), rises[1:].mean()) >= _SURE
        if noise.has_seeds and inside[0] and sure:
            lowest = -fitted[inside, 1] / (2 * fitted[inside, 0])
            optimum = interval_of(np.exp(lowest))
    ends = shares[0] - shares[-1]
    half = noise.half_width_of_sum(means, ends.tolist())
    return Slice(
        cost=math.exp(float(np.log([size.cost for size in own]).mean())),
        sizes=tuple(own),
        errors=tuple(float(error) for error in both[0]),
        parabola=parabola,
        optimum=optimum,
        difference=Difference(float(ends @ raw), half, noise.has_seeds),
    )
