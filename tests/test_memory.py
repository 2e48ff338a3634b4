"""What training takes of a device, weighed on the network itself, and the first micro-batches."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from measured_networks import weighed
from needs import needs_c

from mambaout.accounting import cost, matrix_unit_use
from mambaout.chips import CHIPS
from mambaout.memory import (
    TPU_LANES,
    TrainMemory,
    device_bytes,
    first_micro_batch,
    lanes_of,
    train_memory,
)
from mambaout.recompute import ALL_STAGES
from mambaout.variants import VARIANTS, ModelConfig

ODD = ModelConfig(depths=(1, 2, 3, 1), dims=(16, 24, 56, 40), stem_stride=2, conv_ratio=0.5)
V3 = CHIPS["TPU v3"]


@pytest.mark.parametrize(
    ("config", "image_size", "num_classes"), [(ODD, 60, 10), (VARIANTS["femto"], 64, 1000)]
)
def test_what_the_backward_pass_needs_is_what_autograd_keeps(config, image_size, num_classes):
    exact = train_memory(config, image_size, num_classes, "fp32").kept_bytes
    assert exact == pytest.approx(weighed(config, image_size, num_classes, "fp32"), rel=0.01)
    # The estimate has norms in fp32, as on accelerators; the CPU's autocast leaves them in bf16.
    mixed = train_memory(config, image_size, num_classes, "bf16").kept_bytes
    assert 1 <= mixed / weighed(config, image_size, num_classes, "bf16") <= 1.3


@needs_c
@pytest.mark.parametrize("config", [ODD, VARIANTS["femto"]])
def test_a_fused_block_keeps_what_the_closed_form_says_which_is_less(config):
    exact = train_memory(config, 64, 10, "fp32", fused=True).kept_bytes
    assert exact == pytest.approx(weighed(config, 64, 10, "fp32", fused=True), rel=0.01)
    mixed = train_memory(config, 64, 10, "bf16", fused=True).kept_bytes
    assert 1 <= mixed / weighed(config, 64, 10, "bf16", fused=True) <= 1.3
    assert exact < 0.75 * train_memory(config, 64, 10, "fp32").kept_bytes


@pytest.mark.parametrize("stages", [(1,), (2, 3), ALL_STAGES])
@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=needs_c)])
def test_recomputed_stages_keep_what_the_closed_form_says(stages, fused):
    for config in (ODD, VARIANTS["femto"]):
        exact = train_memory(config, 64, 10, "fp32", fused=fused, recompute=stages)
        kept = weighed(config, 64, 10, "fp32", fused, stages)
        assert exact.kept_bytes == pytest.approx(kept, rel=0.01)
        plain = train_memory(config, 64, 10, "fp32", fused=fused)
        assert exact.kept_bytes < plain.kept_bytes
        assert exact.flight_bytes >= plain.flight_bytes
        assert exact.state_bytes == plain.state_bytes
        # The estimate has the blocks' inputs in fp32, as on a GPU; the CPU's modules give bf16.
        mixed = train_memory(config, 64, 10, "bf16", fused=fused, recompute=stages).kept_bytes
        assert 1 <= mixed / weighed(config, 64, 10, "bf16", fused, stages) <= 1.75


def test_recomputing_all_saves_more_than_half_of_a_published_network():
    for config in VARIANTS.values():
        assert train_memory(config, recompute=ALL_STAGES).image_bytes < (
            0.5 * train_memory(config).image_bytes
        )


def test_the_state_is_weights_gradients_and_two_moments():
    params = cost(VARIANTS["tiny"]).params
    assert train_memory(VARIANTS["tiny"], precision="fp32").state_bytes == 16 * params
    assert train_memory(VARIANTS["tiny"], precision="bf16").state_bytes == 18 * params


def test_lanes_only_ever_add_and_add_nothing_where_channels_fill_them():
    for config in VARIANTS.values():
        assert train_memory(config, lanes=TPU_LANES).image_bytes > train_memory(config).image_bytes
    full = ModelConfig(dims=(256, 256, 384, 512), expansion=2)
    plain, padded = train_memory(full, 224, 1024), train_memory(full, 224, 1024, lanes=TPU_LANES)
    colours = 224**2 * (TPU_LANES - 3) * 2  # bytes, of the images themselves
    assert padded.kept_bytes == plain.kept_bytes + colours
    assert padded.state_bytes == plain.state_bytes


@pytest.mark.parametrize(
    ("name", "size"),
    [("femto", 1024), ("kobe", 1024), ("tiny", 1024), ("small", 512), ("base", 512)],
)
def test_the_first_micro_batch_of_each_published_variant_on_a_v3_8(name, size):
    """Over the 8 cores, bf16, at 224 px: the recipe's 4096 images in that many at a time."""
    need = train_memory(VARIANTS[name], lanes=lanes_of(V3))
    sizes = [n for n in range(4096, 0, -16) if 4096 % n == 0]
    assert first_micro_batch(need, sizes, device_bytes(V3), 8) == size
    used = need.state_bytes + size // 8 * need.image_bytes
    room = 0.9 * 16 * 2**30 - used  # of 16 GiB a core
    assert 0 <= room < size // 8 * need.image_bytes


def test_the_smallest_is_tried_where_none_fits_by_the_estimate():
    assert first_micro_batch(TrainMemory(10, 5, 5), [64, 32, 16], usable_bytes=15) == 16
    assert first_micro_batch(TrainMemory(100, 5, 5), [64, 32, 16], usable_bytes=15) == 16
    assert first_micro_batch(TrainMemory(0, 5, 5), [64, 32, 16], 160, num_devices=4) == 64


def test_a_gpu_pads_nothing_and_is_one_device():
    assert lanes_of(CHIPS["H100"]) == lanes_of(None) == 1
    assert lanes_of(V3) == 128
    assert device_bytes(CHIPS["H100"]) == pytest.approx(0.9 * 80 * 2**30)


# -- the matrix unit ------------------------------------------------------------------------------


def test_channels_that_fill_the_unit_leave_it_idle_in_the_images_three_colours_alone():
    full = ModelConfig(dims=(256, 256, 384, 512), expansion=2)
    macs = cost(full, 224, 1024).macs - sum(
        depth * side**2 * dim * 49
        for depth, side, dim in zip(full.depths, (56, 28, 14, 7), full.dims, strict=True)
    )
    idle = 9 * 112**2 * (128 - 3) * 128
    assert matrix_unit_use(full, 224, 1024) == pytest.approx(macs / (macs + idle))
    thin = ModelConfig(dims=(48, 48, 48, 48), expansion=8 / 3)
    assert matrix_unit_use(thin) < 48 / 128


def test_wider_published_networks_use_more_of_a_matrix_unit():
    use = [matrix_unit_use(VARIANTS[name]) for name in ("femto", "kobe", "tiny", "small", "base")]
    assert use == sorted(use)
    assert use[0] == pytest.approx(0.271, abs=0.001)
    assert use[-1] == pytest.approx(0.854, abs=0.001)


def test_a_unit_of_one_row_is_always_full_and_its_slots_are_the_macs():
    assert matrix_unit_use(ODD, 60, 10, unit=1) == 1


def test_estimating_does_not_import_torch():
    code = "import sys, mambaout.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_scan_without_c_holds_the_values_of_a_piece():
    plain = replace(VARIANTS["femto"], mixer="conv_ssm")
    of_stage = 1024 * 48 * 16 * 10 * 4  # femto's first stage has 3,136 positions: more than a piece
    many = replace(plain, mixer="conv_ssm_two_way")
    for config in (plain, many):
        without = train_memory(replace(config, mixer="gated_conv"), precision="fp32").flight_bytes
        assert train_memory(config, precision="fp32").flight_bytes > without + of_stage
        fused = train_memory(config, precision="fp32", fused=True).flight_bytes
        assert fused < train_memory(config, precision="fp32").flight_bytes - of_stage
