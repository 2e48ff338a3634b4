"""What a study will be able to tell about recipes that it compares within a seed (pairing.py)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from mambaout.errors import WrongRequest
from mambaout.numbers import counted
from mambaout.study.law.paired import GATE_ERRORS, GATE_SEEDS
from mambaout.study.law.power import (
    MOST_PLANNED_SEEDS,
    paired_detectable,
    paired_error,
    paired_seeds,
)
from mambaout.study.pairing import Pair, Pairing, has_pair
from mambaout.study.price.budget import HoursOf, StudyHours, too_small
from mambaout.study.price.design import Design
from mambaout.study.price.foresight import EXAMPLE_POINTS, WIDTH, KnownSpread


def paired_lines(
    pairing: Pairing,
    seeds: Mapping[str, Sequence[int]],
    spread: KnownSpread,
    points: float | None = None,
) -> list[str]:
    """Lines of the plan: which difference the study will find, and what opens the gate.

    `seeds` are those of each label; `points` is the difference that is wanted, if one is.
    """
    wanted = EXAMPLE_POINTS if points is None else points
    fewest = min((_shared(pairing, pair, seeds) for pair in pairing.pairs), default=0)
    count = pairing.num_comparisons
    found = paired_detectable(spread.points, fewest, count)
    needed = paired_seeds(spread.points, wanted, count)
    times = f", corrected for {count} comparisons" if count > 1 else ""
    texts = [f"of the {pairing.what}, compared within a seed; seeds differ by {spread.text}"]
    if fewest < 2:
        texts.append("one seed each: no difference can be told from luck")
    else:
        texts.append(
            f"{counted(fewest, 'seed')} each: 80 % of such studies find a difference of "
            f"{found:.2f} points{times}"
        )
    if fewest > 1 and sum(group.tokens is not None for group in pairing.groups) > 1:
        # A change is a difference of two differences.
        least = paired_detectable(math.sqrt(2) * spread.points, fewest, len(pairing.pairs))
        texts.append(
            f"of how a difference changes from the fewest tokens to the most, 80 % find {least:.2f}"
        )
    if not found <= wanted:
        each = f"{counted(needed, 'seed')} each" if needed else "too many seeds"
        texts.append(f"{wanted:g} points would need {each} (--seeds, or --detect {wanted:g})")
    if pairing.gate is not None:
        texts.append(_about_gate(pairing.gate, pairing, seeds, spread))
    lines = []
    for index, text in enumerate(texts):
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=f"{'' if index else 'power':<13}",
            subsequent_indent=" " * 13, break_on_hyphens=False,
        )  # fmt: skip
    return lines


def _about_gate(
    gate: Pair, pairing: Pairing, seeds: Mapping[str, Sequence[int]], spread: KnownSpread
) -> str:
    first, second = gate
    text = f"the gate: {first} must lose to {second} by {GATE_ERRORS:g} standard errors"
    fewest = _shared(pairing, gate, seeds)
    if fewest < GATE_SEEDS:
        return f"{text}; it is not known with fewer than {GATE_SEEDS} seeds"
    points = GATE_ERRORS * paired_error(spread.points, fewest)
    return f"{text}, about {points:.2f} points; else the study can say nothing of the others"


def _shared(pairing: Pairing, pair: Pair, seeds: Mapping[str, Sequence[int]]) -> int:
    """The fewest seeds that the pair has in common, over all groups that have it."""
    return min(
        (
            len(set(seeds[group.labels[pair.first]]) & set(seeds[group.labels[pair.second]]))
            for group in pairing.groups
            if has_pair(group, pair)
        ),
        default=0,
    )


def seeds_to_detect_pairs(pairing: Pairing, spread: KnownSpread, points: float) -> dict[str, int]:
    """How many seeds each label gets, so that 80 % of studies find `points` in every pair.

    Raises WrongRequest if it would be more than a study may have.
    """
    needed = paired_seeds(spread.points, points, pairing.num_comparisons)
    if needed is None or needed > MOST_PLANNED_SEEDS:
        least = paired_detectable(spread.points, MOST_PLANNED_SEEDS, pairing.num_comparisons)
        raise WrongRequest(
            f"--detect {points:g}: even {MOST_PLANNED_SEEDS} seeds are too few, with seeds that "
            f"differ by {spread.text}; ask for {math.ceil(100 * least) / 100:g} points or more, or "
            "train longer so that seeds differ less"
        )
    return _seeds_of_all(pairing, max(needed, _least_seeds(pairing)))


def check_pairs_fit(
    pairing: Pairing,
    spread: KnownSpread,
    points: float,
    seeds: Mapping[str, int],
    budget: StudyHours,
    hours_of: HoursOf,
) -> None:
    """Raise WrongRequest with what the budget finds, if it does not hold these seeds.

    No recipe is left out, because each is a part of the question.
    """
    needed = hours_of(Design(seeds=seeds))
    if budget.hold(needed):
        return
    what = "does not pay the fewest seeds of each recipe"
    for count in range(max(seeds.values()) - 1, _least_seeds(pairing) - 1, -1):
        if budget.hold(hours_of(Design(seeds=_seeds_of_all(pairing, count)))):
            found = paired_detectable(spread.points, count, pairing.num_comparisons)
            what = f"pays {counted(count, 'seed')} each, which find {found:.2f} points"
            break
    raise too_small(budget, points, what, [needed])


def _least_seeds(pairing: Pairing) -> int:
    return GATE_SEEDS if pairing.gate else 2


def _seeds_of_all(pairing: Pairing, count: int) -> dict[str, int]:
    return {label: count for group in pairing.groups for label in group.labels.values()}
