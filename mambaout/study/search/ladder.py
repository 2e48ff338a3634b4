"""Shapes that spend a budget: widths solved for it, legal and aligned by construction.

    iso(variant("femto"), 1.15e9, depths=(12, 18, 24, 36))     # an iso-MAC slice

A budget is met in two steps: the continuous problem is solved for how much wider or thinner, then
the few aligned shapes around that solution are compared, and of those within the tolerance the
one truest to the base's proportions is taken. Widths are multiples of 8, hidden sizes too; blocks
are added to stage 3, as in the paper's own ladder.

At 224 px 1 % is met from half of Femto to four times Base.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mambaout.accounting import cost
from mambaout.errors import WrongRequest
from mambaout.variants import ALIGNMENT, NUM_STAGES, VARIANTS, ModelConfig, deepen

PAPER_LADDER: tuple[str, ...] = tuple(VARIANTS)  # femto, kobe, tiny, small, base
TOLERANCE = 0.01

DEEP_STAGE = 2  # counted from 0: where `deepen` puts its blocks
MOST_STEPS = 2  # of ALIGNMENT channels that a stage may be off the nearest to its proportion
FACTORS = (1e-3, 1e3)  # of MACs, between which that of the widths is looked for
BISECTIONS = 60


def label(config: ModelConfig) -> str:
    """A shape's short name, "w16-d10": its first width and its number of blocks."""
    return f"w{config.dims[0]}-d{config.num_blocks}"


def iso(
    base: ModelConfig, budget: float, *, depths: Sequence[int], tolerance: float = TOLERANCE
) -> dict[str, ModelConfig]:
    """Shapes of `budget` MACs, by label: for each number of blocks the widths that spend it.

    Raises ValueError, naming the nearest shape and its distance, where none is within tolerance.
    """
    shapes = [_widened(_with_blocks(base, num_blocks), budget, tolerance) for num_blocks in depths]
    return {label(shape): shape for shape in shapes}


def _with_blocks(config: ModelConfig, num_blocks: int) -> ModelConfig:
    least = config.num_blocks - config.depths[DEEP_STAGE] + 1
    if num_blocks < least:
        raise WrongRequest(
            f"{num_blocks} blocks: {config.depths} has {least - 1} outside stage 3, which needs "
            f"one; give at least {least}, or a base with fewer"
        )
    return deepen(config, num_blocks - config.num_blocks)


# -- the solver ------------------------------------------------------------------------------------


def _widened(base: ModelConfig, budget: float, tolerance: float) -> ModelConfig:
    """`base` made wider, or thinner, to cost `budget` MACs within `tolerance` (a share of it)."""
    if not (0 < budget < math.inf and tolerance > 0):
        raise WrongRequest(f"budget={budget}, tolerance={tolerance}: both must be above 0, finite")
    aligned = replace(base, hidden_multiple=math.lcm(base.hidden_multiple, ALIGNMENT))
    dims = _proportions(aligned, budget)
    nearest, nearest_off = aligned, math.inf
    for steps in range(MOST_STEPS + 1):  # as few steps off the proportions as will do
        fitting: list[tuple[float, ModelConfig]] = []
        for shape in _around(aligned, dims, steps):
            off = abs(cost(shape).macs / budget - 1)
            if off <= tolerance:
                fitting.append((_distortion(shape, dims), shape))
            if off < nearest_off:
                nearest, nearest_off = shape, off
        if fitting:
            return min(fitting, key=lambda pair: pair[0])[1]
    macs = cost(nearest).macs
    raise WrongRequest(
        f"no widths of depths={base.depths} from dims={base.dims} are within {tolerance:.2%} of "
        f"{budget:,.0f} MACs; the nearest, dims={nearest.dims}, has {macs:,.0f} "
        f"({macs / budget - 1:+.2%}): take that, or tolerance={_above(nearest_off):g}"
    )


def _above(share: float) -> float:
    """`share` rounded up to two digits."""
    unit = 10 ** (math.floor(math.log10(share)) - 1)
    return float(f"{math.ceil(share / unit) * unit:.2g}")


def _proportions(base: ModelConfig, budget: float) -> tuple[float, ...]:
    """The widths that would spend the budget if they were not whole."""

    def scaled(factor: float) -> tuple[float, ...]:
        """MACs grow about as `factor`: width counts twice."""
        return tuple(dim * factor**0.5 for dim in base.dims)

    low, high = map(math.log, FACTORS)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _spent_between(base, scaled(math.exp(middle))) < budget:
            low = middle
        else:
            high = middle
    return scaled(math.exp((low + high) / 2))


def _spent_between(base: ModelConfig, dims: tuple[float, ...]) -> float:
    """The MACs at widths that are not whole: at those rounded to 2 channels, much finer than the
    steps that are searched."""
    fine = tuple(max(2, 2 * round(dim / 2)) for dim in dims)
    return cost(replace(base, dims=fine, hidden_multiple=1)).macs


def _around(base: ModelConfig, dims: tuple[float, ...], steps: int) -> Iterator[ModelConfig]:
    """The legal, aligned shapes at most `steps` steps of 8 channels a stage from `dims`."""
    middle = [max(1, round(dim / ALIGNMENT)) for dim in dims]
    reach = range(-steps, steps + 1)
    stages = [[unit + step for step in reach if unit + step >= 1] for unit in middle]
    ordered = [small <= large for small, large in itertools.pairwise(base.dims)]
    for units in itertools.product(*stages):
        # A stage stays no narrower than the one before where the base has it so.
        pairs = zip(itertools.pairwise(units), ordered, strict=True)
        if any(keeps and small > large for (small, large), keeps in pairs):
            continue
        yield replace(base, dims=tuple(unit * ALIGNMENT for unit in units))


def _distortion(shape: ModelConfig, dims: tuple[float, ...]) -> float:
    """How far a shape is from the exact proportions: squared log ratios, a mean over stages."""
    pairs = zip(shape.dims, dims, strict=True)
    return sum(math.log(has / ideal) ** 2 for has, ideal in pairs) / NUM_STAGES
