"""Shapes that spend a budget: within tolerance, aligned, and true to what they were grown from."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaout.accounting import alignment, cost
from mambaout.study.search.ladder import PAPER_LADDER, iso, label
from mambaout.variants import VARIANTS, ModelConfig, variant


def widened(base: ModelConfig, budget: float, **options: float) -> ModelConfig:
    """`base` with its own number of blocks and the widths that spend the budget."""
    (shape,) = iso(base, budget, depths=(base.num_blocks,), **options).values()
    return shape


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(PAPER_LADDER), factor=st.floats(0.5, 4))
def test_published_sizes_widen_to_any_budget_within_one_percent(name, factor):
    base = variant(name)
    shape = widened(base, factor * cost(base).macs)
    assert cost(shape).macs == pytest.approx(factor * cost(base).macs, rel=0.01)
    assert alignment(shape) == []
    assert list(shape.dims) == sorted(shape.dims)
    assert shape.depths == base.depths


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(PAPER_LADDER), low=st.floats(0.5, 4), more=st.floats(1.1, 4))
def test_a_larger_budget_never_gives_a_smaller_network(name, low, more):
    base = variant(name)
    spent = [cost(widened(base, factor * cost(base).macs)).macs for factor in (low, low * more)]
    assert spent[0] < spent[1]


def test_the_papers_own_steps_in_width_are_found_again():
    """Tiny is Femto made wider, Base Small made wider."""
    assert PAPER_LADDER == ("femto", "kobe", "tiny", "small", "base")
    for start, end in (("femto", "tiny"), ("small", "base")):
        shape = widened(VARIANTS[start], cost(VARIANTS[end]).macs)
        assert (shape.depths, shape.dims) == (VARIANTS[end].depths, VARIANTS[end].dims)


def test_what_a_budget_does_not_concern_stays():
    base = ModelConfig(kernel_size=5, conv_ratio=0.5, drop_path=0.1, hidden_multiple=16)
    shape = widened(base, 2 * cost(base).macs)
    kept = ("kernel_size", "conv_ratio", "drop_path", "hidden_multiple", "stem_stride", "expansion")
    assert [getattr(shape, name) for name in kept] == [getattr(base, name) for name in kept]


def test_a_budget_out_of_reach_names_the_nearest_shape_and_its_distance():
    base = variant("femto")
    budget = cost(base).macs / 300
    with pytest.raises(ValueError, match=r"nearest, dims=\(\d+, .*\(\+\d+\.\d+%\)") as found:
        widened(base, budget)
    remedy = float(str(found.value).rpartition("tolerance=")[2])
    shape = widened(base, budget, tolerance=remedy)
    assert f"dims={shape.dims}" in str(found.value), "the remedy it names works"
    with pytest.raises(ValueError, match="budget=0"):
        widened(base, 0)
    with pytest.raises(ValueError, match=r"9 blocks.*at least 10"):
        iso(base, budget, depths=(9,))


def test_an_iso_slice_spends_one_budget_in_many_shapes():
    base = variant("femto")
    budget = cost(variant("tiny")).macs
    by_depth = iso(base, budget, depths=(12, 18, 24, 36, 48))
    assert [shape.num_blocks for shape in by_depth.values()] == [12, 18, 24, 36, 48]
    widths = [shape.dims[0] for shape in by_depth.values()]
    assert all(deep < shallow for shallow, deep in itertools.pairwise(widths))
    for name, shape in by_depth.items():
        assert name == label(shape)
        assert cost(shape).macs == pytest.approx(budget, rel=0.01)
