"""Shapes as values: the published table, depth and width as free axes, and what cannot be built."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from mambaout.accounting import alignment, cost
from mambaout.variants import FEMTO, VARIANTS, ModelConfig, deepen, variant, widen


def test_the_table_is_the_papers():
    assert {name: (c.depths, c.dims, c.drop_path) for name, c in VARIANTS.items()} == {
        "femto": ((3, 3, 9, 3), (48, 96, 192, 288), 0.025),
        "kobe": ((3, 3, 15, 3), (48, 96, 192, 288), 0.025),
        "tiny": ((3, 3, 9, 3), (96, 192, 384, 576), 0.2),
        "small": ((3, 4, 27, 3), (96, 192, 384, 576), 0.4),
        "base": ((3, 4, 27, 3), (128, 256, 512, 768), 0.6),
    }
    for config in VARIANTS.values():
        unlike = replace(config, depths=FEMTO.depths, dims=FEMTO.dims, drop_path=FEMTO.drop_path)
        assert unlike == FEMTO  # the variants differ in these three alone


def test_the_published_hidden_sizes_stay_exact():
    assert [VARIANTS["base"].hidden(dim) for dim in (128, 256, 512, 768)] == [341, 682, 1365, 2048]
    for dim in range(3, 3000, 3):
        assert FEMTO.hidden(dim) == 8 * dim // 3


def test_hidden_sizes_round_up_to_the_multiple():
    aligned = replace(VARIANTS["base"], hidden_multiple=8)
    assert [aligned.hidden(dim) for dim in aligned.dims] == [344, 688, 1368, 2048]
    assert replace(aligned, hidden_multiple=128).hidden(768) == 2048


def test_drop_rates_rise_linearly_over_all_blocks():
    rates = VARIANTS["base"].drop_path_rates
    assert len(rates) == VARIANTS["base"].num_blocks == 37
    assert (rates[0], rates[-1]) == (0.0, 0.6)
    steps = [after - before for before, after in itertools.pairwise(rates)]
    assert steps == pytest.approx([0.6 / 36] * 36)
    assert ModelConfig(depths=(1, 1, 1, 1)).drop_path_rates == (0.0,) * 4


def test_deepen_adds_blocks_to_stage_three_alone():
    assert deepen(FEMTO, 6) == VARIANTS["kobe"]
    assert deepen(VARIANTS["kobe"], -6) == FEMTO
    with pytest.raises(ValueError, match=r"deepen by -9 .* take away at most 8"):
        deepen(FEMTO, -9)


@pytest.mark.parametrize("factor", [0.1, 0.25, 0.5, 0.7, 1.0, 4 / 3, 2.0, 3.1])
def test_widen_keeps_every_size_aligned_and_macs_near_the_square(factor):
    wide = widen(FEMTO, factor)
    assert alignment(wide) == []
    assert wide.depths == FEMTO.depths
    if factor >= 0.5:  # below, rounding to 8 outweighs the factor
        assert cost(wide).macs / cost(FEMTO).macs == pytest.approx(factor**2, rel=0.2)


def test_widening_by_one_changes_nothing_that_is_built():
    assert widen(FEMTO, 1.0) == replace(FEMTO, hidden_multiple=8)
    assert cost(widen(FEMTO, 1.0)) == cost(FEMTO)
    assert widen(FEMTO, 2.0).dims == VARIANTS["tiny"].dims
    with pytest.raises(ValueError, match="widen by 0"):
        widen(FEMTO, 0)


def test_an_unknown_variant_is_an_error_that_lists_the_known_and_the_nearest():
    assert variant("tiny") is VARIANTS["tiny"]
    with pytest.raises(ValueError, match=r"femto, kobe, tiny, small, base; did you mean 'small'\?"):
        variant("smal")
    with pytest.raises(ValueError, match=r"base$"):
        variant("resnet50")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depths", (3, 3, 9)),
        ("depths", (3, 3, 0, 3)),
        ("depths", (3, 3, 9.0, 3)),
        ("depths", (3, 3, True, 3)),
        ("dims", (48, 96, 192, -1)),
        ("dims", (47, 96, 192, 288)),
        ("kernel_size", 4),
        ("kernel_size", -1),
        ("conv_ratio", 0.0),
        ("conv_ratio", 3.0),
        ("conv_ratio", 0.01),
        ("conv_ratio", float("nan")),
        ("expansion", 0.5),
        ("expansion", float("nan")),
        ("mixer", "mamba"),
        ("stem_stride", 3),
        ("hidden_multiple", 0),
        ("drop_path", 1.0),
        ("drop_path", -0.1),
    ],
)
def test_a_shape_that_cannot_be_built_is_an_error_that_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        ModelConfig(**{field: value})


def test_lists_become_tuples_so_that_a_config_can_be_a_key():
    # JSON has no tuples, so lists come although the types forbid them.
    config = ModelConfig(depths=[1, 1, 1, 1], dims=[8, 16, 24, 32])  # pyright: ignore[reportArgumentType]
    assert config == ModelConfig(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    assert len({config, replace(config)}) == 1
