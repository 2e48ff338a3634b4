"""Recipes that differ only in the network: the ladders for laws and slopes.

A ladder has one length of training. If recipes differ in the length too, there is one ladder for
each length. So the two axes are never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mambaout.numbers import counted
from mambaout.study.ladders import largest_group
from mambaout.study.law.fit import Size
from mambaout.study.report.rows import Row
from mambaout.train.metrics import MACS, TOP1


@dataclass(frozen=True)
class Family:
    """Finished recipes with one length of training and different depths and widths.

    The recipe with the fewest MACs comes first.
    """

    epochs: int
    rows: tuple[Row, ...]
    title: str = ""  # replaces the epochs in the text

    @property
    def sizes(self) -> list[Size]:
        """For the laws: error over MACs of one image."""
        return [size(row, row.mean(MACS).value) for row in self.rows]

    @property
    def name(self) -> str:
        return self.title or counted(self.epochs, "epoch")

    @property
    def where(self) -> str:
        """ "at 12 epochs", "tuned per size"."""
        return self.title or f"at {self.name}"


def size(row: Row, cost: float) -> Size:
    """A row as a size, for the laws."""
    return Size(
        label=row.label,
        cost=cost,
        errors=tuple(100 - top1 for top1 in row.mean(TOP1).values),
        seed_numbers=row.mean(TOP1).seeds,
        depth=row.blocks,
        width=row.width,
        epochs=row.epochs,
    )


def families(table: Sequence[Row]) -> list[Family]:
    """The ladders, shortest training first.

    Recipes are grouped by everything but shape and length. If there are several groups, the largest
    is taken. The baseline recipe is not part of it.
    """
    ready = [row for row in table if row.mean(TOP1) and row.mean(MACS) and not row.is_baseline]
    lengths: dict[int, list[Row]] = {}
    for place in largest_group({place: row.recipe for place, row in enumerate(ready)}):
        lengths.setdefault(ready[place].epochs, []).append(ready[place])
    return [
        Family(epochs, tuple(sorted(lengths[epochs], key=lambda row: row.mean(MACS).value)))
        for epochs in sorted(lengths)
    ]


def longest(found: Sequence[Family]) -> Family | None:
    """The ladder with the most recipes. In a tie, the one with the longest training."""
    return max(found, key=lambda family: (len(family.rows), family.epochs), default=None)
