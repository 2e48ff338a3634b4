"""The noise between seeds: how far a mean can be trusted, and which differences are significant.

A report computes one noise for each metric and hands it to all of its parts: tables, charts, fits
and sentences. So no two of them can disagree about a difference.

The spread is the standard deviation between the seeds of one recipe, pooled over the recipes that
were trained equally long. A recipe with one seed then has an interval too. Where a length has too
few second seeds, the spread over all lengths stands in for its own. Intervals are 95 %, by
Student's t with the degrees of freedom of the pooled spread.

Without any second seed, the binomial spread of val's images stands in, for the fits alone. It does
not hold what seeds change, and all recipes see the same images, so nothing is significant by it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from mambaout.endings import Ending
from mambaout.numbers import counted
from mambaout.recipe import Recipe
from mambaout.study.law.power_law import Array
from mambaout.study.study import Run
from mambaout.train.metrics import TOP1

Z95 = 1.959964
# A spread from fewer degrees of freedom is too uncertain to be preferred to that of all recipes:
# with four its own 95 % interval still goes from 0.6 to 2.9 times it.
LEAST_DEGREES = 4
_LEAST_VARIANCE = 1e-12  # seeds that agree to the last image are not exact


@dataclass(frozen=True)
class SeedMean:
    """A quantity over the seeds of one recipe."""

    values: tuple[float, ...]
    epochs: int | None = None  # of the recipe's training; None where that is not known

    @property
    def value(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    def __bool__(self) -> bool:
        return bool(self.values)

    def text(self, half: float | None = None, digits: int = 2, unit: str = "") -> str:
        """ "90.07 ± 0.45 % (n=2)", `half` being half the width of the mean's interval."""
        if not self.values:
            return "-"
        sure = "" if half is None else f" ± {half:.{digits}f}"
        return f"{self.value:.{digits}f}{sure}{unit} (n={len(self.values)})"


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; nan bounds where nothing is known of them."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    @property
    def excludes_zero(self) -> bool:
        """Whether the value's sign is the same throughout the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """The first of two means minus the second, in points, and what is known of it."""

    value: float
    half: float  # of its 95 % interval; nan where nothing is known
    has_seeds: bool  # whether the interval rests on seeds

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
        """Whether it is known to be no larger than luck makes it."""
        return abs(self.value) <= self.half

    @property
    def doubt(self) -> str:
        """What has to be said beside the number: "" where it is significant."""
        if self.is_significant:
            return ""
        return "not significant" if self.has_seeds else "not told from luck"

    def text(self) -> str:
        """ "1.83 points, beyond seed noise (1.02 is needed)", without the sign."""
        points = f"{abs(self.value):.2f} points"
        if not self.has_seeds:
            return points  # what that is worth is said once, in the report's warnings
        verdict = "beyond" if self.is_significant else "within"
        doubt = f": {self.doubt}" if self.doubt else ""
        return f"{points}, {verdict} seed noise{doubt} ({self.half:.2f} is needed)"


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """The standard deviation between the seeds of one recipe, and what it is known from."""

    points: float
    degrees: int  # of freedom
    num_recipes: int  # with two seeds or more

    def text(self) -> str:
        recipes = counted(self.num_recipes, "recipe")
        return f"{self.points:.2f} points ({self.degrees} degrees of freedom, {recipes})"


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """What the means of one metric scatter by, in points."""

    all_lengths: SeedSpread | None  # None where no recipe has two seeds
    by_epochs: Mapping[int, SeedSpread] = field(default_factory=dict)  # with enough seeds
    num_images: int | None = None  # of val, which stand in where no recipe has two seeds
    least_points: float = 0.0  # that two means differ by where so few images can tell them apart

    # -- how it is known

    @property
    def has_seeds(self) -> bool:
        return self.all_lengths is not None

    @property
    def is_known(self) -> bool:
        return self.has_seeds or self.num_images is not None

    def spread(self, epochs: int | None) -> SeedSpread | None:
        """The spread of that length of training; of all lengths where it has too few seeds."""
        return self.all_lengths if epochs is None else self.by_epochs.get(epochs, self.all_lengths)

    def degrees(self, means: Sequence[SeedMean], weights: Sequence[float] | None = None) -> float:
        """Of freedom, of the weighted sum of the means (Welch and Satterthwaite).

        Infinite for the binomial, which is not estimated; 0 where nothing is known.
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
        """How it is known, for people."""
        if self.all_lengths is None:
            if self.num_images is None:
                return "No recipe has two seeds, so the noise between seeds is not known."
            return (
                f"No recipe has two seeds. The binomial spread of {self.num_images} images stands "
                "in for theirs in the fits; no difference is called significant by it."
            )
        said = f"The seeds of one recipe differ by {self.all_lengths.text()}, as standard deviation"
        if not self.by_epochs:
            return f"{said}; that of all recipes serves for each."
        own = "; ".join(f"{e} epochs {self.by_epochs[e].text()}" for e in sorted(self.by_epochs))
        return f"{said}. These lengths of training have their own: {own}."

    # -- means

    def variance_at(
        self, percent: Array | float, num_seeds: int, epochs: int | None = None
    ) -> Array:
        """Of a mean of so many seeds; `percent` is a top-1, or an error."""
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
        """For the weights of a fit: all alike where the noise is not known."""
        if not self.is_known:
            return np.ones(len(means))
        return np.array([self.variance(mean) for mean in means])

    def half_width(self, mean: SeedMean) -> float | None:
        """Half the 95 % interval of a mean over seeds; None without seeds."""
        return self.half_width_of_sum([mean], [1.0]) if self.has_seeds and mean else None

    def half_width_of_sum(self, means: Sequence[SeedMean], weights: Sequence[float]) -> float:
        """Half the 95 % interval of the weighted sum of the means; nan without any noise."""
        if not self.is_known:
            return math.nan
        variance = sum(w**2 * self.variance(m) for m, w in zip(means, weights, strict=True))
        return t95(self.degrees(means, weights)) * math.sqrt(variance)

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
    """The noise of means whose values are those of all seeds.

    `num_images` of val stand in where none of them has two seeds.
    """
    several = [mean for mean in means if len(mean.values) > 1]
    if not several:
        return SeedNoise(all_lengths=None, num_images=num_images)
    lengths = {mean.epochs for mean in several}
    pools = {e: _pooled([mean for mean in several if mean.epochs == e]) for e in lengths}
    return SeedNoise(
        all_lengths=_pooled(several),
        by_epochs={
            epochs: spread
            for epochs, spread in pools.items()
            if epochs is not None and spread.degrees >= LEAST_DEGREES
        },
    )


def _pooled(means: Sequence[SeedMean]) -> SeedSpread:
    degrees = sum(len(mean.values) - 1 for mean in means)
    # fsum, so that the order of the recipes changes nothing.
    squares = math.fsum(statistics.variance(mean.values) * (len(mean.values) - 1) for mean in means)
    return SeedSpread(points=math.sqrt(squares / degrees), degrees=degrees, num_recipes=len(means))


def noise_of_runs(
    runs: Iterable[Run], metric: str = TOP1, num_images: int | None = None
) -> SeedNoise:
    """The noise of a study's finished runs: seeds are of one recipe."""
    groups: dict[Recipe, list[float]] = {}
    for run in runs:
        value = run.metrics.get(metric, math.nan)
        if run.status is Ending.FINISHED and math.isfinite(value):
            groups.setdefault(run.trial.recipe, []).append(value)
    return noise_of(
        (
            SeedMean(tuple(values), recipe.schedule.total_epochs)
            for recipe, values in groups.items()
        ),
        num_images,
    )
