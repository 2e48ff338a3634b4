"""The closed forms are the network's own numbers, and the published ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from measured_networks import measured

from mambaout import build
from mambaout.accounting import (
    Cost,
    account_rows,
    account_table,
    alignment,
    cost,
    least_macs,
    mfu,
    parts,
    train_macs,
)
from mambaout.chips import CHIPS
from mambaout.recipe import BASELINE, RELEASED_CODE, tuned
from mambaout.variants import VARIANTS, ModelConfig, widen

# Parameters and MACs from the authors' code, the paper rounds them (Table 4); activations in
# millions from timm's results/benchmark-infer-*.csv, mambaout_* at 224 px.
PUBLISHED = {
    "femto": (7_304_536, 1_147_984_992, 8.34),
    "kobe": (9_141_208, 1_505_865_312, 10.0),
    "tiny": (26_545_096, 4_469_655_744, 16.68),
    "small": (48_488_072, 8_936_423_616, 27.72),
    "base": (84_813_092, 15_794_325_760, 36.95),
}
SHAPES = {  # config, image size, classes
    "every field moved": (
        ModelConfig(
            depths=(1, 2, 3, 1),
            dims=(16, 24, 56, 40),
            expansion=2.2,
            kernel_size=5,
            conv_ratio=0.6,
            stem_stride=2,
            hidden_multiple=8,
            drop_path=0.4,
        ),
        28,
        10,
    ),
    "an odd image": (ModelConfig(depths=(1, 1, 1, 1), dims=(10, 12, 14, 18)), 75, 3),
    "widened": (widen(VARIANTS["femto"], 0.5), 64, 100),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_closed_form_is_the_published_and_the_built_network(name):
    params, macs, mega_activations = PUBLISHED[name]
    found = cost(VARIANTS[name])
    assert (found.params, found.macs) == (params, macs)
    assert found.activations / 1e6 == pytest.approx(mega_activations, abs=0.005)
    assert found == measured(VARIANTS[name], 224, 1000)


@pytest.mark.parametrize("name", SHAPES)
def test_the_closed_form_is_the_built_network_for_any_shape(name):
    config, image_size, num_classes = SHAPES[name]
    assert cost(config, image_size, num_classes) == measured(config, image_size, num_classes)


def test_the_parts_are_the_modules_they_are_named_after():
    config, image_size, num_classes = SHAPES["every field moved"]
    model = build(config, num_classes)
    found = parts(config, image_size, num_classes)
    for name, part in found:
        own = sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
        assert part.params == own, name
    assert sum((part for _, part in found), Cost()) == cost(config, image_size, num_classes)


def test_a_size_below_one_is_an_error():
    with pytest.raises(ValueError, match="image_size=0"):
        cost(ModelConfig(), image_size=0)


def test_training_macs_are_three_forwards_an_image_seen():
    # The authors' femto run: 312 steps an epoch of 4096 over 310 epochs; 2.7e18 FLOP
    steps = 1_281_167 // 4096 * 310
    expected = 3 * steps * 4096 * PUBLISHED["femto"][1]
    assert train_macs(RELEASED_CODE, 1_281_167, 1000) == expected
    assert 2 * expected == pytest.approx(2.7e18, rel=0.02)
    few = tuned(BASELINE, global_batch=64, train_images=640, epochs=30, image_size=32)
    assert train_macs(few, 60_000, 10) == 3 * 30 * 640 * cost(few.model, 32, 10).macs


def test_the_sizes_that_cost_base_its_speed_are_named():
    assert alignment(VARIANTS["base"]) == [
        ("stages.0 hidden", 341),
        ("stages.1 hidden", 682),
        ("stages.2 hidden", 1365),
    ]
    assert alignment(VARIANTS["small"]) == []
    assert alignment(replace(VARIANTS["base"], hidden_multiple=8)) == []
    assert ("stages.0 width", 96) in alignment(VARIANTS["small"], multiple=128)
    assert alignment(widen(VARIANTS["femto"], 0.7)) == []


# -- utilisation -----------------------------------------------------------------------------------


def test_mfu_is_the_share_of_the_peak_that_trains():
    macs = PUBLISHED["tiny"][1]
    # 1,000 images/s of Tiny are 6 * 4.47e9 * 1e3 = 26.8 TFLOP/s, of one H100's 989
    assert mfu(macs, 1000, CHIPS["H100"], "bf16") == pytest.approx(26.818 / 989, rel=1e-4)
    assert mfu(macs, 1000, CHIPS["H100"], "bf16", 4) == pytest.approx(26.818 / 989 / 4, rel=1e-4)
    # a v3-8 is 8 devices, two to a chip: 4 * 123 = 492 TFLOP/s
    assert mfu(macs, 1000, CHIPS["TPU v3"], "bf16", 8) == pytest.approx(26.818 / 492, rel=1e-4)


def test_mfu_is_unknown_where_the_peak_is():
    assert mfu(1, 1.0, None, "fp32") is None
    assert mfu(1, 1.0, CHIPS["V100 SXM2 16GB"], "bf16") is None
    assert mfu(1, 1.0, CHIPS["TPU v3"], "fp32") is None


# -- text -----------------------------------------------------------------------------------------


def test_the_table_has_a_line_a_shape_and_names_slow_sizes():
    text = account_table({"tiny": VARIANTS["tiny"], "base": VARIANTS["base"]})
    head, columns, tiny, base, note = text.splitlines()
    assert head.startswith("224 px, 1,000 classes")
    assert columns.split()[-3:] == ["parameters", "MACs", "activations"]
    assert tiny.split() == [
        *("tiny", "3,3,9,3", "96,192,384,576"),
        *("26,545,096", "4,469,655,744", "16,683,688"),
    ]
    assert "15,794,325,760" in base
    assert note.startswith("base: slow sizes")
    assert "341" in note
    assert len({len(line) for line in (columns, tiny, base)}) == 1


def test_pricing_does_not_import_torch():
    code = "import sys, mambaout.accounting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_scan_s_macs_are_said_by_both_counts():
    config = replace(VARIANTS["femto"], mixer="conv_ssm")
    positions = ((56, 48, 3), (28, 96, 3), (14, 192, 9), (7, 288, 3))
    numbers = sum(blocks * side**2 * dim * 16 for side, dim, blocks in positions)
    assert least_macs(config) == cost(config).macs - 5 * numbers
    (row,) = account_rows({"mine": config})
    assert (row["macs"], row["least_macs"]) == (cost(config).macs, least_macs(config))
    assert f"mine: {least_macs(config):,} MACs, if a scan counts 4" in account_table(
        {"mine": config}
    )
    assert "if a scan" not in account_table({"femto": VARIANTS["femto"]})
    assert least_macs(VARIANTS["femto"]) == cost(VARIANTS["femto"]).macs


def test_an_ssm_adds_the_share_of_macs_and_parameters_that_was_computed_apart():
    """x1.18 and x1.03 in Femto, x1.10 and x1.02 in Tiny at 224 px, one direction."""
    for name, of_macs, of_params in (("femto", 1.18, 1.03), ("tiny", 1.10, 1.02)):
        plain, other = cost(VARIANTS[name]), cost(replace(VARIANTS[name], mixer="conv_ssm"))
        assert other.macs / plain.macs == pytest.approx(of_macs, abs=0.01)
        assert other.params / plain.params == pytest.approx(of_params, abs=0.01)
