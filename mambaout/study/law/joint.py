"""A joint law over size and length: error = c + A N^-a + B D^-b, with its uncertainty.

N is the MACs of one image, and D the images seen in the training. The form is that of Rosenfeld et
al. (arXiv:1909.12673); Hoffmann et al. (arXiv:2203.15556) use it for language models. All lengths
of a study are fitted together, so the brief trainings say something of the long ones too.

Repeated images. A study sees the same images many times. Muennighoff et al. (arXiv:2305.16264)
count a repeated image for less than a new one: U images over E epochs are worth

    D = U + U R (1 - exp(-(E - 1) / R))

new ones, with R = 15.4 in their trainings of language models. An infinite R counts every image in
full. R is not fitted: over the three or four lengths of a study, R and b bend the curve alike.

Noise, weights and intervals are those of the law of one length (fit.py, spread.py), with two
differences. All sizes are fitted, not only a front. And a shape that lies beside the law does so by
the same points at all of its lengths.

The form lets no size profit more than another from a longer training. Where one does, the sizes lie
beside the law, and the intervals are wider for it.

Coverage of a new run of twice the largest size at the longest length (results/coverage.json: 200
simulated studies of each kind): 97.0 to 98.5 % with equal noise, 91 to 95 % where the noise doubles
over the sizes, 87 to 89 % where shapes lie beside the law by 1.5 times the noise of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mambaout.accounting import TRAIN_FORWARDS
from mambaout.numbers import UNITS, count_text
from mambaout.study.law import two_powers
from mambaout.study.law.fit import (
    Holdout,
    Prediction,
    Size,
    TooFew,
    interval_of,
    is_inside,
    prediction_of,
)
from mambaout.study.law.noise import Interval, SeedNoise
from mambaout.study.law.power_law import Array
from mambaout.study.law.spread import SpreadDraws, spread_draws

NUM_PARAMETERS = 5
MIN_EACH = 3  # sizes, and lengths: each power has two numbers, and c is common
REPEATS = 15.4  # Muennighoff et al.'s R for language models
MOST_BEYOND = 4.0  # the optimum is sought so far outside the data, in N and in D
_GRID = 200  # sizes among which the optimum is sought


@dataclass(frozen=True)
class HoldoutGroup:
    """All trainings of one size or of one length, predicted by the law of the others."""

    name: str  # "the largest size", "the longest training"
    holdouts: tuple[Holdout, ...]

    @property
    def num_inside(self) -> int:
        return sum(
            one.prediction.low <= one.size.error <= one.prediction.high for one in self.holdouts
        )


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The size and the epochs that the law expects to be best for a budget of training."""

    budget: float  # MACs of the whole training
    macs: Interval  # of one image
    epochs: Interval
    prediction: Prediction  # of the law at the optimum, without the noise of a run
    beyond: float  # the optimum lies so many times outside the data; 1 if inside
    at_edge: bool  # the true optimum may lie further outside than is said here

    @property
    def doubt(self) -> str:
        """How far the optimum lies outside the data; "" if it lies inside."""
        if self.at_edge:
            return f"x{MOST_BEYOND:g} beyond the data, where the search ends; it may lie further"
        return f"x{self.beyond:.1f} beyond the data" if self.beyond > 1.05 else ""


@dataclass(frozen=True, kw_only=True)
class JointLaw:
    """error = c + A (N / unit)^-a + B (D / image_unit)^-b percent, fitted to `sizes`."""

    c: Interval
    size_factor: Interval  # A
    size_exponent: Interval  # a
    length_factor: Interval  # B
    length_exponent: Interval  # b
    unit: float  # of N
    image_unit: float  # of D
    sizes: tuple[Size, ...]  # cheapest first, of one size the shortest first
    num_images: int  # different images of the training set
    repeats: float  # R; infinite if every image seen counts in full
    residual_sd: float  # points
    noise: SeedNoise
    left_out: tuple[HoldoutGroup, ...] = ()
    notes: tuple[str, ...] = ()
    _draws: Array = field(repr=False, compare=False)  # (1 + R, 5), the fit first, per scales
    _scales: tuple[float, float] = field(repr=False, compare=False)  # N and D that are 1 in draws
    _spread: SpreadDraws = field(repr=False, compare=False)
    _normals: Array = field(repr=False, compare=False)  # (R,)

    @property
    def is_determined(self) -> bool:
        """Whether both exponents are."""
        return _is_determined(self.size_exponent) and _is_determined(self.length_exponent)

    @property
    def lengths(self) -> list[int]:
        return sorted({_length(size) for size in self.sizes})

    def curve(self, costs: Sequence[float], epochs: float) -> list[Prediction]:
        """The law itself over N at one length, with its confidence band."""
        values = self._values(np.asarray(costs, float), np.full(len(costs), epochs))
        return [prediction_of(column[0], column[1:]) for column in values.T]

    def predict(self, cost: float, epochs: int, num_seeds: int = 1) -> Prediction:
        """The mean error of `num_seeds` new runs of a shape. The interval includes their noise."""
        values = self._values(np.array([cost]), np.array([epochs]))[:, 0]
        noise = self.noise.variance_at(values[0], num_seeds, epochs)
        spread = self._spread.variances(np.array([cost]), noise)[:, 0]
        return prediction_of(values[0], values[1:] + np.sqrt(spread) * self._normals)

    def optimum(self, budget: float) -> Optimum:
        """The best size and epochs for `budget` MACs of training.

        Raises TooFew if every such training lies further outside the data than MOST_BEYOND.
        """
        sizes, lengths = [size.cost for size in self.sizes], self.lengths
        images = budget / TRAIN_FORWARDS / self.num_images  # N times epochs
        low = max(sizes[0] / MOST_BEYOND, images / (lengths[-1] * MOST_BEYOND))
        high = min(sizes[-1] * MOST_BEYOND, images / (lengths[0] / MOST_BEYOND))
        if low > high:
            raise TooFew(
                f"{count_text(budget)} MACs of training lie more than x{MOST_BEYOND:g} outside the "
                "trained sizes and lengths; train some that are nearer to it"
            )
        costs = np.geomspace(low, high, _GRID)
        values = self._values(costs, images / costs)
        best = values.argmin(axis=1)
        found = float(costs[best[0]])
        ratios = (sizes[0] / found, found / sizes[-1])
        epochs = images / found
        beyond = max(1.0, *ratios, lengths[0] / epochs, epochs / lengths[-1])
        rows = np.arange(1, len(values))
        return Optimum(
            budget=budget,
            macs=interval_of(costs[best]),
            epochs=interval_of(images / costs[best]),
            prediction=prediction_of(values[0, best[0]], values[rows, best[0]]),
            beyond=beyond,
            at_edge=bool(best[0] in (0, _GRID - 1)),
        )

    def text(self) -> str:
        """One line for people."""

        def power(factor: Interval, name: str, unit: float, exponent: Interval) -> str:
            return f"{factor.value:.3g} ({name} / {count_text(unit)})^-{exponent.value:.2f}"

        def sure(exponent: Interval) -> str:
            if not _is_determined(exponent):
                return "not determined"
            return f"{exponent.low:.2f} to {exponent.high:.2f}"

        floor = f"{self.c.value:.2f} + " if self.c.value > 0 else ""
        size = power(self.size_factor, "N", self.unit, self.size_exponent)
        length = power(self.length_factor, "D", self.image_unit, self.length_exponent)
        return (
            f"error = {floor}{size} + {length} % (95 %: exponent of the size "
            f"{sure(self.size_exponent)}, of the length {sure(self.length_exponent)}), from "
            f"{len(self.sizes)} trainings between {count_text(self.sizes[0].cost)} and "
            f"{count_text(self.sizes[-1].cost)} MACs and between {self.lengths[0]} and "
            f"{self.lengths[-1]} epochs"
        )

    def _values(self, costs: Array, epochs: Array) -> Array:
        """The law of each draw: (1 + R, n)."""
        images = images_worth(self.num_images, epochs, self.repeats)
        return two_powers.value(self._draws, costs / self._scales[0], images / self._scales[1])


def images_worth(num_images: int, epochs: Array, repeats: float = math.inf) -> Array:
    """The number of new images that `epochs` over `num_images` are worth."""
    again = np.maximum(epochs - 1, 0.0)
    if math.isfinite(repeats):
        again = repeats * (1 - np.exp(-again / repeats))
    return num_images * (np.minimum(epochs, 1.0) + again)


def fit_joint(
    sizes: Sequence[Size],
    num_images: int,
    noise: SeedNoise,
    *,
    repeats: float = math.inf,
    num_resamples: int = 400,
    seed: int = 0,
) -> JointLaw:
    """The joint law, with the largest size and the longest training left out in turn.

    The sizes' `cost` is the MACs of one image, and `num_images` the images of the training set.
    Raises TooFew if the sizes cannot tell its five numbers apart.
    """
    ordered = sorted(sizes, key=lambda size: (size.cost, _length(size)))
    law = _fit(ordered, num_images, noise, repeats, num_resamples, seed)
    groups = (
        ("the largest size", lambda size: size.cost == ordered[-1].cost),
        ("the longest training", lambda size: _length(size) == law.lengths[-1]),
    )
    left_out, notes = [], list(law.notes)
    for name, is_out in groups:
        rest = [size for size in ordered if not is_out(size)]
        try:
            without = _fit(rest, num_images, noise, repeats, num_resamples, seed)
        except TooFew as error:
            notes.append(f"{name} cannot be left out: {error}")
            continue
        out = [size for size in ordered if is_out(size)]
        holdouts = tuple(
            Holdout(size, without.predict(size.cost, _length(size), len(size.errors)))
            for size in out
        )
        left_out.append(HoldoutGroup(name, holdouts))
    return replace(law, left_out=tuple(left_out), notes=tuple(notes))


def _fit(
    sizes: Sequence[Size],
    num_images: int,
    noise: SeedNoise,
    repeats: float,
    num_resamples: int,
    seed: int,
) -> JointLaw:
    shapes, place = np.unique([size.cost for size in sizes], return_inverse=True)
    lengths = sorted({_length(size) for size in sizes})
    if len(shapes) < MIN_EACH or len(lengths) < MIN_EACH or len(sizes) <= NUM_PARAMETERS:
        raise TooFew(
            f"{len(sizes)} trainings of {len(shapes)} sizes and {len(lengths)} lengths, and a law "
            f"over both needs at least {NUM_PARAMETERS + 1} trainings, {MIN_EACH} sizes and "
            f"{MIN_EACH} lengths; add sizes or lengths to the study"
        )
    rng = np.random.default_rng(seed)
    costs = np.array([size.cost for size in sizes])
    images = images_worth(num_images, np.array([_length(size) for size in sizes], float), repeats)
    scales = tuple(float(np.exp(np.log(values).mean())) for values in (costs, images))
    x, y = costs / scales[0], images / scales[1]
    errors = np.array([size.error for size in sizes])[None]
    means = [size.seeds for size in sizes]
    variances = noise.variances(means)

    def fitted(expected: Array) -> tuple[Array, Array, SpreadDraws]:
        """The law, the residuals and the spread, for variances (n,) of the trainings."""
        best = two_powers.solve(x, y, errors, 1 / expected)
        residuals = (errors - two_powers.value(best, x, y))[0]
        degrees = len(sizes) - NUM_PARAMETERS
        spread = spread_draws(
            costs, means, noise, residuals, degrees, rng, num_resamples, num_shapes=len(shapes)
        )
        return best, residuals, spread

    expected = variances
    best, residuals, spread = fitted(expected)
    if noise.is_known:  # again, with the scatter that the first fit shows
        expected = np.median(spread.variances(costs, variances), axis=0)
        best, residuals, spread = fitted(expected)
    if spread.are_known:
        of_seeds = spread.of_seeds(costs, variances)  # (R, n)
        beside = np.sqrt(spread.scatter)[:, None] * rng.standard_normal(
            (num_resamples, len(shapes))
        )
        moved = errors + np.sqrt(of_seeds) * rng.standard_normal(of_seeds.shape) + beside[:, place]
        draws = two_powers.solve(x, y, moved, 1 / expected)
    else:
        draws = np.full((num_resamples, NUM_PARAMETERS), math.nan)
    found = np.concatenate([best, draws])
    unit, image_unit = (next((u for u, _ in UNITS if scale >= u), 1.0) for scale in scales)
    c, size_factor, a, length_factor, b = found.T
    size_exponent, length_exponent = interval_of(a), interval_of(b)
    return JointLaw(
        c=interval_of(c),
        size_factor=interval_of(size_factor * (scales[0] / unit) ** a),
        size_exponent=size_exponent,
        length_factor=interval_of(length_factor * (scales[1] / image_unit) ** b),
        length_exponent=length_exponent,
        unit=unit,
        image_unit=image_unit,
        sizes=tuple(sizes),
        num_images=num_images,
        repeats=repeats,
        residual_sd=float(np.sqrt((residuals**2).mean())),
        noise=noise,
        notes=tuple(_notes(size_exponent, length_exponent, noise)),
        _draws=found,
        _scales=(scales[0], scales[1]),
        _spread=spread,
        _normals=rng.standard_normal(num_resamples),
    )


def _notes(size_exponent: Interval, length_exponent: Interval, noise: SeedNoise) -> list[str]:
    notes = [
        f"the exponent of the {name} is not determined ({one.low:.2f} to {one.high:.2f})"
        for name, one in (("size", size_exponent), ("length", length_exponent))
        if not _is_determined(one)
    ]
    if not noise.is_known:
        notes.append("no size has two seeds: the noise is taken from the sizes' own scatter")
    return notes


def _is_determined(exponent: Interval) -> bool:
    return is_inside(exponent.value) and exponent.high <= 5 * exponent.low


def _length(size: Size) -> int:
    assert size.epochs is not None
    return size.epochs
