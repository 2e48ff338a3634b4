"""What a study says of the recipes that it compares within a seed: numbers, before any words.

The gate comes first (pairing.py). A difference is a verdict only if the gate of its group is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mambaout.study.law.paired import (
    GATE_ERRORS,
    GATE_SEEDS,
    LEVEL,
    Gate,
    PairedDifference,
    change,
    gate_of,
    holm,
    paired_difference,
)
from mambaout.study.pairing import Pair, PairedGroup, Pairing, has_pair, pairing_from_json
from mambaout.study.report.rows import Row


@dataclass(frozen=True, kw_only=True)
class GateFinding:
    """The gate of one group."""

    group: PairedGroup
    pair: Pair
    difference: PairedDifference
    state: Gate
    others: Mapping[str, PairedDifference]  # recipes that are above the floor beyond doubt, by name


@dataclass(frozen=True, kw_only=True)
class PairFinding:
    """One difference, and how sure it is."""

    place: str  # the group, or from which group to which; "" for the only one
    pair: Pair
    difference: PairedDifference
    p_value: float  # corrected for the number of comparisons; nan without a second seed
    gate: Gate  # of the group; of two groups the worse one
    num_comparisons: int
    is_change: bool = False  # of a difference, from one group to another

    @property
    def is_verdict(self) -> bool:
        return self.gate is Gate.OPEN and not math.isnan(self.p_value)

    @property
    def is_significant(self) -> bool:
        return self.is_verdict and self.p_value < LEVEL

    @property
    def detectable(self) -> float:
        return self.difference.detectable(self.num_comparisons)


@dataclass(frozen=True, kw_only=True)
class PairedReading:
    """All differences of a study within its seeds."""

    pairing: Pairing
    metric: str  # the final metric that is compared, in percent
    score: str  # the same in words: "top-1 on val"
    rows: Mapping[str, Row]  # by label
    gates: tuple[GateFinding, ...]  # one for each group; empty if the study has no gate
    pairs: tuple[PairFinding, ...]
    changes: tuple[PairFinding, ...]  # of a difference, from the fewest tokens to the most

    @property
    def has_results(self) -> bool:
        found = [*self.gates, *self.pairs]
        return any(one.difference.values for one in found)

    @property
    def is_open_somewhere(self) -> bool:
        return any(one.gate is Gate.OPEN for one in self.pairs)


def paired_reading(
    study: Mapping[str, Any], table: Sequence[Row], metric: str, score: str
) -> PairedReading | None:
    """`study` is study.json's content. None if the study compares nothing within a seed."""
    pairing = pairing_from_json(study.get("pairing"))
    if pairing is None:
        return None
    by_label = {row.label: row for row in table}

    def difference(group: PairedGroup, pair: Pair) -> PairedDifference:
        ends = [by_label.get(group.labels[name]) for name in pair]
        if any(row is None for row in ends):
            return PairedDifference((), ())
        first, second = (row.mean(metric) for row in ends if row is not None)
        return paired_difference(first, second)

    gates = tuple(
        _gate(group, pairing.gate, difference)
        for group in pairing.groups
        if pairing.gate is not None and has_pair(group, pairing.gate)
    )
    states = _states(pairing, gates)
    told = [
        (group, pair, difference(group, pair))
        for pair in pairing.pairs
        for group in pairing.groups
        if has_pair(group, pair)
    ]
    p_values = holm([found.p_value for _, _, found in told])
    pairs = tuple(
        PairFinding(
            place=group.place,
            pair=pair,
            difference=found,
            p_value=p_value,
            gate=states[group.place],
            num_comparisons=len(told),
        )
        for (group, pair, found), p_value in zip(told, p_values, strict=True)
    )
    return PairedReading(
        pairing=pairing,
        metric=metric,
        score=score,
        rows=by_label,
        gates=gates,
        pairs=pairs,
        changes=_changes(pairing, told, states),
    )


def _states(pairing: Pairing, gates: Sequence[GateFinding]) -> dict[str, Gate]:
    """The gate of each group, by its place."""
    # A study without a gate takes it for granted that what it varies matters.
    default = Gate.OPEN if pairing.gate is None else Gate.UNKNOWN
    found = {one.group.place: one.state for one in gates}
    return {group.place: found.get(group.place, default) for group in pairing.groups}


def _gate(
    group: PairedGroup, pair: Pair, difference: Callable[[PairedGroup, Pair], PairedDifference]
) -> GateFinding:
    others = {}
    for name in group.labels:
        if name not in pair:
            above = difference(group, Pair(name, pair.first))
            if len(above.values) >= GATE_SEEDS and above.in_errors >= GATE_ERRORS:
                others[name] = above
    found = difference(group, pair)
    return GateFinding(
        group=group, pair=pair, difference=found, state=gate_of(found), others=others
    )


def _changes(
    pairing: Pairing,
    told: Sequence[tuple[PairedGroup, Pair, PairedDifference]],
    states: Mapping[str, Gate],
) -> tuple[PairFinding, ...]:
    """By how much each difference changes from the fewest tokens to the most."""
    rows = []
    for pair in pairing.pairs:
        mine = [(group, found) for group, other, found in told if other == pair]
        ends = [(group, found) for group, found in mine if group.tokens is not None]
        if len(ends) > 1:
            rows.append((pair, ends[0], ends[-1]))
    found = [change(last, first) for _, (_, first), (_, last) in rows]
    p_values = holm([one.p_value for one in found])
    return tuple(
        PairFinding(
            place=f"{first.where} to {last.where}, {first.tokens:,} to {last.tokens:,} tokens",
            pair=pair,
            difference=one,
            p_value=p_value,
            gate=_worse(states[first.place], states[last.place]),
            num_comparisons=len(rows),
            is_change=True,
        )
        for (pair, (first, _), (last, _)), one, p_value in zip(rows, found, p_values, strict=True)
    )


def _worse(first: Gate, second: Gate) -> Gate:
    return next(state for state in (Gate.SHUT, Gate.UNKNOWN, Gate.OPEN) if state in (first, second))
