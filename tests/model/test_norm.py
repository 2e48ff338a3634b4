"""Promises of the norm of narrow maps: what torch's gives, at any shape, and its gradients."""

from __future__ import annotations

import pytest
import torch
from needs import needs_c
from torch import nn

from mambaout.model import norm
from mambaout.model.norm import MOST_CHANNELS, LayerNorm

pytestmark = needs_c


@pytest.mark.parametrize("shape", [(3, 5, 7, 4), (2, 9, 9, 8), (1, 1, 1, 13), (2, 4, 4, 32)])
def test_a_narrow_map_is_normed_as_torch_does(shape):
    torch.manual_seed(0)
    ours = LayerNorm(shape[-1], eps=1e-6)
    nn.init.normal_(ours.weight), nn.init.normal_(ours.bias)
    exact = nn.LayerNorm(shape[-1], eps=1e-6).double()
    exact.load_state_dict(ours.state_dict())
    x = 3 + 2 * torch.randn(shape, requires_grad=True)
    x_exact = x.detach().double().requires_grad_()
    x.retain_grad()
    found, wanted = ours(x), exact(x_exact)
    grad = torch.randn(shape)
    found.backward(grad), wanted.backward(grad.double())
    pairs = [(found, wanted), (x.grad, x_exact.grad)]
    parameters = zip(ours.parameters(), exact.parameters(), strict=True)
    pairs += [(one.grad, other.grad) for one, other in parameters]
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_any_number_of_threads_gives_the_same_bits():
    before, found = torch.get_num_threads(), []
    layer = LayerNorm(8)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x = torch.linspace(-1, 1, 5 * 36 * 8).view(5, 6, 6, 8).sin().requires_grad_()
            layer.zero_grad()
            out = layer(x)
            out.square().sum().backward()
            found.append((out, x.grad, layer.weight.grad, layer.bias.grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 4, 4, MOST_CHANNELS + 1),
        torch.randn(2, 4, 4, 8).double(),
        torch.randn(2, 4, 4, 8).bfloat16(),
        torch.randn(2, 8),
        torch.randn(0, 4, 4, 8),
    ],
    ids=["wide", "double", "bf16", "vectors", "no image"],
)
def test_what_it_does_not_take_goes_to_torch(x, monkeypatch):
    monkeypatch.setattr(norm._Norm, "apply", None)
    layer = LayerNorm(x.shape[-1]).to(x.dtype)
    wanted = nn.LayerNorm(x.shape[-1]).to(x.dtype)(x)
    assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize(
    "layer",
    [
        LayerNorm([4, 8]),
        LayerNorm(8, bias=False),
        LayerNorm(8, elementwise_affine=False),
    ],
    ids=["two dimensions", "no shift", "no scale"],
)
def test_a_norm_of_another_kind_is_torchs(layer):
    x = torch.randn(2, 3, 4, 8)
    wanted = torch.nn.functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    assert torch.equal(layer(x), wanted)


def test_a_scale_of_any_strides_is_read_right():
    layer, apart = LayerNorm(8), LayerNorm(8)
    nn.init.normal_(layer.weight)
    apart.weight = nn.Parameter(torch.stack([layer.weight.detach(), torch.ones(8)], 1)[:, 0])
    x, found = torch.randn(2, 3, 4, 8), []
    for one in (layer, apart):
        x_grad = x.clone().requires_grad_()
        out = one(x_grad)
        out.square().sum().backward()
        found.append((out, x_grad.grad, one.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
