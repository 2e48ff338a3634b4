"""The noise between seeds: how sure a mean is, and which differences are significant.

A report computes one noise for each metric. All of its tables, charts, fits and sentences use this
noise. So no two of them can disagree about a difference.

The spread is the standard deviation between the seeds of one recipe, pooled over the recipes that
were trained equally long. A recipe with one seed then has an interval too. If a length of training
has too few second seeds, the spread over all lengths is used for it. Intervals are 95 %, by
Student's t with the degrees of freedom of the pooled spread.

A part of what a seed does moves all recipes alike (seeds.py). This shared part cancels in the
difference of two recipes with the same seeds. The rest, each recipe's own part, does not. So a
difference can be more certain than the intervals of its two means tell.

If no recipe has a second seed, the fits use the binomial spread of val's images instead. This
spread does not contain the effect of seeds, and all recipes see the same images. So no difference
is called significant by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from mambaout.endings import Ending
from mambaout.study.law.power_law import Array
from mambaout.study.law.seeds import LEAST_DEGREES, SeedMean, SeedSpread, pooled
from mambaout.study.study import Run
from mambaout.train.metrics import TOP1
from mambaout.train.tasks import kind_of

Z95 = 1.959964
_LEAST_VARIANCE = 1e-12  # even seeds with equal results have some noise


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval. Bounds that are not known are nan."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval has the sign of the value."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """The first of two means minus the second, in points, and how sure that is."""

    value: float
    half: float  # half the 95 % interval; nan if not known
    has_seeds: bool  # whether the interval comes from seeds

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    @property
    def is_significant(self) -> bool:
        return self.has_seeds and abs(self.value) > self.half

    @property
    def is_within_noise(self) -> bool:
        """Whether the noise is known and the difference may be luck."""
        return abs(self.value) <= self.half

    @property
    def doubt(self) -> str:
        """The caveat that belongs beside the number; "" if the difference is significant."""
        if self.is_significant:
            return ""
        return "not significant" if self.has_seeds else "not told from luck"

    def text(self) -> str:
        """ "1.83 points, beyond seed noise (1.02 is needed)", without the sign."""
        points = f"{abs(self.value):.2f} points"
        if not self.has_seeds:
            return points  # the report's warnings say once how sure it is
        verdict = "beyond" if self.is_significant else "within"
        doubt = f": {self.doubt}" if self.doubt else ""
        return f"{points}, {verdict} seed noise{doubt} ({self.half:.2f} is needed)"


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """How much the means of one metric scatter, in points."""

    all_lengths: SeedSpread | None  # None if no recipe has two seeds
    by_epochs: Mapping[int, SeedSpread] = field(default_factory=dict)  # with enough seeds
    num_images: int | None = None  # of val; used if no recipe has two seeds
    least_points: float = 0.0  # smallest difference that the few images can show

    # -- how it is known

    @property
    def has_seeds(self) -> bool:
        return self.all_lengths is not None

    @property
    def is_known(self) -> bool:
        return self.has_seeds or self.num_images is not None

    def spread(self, epochs: int | None) -> SeedSpread | None:
        """The spread of that length of training, or of all lengths if it has too few seeds."""
        return self.all_lengths if epochs is None else self.by_epochs.get(epochs, self.all_lengths)

    def degrees(self, means: Sequence[SeedMean], weights: Sequence[float] | None = None) -> float:
        """The degrees of freedom of the weighted sum of the means (Welch and Satterthwaite).

        Infinite for the binomial spread, which is not estimated; 0 if nothing is known.
        """
        if not self.has_seeds:
            return math.inf if self.is_known else 0.0
        parts: dict[SeedSpread, float] = {}
        for mean, weight in zip(means, weights or [1.0] * len(means), strict=True):
            spread = self.spread(mean.epochs)
            assert spread is not None
            parts[spread] = parts.get(spread, 0.0) + weight**2 * self.variance(mean)
        if len(parts) == 1:
            return next(iter(parts)).degrees
        return sum(parts.values()) ** 2 / sum(v**2 / s.degrees for s, v in parts.items())

    def text(self) -> str:
        """A sentence for people: from what the noise is known."""
        if self.all_lengths is None:
            if self.num_images is None:
                return "No recipe has two seeds, so the noise between seeds is not known."
            return (
                f"No recipe has two seeds. The binomial spread of {self.num_images} images stands "
                "in for theirs in the fits; no difference is called significant by it."
            )
        said = (
            f"The seeds of one recipe differ by {self.all_lengths.text()}, as standard deviation."
        )
        own_points = self.all_lengths.own_points
        if own_points is not None and self.all_lengths.shared_variance:
            said += (
                f" Of this, {own_points:.2f} points are a recipe's own; the rest moves all recipes "
                "of a seed alike and cancels in their differences."
            )
        elif own_points is not None:
            said += " Seeds show no part that moves all recipes alike."
        if not self.by_epochs:
            return f"{said} That of all recipes serves for each."
        own = "; ".join(f"{e} epochs {self.by_epochs[e].text()}" for e in sorted(self.by_epochs))
        return f"{said} These lengths of training have their own: {own}."

    # -- means

    def variance_at(
        self, percent: Array | float, num_seeds: int, epochs: int | None = None
    ) -> Array:
        """The variance of a mean of `num_seeds` seeds; `percent` is a top-1 or an error."""
        spread = self.spread(epochs)
        found = np.zeros_like(percent, dtype=float)
        if spread is not None:
            found = found + spread.points**2 / num_seeds
        elif self.num_images:
            share = np.clip(percent, 0.01, 99.99)
            found = share * (100 - share) / self.num_images  # all seeds see the same images
        return np.maximum(found, _LEAST_VARIANCE)

    def variance(self, mean: SeedMean) -> float:
        return float(self.variance_at(mean.value, len(mean.values), mean.epochs))

    def variances(self, means: Sequence[SeedMean]) -> Array:
        """The variances, for the weights of a fit. All are equal if the noise is not known."""
        if not self.is_known:
            return np.ones(len(means))
        return np.array([self.variance(mean) for mean in means])

    def half_width(self, mean: SeedMean) -> float | None:
        """Half the 95 % interval of a mean over seeds; None without seeds."""
        return self.half_width_of_sum([mean], [1.0]) if self.has_seeds and mean else None

    def half_width_of_sum(self, means: Sequence[SeedMean], weights: Sequence[float]) -> float:
        """Half the 95 % interval of the weighted sum of the means; nan if no noise is known."""
        if not self.is_known:
            return math.nan
        counted = [(m, w) for m, w in zip(means, weights, strict=True) if w]
        if self.has_seeds and len(counted) > 1:
            means, weights = [m for m, _ in counted], [w for _, w in counted]
            estimates = [*self._own_part(means, weights), *self._shared_part(means, weights)]
            variance = sum(each for each, _ in estimates)
            return t95(_satterthwaite(estimates)) * math.sqrt(variance)
        variance = sum(w**2 * self.variance(m) for m, w in counted)
        return t95(self.degrees(means, weights)) * math.sqrt(variance)

    def own_variances(self, means: Sequence[SeedMean]) -> Array:
        """The variances of the means without the part that all recipes of a seed share."""
        if not self.has_seeds:
            return self.variances(means)
        return np.array([self._own(mean)[0] for mean in means])

    def own_degrees(self, means: Sequence[SeedMean]) -> float:
        """The degrees of freedom of the own variances; infinite and 0 as for `degrees`."""
        if not self.has_seeds:
            return self.degrees(means)
        return _satterthwaite(self._own_part(means, [1.0] * len(means)))

    def shared_half_width(self, means: Sequence[SeedMean], weights: Sequence[float]) -> float:
        """Half the 95 % interval of what the shared parts add to a weighted sum of means."""
        estimates = self._shared_part(means, weights)
        variance = sum(each for each, _ in estimates)
        return t95(_satterthwaite(estimates)) * math.sqrt(variance) if variance else 0.0

    def _own(self, mean: SeedMean) -> tuple[float, int]:
        """The own variance of a mean, and its degrees of freedom."""
        spread = self.spread(mean.epochs)
        assert spread is not None
        if spread.own_points is None or not mean.seeds:
            return self.variance(mean), spread.degrees
        own = spread.own_points**2 / len(mean.values)
        return max(own, _LEAST_VARIANCE), spread.own_degrees

    def _own_part(
        self, means: Sequence[SeedMean], weights: Sequence[float]
    ) -> list[tuple[float, float]]:
        """(variance, degrees of freedom) of each spread that the sum contains."""
        parts: dict[tuple[SeedSpread | None, int], float] = {}
        for mean, weight in zip(means, weights, strict=True):
            variance, degrees = self._own(mean)
            place = (self.spread(mean.epochs), degrees)
            parts[place] = parts.get(place, 0.0) + weight**2 * variance
        return [(variance, float(degrees)) for (_, degrees), variance in parts.items()]

    def _shared_part(
        self, means: Sequence[SeedMean], weights: Sequence[float]
    ) -> list[tuple[float, float]]:
        """The same of the shared parts. Seeds of different lengths count as different draws."""
        moves: dict[tuple[int | None, int], float] = {}
        for mean, weight in zip(means, weights, strict=True):
            for seed in mean.seeds:
                place = (mean.epochs, seed)
                moves[place] = moves.get(place, 0.0) + weight / len(mean.values)
        parts: dict[SeedSpread, float] = {}
        for (epochs, _), move in moves.items():
            spread = self.spread(epochs)
            if spread is not None and spread.own_points is not None:
                parts[spread] = parts.get(spread, 0.0) + move**2 * spread.shared_variance
        return [(variance, float(spread.shared_degrees)) for spread, variance in parts.items()]

    def difference(self, first: SeedMean, second: SeedMean) -> Difference:
        half = self.half_width_of_sum([first, second], [1.0, -1.0])
        if self.least_points:
            half = self.least_points if math.isnan(half) else max(half, self.least_points)
        return Difference(first.value - second.value, half, self.has_seeds)


@lru_cache
def t95(degrees: float) -> float:
    """The 97.5 % point of Student's t."""
    from scipy.special import stdtrit

    return Z95 if math.isinf(degrees) else float(stdtrit(degrees, 0.975))


def noise_of(means: Iterable[SeedMean], num_images: int | None = None) -> SeedNoise:
    """The noise that follows from means which hold the values of all seeds.

    `num_images`, the size of val, is used if none of them has two seeds.
    """
    several = [mean for mean in means if len(mean.values) > 1]
    if not several:
        return SeedNoise(all_lengths=None, num_images=num_images)
    lengths = {mean.epochs for mean in several}
    pools = {e: pooled([mean for mean in several if mean.epochs == e]) for e in lengths}
    return SeedNoise(
        all_lengths=pooled(several),
        by_epochs={
            epochs: spread
            for epochs, spread in pools.items()
            if epochs is not None and spread.degrees >= LEAST_DEGREES
        },
    )


def _satterthwaite(estimates: Sequence[tuple[float, float]]) -> float:
    """The degrees of freedom of a sum of estimated variances (Welch and Satterthwaite)."""
    below = sum(variance**2 / degrees for variance, degrees in estimates)
    return sum(variance for variance, _ in estimates) ** 2 / below if below else math.inf


def noise_of_runs(
    runs: Iterable[Run], metric: str = TOP1, num_images: int | None = None
) -> SeedNoise:
    """The noise of a study's finished runs, grouped by recipe."""
    groups: dict[Any, dict[int, float]] = {}
    for run in runs:
        value = run.metrics.get(metric, math.nan)
        if run.status is Ending.FINISHED and math.isfinite(value):
            groups.setdefault(run.trial.recipe, {})[run.trial.seed] = value
    return noise_of(
        (
            SeedMean(tuple(values.values()), kind_of(recipe).length(recipe), tuple(values))
            for recipe, values in groups.items()
        ),
        num_images,
    )
