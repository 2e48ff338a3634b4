"""Shapes that cost a given budget of MACs. All of them are legal and aligned.

    iso(variant("femto"), 1.15e9, depths=(12, 18, 24, 36))     # an iso-MAC slice

A budget is met in two steps. First the continuous problem gives the factor by which the widths grow
or shrink. Then the few aligned shapes near that solution are compared. Of those within the
tolerance, the shape nearest to the base's proportions is taken. Widths and hidden sizes are
multiples of 8. Blocks are added to stage 3, as in the paper's own ladder.

At 224 px, the shapes meet a budget within 1 %, from half of Femto's MACs to four times Base's.
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

DEEP_STAGE = 2  # counted from 0; `deepen` adds its blocks to this stage
MOST_STEPS = 2  # of ALIGNMENT channels, from a stage's exact proportion
FACTORS = (1e-3, 1e3)  # bounds for the factor of the MACs
BISECTIONS = 60


def label(config: ModelConfig) -> str:
    """A shape's short name, "w16-d10": its first width and its number of blocks."""
    return f"w{config.dims[0]}-d{config.num_blocks}"


def iso(
    base: ModelConfig, budget: float, *, depths: Sequence[int], tolerance: float = TOLERANCE
) -> dict[str, ModelConfig]:
    """Shapes that cost `budget` MACs, by label: one for each number of blocks.

    Raises ValueError if no shape is within the tolerance. The message names the nearest one.
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
    for steps in range(MOST_STEPS + 1):  # no more steps off the proportions than needed
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
    """The exact widths, not rounded, that would cost the budget."""

    def scaled(factor: float) -> tuple[float, ...]:
        """MACs grow about in proportion to `factor`, because they grow with the width squared."""
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
    """The MACs at widths that are not whole.

    The widths are rounded to 2 channels, which is much finer than the steps of the search.
    """
    fine = tuple(max(2, 2 * round(dim / 2)) for dim in dims)
    return cost(replace(base, dims=fine, hidden_multiple=1)).macs


def _around(base: ModelConfig, dims: tuple[float, ...], steps: int) -> Iterator[ModelConfig]:
    """The legal, aligned shapes at most `steps` steps of 8 channels a stage from `dims`."""
    middle = [max(1, round(dim / ALIGNMENT)) for dim in dims]
    reach = range(-steps, steps + 1)
    stages = [[unit + step for step in reach if unit + step >= 1] for unit in middle]
    ordered = [small <= large for small, large in itertools.pairwise(base.dims)]
    for units in itertools.product(*stages):
        # A stage that is at least as wide as the one before in the base is so here too.
        pairs = zip(itertools.pairwise(units), ordered, strict=True)
        if any(keeps and small > large for (small, large), keeps in pairs):
            continue
        yield replace(base, dims=tuple(unit * ALIGNMENT for unit in units))


def _distortion(shape: ModelConfig, dims: tuple[float, ...]) -> float:
    """How far a shape is from the exact proportions: the mean squared log ratio over stages."""
    pairs = zip(shape.dims, dims, strict=True)
    return sum(math.log(has / ideal) ** 2 for has, ideal in pairs) / NUM_STAGES
