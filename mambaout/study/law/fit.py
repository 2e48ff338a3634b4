"""The law of a study: error = a (C + d)^-b + c over cost, with its uncertainty.

The form is Zhai et al.'s (arXiv:2106.04560, section 2.2): c is the floor, which is the error at
infinite cost. d stands for the accuracy that costs nothing. The law is fitted to the sizes on the
front of error against cost.

Noise. The fit uses the noise of the report (noise.py), pooled over recipes, because two or three
seeds of one size say almost nothing about their spread. The weight of a size is the inverse of its
variance, because sizes have different numbers of seeds and large sizes can be noisier. A front of
sizes that scatter beyond their seeds is as much wider.

Intervals. Each resample of the bootstrap moves every point by its spread, computes the front again
and fits again. The spread itself is drawn anew each time (spread.py): the noise and its change with
size are estimated from few seeds, and sizes may lie beside the law by more than their seeds, as far
as the residuals allow it. The alternative, to resample few points with replacement, leaves fewer
sizes than parameters. It covers too, but its bands are 1.7 to 4.5 times as wide inside the range.

Coverage of a new run of a new shape at twice the largest cost (results/coverage.json: 400 simulated
studies of each kind, 4 to 10 sizes of 1 to 3 seeds, 95 % are meant): 95.5 to 98.5 % with equal
noise. 92.7 to 95.8 % where the noise doubles from the smallest size to the largest, and 88.5 %
where no size has a second seed that could show it. 90.2 to 94.0 % where shapes lie beside the law
by 1.5 times the noise of a run. The largest models of nine published families lie inside; their z
has a root mean square of 0.95.
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
from mambaout.study.law.spread import SpreadDraws, spread_draws

MIN_SIZES = 4  # the law has four parameters
_DOMINATED = 2.0  # standard errors; a size so far above a cheaper one is off the front


class TooFew(ValueError):
    """There are too few sizes to fit a law."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One network, or recipe, with all its seeds."""

    label: str
    cost: float  # MACs of one image or of the whole training, as the caller chooses
    errors: tuple[float, ...]  # percent, 100 - top-1, one a seed
    depth: float = math.nan  # blocks
    width: float = math.nan  # channels of the first stage
    epochs: int | None = None  # of training; None if not known
    seed_numbers: tuple[int, ...] = ()  # of the errors; empty if not known

    @property
    def seeds(self) -> SeedMean:
        return SeedMean(self.errors, self.epochs, self.seed_numbers)

    @property
    def error(self) -> float:
        return self.seeds.value


@dataclass(frozen=True)
class Prediction:
    """An error in percent, its 95 % interval, and its sd: a quarter of the interval's width."""

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
        """How many points the result was worse than predicted."""
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
    """Which sizes (R, n) are on the front, or above it only within noise.

    A strict front of noisy means keeps the lucky sizes and drops the unlucky ones. A law fitted to
    such a front would be too good everywhere.
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
    sizes: tuple[Size, ...]  # sizes of the fit, cheapest first
    left_out: tuple[Size, ...]  # worse than a cheaper one by more than noise
    low_cost: float
    high_cost: float
    residual_sd: float  # points, of the sizes around the law
    noise: SeedNoise
    holdout: Holdout | None = None
    notes: tuple[str, ...] = ()
    _draws: Array = field(repr=False, compare=False)  # (1 + R, 4), the fit first, per scale
    _scale: float = field(repr=False, compare=False)  # cost that is 1 in the draws
    _spread: SpreadDraws = field(repr=False, compare=False)
    _normals: Array = field(repr=False, compare=False)  # (R,)

    @property
    def has_floor(self) -> bool:
        """Whether the floor means something. With the exponent on its bound the law is a logarithm
        or a step, and the floor is what makes it so."""
        return is_inside(self.b.value)

    def curve(self, costs: Sequence[float]) -> list[Prediction]:
        """The law itself at each cost, with its confidence band."""
        values = power_law.value(self._draws, np.asarray(costs, float) / self._scale)
        return [prediction_of(column[0], column[1:]) for column in values.T]

    def predict(self, cost: float, num_seeds: int = 1, epochs: int | None = None) -> Prediction:
        """The mean error of `num_seeds` new runs at that cost. The interval includes their noise.

        The noise is that of trainings of `epochs` epochs. The default is the largest size's length.
        """
        values = power_law.value(self._draws, np.array([cost / self._scale]))[:, 0]
        epochs = self.sizes[-1].epochs if epochs is None else epochs
        noise = self.noise.variance_at(values[0], num_seeds, epochs)
        spread = self._spread.variances(np.array([cost]), noise)[:, 0]
        return prediction_of(values[0], values[1:] + np.sqrt(spread) * self._normals)

    def text(self) -> str:
        """One line for people, with the range in which the law holds."""
        unit = count_text(self.unit)
        shift = f" + {self.d.value:.2g}" if self.d.value > 0 else ""
        floor = f"{self.c.value:.2f} + " if self.c.value > 0 else ""
        sure = ""
        if math.isfinite(self.b.low):
            floors = f"{self.c.low:.1f} to {self.c.high:.1f}"
            sure = (
                f" (95 %: exponent {self.b.low:.2f} to {self.b.high:.2f}, "
                f"floor {floors if self.has_floor else 'not determined'})"
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

    Raises TooFew if the front has under four sizes.
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
    variances = noise.variances(means)
    expected = variances if noise.is_known else np.full_like(variances, 1e-12)  # a strict front
    scale = float(np.exp(np.log(costs).mean()))
    x = costs / scale

    def fitted(expected: Array) -> tuple[NDArray[np.bool_], Array, Array, SpreadDraws]:
        """The front, the law, the residuals and the spread, for variances (n,) of the sizes."""
        on = _on_front(costs, errors, expected[None])[0]
        _check_front(sizes, on)
        weights = 1 / expected if noise.is_known else 1 / variances
        best = power_law.solve(x, errors, np.where(on, weights, 0.0)[None])
        residuals = (errors - power_law.value(best, x))[0]
        degrees, known = int(on.sum()) - MIN_SIZES, np.where(on, residuals, math.nan)
        spread = spread_draws(costs, means, noise, known, degrees, rng, num_resamples)
        return on, best, residuals, spread

    on, best, residuals, spread = fitted(expected)
    if noise.is_known:  # again, with the scatter that the first fit shows
        expected = np.median(spread.variances(costs, variances), axis=0)
        on, best, residuals, spread = fitted(expected)
    near = _on_front(costs, errors, expected[None], 2 * _DOMINATED)[0]
    count = min(num_resamples, max(100, 20_000 // int(near.sum())))  # many sizes are slow
    spread = spread.first(count)
    if spread.are_known:
        # If there are hundreds of sizes, most are so far behind that no resample has them on the
        # front.
        drawn = spread.variances(costs[near], variances[near])  # (R, n)
        moved = errors[:, near] + np.sqrt(drawn) * rng.standard_normal(drawn.shape)
        masks = _on_front(costs[near], moved, drawn)
        masks[masks.sum(axis=1) < 2] = on[near]
        weights = 1 / (expected if noise.is_known else variances)[near]
        draws = power_law.solve(x[near], moved, np.where(masks, weights, 0.0))
    else:
        draws = np.full((count, 4), math.nan)
    return _law(sizes, on, noise, np.concatenate([best, draws]), scale, spread, rng, residuals)


def _check_front(sizes: Sequence[Size], on: NDArray[np.bool_]) -> None:
    """Raises TooFew if the front is too small for a law."""
    costs = {size.cost for size, keep in zip(sizes, on, strict=True) if keep}
    if len(costs) < MIN_SIZES:
        labels = [size.label for size, keep in zip(sizes, on, strict=True) if keep]
        names = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        raise TooFew(
            f"{int(on.sum())} of {len(sizes)} sizes are on the front ({names}), and a law needs "
            f"at least {MIN_SIZES} of different cost; add sizes that are better than cheaper ones"
        )


def _law(
    sizes: Sequence[Size],
    on: NDArray[np.bool_],
    noise: SeedNoise,
    draws: Array,
    scale: float,
    spread: SpreadDraws,
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
    if not is_inside(b_interval.value):
        notes.append(
            f"the exponent is on its bound, {b_interval.value:.2f}: the floor means nothing"
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
        _spread=spread,
        _normals=rng.standard_normal(len(spread.scale)),
    )


def is_inside(exponent: float) -> bool:
    """Whether an exponent is not on its bound."""
    low, high = power_law.EXPONENTS
    return 1.01 * low < exponent < high / 1.01


def interval_of(values: Array) -> Interval:
    """The first value, with the interval that holds the middle 95 % of the others."""
    p = prediction_of(values[0], values[1:])
    return Interval(p.value, p.low, p.high)


def prediction_of(value: float, draws: Array) -> Prediction:
    if not np.isfinite(draws).all():
        return Prediction(float(value), math.nan, math.nan)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Prediction(float(value), float(min(low, value)), float(max(high, value)))
