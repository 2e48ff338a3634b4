"""Sizes for tests of the laws, and the noise of their own seeds."""

from __future__ import annotations

import math

from mambaout.study.law.fit import Size
from mambaout.study.law.noise import SeedNoise, noise_of


def size(label: str, cost: float, *errors: float, depth=math.nan, width=math.nan) -> Size:
    return Size(label=label, cost=cost, errors=errors, depth=depth, width=width)


def noise(sizes: list[Size], num_images: int | None = None) -> SeedNoise:
    """Of the sizes' own seeds."""
    return noise_of([size.seeds for size in sizes], num_images)
