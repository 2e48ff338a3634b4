"""Which recipes of a study are compared with each other within a seed, and which must lose first.

    Pairing(
        what="mixers",
        groups=(PairedGroup(labels={"identity": "identity", "gated_conv": "gated_conv", ...}),),
        pairs=(Pair("conv_ssm", "gated_conv"),),
        gate=Pair("identity", "gated_conv"),
    )

The seeds of two recipes are pairs: seed s has the same images in the same order for both. So what a
seed does to both recipes cancels in their difference (law/paired.py).

The gate is a pair whose answer is known beforehand: the first recipe lacks what the study varies,
so it must lose. If it does not lose, the study cannot say anything about the other pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Pair(NamedTuple):
    """Two recipes by name. Their difference is the first minus the second."""

    first: str
    second: str


@dataclass(frozen=True, kw_only=True)
class PairedGroup:
    """Recipes that differ only in what the study compares."""

    labels: Mapping[str, str]  # name of a recipe within the group -> its label in the study
    where: str = ""  # what they have in common, beside the other groups: "64 px"
    tokens: int | None = None  # places of the map where the first mixer mixes; None: not varied

    @property
    def place(self) -> str:
        """ "64 px, 1,024 tokens"; "" for the only group of a study."""
        told = [self.where, *([] if self.tokens is None else [f"{self.tokens:,} tokens"])]
        return ", ".join(filter(None, told))


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What a study compares within a seed."""

    what: str  # what differs, in the plural: "mixers"
    groups: tuple[PairedGroup, ...]  # if they differ in tokens: the fewest tokens first
    pairs: tuple[Pair, ...]  # by the names in the groups; without the gate
    gate: Pair | None = None  # its first must lose to its second
    remedy: str = ""  # a sentence: what to try if the gate is shut

    @property
    def num_comparisons(self) -> int:
        """How many differences are tested, over all groups; the gate is none of them."""
        return sum(has_pair(group, pair) for group in self.groups for pair in self.pairs)

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "groups": [
                {"labels": dict(group.labels), "where": group.where, "tokens": group.tokens}
                for group in self.groups
            ],
            "pairs": [list(pair) for pair in self.pairs],
            "gate": None if self.gate is None else list(self.gate),
            "remedy": self.remedy,
        }


def has_pair(group: PairedGroup, pair: Pair) -> bool:
    return pair.first in group.labels and pair.second in group.labels


def pairing_from_json(body: Mapping[str, Any] | None) -> Pairing | None:
    """The pairing that study.json holds; None if the study has none."""
    if body is None:
        return None
    gate = body["gate"]
    return Pairing(
        what=body["what"],
        groups=tuple(PairedGroup(**group) for group in body["groups"]),
        pairs=tuple(Pair(*pair) for pair in body["pairs"]),
        gate=None if gate is None else Pair(*gate),
        remedy=body["remedy"],
    )
