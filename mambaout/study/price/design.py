"""The designs of a study that find a difference: which shapes it trains, with how many seeds.

The first design has all shapes, each with the seeds that it needs. Then shapes are left out one by
one: each time the one without which the wanted difference costs least. So a shape goes that costs
most for what it tells.

Each length of training keeps the model by which it is judged (law/shape.py): the curve over MACs if
all its shapes tell it, and one shape more than the model has terms, so that the scatter of the
shapes around it stays visible.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from mambaout.errors import WrongRequest
from mambaout.numbers import counted
from mambaout.study.law.planned import PlannedSize, degrees_of
from mambaout.study.law.power import (
    MOST_PLANNED_SEEDS,
    expected_interval,
    planned_model,
    with_seeds_added,
)
from mambaout.study.price.foresight import KnownSpread, check_compares


@dataclass(frozen=True, kw_only=True)
class Design:
    """Which shapes a study trains, and with how many seeds."""

    seeds: Mapping[str, int]  # of each label whose shape is compared
    left_out: tuple[str, ...] = ()  # labels


class _SeedSteps:
    """One set of shapes as it gets seeds one by one.

    A seed goes where it makes the gain most precise for its price.
    """

    def __init__(self, sizes: Sequence[PlannedSize]) -> None:
        self._more = with_seeds_added(sizes)
        self._known = [next(self._more)]

    def first(self, is_enough: Callable[[Sequence[PlannedSize]], bool]) -> dict[str, int] | None:
        """The fewest seeds that are enough, by bisection; None if even the most are too few."""
        few, enough = -1, 0  # places of steps
        while not is_enough(self._step(enough)):
            if enough > len(self._known):  # all steps have been tried
                return None
            few, enough = enough, 2 * enough + 1
        enough = min(enough, len(self._known) - 1)
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if is_enough(self._known[middle]) else (middle, enough)
        return {size.label: size.num_seeds for size in self._known[enough]}

    def _step(self, place: int) -> Sequence[PlannedSize]:
        """The step at that place, or the last one."""
        self._known += islice(self._more, max(0, place + 1 - len(self._known)))
        return self._known[min(place, len(self._known) - 1)]


@dataclass(frozen=True, kw_only=True)
class Designs:
    """The designs that find `points` in 80 % of such studies, at every length of training.

    An iteration gives all of them, and the fullest first. Labels of `kept` are never left out.
    Raises WrongRequest if the study does not compare width and depth.
    """

    ladders: Mapping[int, Sequence[PlannedSize]]  # by length of training
    spread: KnownSpread
    points: float
    kept: frozenset[str] = frozenset()
    # By the labels of a set of shapes. They do not depend on `points`, so a copy shares them.
    _steps: dict[tuple[str, ...], _SeedSteps] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_compares(self.ladders, "--detect")

    def __iter__(self) -> Iterator[Design]:
        now = self.whole()
        while now is not None:
            yield now
            labels = [label for label in now.seeds if self._may_go(label, now.left_out)]
            fewer = [self.without((*now.left_out, label)) for label in labels]
            now = min(filter(None, fewer), key=self.price, default=None)

    def price(self, design: Design) -> float:
        """Of all seeds, in the unit of the sizes' prices."""
        prices = {size.label: size.price for sizes in self.ladders.values() for size in sizes}
        return sum(prices[label] * count for label, count in design.seeds.items())

    def whole(self) -> Design:
        """The design with all shapes. WrongRequest if a shape needs over MOST_PLANNED_SEEDS."""
        found = self.without(())
        if found is not None:
            return found
        left = self._left(())
        epochs = next(each for each in left if self._seeds(each, left) is None)
        raise WrongRequest(
            f"--detect {self.points:g}: at {counted(epochs, 'epoch')} even {MOST_PLANNED_SEEDS} "
            f"seeds of a shape are too few, with seeds that differ by {self.spread.text}; ask for "
            "more points, or add shapes that differ more in depth and width"
        )

    def without(self, left_out: Collection[str]) -> Design | None:
        """The design without these labels; None if no number of seeds is enough then."""
        left = self._left(left_out)
        found: dict[str, int] = {}
        for epochs in left:
            seeds = self._seeds(epochs, left)
            if seeds is None:
                return None
            found |= seeds
        return Design(seeds=found, left_out=tuple(left_out))

    def _left(self, left_out: Collection[str]) -> dict[int, list[PlannedSize]]:
        """The ladders without these labels, with two seeds of each shape."""
        return {
            epochs: [replace(size, num_seeds=2) for size in sizes if size.label not in left_out]
            for epochs, sizes in self.ladders.items()
        }

    def _seeds(
        self, epochs: int, ladders: Mapping[int, Sequence[PlannedSize]]
    ) -> dict[str, int] | None:
        """The seeds of one length's shapes; empty if they do not tell width from depth.

        None if no number of seeds is enough.
        """
        sizes, degrees = ladders[epochs], degrees_of(ladders, epochs)
        if planned_model(sizes) is None:
            return {}
        labels = tuple(size.label for size in sizes)
        if labels not in self._steps:
            self._steps[labels] = _SeedSteps(sizes)

        def is_enough(now: Sequence[PlannedSize]) -> bool:
            found = expected_interval(now, self.spread.points, degrees, self.spread.shared)
            return found is not None and found.detectable <= self.points

        if not is_enough([replace(size, num_seeds=MOST_PLANNED_SEEDS) for size in sizes]):
            return None
        return self._steps[labels].first(is_enough)

    def _may_go(self, label: str, left_out: Collection[str]) -> bool:
        """Whether a length of training keeps its model without the label."""
        if label in self.kept:
            return False
        for sizes in self.ladders.values():
            if label not in {size.label for size in sizes}:
                continue
            whole = planned_model(sizes)
            left = [size for size in sizes if size.label not in {*left_out, label}]
            model = planned_model(left)
            if whole is None or model is None or model.is_curved != whole.is_curved:
                return False
            if len(left) <= model.terms.shape[1]:
                return False
        return True
