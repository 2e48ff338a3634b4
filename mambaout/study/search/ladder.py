"""Shapes that spend a budget: depth and width solved for it, legal and aligned by construction.

    at_budget(variant("femto"), 4.47e9, grow="width").dims     # (96, 192, 384, 576): Tiny's
    iso(variant("femto"), 1.15e9, depths=(12, 18, 24, 36))     # an iso-MAC slice
    star(variant("tiny"), depths=(12, 18, 24), widths=(64, 96, 128))

A budget is met in two steps: the continuous problem is solved for how much wider or deeper, then
the few aligned shapes around that solution are compared, and of those within the tolerance the
one truest to the base's proportions is taken. Widths are multiples of 8, hidden sizes too; blocks
are added to stage 3, as in the paper's own ladder.

At 224 px 1 % is met from half of Femto to four times Base. At 28 px and widths from 8 on, where a
step of 8 channels may be half of a stage, it takes `SMALL_TOLERANCE`; a looser one still lets the
shapes keep truer proportions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from mambaout.accounting import cost
from mambaout.errors import WrongRequest
from mambaout.variants import ALIGNMENT, NUM_STAGES, VARIANTS, ModelConfig, deepen, widen

Measure = Literal["macs", "params", "activations"]
Grow = Literal["width", "depth", "both"]

PAPER_LADDER: tuple[str, ...] = tuple(VARIANTS)  # femto, kobe, tiny, small, base
TOLERANCE = 0.01
SMALL_TOLERANCE = 0.02  # for widths from 8 on at 28 px

DEEP_STAGE = 2  # counted from 0: where `deepen` puts its blocks
MOST_STEPS = 2  # of ALIGNMENT channels that a stage may be off the nearest to its proportion
FACTORS = (1e-3, 1e3)  # between which a width or depth factor is looked for
BISECTIONS = 60


def label(config: ModelConfig) -> str:
    """A shape's short name, "w16-d10": its first width and its number of blocks."""
    return f"w{config.dims[0]}-d{config.num_blocks}"


def at_budget(
    base: ModelConfig,
    budget: float,
    *,
    grow: Grow,
    measure: Measure = "macs",
    tolerance: float = TOLERANCE,
    image_size: int = 224,
    num_classes: int = 1000,
) -> ModelConfig:
    """`base` grown, or shrunk, to cost `budget` within `tolerance` (a share of it).

    "width" keeps the blocks and "depth" the widths, but for nudges of a step of 8 channels a
    stage (two where one does not meet the budget); "both" lets depth and width each pay for half
    of the growth on a log scale, which is EfficientNet's compound scaling (depth 1.2 and width 1.1
    a step: 1.2 and 1.21 in MACs).

    Raises ValueError, naming the nearest shape and its distance, where none is within tolerance.
    """
    return _solved(base, budget, grow, measure, tolerance, image_size, num_classes)


def iso(
    base: ModelConfig,
    budget: float,
    *,
    depths: Sequence[int] = (),
    widths: Sequence[int] = (),
    measure: Measure = "macs",
    tolerance: float = TOLERANCE,
    image_size: int = 224,
    num_classes: int = 1000,
) -> dict[str, ModelConfig]:
    """Shapes of one cost, by label: for each number of blocks the widths that spend the budget,
    or for each first width the blocks."""
    if bool(depths) == bool(widths):
        raise WrongRequest(f"depths={tuple(depths)}, widths={tuple(widths)}: give one of the two")
    price = (measure, tolerance, image_size, num_classes)
    if depths:
        bases = [_with_blocks(base, num_blocks) for num_blocks in depths]
        shapes = [_solved(shape, budget, "width", *price) for shape in bases]
    else:
        bases = [_with_width(base, width) for width in widths]
        shapes = [_solved(shape, budget, "depth", *price, keep_first=True) for shape in bases]
    return {label(shape): shape for shape in shapes}


def star(
    centre: ModelConfig, *, depths: Sequence[int] = (), widths: Sequence[int] = ()
) -> dict[str, ModelConfig]:
    """A star sweep (SoViT, arXiv 2305.13035, section 3): `centre`, then its number of blocks
    varied with the widths as they are, then its first width with the blocks as they are."""
    shapes = [_with_width(centre, centre.dims[0])]
    shapes += [_with_blocks(shapes[0], num_blocks) for num_blocks in depths]
    shapes += [_with_width(centre, width) for width in widths]
    return {label(shape): shape for shape in shapes}


def _with_blocks(config: ModelConfig, num_blocks: int) -> ModelConfig:
    least = config.num_blocks - config.depths[DEEP_STAGE] + 1
    if num_blocks < least:
        raise WrongRequest(
            f"{num_blocks} blocks: {config.depths} has {least - 1} outside stage 3, which needs "
            f"one; give at least {least}, or a base with fewer"
        )
    return deepen(config, num_blocks - config.num_blocks)


def _with_width(config: ModelConfig, width: int) -> ModelConfig:
    if width < ALIGNMENT or width % ALIGNMENT:
        raise WrongRequest(f"width={width} must be a multiple of {ALIGNMENT}, at least {ALIGNMENT}")
    multiple = math.lcm(config.hidden_multiple, ALIGNMENT)
    return replace(widen(config, width / config.dims[0]), hidden_multiple=multiple)


# -- the solver ------------------------------------------------------------------------------------


def _solved(
    base: ModelConfig,
    budget: float,
    grow: Grow,
    measure: Measure,
    tolerance: float,
    image_size: int,
    num_classes: int,
    keep_first: bool = False,
) -> ModelConfig:
    """See `at_budget`; `keep_first` leaves the first width, which names the shape, alone."""
    if not (0 < budget < math.inf and tolerance > 0):
        raise WrongRequest(f"budget={budget}, tolerance={tolerance}: both must be above 0, finite")
    aligned = replace(base, hidden_multiple=math.lcm(base.hidden_multiple, ALIGNMENT))

    def spent(config: ModelConfig) -> float:
        return getattr(cost(config, image_size, num_classes), measure)

    dims, blocks = _proportions(aligned, budget, grow, spent)
    nearest, nearest_off = aligned, math.inf
    for steps in range(MOST_STEPS + 1):  # as few steps off the proportions as will do
        fitting: list[tuple[float, ModelConfig]] = []
        for shape in _around(aligned, dims, blocks, grow, steps, keep_first):
            off = abs(spent(shape) / budget - 1)
            if off <= tolerance:
                fitting.append((_distortion(shape, dims, blocks), shape))
            if off < nearest_off:
                nearest, nearest_off = shape, off
        if fitting:
            return min(fitting, key=lambda pair: pair[0])[1]
    raise WrongRequest(
        f"no shape grown in {grow} from depths={base.depths}, dims={base.dims} is within "
        f"{tolerance:.2%} of {budget:,.0f} {measure}; the nearest, depths={nearest.depths}, "
        f"dims={nearest.dims}, has {spent(nearest):,.0f} ({spent(nearest) / budget - 1:+.2%}): "
        f"take that, or tolerance={_above(nearest_off):g}"
    )


def _above(share: float) -> float:
    """`share` rounded up to two digits."""
    unit = 10 ** (math.floor(math.log10(share)) - 1)
    return float(f"{math.ceil(share / unit) * unit:.2g}")


def _proportions(
    base: ModelConfig, budget: float, grow: Grow, spent: Callable[[ModelConfig], float]
) -> tuple[tuple[float, ...], float]:
    """The widths and the blocks of stage 3 that would spend the budget if they were not whole."""

    def scaled(factor: float) -> tuple[tuple[float, ...], float]:
        """MACs grow about as `factor`: depth counts once, width twice."""
        wide = {"width": factor**0.5, "depth": 1.0, "both": factor**0.25}[grow]
        deep = {"width": 1.0, "depth": factor, "both": factor**0.5}[grow]
        # All blocks take part in the proportion, stage 3 alone in the change.
        added = base.num_blocks * (deep - 1)
        return tuple(dim * wide for dim in base.dims), max(1.0, base.depths[DEEP_STAGE] + added)

    low, high = map(math.log, FACTORS)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _spent_between(base, *scaled(math.exp(middle)), spent) < budget:
            low = middle
        else:
            high = middle
    return scaled(math.exp((low + high) / 2))


def _spent_between(
    base: ModelConfig,
    dims: tuple[float, ...],
    blocks: float,
    spent: Callable[[ModelConfig], float],
) -> float:
    """The cost at widths and blocks that are not whole: exact in the blocks, of which it is a
    line; at the widths rounded to 2 channels, much finer than the steps that are searched."""
    fine = tuple(max(2, 2 * round(dim / 2)) for dim in dims)
    one, two = (
        spent(replace(base, dims=fine, depths=_depths(base, count), hidden_multiple=1))
        for count in (1, 2)
    )
    return one + (blocks - 1) * (two - one)


def _depths(base: ModelConfig, third: int) -> tuple[int, ...]:
    return (*base.depths[:DEEP_STAGE], third, *base.depths[DEEP_STAGE + 1 :])


def _around(
    base: ModelConfig,
    dims: tuple[float, ...],
    blocks: float,
    grow: Grow,
    steps: int,
    keep_first: bool,
) -> Iterator[ModelConfig]:
    """The legal, aligned shapes at most `steps` steps of 8 channels a stage from `dims`."""
    middle = [max(1, round(dim / ALIGNMENT)) for dim in dims]
    reach = range(-steps, steps + 1)
    stages = [[unit + step for step in reach if unit + step >= 1] for unit in middle]
    if keep_first:
        stages[0] = [middle[0]]
    counts = {math.floor(blocks), math.ceil(blocks)}
    if grow != "width" and steps:
        counts |= {count + step for count in counts for step in (-1, 1)}
    ordered = [small <= large for small, large in itertools.pairwise(base.dims)]
    for units in itertools.product(*stages):
        # A stage stays no narrower than the one before where the base has it so.
        pairs = zip(itertools.pairwise(units), ordered, strict=True)
        if any(keeps and small > large for (small, large), keeps in pairs):
            continue
        wide = tuple(unit * ALIGNMENT for unit in units)
        for count in sorted(counts):
            if count >= 1:
                yield replace(base, dims=wide, depths=_depths(base, count))


def _distortion(shape: ModelConfig, dims: tuple[float, ...], blocks: float) -> float:
    """How far a shape is from the exact proportions: squared log ratios, a mean over stages for
    the widths. A block too many changes the cost as it does, a width twice as much."""
    wide = sum(math.log(has / ideal) ** 2 for has, ideal in zip(shape.dims, dims, strict=True))
    deep = math.log(shape.depths[DEEP_STAGE] / blocks) ** 2
    return 4 * wide / NUM_STAGES + deep
