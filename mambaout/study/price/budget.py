"""A design within a budget of hours: `--detect 0.5` with --budget-hours or --grant-hours.

The hours are those that the plan prints for the whole study: also its baseline, the sizes that it
predicts, and its searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from mambaout.errors import WrongRequest
from mambaout.study.price.design import Design, Designs

_EASIEST = 64  # times the wanted difference; beyond, no difference is offered in its place
_HALVINGS = 8  # steps to the difference that a budget finds: it is then known within 2 %


@dataclass(frozen=True, kw_only=True)
class StudyHours:
    """The hours that a whole study takes, or may take; infinite without a limit."""

    wall: float = math.inf  # until the last trial ends
    device: float = math.inf  # of all devices together

    @property
    def is_limited(self) -> bool:
        return math.isfinite(min(self.wall, self.device))

    def hold(self, needed: StudyHours) -> bool:
        return needed.wall <= self.wall and needed.device <= self.device

    @property
    def text(self) -> str:
        """The options that give these hours as a budget."""
        given = {"--budget-hours": self.wall, "--grant-hours": self.device}
        return " and ".join(f"{name} {h:g}" for name, h in given.items() if math.isfinite(h))

    def limited_as(self, budget: StudyHours) -> StudyHours:
        """These hours as a budget of its own, with three digits, and the limits of `budget`."""
        return StudyHours(
            wall=_rounded_up(self.wall) if math.isfinite(budget.wall) else math.inf,
            device=_rounded_up(self.device) if math.isfinite(budget.device) else math.inf,
        )


def _rounded_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit) * unit:.3g}")


HoursOf = Callable[[Design], StudyHours]  # what the whole study takes


def design_within(designs: Designs, budget: StudyHours, hours_of: HoursOf) -> Design:
    """The design that finds the difference within the budget, with as many shapes as it can.

    If none does, WrongRequest says what the budget reaches and what the wish needs.
    """
    tried: list[Design] = []
    for found in designs:
        if budget.hold(hours_of(found)):
            return _fuller(found, designs, budget, hours_of)
        tried.append(found)
    reached = _reached(designs, budget, hours_of)
    what = f"finds {reached:g} points" if reached else "does not pay two seeds of enough shapes"
    raise too_small(budget, designs.points, what, map(hours_of, tried))


def too_small(
    budget: StudyHours, points: float, what: str, ways: Iterable[StudyHours]
) -> WrongRequest:
    """The error of a budget that `what` says about, with the cheapest of the ways to the wish."""
    least = min(ways, key=lambda hours: max(hours.wall / budget.wall, hours.device / budget.device))
    return WrongRequest(
        f"--detect {points:g} with {budget.text}: this budget {what}; {points:g} points need "
        f"{least.limited_as(budget).text}"
    )


def _fuller(found: Design, designs: Designs, budget: StudyHours, hours_of: HoursOf) -> Design:
    """The design with the shapes that fit back.

    A shape that was left out early may have a place again after those that were left out later.
    """
    for label in found.left_out:
        fuller = designs.without([other for other in found.left_out if other != label])
        if fuller is not None and budget.hold(hours_of(fuller)):
            found = fuller
    return found


def _reached(designs: Designs, budget: StudyHours, hours_of: HoursOf) -> float | None:
    """The difference in points that a design within the budget finds; None if none does."""

    def is_found(points: float) -> bool:
        easier = replace(designs, points=points)
        return any(budget.hold(hours_of(each)) for each in easier)

    low, high = designs.points, _EASIEST * designs.points
    if not is_found(high):
        return None
    for _ in range(_HALVINGS):
        middle = _rounded_up(math.sqrt(low * high))
        low, high = (low, middle) if is_found(middle) else (middle, high)
    return high
