"""UperNet is smp's weight for weight, costs what is said, and compiles once on XLA."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectors import SMALL, check_parameters, counted
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import nn

from mambaout.dense.resizing import pool_matrix, pooled, resize_matrix, resized
from mambaout.dense.upernet import ChannelDropout, UperNet, upernet
from mambaout.dense_accounting import SEGMENTER
from mambaout.dense_layers import segmenter_layers
from mambaout.variants import VARIANTS

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_norms(module: nn.Module) -> None:
    """Statistics, scales and shifts that leave no batch norm without a say."""
    torch.manual_seed(3)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            for tensor in (each.weight, each.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (each.bias, each.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor)


# -- resizing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (9, 31), (5, 4), (1, 1), (7, 12)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_products_resize_as_torch_does(size, memory):
    x = torch.randn(2, 5, 7, 12).contiguous(memory_format=memory).requires_grad_()
    theirs = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized(x, size), theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn(theirs.shape)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), x)
    (found,) = torch.autograd.grad((resized(x, size) * weights).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(16, 16), (7, 12), (2, 5), (1, 1)])
def test_products_pool_as_torch_does(bins, size):
    x = torch.randn(2, 5, *size)
    torch.testing.assert_close(pooled(x, bins), F.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize("matrix", [resize_matrix, pool_matrix])
def test_the_weights_of_each_place_sum_to_one(matrix):
    for size_in, size_out in ((7, 12), (12, 7), (1, 3), (33, 33)):
        sums = matrix(size_in, size_out, torch.device("cpu")).sum(1)
        torch.testing.assert_close(sums, torch.ones(size_out))


# -- the segmenter --------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (50, 37)])
def test_the_decoder_is_smps_weight_for_weight(size, training):
    torch.manual_seed(0)
    model = upernet(SMALL, 4, channels=8)
    theirs = UPerNetDecoder((0, 0, *SMALL.dims), decoder_channels=8)
    random_norms(theirs)
    state = {}
    for name, value in theirs.state_dict().items():
        kind, _, rest = name.partition(".")
        layer = rest.removesuffix(f".{rest.split('.')[-1]}")
        last = "conv" if layer.endswith("0") else "norm"
        parts, end = rest.split("."), rest.split(".")[-1]
        if kind == "feature_norms":
            model.backbone.norms.get_submodule(parts[0]).state_dict()[end].copy_(value)
            continue
        if kind == "psp" and parts[0] == "blocks":
            state[f"pools.{parts[1]}.{last}.{end}"] = value
        elif kind == "psp":
            state[f"bottleneck.{last}.{end}"] = value
        elif kind == "fusion_block":
            state[f"fuse.{last}.{end}"] = value
        else:
            ours = {"fpn_lateral_blocks": "laterals", "fpn_conv_blocks": "smooths"}[kind]
            state[f"{ours}.{2 - int(parts[0])}.{last}.{end}"] = value
    model.decoder.load_state_dict(state)
    model.train(training)
    theirs.train(training)
    images = torch.randn(2, 3, *size)
    plain = [each.permute(0, 3, 1, 2) for each in model.backbone.forward_pyramid(images)]
    expected = theirs([images, images, *plain])
    torch.testing.assert_close(
        model.decoder(model.backbone(images)), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_the_published_closed_form_is_what_torch_counts(name):
    with torch.device("meta"):
        model = upernet(VARIANTS[name]).eval()
        images = torch.empty(1, 3, 512, 2048)
    closed = SEGMENTER.cost(VARIANTS[name])
    assert closed.params == sum(parameter.numel() for parameter in model.parameters())
    assert closed.macs == counted(lambda: model(images))


@pytest.mark.parametrize("size", [(64, 96), (50, 37)])
def test_the_list_of_layers_is_the_segmenter_for_any_shape(size):
    with torch.device("meta"):
        model = upernet(SMALL, 5, channels=8)
        images = torch.empty(2, 3, *size)
    parts = segmenter_layers(SMALL, size, 5, 8)
    check_parameters(model, parts)
    macs = [part.times * sum(x.macs for x in part.layers.values()) for part in parts]
    assert 2 * sum(macs) == counted(lambda: model.train()(images))
    assert 2 * sum(macs[:-1]) == counted(lambda: model.eval()(images))


@pytest.mark.parametrize("size", [(64, 96), (50, 37)])
def test_logits_have_the_images_size_and_training_has_two_of_them(size):
    model = upernet(SMALL, 4, channels=8)
    images = torch.randn(2, 3, *size)
    pair = model.train()(images)
    assert [each.shape for each in pair] == [(2, 4, *size)] * 2
    assert model.eval()(images).shape == (2, 4, *size)
    torch.stack([each.square().mean() for each in pair]).sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_dropout_is_a_tenth_of_the_channels_before_both_classes():
    model = upernet(SMALL, 4, channels=8)
    rates = [m.p for m in model.modules() if isinstance(m, ChannelDropout)]
    assert rates == [0.1, 0.1]


def test_under_bf16_autocast_logits_are_fp32_and_near():
    torch.manual_seed(0)
    model: UperNet = upernet(SMALL, 4, channels=8).eval()
    random_norms(model)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(images)
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    assert float((low - exact).abs().max()) < 0.05 * float(exact.abs().max())


@pytest.mark.parametrize("words", [{"num_classes": 0}, {"channels": 0}])
def test_a_wrong_segmenter_is_refused(words):
    with pytest.raises(ValueError, match="give 1 or more"):
        upernet(SMALL, **words)


@pytest.mark.slow
def test_xla_compiles_a_step_once_and_computes_what_the_cpu_computes():
    env = os.environ | {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1"}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # half the time of a compilation
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent), env.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, HERE / "upernet_on_xla.py"], capture_output=True, text=True, env=env
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["xla"] == pytest.approx(found["cpu"], rel=1e-3)
    assert found["fallbacks"] == ["aten::_local_scalar_dense"]  # the losses, read at the end
    placing, first, *later = found["compiled"]
    assert first == placing + 1
    assert set(later) == {first}
    assert "Mask R-CNN does not run on XLA" in found["detector"]
