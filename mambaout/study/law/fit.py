"""The law of a study: error = a (C + d)^-b + c over cost, with what it does not know.

The form is Zhai et al.'s (arXiv:2106.04560, section 2.2): c is the floor that no cost gets below,
d the cost-free part of the accuracy. It is fitted to the sizes on the front of error against cost.

Noise. It is the report's (noise.py), pooled over recipes: two or three seeds of one size say next
to nothing of their own spread. Each size counts by the inverse of its variance, because sizes have
different numbers of seeds.

Intervals. Each resample of the bootstrap moves every point by its noise, takes the front again and
fits again. The noise's own size is drawn anew each time: for the few seeds it is known from (wide
tails, as Student's t) and for scatter of the sizes beyond their seeds, as far as the residuals
allow it. Resampling few points with replacement leaves fewer sizes than parameters: it covers too,
with bands 1.7 to 4.5 times as wide inside the range.

Coverage over simulated studies (100 to 150 each; 4 to 10 sizes of 1 to 3 seeds; held by
tests/study/test_fit.py): 95 to 99 % for the law inside its range and 94 to 100 % for a new run at
twice the largest cost; with one seed a size and no val size, eight sizes give 93 and 91 %, the
least. Where shapes scatter around a common law by 0.9 to 3.5 times the noise of a size's mean, that
law is covered in 81 to 94 % and new runs in 94 to 99 %: the front follows the better shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mambaout.numbers import UNITS, count_text, percent_text
from mambaout.study.law import power_law
from mambaout.study.law.noise import Z95, Interval, SeedMean, SeedNoise
from mambaout.study.law.power_law import Array
from mambaout.study.law.scatter import scatter_factors

MIN_SIZES = 4  # the law has four parameters
_DOMINATED = 2.0  # standard errors above a cheaper size: then off the front, else noise


class TooFew(ValueError):
    """Fewer sizes than a law can be fitted to."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One network, or recipe, with all its seeds."""

    label: str
    cost: float  # MACs of one image or of the whole training: the caller says which
    errors: tuple[float, ...]  # percent, 100 - top-1, one a seed
    depth: float = math.nan  # blocks
    width: float = math.nan  # channels of the first stage
    epochs: int | None = None  # of training; None where that is not known

    @property
    def seeds(self) -> SeedMean:
        return SeedMean(self.errors, self.epochs)

    @property
    def error(self) -> float:
        return self.seeds.value


@dataclass(frozen=True)
class Prediction:
    """An error in percent, its 95 % interval, and a standard deviation: a quarter of its width."""

    value: float
    low: float
    high: float

    @property
    def sigma(self) -> float:
        return (self.high - self.low) / (2 * Z95)


@dataclass(frozen=True)
class Holdout:
    """The largest size, predicted by the law of the others."""

    size: Size
    prediction: Prediction

    @property
    def error(self) -> float:
        """Points by which it came out worse than predicted."""
        return self.size.error - self.prediction.value

    @property
    def sigmas(self) -> float:
        return self.error / self.prediction.sigma

    def text(self) -> str:
        p = self.prediction
        sure = sigmas = ""
        if math.isfinite(p.low):
            sure, sigmas = f" ({p.low:.2f} to {p.high:.2f})", f" ({self.sigmas:+.1f} sigma)"
        return (
            f"without {self.size.label} the law predicts {percent_text(p.value)} for it{sure}; "
            f"it is {percent_text(self.size.error)}, {self.error:+.2f} points{sigmas}"
        )


# -- the front ------------------------------------------------------------------------------------


def _on_front(
    costs: Array, errors: Array, variances: Array, margin: float = _DOMINATED
) -> NDArray[np.bool_]:
    """Which sizes (R, n) are on the front, or above it by no more than noise.

    A strict front of noisy means keeps the lucky sizes and drops the unlucky ones, so that a law
    fitted to it is too good everywhere.
    """
    on = np.ones(errors.shape, bool)
    for j, cost in enumerate(costs):
        above = errors - errors[:, j : j + 1]
        noise = np.sqrt(variances + variances[:, j : j + 1])
        on &= ~((above > margin * noise) & (costs >= cost))
    return on


# -- the law --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Law:
    """error = a (C / unit + d)^-b + c percent, fitted to `sizes`."""

    a: Interval
    b: Interval
    c: Interval
    d: Interval
    unit: float  # of cost
    sizes: tuple[Size, ...]  # that it is fitted to, cheapest first
    left_out: tuple[Size, ...]  # behind a cheaper one by more than noise
    low_cost: float
    high_cost: float
    residual_sd: float  # points, of the sizes around the law
    noise: SeedNoise
    holdout: Holdout | None = None
    notes: tuple[str, ...] = ()
    _draws: Array = field(repr=False, compare=False)  # (1 + R, 4), the fit first, per scale
    _scale: float = field(repr=False, compare=False)  # cost that is 1 in the draws
    _factors: Array = field(repr=False, compare=False)  # (R,): a new run's noise over noise's own
    _normals: Array = field(repr=False, compare=False)  # (R,)

    def curve(self, costs: Sequence[float]) -> list[Prediction]:
        """The law itself at each cost, with its confidence band."""
        values = power_law.value(self._draws, np.asarray(costs, float) / self._scale)
        return [_prediction(column[0], column[1:]) for column in values.T]

    def predict(self, cost: float, num_seeds: int = 1, epochs: int | None = None) -> Prediction:
        """The mean error of `num_seeds` new runs at that cost, their noise included.

        The noise is that of the largest size's length of training, unless `epochs` says another.
        """
        values = power_law.value(self._draws, np.array([cost / self._scale]))[:, 0]
        epochs = self.sizes[-1].epochs if epochs is None else epochs
        spread = np.sqrt(self.noise.variance_at(values[0], num_seeds, epochs)) * self._factors
        if not self.noise.is_known:
            spread = self._factors
        return _prediction(values[0], values[1:] + spread * self._normals)

    def text(self) -> str:
        """One line for people, with the range it holds in."""
        unit = count_text(self.unit)
        shift = f" + {self.d.value:.2g}" if self.d.value > 0 else ""
        floor = f"{self.c.value:.2f} + " if self.c.value > 0 else ""
        sure = ""
        if math.isfinite(self.b.low):
            sure = (
                f" (95 %: exponent {self.b.low:.2f} to {self.b.high:.2f}, "
                f"floor {self.c.low:.1f} to {self.c.high:.1f})"
            )
        return (
            f"error = {floor}{self.a.value:.3g} (C / {unit}{shift})^-{self.b.value:.2f} %{sure}, "
            f"from {len(self.sizes)} sizes between {count_text(self.low_cost)} and "
            f"{count_text(self.high_cost)}"
        )


def fit_law(
    sizes: Sequence[Size], noise: SeedNoise, *, num_resamples: int = 400, seed: int = 0
) -> Law:
    """The law of the front, with bootstrap intervals and the largest size held out.

    TooFew below four sizes on the front.
    """
    sizes = sorted(sizes, key=lambda size: (size.cost, size.error))
    law = _fit(sizes, noise, num_resamples, seed)
    largest = law.sizes[-1]
    rest = [size for size in sizes if size is not largest]
    notes = list(law.notes)
    try:
        without = _fit(rest, noise, num_resamples, seed)
    except TooFew:
        holdout = None
        notes.append(
            f"{len(law.sizes)} sizes are too few to hold the largest out; "
            f"{MIN_SIZES + 1} would show how far the law can be trusted"
        )
    else:
        holdout = Holdout(
            largest, without.predict(largest.cost, len(largest.errors), largest.epochs)
        )
    return replace(law, holdout=holdout, notes=tuple(notes))


def _fit(sizes: Sequence[Size], noise: SeedNoise, num_resamples: int, seed: int) -> Law:
    if len(sizes) < MIN_SIZES:
        raise TooFew(
            f"{len(sizes)} sizes, and a law needs at least {MIN_SIZES}; add sizes to the study"
        )
    rng = np.random.default_rng(seed)
    costs = np.array([size.cost for size in sizes])
    errors = np.array([size.error for size in sizes])[None]  # (1, n)
    means = [size.seeds for size in sizes]
    variances = noise.variances(means)[None]
    margins = variances if noise.is_known else np.full_like(variances, 1e-12)  # a strict front
    kept = _on_front(costs, errors, margins)
    on, near = kept[0], _on_front(costs, errors, margins, 2 * _DOMINATED)[0]
    if on.sum() < MIN_SIZES or len(set(costs[on])) < MIN_SIZES:
        labels = [size.label for size, keep in zip(sizes, on, strict=True) if keep]
        names = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        raise TooFew(
            f"{int(on.sum())} of {len(sizes)} sizes are on the front ({names}), and a law needs "
            f"at least {MIN_SIZES} of different cost; add sizes that are better than cheaper ones"
        )
    scale = float(np.exp(np.log(costs[on]).mean()))
    x = costs / scale
    weights = np.where(kept, 1 / variances, 0.0)
    best = power_law.solve(x, errors, weights)
    residuals = (errors - power_law.value(best, x))[0]
    degrees = int(on.sum()) - MIN_SIZES
    num_resamples = min(num_resamples, max(100, 20_000 // int(near.sum())))  # many sizes are slow
    misfit = float((weights[0] * residuals**2).sum())
    factors = scatter_factors(noise.degrees(means), rng, num_resamples, misfit, degrees)
    if np.isfinite(factors).all():
        # Of hundreds of sizes most are so far behind that no resample brings them to the front.
        spread = np.sqrt(variances[:, near]) * factors[:, None]  # (R, n)
        moved = errors[:, near] + spread * rng.standard_normal(spread.shape)
        masks = _on_front(costs[near], moved, spread**2)
        masks[masks.sum(axis=1) < 2] = on[near]
        draws = power_law.solve(x[near], moved, np.where(masks, 1 / variances[:, near], 0.0))
    else:
        draws = np.full((num_resamples, 4), math.nan)
    return _law(sizes, on, noise, np.concatenate([best, draws]), scale, factors, rng, residuals)


def _law(
    sizes: Sequence[Size],
    on: NDArray[np.bool_],
    noise: SeedNoise,
    draws: Array,
    scale: float,
    factors: Array,
    rng: np.random.Generator,
    residuals: Array,
) -> Law:
    used = tuple(size for size, keep in zip(sizes, on, strict=True) if keep)
    left = tuple(size for size, keep in zip(sizes, on, strict=True) if not keep)
    unit = next((unit for unit, _ in UNITS if scale >= unit), 1.0)
    ratio = scale / unit
    a, b, c, d = draws.T
    b_interval = interval_of(b)
    notes = []
    if not math.isfinite(b_interval.low):
        notes.append(
            "no size has two seeds and there are no more sizes than parameters, so there are no "
            "intervals; run more seeds or sizes"
        )
    elif b_interval.high > 5 * b_interval.low:
        notes.append(
            f"the exponent is not determined by these sizes ({b_interval.low:.2f} to "
            f"{b_interval.high:.2f}); the law describes them and does not explain them"
        )
    if not noise.is_known:
        notes.append("no size has two seeds: the noise is taken from the sizes' own scatter")
    if left:
        notes.append(
            "behind a cheaper size and not part of the law: "
            + ", ".join(size.label for size in left)
        )
    return Law(
        a=interval_of(a * ratio**b),
        b=b_interval,
        c=interval_of(c),
        d=interval_of(d * ratio),
        unit=unit,
        sizes=used,
        left_out=left,
        low_cost=used[0].cost,
        high_cost=used[-1].cost,
        residual_sd=float(np.sqrt((residuals[on] ** 2).mean())),
        noise=noise,
        notes=tuple(notes),
        _draws=draws,
        _scale=scale,
        _factors=factors,
        _normals=rng.standard_normal(len(factors)),
    )


def interval_of(values: Array) -> Interval:
    """The first value, with the 95 % of the others around it."""
    p = _prediction(values[0], values[1:])
    return Interval(p.value, p.low, p.high)


def _prediction(value: float, draws: Array) -> Prediction:
    if not np.isfinite(draws).all():
        return Prediction(float(value), math.nan, math.nan)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Prediction(float(value), float(min(low, value)), float(max(high, value)))
