"""Promises of --detect within a budget: which shapes go, which stay, and what an error offers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from mambaout.errors import WrongRequest
from mambaout.study.law.planned import PlannedSize
from mambaout.study.law.power import expected_interval, planned_model
from mambaout.study.price.budget import StudyHours, design_within
from mambaout.study.price.design import Design, Designs
from mambaout.study.price.foresight import KnownSpread

SD = 0.8
SPREAD = KnownSpread(SD, 0, "assumed")


def size(width: int, depth: int, cost: float, price: float = 1.0, epochs: int = 4) -> PlannedSize:
    label = f"w{width}-d{depth}-e{epochs}"
    return PlannedSize(
        label=label, cost=cost, depth=depth, width=width, epochs=epochs, num_seeds=1, price=price
    )


def two_costs(middle_price: float = 1.0) -> list[PlannedSize]:
    """Three shapes at each of two costs: width / depth is 1/2, 1 and 2.

    So log2 (width / depth) is -1, 0 and 1, and is independent of the cost. The contrast is the
    mean of the outer shapes with the weights -1/4 and 1/4. The middle ones have no weight in it.
    """
    return [
        size(width, depth, cost, middle_price if width == depth else 1.0)
        for cost, shapes in ((1e6, ((2, 4), (4, 4), (8, 4))), (4e6, ((4, 8), (8, 8), (16, 8))))
        for width, depth in shapes
    ]


def designs_of(sizes: list[PlannedSize], points: float, **more) -> Designs:
    return Designs(ladders={sizes[0].epochs: sizes}, spread=SPREAD, points=points, **more)


def hours_in(designs: Designs, beside: float = 0.0) -> Callable[[Design], StudyHours]:
    """An hour a unit of price, and hours beside the compared shapes; two trials at a time."""

    def hours_of(design: Design) -> StudyHours:
        hours = designs.price(design) + beside
        return StudyHours(wall=hours / 2, device=hours)

    return hours_of


def test_the_shapes_that_tell_nothing_go_first():
    """By hand: four outer shapes with n seeds each give a standard error of sd / sqrt(4 n)."""
    designs = designs_of(two_costs(), 1.2)
    whole, *fewer = designs
    assert set(whole.seeds.values()) == {2}, "12 trials are enough for 1.2 points"
    assert fewer[0].left_out[0] in {"w4-d4-e4", "w8-d8-e4"}
    left = [replace(s, num_seeds=2) for s in two_costs() if s.width != s.depth]
    found = expected_interval(left, SD)
    assert found is not None
    assert found.standard_error == pytest.approx(SD / math.sqrt(4 * 2))


def test_a_shape_goes_only_if_the_budget_does_not_hold_it():
    designs = designs_of(two_costs(middle_price=3.0), 1.2)
    hours_of = hours_in(designs)
    assert hours_of(designs.whole()) == StudyHours(wall=10, device=20)  # 2 (4 + 3 + 3)
    for budget in (StudyHours(device=20), StudyHours(wall=10), StudyHours(wall=10, device=20)):
        assert design_within(designs, budget, hours_of).left_out == ()
    for budget in (StudyHours(device=19.9), StudyHours(wall=9.9), StudyHours(wall=9.9, device=99)):
        found = design_within(designs, budget, hours_of)
        assert found.left_out == ("w4-d4-e4",)
        assert budget.hold(hours_of(found))
    beside = hours_in(designs, beside=1.0)
    assert design_within(designs, StudyHours(device=20), beside).left_out, "all hours count"


def test_what_is_kept_stays_however_much_it_costs():
    sizes = two_costs(middle_price=3.0)
    designs = designs_of(sizes, 1.2, kept=frozenset({"w4-d4-e4"}))
    found = design_within(designs, StudyHours(device=19.9), hours_in(designs))
    assert found.left_out == ("w8-d8-e4",)


def test_every_length_keeps_its_model_and_a_shape_more_than_terms():
    shapes = [(8, 4), (8, 10), (16, 4), (24, 4), (16, 10), (32, 4), (16, 22), (24, 10)]
    costs = [0.92e6, 1.8e6, 3.1e6, 6.7e6, 6.6e6, 11.6e6, 13.8e6, 14.1e6]
    ladders = {
        epochs: [size(w, d, c, c, epochs) for (w, d), c in zip(shapes, costs, strict=True)]
        for epochs in (4, 12)
    }
    *_, last = Designs(ladders=ladders, spread=SPREAD, points=2.0)
    for sizes in ladders.values():
        left = [each for each in sizes if each.label not in last.left_out]
        model = planned_model(left)
        assert len(left) == 5
        assert model is not None
        assert model.is_curved
    four = designs_of(two_costs()[:1] + two_costs()[2:4] + two_costs()[5:], 2.0)
    assert len(list(four)) == 1, "of four shapes without the curve none may go"


def smallest(seed: int) -> Designs:
    """Seven or eight shapes with costs, and prices that only follow them roughly."""
    rng = np.random.default_rng(seed)
    shapes = [(w, d) for w in (8, 16, 32) for d in (4, 8, 16)]
    chosen = rng.permutation(len(shapes))[: 7 + seed % 2]
    sizes = []
    for width, depth in (shapes[place] for place in chosen):
        cost = width**1.5 * depth * 1e4
        sizes.append(size(width, depth, cost, cost * rng.lognormal(0, 0.7)))
    return designs_of(sizes, 0.6)


def all_designs(designs: Designs) -> Iterator[Design]:
    """Every design that may be: by brute force over the shapes."""
    (sizes,) = designs.ladders.values()
    whole = planned_model(sizes)
    assert whole is not None
    for count in range(len(sizes) - 4):
        for gone in itertools.combinations([each.label for each in sizes], count):
            left = [each for each in sizes if each.label not in gone]
            model = planned_model(left)
            if model is None or model.is_curved != whole.is_curved:
                continue
            found = designs.without(gone) if len(left) > model.terms.shape[1] else None
            if found is not None:
                yield found


def test_the_cheapest_design_is_near_that_of_brute_force_over_all_shapes():
    ratios = []
    for seed in range(6):
        designs = smallest(seed)
        least = min(map(designs.price, all_designs(designs)))
        ratios.append(min(map(designs.price, designs)) / least)
    assert max(ratios) < 1.1
    assert np.median(ratios) == pytest.approx(1.0)


def test_the_seeds_cost_hardly_more_than_those_of_brute_force():
    sizes = [
        replace(each, price=1.0 + place) for place, each in enumerate(two_costs()) if place != 4
    ]
    designs = designs_of(sizes, 0.9)
    found = designs.whole()
    least = math.inf
    for counts in itertools.product(range(2, 6), repeat=len(sizes)):
        tried = [replace(s, num_seeds=n) for s, n in zip(sizes, counts, strict=True)]
        reached = expected_interval(tried, SD)
        assert reached is not None
        if reached.detectable <= 0.9:
            least = min(least, sum(s.num_seeds * s.price for s in tried))
    assert max(found.seeds.values()) <= 5
    assert least <= designs.price(found) <= 1.15 * least


def test_no_shape_that_was_left_out_fits_back():
    for seed in range(4):
        designs = smallest(seed)
        hours_of = hours_in(designs)
        budget = StudyHours(device=0.8 * hours_of(designs.whole()).device)
        try:
            found = design_within(designs, budget, hours_of)
        except WrongRequest:
            continue
        for label in found.left_out:
            fuller = designs.without([each for each in found.left_out if each != label])
            assert fuller is None or not budget.hold(hours_of(fuller))


def test_a_budget_that_is_too_small_is_told_what_it_finds_and_what_the_wish_needs():
    designs = smallest(1)
    hours_of = hours_in(designs)
    budget = StudyHours(wall=0.7 * min(hours_of(each).wall for each in designs))
    with pytest.raises(WrongRequest) as error:
        design_within(designs, budget, hours_of)
    said = re.fullmatch(
        r"--detect 0.6 with --budget-hours \S+: this budget finds (\S+) points; 0.6 points need "
        r"--budget-hours (\S+)",
        str(error.value),
    )
    assert said, error.value
    points, hours = map(float, said.groups())
    assert design_within(replace(designs, points=points), budget, hours_of)
    assert design_within(designs, StudyHours(wall=hours), hours_of)
    harder = replace(designs, points=points * 0.95)
    assert not any(budget.hold(hours_of(each)) for each in harder), "the smallest that it finds"
    with pytest.raises(WrongRequest, match="does not pay two seeds of enough shapes"):
        design_within(designs, StudyHours(device=1e-3), hours_of)
