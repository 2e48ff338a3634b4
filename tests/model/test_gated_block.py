"""Promises of the fused block: what its modules give, at any shape and type, for less memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from needs import needs_c
from torch import Tensor, nn

from mambaout import build, native
from mambaout.model import gated_passes, products
from mambaout.model.gated_block import GatedWeights, can_take, gated_block, modules_alone
from mambaout.model.network import GatedCNNBlock
from mambaout.model.norm import norm_function
from mambaout.variants import VARIANTS, ModelConfig

SMALL = ModelConfig(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), stem_stride=2)
# dim, kernel, share of the channels that are convolved, height and width: lanes that are full and
# not, both tiles, maps smaller than the kernel, blocks with nothing beside the convolution.
SHAPES = [
    (16, 7, 1.0, (14, 14)),
    (48, 7, 1.0, (8, 16)),
    (13, 7, 0.5, (5, 9)),
    (4, 3, 1.0, (6, 10)),
    (41, 5, 0.3, (7, 7)),
    (5, 9, 1.0, (1, 3)),
    (96, 7, 0.25, (2, 2)),
    (24, 1, 1.0, (4, 5)),
    (12, 7, 8 / 3, (15, 4)),
]

pytestmark = needs_c


def block_of(
    dim: int,
    kernel: int = 7,
    conv_ratio: float = 1.0,
    seed: int = 0,
    mixer: str = "gated_conv",
) -> GatedCNNBlock:
    """A block whose branch is as loud as its input."""
    torch.manual_seed(seed)
    config = replace(SMALL, kernel_size=kernel, conv_ratio=conv_ratio)
    block = GatedCNNBlock(dim, config, mixer)
    for name, parameter in block.named_parameters():
        nn.init.normal_(parameter, std=0.3)
        if name == "norm.weight":
            parameter.data += 1
    return block


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def results(block: GatedCNNBlock, x: Tensor, drop: Tensor | None) -> list[Tensor]:
    """The output, the gradient of x and those of the parameters."""
    block.zero_grad()
    x = x.detach().clone().requires_grad_()
    out = block(x, drop)
    draws = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=draws).to(out.dtype))
    return [out.detach(), gradient(x), *(gradient(p).clone() for p in block.parameters())]


def off(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Of each tensor, the largest error over the largest entry."""
    pairs = zip(found, wanted, strict=True)
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs]


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(("dim", "kernel", "ratio", "size"), SHAPES)
def test_a_block_of_any_shape_gives_what_its_modules_give(dim, kernel, ratio, size, dropped):
    block = block_of(dim, kernel, ratio)
    x = torch.randn(3, *size, dim)
    drop = torch.tensor([0.0, 1.0, 1.7]) if dropped else None
    exact = results(block.double(), x.double(), None if drop is None else drop.double())
    block.float()
    errors = off(results(block, x, drop), exact)
    with modules_alone():
        allowed = off(results(block, x, drop), exact)
    assert errors[0] < 1e-6
    assert max(errors) < 1e-5
    assert max(errors) < 4 * max(allowed) + 2e-7


@pytest.mark.parametrize(("dim", "ratio"), [(16, 1.0), (13, 0.5)])
def test_a_block_without_a_mixer_gives_what_its_modules_give(dim, ratio):
    block, x = block_of(dim, conv_ratio=ratio, mixer="identity"), torch.randn(3, 6, 5, dim)
    weights = block.weights()
    assert weights is not None
    assert can_take(x, weights, None)
    found = results(block, x, None)
    with modules_alone():
        wanted = results(block, x, None)
    assert max(off(found, wanted)) < 1e-5


@pytest.mark.parametrize("dim", [16, 13, 48])
def test_in_bf16_it_is_no_farther_from_the_truth_than_its_modules_are(dim):
    block = block_of(dim)
    x = torch.randn(4, 14, 14, dim)
    exact = results(block.double(), x.double(), None)
    block.float()
    with torch.autocast("cpu", torch.bfloat16):
        errors = off(results(block, x, None), exact)
        with modules_alone():
            allowed = off(results(block, x, None), exact)
    assert sum(errors) < 1.1 * sum(allowed)
    assert max(errors) < 0.05


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(gated_passes, "CHUNK_BYTES", 2 * 81 * 256 * 4)  # two images at a time
    block, x, drop = block_of(48), torch.randn(5, 9, 9, 48), torch.tensor([0, 1, 1.5, 1, 2])
    found = on_threads(lambda: results(block, x, drop))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_in_bf16_what_is_ours_has_the_same_bits_on_any_number_of_threads():
    block, x = block_of(48), torch.randn(5, 9, 9, 48)

    def kept() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            weights = block.weights()
            assert weights is not None
            out = gated_block(x.clone().requires_grad_(), weights, None, 1e-6)
        node: Any = out.grad_fn
        return [out.detach(), *node.saved_tensors[-2:]]

    found = on_threads(kept)
    # The matrix products are torch's, and are the same here; the convolution's are ours.
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def on_threads(work: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """What `work` gives on 1, 2 and 3 threads."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(work())
    finally:
        torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("low", [False, True])
def test_what_drop_path_drops_is_left_out(low):
    block, x, grad = block_of(16), torch.randn(4, 9, 9, 16), torch.randn(4, 9, 9, 16)
    drop = torch.tensor([0.0, 1.5, 0.0, 1.5])
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        x.requires_grad_()
        out = block(x, drop)
        node: Any = out.grad_fn
        assert {len(kept) for kept in node.saved_tensors[-4:]} == {2 * 81}  # of two images
        out.backward(grad)
        assert x.grad is not None
        for dropped in (0, 2):
            assert torch.equal(out[dropped], x[dropped])
            assert torch.equal(x.grad[dropped], grad[dropped])
        all_dropped = block(x, torch.zeros(4))
        all_dropped.sum().backward()
    assert torch.equal(all_dropped, x)
    assert not any(torch.isnan(gradient(p)).any() for p in block.parameters())


@pytest.mark.parametrize("images_bytes", [1, 3 * 196 * 256 * 4])
@pytest.mark.parametrize("low", [False, True])
def test_images_in_chunks_give_what_they_give_at_once(low, images_bytes, monkeypatch):
    block, x, drop = block_of(48), torch.randn(5, 14, 14, 48), torch.tensor([0, 1, 1.5, 1, 2])
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        at_once = results(block, x, drop)
        monkeypatch.setattr(gated_passes, "CHUNK_BYTES", images_bytes)
        found = results(block, x, drop)
        with torch.no_grad():
            inferred = block(x, drop)
    torch.testing.assert_close(inferred, found[0])
    # In bf16 the weights' gradients of each chunk are rounded.
    assert max(off(found, [each.double() for each in at_once])) < (1e-2 if low else 1e-6)


def test_without_avx_512_it_is_the_same_to_rounding(monkeypatch):
    block, x = block_of(48), torch.randn(2, 14, 14, 48)
    wide = results(block, x, None)
    names = ("f", "vl", "bw", "dq")
    without = (*native.FLAGS, *(f"-mno-avx512{name}" for name in names))
    monkeypatch.setattr(native, "FLAGS", without)
    forget_c()
    try:
        errors = off(results(block, x, None), [each.double() for each in wide])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(block(x, None)).all()
    finally:
        forget_c()
    assert max(errors) < 1e-5


def forget_c() -> None:
    """Forget the compiled functions, so that the next call compiles the files again."""
    for remembered in (native._library, gated_passes._functions, products._functions):
        remembered.cache_clear()
    norm_function.cache_clear()


def test_its_gelu_is_off_by_less_than_6e_7_up_to_9():
    """The gates are the first linear's bias; what they multiply is 1, by its bias or conv's."""
    dim, worst = 500, 0.0
    for gates in torch.linspace(-9, 9, 8 * dim).view(8, dim):
        weights = GatedWeights(
            norm_weight=torch.ones(dim), norm_bias=torch.zeros(dim),
            fc1_weight=torch.zeros(2 * dim, dim), fc1_bias=torch.cat([gates, torch.ones(dim)]),
            conv_weight=torch.zeros(20, 1, 1, 1), conv_bias=torch.ones(20),
            fc2_weight=torch.eye(dim), fc2_bias=torch.zeros(dim),
        )  # fmt: skip
        out = gated_block(torch.zeros(1, 1, 1, dim), weights, None, 1e-6)
        worst = max(worst, (out.flatten().double() - F.gelu(gates.double())).abs().max().item())
    assert worst < 6e-7


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value):
    block, x = block_of(16), torch.randn(1, 4, 4, 16)
    x[0, 2, 2, 3] = value
    assert not torch.isfinite(block(x, None)[0, 2, 2]).any()


def test_a_view_of_any_strides_is_read_right():
    block, x = block_of(16), torch.randn(2, 16, 6, 8)
    view = x.permute(0, 2, 3, 1)
    assert torch.equal(block(view, None), block(view.contiguous(), None))
    drops = torch.tensor([[0.0, 5.0], [1.0, 5.0]])
    assert torch.equal(block(view, drops[:, 0]), block(view, drops[:, 0].contiguous()))


@pytest.mark.parametrize(
    "change",
    [
        lambda block, x: (block.double(), x.double()),
        lambda block, x: (block.to(torch.bfloat16), x.to(torch.bfloat16)),
        lambda block, x: (block.to("meta"), x.to("meta")),
        lambda block, x: (block, x[:0]),
    ],
    ids=["double", "bf16 weights", "another device", "no image"],
)
def test_what_it_cannot_take_its_modules_do(change):
    block, x = change(block_of(16), torch.randn(2, 4, 4, 16))
    weights = block.weights()
    assert weights is not None
    assert not can_take(x, weights, None)
    assert block(x, None).shape == x.shape


def test_who_listens_to_a_module_hears_it():
    block, x = block_of(16), torch.randn(2, 4, 4, 16)
    heard = []
    wanted = block(x, None)
    handle = block.conv.register_forward_hook(lambda *_: heard.append("conv"))
    torch.testing.assert_close(block(x, None), wanted, rtol=1e-5, atol=1e-5)
    assert heard == ["conv"]
    handle.remove()
    assert torch.equal(block(x, None), wanted)


def test_a_second_derivative_is_refused_and_never_wrong():
    block = block_of(8)
    x = torch.randn(1, 4, 4, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(block(x, None).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_torch_compile_gets_the_block_as_one_operator():
    block, x, graphs = block_of(16), torch.randn(2, 4, 4, 16), []

    def backend(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(block, backend=backend, fullgraph=True)
    for scale in (None, torch.ones(2)):
        compiled(x, scale)
    for graph in graphs:
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert called[0] == "mambaout.gated_block.default"
    assert len(graphs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("low", [False, True])
def test_torch_compile_takes_the_network_without_a_break(low):
    torch.manual_seed(0)
    model = build(replace(SMALL, drop_path=0.2), 5).train()
    images, drops = torch.randn(2, 3, 32, 32), torch.ones(2, SMALL.num_blocks)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        wanted, found = model(images, drops), compiled(images, drops)
    torch.testing.assert_close(
        found, wanted, rtol=1e-2 if low else 1e-5, atol=1e-2 if low else 1e-5
    )
    found.float().square().sum().backward()
    compiled_grads = [gradient(p).clone() for p in model.parameters()]
    model.zero_grad()
    wanted.float().square().sum().backward()
    for found_grad, parameter in zip(compiled_grads, model.parameters(), strict=True):
        bound = (0.05 if low else 1e-4) * gradient(parameter).abs().max()
        # Sums that cancel out are small, and their rounding is not.
        bound += 1e-5 if low else 1e-7
        assert (found_grad - gradient(parameter)).abs().max() <= bound


def test_a_published_network_gives_what_its_modules_give():
    torch.manual_seed(0)
    model, images = build(VARIANTS["femto"], 10).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = model(images)
        with modules_alone():
            torch.testing.assert_close(found, model(images), rtol=1e-5, atol=1e-5)


def test_without_a_compiler_its_modules_do_it_and_the_remedy_is_named(tmp_path):
    code = (
        "import logging; logging.basicConfig(); import torch\n"
        "from mambaout import build, native; from mambaout.model.gated_block import *\n"
        "model = build('femto', 3); model(torch.zeros(1, 3, 32, 32))\n"
        "from mambaout.model.gated_passes import c_files\n"
        "native.prepare(c_files(7, False), LOSS)"
    )
    environment = os.environ | {
        "MAMBAOUT_CACHE": str(tmp_path),
        "PATH": "/nowhere",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "1.5 times slower: there is no C compiler" in done.stderr
    assert "apt install gcc" in done.stderr
