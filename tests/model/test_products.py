"""products.c: matrix products of any shape, as exact as torch's, with the same bits on any number
of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import needs_c

from mambaout.model.products import Products

pytestmark = needs_c
SIDES = st.integers(1, 100)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


@settings(deadline=None)  # the first call may compile the C file
@given(rows=SIDES, inner=SIDES, columns=SIDES)
def test_any_shape_is_multiplied_right(rows, inner, columns):
    draws = torch.Generator().manual_seed(rows * 10_000 + inner * 100 + columns)
    left, weight, right = (
        torch.randn(shape, generator=draws)
        for shape in ((rows, inner), (columns, inner), (rows, columns))
    )
    before = torch.randn(rows, columns, generator=draws)
    products, wanted = Products(), left.double() @ weight.t().double()
    for factor in (
        products.factor(weight, turned=True),
        products.factor(weight.t().contiguous(), turned=False),
    ):
        out = torch.full((rows, columns), torch.nan)
        products.multiply(left, factor, out)
        assert off(out, wanted) < 1e-6
        out = before.clone()
        products.multiply(left, factor, out, add=True)
        assert off(out, before.double() + wanted) < 1e-6
    out = torch.ones(inner, columns)
    products.add_outer(left, right, out)
    assert off(out, 1 + left.t().double() @ right.double()) < 1e-6
    assert torch.equal(products.turned(right), right.t())


def test_nothing_is_written_beside_the_result():
    rows, inner, columns = 13, 7, 37
    room = torch.zeros(3, rows, columns)
    products = Products()
    factor = products.factor(torch.randn(columns, inner), turned=True)
    products.multiply(torch.randn(rows, inner), factor, room[1])
    assert not room[0].any()
    assert not room[2].any()


@pytest.mark.parametrize("shape", [(1000, 24, 200), (300, 1536, 40), (2000, 8, 8)])
def test_any_number_of_threads_gives_the_same_bits(shape):
    rows, inner, columns = shape
    left, weight = torch.randn(rows, inner), torch.randn(inner, columns)
    right, before, found = torch.randn(rows, columns), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            products, out = Products(), torch.empty(rows, columns)
            products.multiply(left, products.factor(weight, turned=False), out)
            outer = torch.zeros(inner, columns)
            products.add_outer(left, right, outer)
            found.append((out, outer))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_long_sum_is_as_exact_as_torchs():
    left, right = torch.rand(200_000, 3), torch.rand(200_000, 5)
    wanted, out = left.t().double() @ right.double(), torch.zeros(3, 5)
    Products().add_outer(left, right, out)
    assert off(out, wanted) < max(1e-6, 2 * off(left.t() @ right, wanted))


def test_what_is_not_finite_stays_so():
    left = torch.randn(9, 6)
    left[4, 2] = torch.nan
    products, out = Products(), torch.empty(9, 40)
    products.multiply(left, products.factor(torch.randn(6, 40), turned=False), out)
    assert out[4].isnan().all()
    assert out.isnan().sum() == 40
