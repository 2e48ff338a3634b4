"""Promises of the C beneath a block and a norm: it is never called where it would read past an end,
compute another formula than the modules say, or hide from who watches torch's operations."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from needs import needs_c
from test_gated_block import SMALL, block_of, gradient, off, results
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from mambaout import build
from mambaout.model import gated_block as module
from mambaout.model import gated_passes
from mambaout.model.gated_block import modules_alone
from mambaout.model.network import GatedCNNBlock, MambaOut
from mambaout.model.norm import LayerNorm

pytestmark = needs_c
SHAPE = (2, 6, 5, 16)


def maps() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def network() -> MambaOut:
    torch.manual_seed(0)
    return build(SMALL, 5).eval()


def image() -> Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def _doubling_linear(block: GatedCNNBlock) -> None:
    forward = block.fc1.forward
    block.fc1.forward = lambda input: 2 * forward(input)


def _subclass(block: GatedCNNBlock) -> None:
    class Doubling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    other = Doubling(block.fc1.in_features, block.fc1.out_features)
    other.load_state_dict(block.fc1.state_dict())
    block.fc1 = other


def _no_padding_of_zeros(block: GatedCNNBlock) -> None:
    setattr(block.conv, "padding", (6, 6))  # noqa: B010 - as users do, whatever the type says
    setattr(block.conv, "dilation", (2, 2))  # noqa: B010


CHANGES: dict[str, Callable[[GatedCNNBlock], Any]] = {
    "epsilon": lambda block: setattr(block.norm, "eps", 0.5),
    "activation": lambda block: setattr(block, "act", nn.SiLU()),
    "GELU of tanh": lambda block: setattr(block, "act", nn.GELU("tanh")),
    "another linear": _subclass,
    "another forward": _doubling_linear,
    "dilation": _no_padding_of_zeros,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_module_that_was_changed_is_heeded(change):
    block = block_of(16)
    before = block(maps(), None)
    change(block)
    found = block(maps(), None)
    with modules_alone():
        torch.testing.assert_close(found, block(maps(), None), rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 1e-5


def test_linears_that_were_quantized_are_used():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated, and widely used
        quantized = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear})
        assert quantized(image()).shape == (1, 5)


def test_a_hook_for_all_modules_hears_the_block_s():
    heard = []
    handle = nn.modules.module.register_module_forward_hook(lambda *it: heard.append(type(it[0])))
    try:
        block_of(16)(maps(), None)
    finally:
        handle.remove()
    assert nn.Linear in heard


def test_parameters_of_any_strides_are_read_right():
    block, strided = block_of(16), block_of(16)
    wanted = results(block, maps(), None)
    for name, parameter in [*strided.named_parameters()]:
        owner, _, last = name.rpartition(".")
        apart = torch.randn(*parameter.shape[:-1], 2 * parameter.shape[-1])
        apart[..., ::2] = parameter.detach()
        setattr(strided.get_submodule(owner), last, nn.Parameter(apart[..., ::2]))
    assert not strided.norm.weight.is_contiguous()
    assert max(off(results(strided, maps(), None), [each.double() for each in wanted])) < 1e-6
    # One number for all channels: memory of 4 bytes.
    one = {"norm.bias": torch.tensor([0.7]).expand(16)}
    all_of_them = {"norm.bias": torch.full((16,), 0.7)}
    found = (torch.func.functional_call(block, each, (maps(), None)) for each in (one, all_of_them))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("fc1.bias", (3,)), ("conv.bias", (3,)), ("fc2.weight", (16, 70)), ("norm.weight", (4,))],
)
def test_parameters_that_do_not_fit_each_other_are_refused(name, shape):
    block = block_of(16)
    owner, _, last = name.rpartition(".")
    setattr(block.get_submodule(owner), last, nn.Parameter(torch.randn(shape)))
    with pytest.raises(RuntimeError):
        block(maps(), None)


@pytest.mark.parametrize("channels", [8, 32])
def test_a_map_of_another_width_is_refused(channels):
    with pytest.raises(RuntimeError):
        block_of(16)(torch.randn(2, 4, 4, channels), None)
    with pytest.raises(RuntimeError):
        LayerNorm(16)(torch.randn(2, 4, 4, channels))


def test_weights_that_are_nowhere_are_refused():
    with pytest.raises((RuntimeError, NotImplementedError)):
        block_of(16).to("meta")(maps(), None)
    with pytest.raises((RuntimeError, NotImplementedError)):
        LayerNorm(16, device="meta")(maps())


def test_a_scale_for_another_number_of_images_is_not_read_past_its_end():
    block = block_of(16)
    one = block(maps(), torch.tensor([0.5]))
    torch.testing.assert_close(one, block(maps(), torch.tensor([0.5, 0.5])), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError):
        block(maps(), torch.ones(3))


def test_a_scale_that_is_learned_gets_its_gradient():
    block, found = block_of(16), []
    for scale in (torch.tensor([0.5, 2.0], requires_grad=True) for _ in range(2)):
        block(maps(), scale).square().sum().backward()
        found.append(gradient(scale))
    assert torch.equal(*found)
    assert found[0].abs().min() > 0


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("then", [torch.bfloat16, torch.float16])
def test_autocast_around_the_backward_pass_changes_no_gradient(low, then):
    block, found = block_of(16), []
    for enabled in (False, True):
        block.zero_grad()
        x = maps().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = block(x, None)
        with torch.autocast("cpu", then, enabled=enabled):
            out.backward(torch.ones_like(out))
        found.append([gradient(x), *(gradient(p).clone() for p in block.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        return None


def test_no_gradient_from_above_is_none_below():
    x = maps().requires_grad_()
    out: Any = NoGradient.apply(block_of(16)(x, None))
    out.sum().backward()
    assert x.grad is None or not x.grad.any()


def test_parameters_that_are_frozen_get_no_gradient_and_the_others_the_same():
    block = block_of(16)
    wanted = results(block, maps(), None)[2:]
    parameters = [*block.parameters()]
    for frozen in range(len(parameters)):
        block.zero_grad()
        for index, parameter in enumerate(parameters):
            parameter.requires_grad_(index != frozen)
        draws = torch.Generator().manual_seed(1)
        block(maps(), None).backward(torch.randn(SHAPE, generator=draws))
        for index, parameter in enumerate(parameters):
            same = parameter.grad is not None and torch.equal(parameter.grad, wanted[index])
            assert same == (index != frozen)


def test_no_number_comes_from_memory_that_nobody_wrote(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # what is allocated is full of NaN
    try:
        for ratio in (1.0, 0.4, 8 / 3):
            for low in (False, True):
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    found = results(block_of(13, 7, ratio), torch.randn(2, 3, 5, 13), torch.ones(2))
                assert all(torch.isfinite(each).all() for each in found)
    finally:
        torch.use_deterministic_algorithms(False)


def test_operations_are_counted_whole():
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            network()(image()).sum().backward()
        counts.append(counter.get_total_flops())
    with modules_alone(), FlopCounterMode(display=False) as counter:
        network()(image()).sum().backward()
    assert counts == [counter.get_total_flops()] * 2


def _jit(model: MambaOut) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checks on shapes, which the trace fixes
        traced = torch.jit.trace(model, image())
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        return torch.jit.load(file)


def _exported(model: MambaOut) -> Callable[[Tensor], Tensor]:
    program = torch.export.export(model, (image(),))
    assert not any("mambaout" in str(node.target) for node in program.graph.nodes)
    return program.module()


TRACES = {"jit": _jit, "fx": torch.fx.symbolic_trace, "export": _exported}


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_a_traced_network_stands_without_this_package(trace):
    model = network()
    found, wanted = trace(model)(image() + 1), model(image() + 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_derivatives_of_torch_func_and_in_forward_mode_are_given():
    block = block_of(16)
    parameters = {name: p.detach() for name, p in block.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(block, parameters, (x[None], None)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, maps())
    block(maps(), None).square().sum().backward()
    for name, parameter in block.named_parameters():
        bound = 1e-5 * gradient(parameter).abs().max()
        assert (each[name].sum(0) - gradient(parameter)).abs().max() <= bound
    with forward_ad.dual_level():
        out = network()(forward_ad.make_dual(image(), torch.ones(1, 3, 32, 32)))
        assert forward_ad.unpack_dual(out).tangent is not None


def test_the_operators_are_what_torch_library_asks_for():
    weights = block_of(8).weights()
    assert weights is not None
    free = [weight.detach() for weight in weights]
    for low, keep in ((False, True), (True, True), (False, False)):
        inputs = (torch.randn(2, 3, 4, 8), *free, torch.ones(2), 1e-6, low, keep)
        torch.library.opcheck(
            module._forward_op, inputs, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("low", [False, True])
def test_the_operators_say_the_strides_that_they_give(low):
    """Code of torch.compile stops on others."""
    weights = block_of(8).weights()
    assert weights is not None
    free = [weight.detach() for weight in weights]
    x, drop, low_type = torch.randn(2, 3, 4, 8), torch.ones(2), (torch.float32, torch.bfloat16)[low]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        inputs: tuple[Any, ...] = (x, *free, drop, 1e-6, low, True)
        found = gated_passes.forward(*inputs)
        assert_alike(found, gated_passes.forward_shapes(*inputs))
        assert found[1].dtype == low_type
        norm_weight, _, fc1_weight, fc1_bias, conv_weight, _, fc2_weight, _ = free
        saved = (x, norm_weight, fc1_weight, fc1_bias, conv_weight, fc2_weight, drop, *found[1:])
        assert_alike(gated_passes.backward(x, *saved), gated_passes.backward_shapes(x, *saved))


def assert_alike(found: Sequence[Tensor], told: Sequence[Tensor]) -> None:
    for one, other in zip(found, told, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
