"""Power before a study: how precisely it will know the gain of shape, and which seeds help most.

The numbers come from the analysis that the report will do (shape.py), with the spread between seeds
that is known or assumed. A difference is found if its 95 % interval excludes 0. The power is the
share of studies that find it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import NormalDist

import numpy as np

from mambaout.study.law.noise import SeedNoise, SeedSpread, t95
from mambaout.study.law.paired import least_found
from mambaout.study.law.planned import PlannedSize
from mambaout.study.law.power_law import Array
from mambaout.study.law.shape import POWER, CostModel, cost_model, half_in_errors

# Of a shape in a plan or of --detect. A difference that needs more is called out of reach.
MOST_PLANNED_SEEDS = 100
_UNEVEN = 3  # a shape gets at most so many times the seeds of the shape with the fewest
_SURE_DEGREES = 1_000_000  # of an assumed spread


@dataclass(frozen=True, kw_only=True)
class ExpectedInterval:
    """How precisely sizes of one length will give the gain of shape."""

    standard_error: float  # points
    half: float  # half of the expected 95 % interval

    def power(self, points: float) -> float:
        """The share of studies that find a true difference of `points`."""
        return NormalDist().cdf((abs(points) - self.half) / self.standard_error)

    @property
    def detectable(self) -> float:
        """The difference in points that 80 % of studies find."""
        return self.half + NormalDist().inv_cdf(POWER) * self.standard_error


def expected_interval(
    sizes: Sequence[PlannedSize], sd: float, degrees: float = 0, shared: float = 0.0
) -> ExpectedInterval | None:
    """The interval that the report will compute.

    Seeds of one size differ by `sd` points, and by `shared` points that all sizes of a seed have in
    common. `degrees` are the degrees of freedom from other sizes; those of `sizes` are added. None
    if the sizes do not determine the gain, or if no size has a second seed.
    """
    degrees += sum(size.num_seeds - 1 for size in sizes)
    if degrees < 1:
        return None
    noise = _noise(sd, degrees)
    model = cost_model([size.as_size() for size in sizes], noise)
    if model is None:
        return None
    counts = np.array([size.num_seeds for size in sizes])
    weights = model.contrast_weights
    own = sd * math.sqrt(float((weights**2 / counts).sum()))
    free = len(sizes) - model.weights.shape[1]
    half = own * (half_in_errors(degrees, float(free), free) if free > 0 else t95(degrees))
    # Seed s is that of all sizes with more than s seeds. Equal numbers of seeds cancel.
    most = int(counts.max())
    moves = [float((weights / counts)[counts > seed].sum()) for seed in range(most)]
    beside = shared * math.sqrt(sum(move**2 for move in moves))
    half = math.hypot(half, t95(max(most - 1, 1)) * beside)
    return ExpectedInterval(standard_error=math.hypot(own, beside), half=half)


def _noise(sd: float, degrees: float) -> SeedNoise:
    count = _SURE_DEGREES if math.isinf(degrees) else round(degrees)
    return SeedNoise(all_lengths=SeedSpread(points=sd, degrees=count, num_recipes=1))


def seeds_needed(
    sizes: Sequence[PlannedSize], sd: float, points: float, degrees: float = 0
) -> int | None:
    """How many seeds each shape needs, so that 80 % of studies find `points`.

    None if it is more than MOST_PLANNED_SEEDS, or if the sizes do not determine the gain.
    """

    def is_enough(count: int) -> bool:
        found = expected_interval([replace(s, num_seeds=count) for s in sizes], sd, degrees)
        return found is not None and found.detectable <= points

    return _least(is_enough)


def pair_seeds(sd: float, points: float) -> int | None:
    """How many seeds each of two networks of equal MACs needs, for the same power."""

    def is_enough(count: int) -> bool:
        degrees = 2 * (count - 1)
        if degrees < 1:
            return False
        error = sd * math.sqrt(2 / count)
        return (t95(degrees) + NormalDist().inv_cdf(POWER)) * error <= points

    return _least(is_enough, most=10_000)


def paired_error(sd: float, num_seeds: int) -> float:
    """The standard error of a difference within `num_seeds` seeds (paired.py).

    Seeds of one recipe differ by `sd` points, without what they give to all recipes alike.
    """
    return sd * math.sqrt(2 / num_seeds) if num_seeds else math.nan


def paired_detectable(sd: float, num_seeds: int, num_comparisons: int = 1) -> float:
    """The difference within a seed that 80 % of studies find; nan without a second seed."""
    return least_found(paired_error(sd, num_seeds), num_seeds - 1, num_comparisons)


def paired_seeds(sd: float, points: float, num_comparisons: int = 1) -> int | None:
    """How many seeds each recipe needs, so that 80 % of studies find `points` within a seed."""
    return _least(lambda n: paired_detectable(sd, n, num_comparisons) <= points, most=10_000)


def _least(is_enough: Callable[[int], bool], most: int = MOST_PLANNED_SEEDS) -> int | None:
    if not is_enough(most):
        return None
    low, high = 0, most  # `high` is enough, `low` is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def planned_model(sizes: Sequence[PlannedSize]) -> CostModel | None:
    """The model by which the sizes will be judged; None if they do not determine the gain."""
    return cost_model([size.as_size() for size in sizes], _noise(1.0, _SURE_DEGREES))


def next_seed(sizes: Sequence[PlannedSize]) -> int:
    """The place of the size whose next seed makes the gain most precise for its price.

    No size gets more than three times the seeds of another one, so that the scatter of shapes
    around the model stays visible. ValueError if the sizes do not determine the gain.
    """
    return _next_seed(_determined(sizes), sizes)


def _determined(sizes: Sequence[PlannedSize]) -> CostModel:
    model = planned_model(sizes)
    if model is None:
        raise ValueError("the sizes do not tell shape and MACs apart")
    return model


def _next_seed(model: CostModel, sizes: Sequence[PlannedSize]) -> int:
    gains = _gains(model, np.array([size.num_seeds for size in sizes]))
    fewest = min(size.num_seeds for size in sizes)
    allowed = [place for place, size in enumerate(sizes) if size.num_seeds < _UNEVEN * fewest]
    return max(allowed, key=lambda place: gains[place] / sizes[place].price)


def _gains(model: CostModel, counts: Array) -> Array:
    """By how much one more seed of each size lowers the variance of the gain, per variance."""
    terms = model.terms
    inverse = np.linalg.inv((terms * counts[:, None]).T @ terms)
    moved = terms @ inverse  # (n, number of terms)
    return moved[:, -1] ** 2 / (1 + (moved * terms).sum(axis=1))


def with_seeds_added(sizes: Sequence[PlannedSize]) -> Iterator[list[PlannedSize]]:
    """The sizes, then each time with the next seed, until one of them has MOST_PLANNED_SEEDS."""
    found, model = list(sizes), _determined(sizes)
    while True:
        yield list(found)
        place = _next_seed(model, found)
        if found[place].num_seeds >= MOST_PLANNED_SEEDS:
            return
        found[place] = replace(found[place], num_seeds=found[place].num_seeds + 1)


def seeds_within(sizes: Sequence[PlannedSize], budget: float) -> list[PlannedSize]:
    """The sizes with all the seeds that the budget pays, where they help most.

    `budget` is for the added seeds, in the unit of the prices.
    """
    begun = _price(sizes)
    return list(takewhile(lambda now: _price(now) - begun <= budget, with_seeds_added(sizes)))[-1]


def _price(sizes: Sequence[PlannedSize]) -> float:
    return sum(size.num_seeds * size.price for size in sizes)
