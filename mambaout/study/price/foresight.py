"""What a study will be able to tell, said with its price: the power of width against depth.

The spread between seeds comes from finished trials on the same data, in any study of the storage.
Otherwise it is assumed, and the text says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mambaout.errors import WrongRequest
from mambaout.numbers import counted
from mambaout.recipe import Recipe
from mambaout.study.law.noise import SeedMean, noise_of
from mambaout.study.law.planned import PlannedSize, degrees_of
from mambaout.study.law.power import (
    MOST_PLANNED_SEEDS,
    ExpectedInterval,
    expected_interval,
    pair_seeds,
    seeds_needed,
    seeds_within,
)
from mambaout.study.price.finished_trials import finished_trials
from mambaout.train.metrics import TOP1

# Points of top-1, if no earlier trial tells it. On 6,000 garments, seeds differ by 0.99 points with
# 4 epochs and 0.72 with 12 (results/scale-fashion-mnist). On ImageNet, published seeds differ by
# about 0.2.
SMALL_SPREAD, LARGE_SPREAD = 0.8, 0.2
MANY_IMAGES = 500_000  # training images from which on the second value is assumed
EXAMPLE_POINTS = 0.5  # the difference that the plan speaks of, if the user names none
WIDTH = 100


@dataclass(frozen=True)
class KnownSpread:
    """The standard deviation between seeds, in points of top-1."""

    points: float
    degrees: int  # of freedom; 0 if the spread is assumed
    source: str
    shared: float = 0.0  # what all recipes of a seed have in common, beside `points`

    @property
    def text(self) -> str:
        if not self.degrees:
            return f"{self.points:.2f} points, assumed: {self.source}"
        text = f"{self.points:.2f} points ({self.degrees} degrees of freedom, {self.source})"
        if self.shared:
            text += f", beside {self.shared:.2f} that all shapes of a seed have in common"
        return text


def known_spread(storage: Path, data: str, num_train: int) -> KnownSpread:
    """The spread between seeds on the data with this fingerprint, from all studies in `storage`."""
    values: dict[Recipe, dict[int, float]] = {}
    studies = set()
    for trial in finished_trials(storage):
        value = trial.metrics.get(TOP1, math.nan)
        if trial.facts.get("data") != data or not math.isfinite(value) or trial.recipe is None:
            continue
        values.setdefault(trial.recipe, {})[trial.facts["seed"]] = value
        studies.add(trial.study)
    spread = noise_of(
        SeedMean(tuple(each.values()), recipe.schedule.total_epochs, tuple(each))
        for recipe, each in values.items()
    ).all_lengths
    if spread is not None:
        source = f"finished trials of {_few(studies)}"
        if spread.own_points is None:
            return KnownSpread(spread.points, spread.degrees, source)
        shared = math.sqrt(spread.shared_variance)
        return KnownSpread(spread.own_points, spread.own_degrees, source, shared)
    many = num_train >= MANY_IMAGES
    source = "no recipe has two finished seeds on these data yet"
    return KnownSpread(LARGE_SPREAD if many else SMALL_SPREAD, 0, source)


def _few(names: Collection[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# -- in words -------------------------------------------------------------------------------------


def foresight(
    ladders: Mapping[int, Sequence[PlannedSize]],
    spread: KnownSpread,
    points: float | None,
    grant_share: float | None = None,
) -> list[str]:
    """Lines of the plan on width against depth; empty if the study does not compare them.

    `grant_share` is the study's price as a share of the grant. Above 1, the lines say which
    difference the grant can find.
    """
    wanted = EXAMPLE_POINTS if points is None else points
    told = []
    for epochs, sizes in ladders.items():
        degrees = degrees_of(ladders, epochs)
        needed = seeds_needed(sizes, spread.points, wanted, degrees)
        two = [size if size.num_seeds > 1 else replace(size, num_seeds=2) for size in sizes]
        if expected_interval(two, spread.points, degrees, spread.shared) is None:
            continue
        found = expected_interval(sizes, spread.points, degrees, spread.shared)
        told.append(_ladder_text(epochs, sizes, found, wanted, needed))
    if not told:
        return []
    pair = pair_seeds(spread.points, wanted)
    each = f"{pair} seeds each" if pair is not None else "too many seeds"
    texts = [
        ("power", f"of width against depth: what twice the width / depth gains at equal MACs; "
         f"seeds differ by {spread.text}"),
        *(("", text) for text in told),
        ("", f"two networks of equal MACs alone would need {each} to find {wanted:g} points"),
    ]  # fmt: skip
    if grant_share is not None and grant_share > 1:
        texts.append(("", _within_grant(ladders, spread, 1 / grant_share)))
    lines = []
    for name, text in texts:
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=f"{name:<13}", subsequent_indent=" " * 13,
            break_on_hyphens=False,
        )  # fmt: skip
    return lines


def _ladder_text(
    epochs: int,
    sizes: Sequence[PlannedSize],
    found: ExpectedInterval | None,
    wanted: float,
    needed: int | None,
) -> str:
    counts = sorted({size.num_seeds for size in sizes})
    seeds = counted(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    text = f"{counted(epochs, 'epoch')}, {len(sizes)} shapes with {seeds}: "
    if found is None:
        text += "not known, because no shape has a second seed"
    else:
        text += (
            f"± {found.half:.2f} points; {wanted:g} points are found in "
            f"{100 * found.power(wanted):.0f} % of such studies"
        )
        if found.detectable <= wanted:
            return text
    if needed is None:
        return f"{text}; 80 % needs more than {MOST_PLANNED_SEEDS} seeds"
    return f"{text}; 80 % needs {counted(needed, 'seed')} each"


def _within_grant(
    ladders: Mapping[int, Sequence[PlannedSize]], spread: KnownSpread, share: float
) -> str:
    """What can be found with `share` of the MACs, spent on the seeds that help most."""
    found = {}
    for epochs, sizes in ladders.items():
        two = [replace(size, num_seeds=2) for size in sizes]
        budget = share * sum(size.num_seeds * size.price for size in sizes)
        left = budget - sum(size.num_seeds * size.price for size in two)
        if expected_interval(two, spread.points) is None:
            continue
        if left < 0:
            return (
                f"the grant does not pay two seeds of each shape with {counted(epochs, 'epoch')}; "
                "leave out shapes (--variants) or train shorter"
            )
        within = expected_interval(seeds_within(two, left), spread.points, 0, spread.shared)
        assert within is not None
        found[epochs] = within.detectable
    each = ", ".join(
        f"{points:.2f} points with {counted(e, 'epoch')}" for e, points in found.items()
    )
    return f"the grant alone finds {each}, with its seeds where they help most"


def check_compares(ladders: Mapping[int, Sequence[PlannedSize]], option: str) -> None:
    """Raise WrongRequest if no length of training has shapes that tell width from depth."""
    two = ([replace(size, num_seeds=2) for size in sizes] for sizes in ladders.values())
    if all(expected_interval(sizes, 1.0) is None for sizes in two):
        raise WrongRequest(
            f"{option}: this study has no shapes that tell width from depth; it needs at least "
            "three of one length of training that differ in both, with different MACs"
        )
