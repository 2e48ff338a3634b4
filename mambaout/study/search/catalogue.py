"""The shapes for scaling studies: a grid of small ones, and the published ones.

small_shapes("w8-d4", "w16-d10")  # 16 channels in the first stage and 10 blocks
published_shapes()                # femto, kobe, ..., and shapes of Femto's MACs
"""

from __future__ import annotations

from mambaout.accounting import cost
from mambaout.rules import SMALL_MODEL
from mambaout.study.search.ladder import PAPER_LADDER, iso, label
from mambaout.variants import FEMTO, VARIANTS, ModelConfig, deepen, widen

ONE_BLOCK_A_STAGE = deepen(SMALL_MODEL, -2)
WIDTH_FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0)
ADDED_BLOCKS = (0, 6, 18)  # to stage 3
SMALL_SHAPES: dict[str, ModelConfig] = {
    label(shape): shape
    for factor in WIDTH_FACTORS
    for blocks in ADDED_BLOCKS
    for shape in (deepen(widen(ONE_BLOCK_A_STAGE, factor), blocks),)
}
ISO_DEPTHS = (12, 24, 36)  # of shapes with Femto's MACs; Femto has 18 blocks


def small_shapes(*labels: str) -> dict[str, ModelConfig]:
    """Shapes of the grid, w8-d4 to w48-d22. They suit images that are few or small."""
    return {label: SMALL_SHAPES[label] for label in labels}


def published_shapes() -> dict[str, ModelConfig]:
    """The published variants, and shapes of Femto's MACs with fewer and with more blocks."""
    published = {name: VARIANTS[name] for name in PAPER_LADDER}
    return published | iso(FEMTO, cost(FEMTO).macs, depths=ISO_DEPTHS)
