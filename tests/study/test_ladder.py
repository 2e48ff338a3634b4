"""Shapes that spend a budget: within tolerance, aligned, and true to what they were grown from."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaout.accounting import alignment, cost
from mambaout.study.search.ladder import (
    PAPER_LADDER,
    SMALL_TOLERANCE,
    Grow,
    at_budget,
    iso,
    label,
    star,
)
from mambaout.variants import VARIANTS, ModelConfig, variant

SMALL = ModelConfig(depths=(1, 1, 1, 1), dims=(16, 32, 64, 96), stem_stride=2, hidden_multiple=8)
MEASURES = st.sampled_from(("macs", "params", "activations"))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(PAPER_LADDER),
    grow=st.sampled_from(("width", "depth", "both")),
    measure=MEASURES,
    factor=st.floats(0.5, 4),
)
def test_published_sizes_grow_to_any_budget_within_one_percent(name, grow, measure, factor):
    base = variant(name)
    if grow == "depth" and factor < 1:
        factor = 1 / factor  # a base has blocks outside stage 3, below which depth cannot shrink
    budget = factor * getattr(cost(base), measure)
    shape = at_budget(base, budget, grow=grow, measure=measure)
    assert getattr(cost(shape), measure) == pytest.approx(budget, rel=0.01)
    assert alignment(shape) == []
    assert list(shape.dims) == sorted(shape.dims)
    if grow == "width":
        assert shape.depths == base.depths
    if grow == "depth":
        moved = [abs(new - old) for new, old in zip(shape.dims, base.dims, strict=True)]
        assert max(moved) <= 8, "depth leaves the widths, but for a step of 8"
        assert shape.depths[2] >= base.depths[2] - 1


@settings(max_examples=60, deadline=None)
@given(
    grow=st.sampled_from(("width", "depth", "both")),
    image_size=st.sampled_from((28, 32, 64)),
    octaves=st.floats(-2, 3),
)
def test_small_networks_grow_to_any_budget_within_the_stated_tolerance(grow, image_size, octaves):
    octaves = abs(octaves) if grow == "depth" else octaves
    budget = cost(SMALL, image_size, 10).macs * 2**octaves
    shape = at_budget(
        SMALL, budget, grow=grow, tolerance=SMALL_TOLERANCE, image_size=image_size, num_classes=10
    )
    assert cost(shape, image_size, 10).macs == pytest.approx(budget, rel=SMALL_TOLERANCE)
    assert alignment(shape) == []


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(PAPER_LADDER), low=st.floats(0.5, 4), more=st.floats(1.1, 4))
def test_a_larger_budget_never_gives_a_smaller_network(name, low, more):
    base = variant(name)
    spent = [
        cost(at_budget(base, factor * cost(base).macs, grow="width")).macs
        for factor in (low, low * more)
    ]
    assert spent[0] < spent[1]


def test_the_papers_own_steps_are_found_again():
    """Tiny is Femto made wider, Kobe Femto made deeper, Base Small made wider."""
    assert PAPER_LADDER == ("femto", "kobe", "tiny", "small", "base")
    steps: tuple[tuple[str, str, Grow], ...] = (
        ("femto", "tiny", "width"), ("femto", "kobe", "depth"), ("small", "base", "width"),
    )  # fmt: skip
    for start, end, grow in steps:
        shape = at_budget(VARIANTS[start], cost(VARIANTS[end]).macs, grow=grow)
        assert (shape.depths, shape.dims) == (VARIANTS[end].depths, VARIANTS[end].dims)


def test_growing_both_ways_pays_half_for_each():
    base = variant("tiny")
    shape = at_budget(base, 4 * cost(base).macs, grow="both")
    assert shape.num_blocks / base.num_blocks == pytest.approx(2, rel=0.1)
    assert shape.dims[2] / base.dims[2] == pytest.approx(2**0.5, rel=0.1)


def test_what_a_budget_does_not_concern_stays():
    base = ModelConfig(kernel_size=5, conv_ratio=0.5, drop_path=0.1, hidden_multiple=16)
    shape = at_budget(base, 2 * cost(base).macs, grow="width")
    kept = ("kernel_size", "conv_ratio", "drop_path", "hidden_multiple", "stem_stride", "expansion")
    assert [getattr(shape, name) for name in kept] == [getattr(base, name) for name in kept]


def test_a_budget_out_of_reach_names_the_nearest_shape_and_its_distance():
    base = variant("femto")
    with pytest.raises(
        ValueError, match=r"nearest, depths=\(3, 3, 1, 3\).*\(\+\d+\.\d+%\)"
    ) as found:
        at_budget(base, cost(base).macs / 4, grow="depth")
    remedy = float(str(found.value).rpartition("tolerance=")[2])
    shape = at_budget(base, cost(base).macs / 4, grow="depth", tolerance=remedy)
    assert shape.depths == (3, 3, 1, 3), "the remedy it names works"
    with pytest.raises(ValueError, match="budget=0"):
        at_budget(base, 0, grow="width")


def test_an_iso_slice_spends_one_budget_in_many_shapes():
    base = variant("femto")
    budget = cost(variant("tiny")).macs
    by_depth = iso(base, budget, depths=(12, 18, 24, 36, 48))
    assert [shape.num_blocks for shape in by_depth.values()] == [12, 18, 24, 36, 48]
    widths = [shape.dims[0] for shape in by_depth.values()]
    assert all(deep < shallow for shallow, deep in itertools.pairwise(widths))
    by_width = iso(base, budget, widths=(48, 64, 80, 96))
    assert [name.partition("-")[0] for name in by_width] == ["w48", "w64", "w80", "w96"]
    for name, shape in (by_depth | by_width).items():
        assert name == label(shape)
        assert cost(shape).macs == pytest.approx(budget, rel=0.01)
    with pytest.raises(ValueError, match="give one of the two"):
        iso(base, budget)


def test_a_star_varies_one_axis_at_a_time_around_its_centre():
    centre = variant("femto")
    arms = star(centre, depths=(12, 24, 36), widths=(24, 96))
    assert list(arms) == ["w48-d18", "w48-d12", "w48-d24", "w48-d36", "w24-d18", "w96-d18"]
    assert all((shape.dims[0] == 48) or (shape.num_blocks == 18) for shape in arms.values()), (
        "never both"
    )
    assert all(alignment(shape) == [] for shape in arms.values())
    with pytest.raises(ValueError, match=r"9 blocks.*at least 10"):
        star(centre, depths=(9,))
    with pytest.raises(ValueError, match="width=20"):
        star(centre, widths=(20,))
