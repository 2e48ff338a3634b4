"""Promises of the selective scan: what a loop gives, in every form and in every direction."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from needs import needs_c
from places import TESTS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mambaout import native
from mambaout.model import mamba_ssm_scan, odd_even, scan_passes
from mambaout.model import selective_scan as module
from mambaout.model.odd_even import ScanInputs
from mambaout.model.selective_scan import DISCRETISATIONS, MAMBA_SSM, selective_scan

Scan = Callable[..., Tensor]
Size = tuple[int, int]
# images, size of the map, channels, states: odd ones, lanes that are full and not, several pieces,
# several vectors of channels in a part.
SHAPES = [
    (2, (5, 7), 5, 3),
    (1, (1, 1), 1, 1),
    (2, (16, 9), 16, 16),
    (1, (3, 41), 41, 17),
    (40, (2, 3), 72, 5),
]
C, ODD_EVEN = pytest.param("C", marks=needs_c), "odd-even"


def inputs_of(
    directions: int, images: int, size: Size, channels: int, states: int, longest_step: float = 0.1
) -> ScanInputs:
    """Steps up to `longest_step`, decays from -16 to -0.1."""
    draws = torch.Generator().manual_seed(0)
    length = size[0] * size[1]
    step = torch.rand(directions, images, length, channels, generator=draws)
    decay = torch.rand(directions, channels, states, generator=draws)
    into, out_of = torch.randn(2, directions, images, length, states, generator=draws)
    return ScanInputs(
        x=torch.randn(images, length, channels, generator=draws),
        step=longest_step * (step + 1e-3),
        decay=-0.1 - 15.9 * decay,
        into=into,
        out_of=out_of,
    )


def loop(
    x: Tensor, step: Tensor, decay: Tensor, into: Tensor, out_of: Tensor, size: Size, way: str
) -> Tensor:
    """The definition, a position at a time."""
    numbers = torch.arange(size[0] * size[1]).view(size)
    orders = [numbers.flatten(), numbers.flatten().flip(0)]
    orders += [numbers.t().flatten(), numbers.t().flatten().flip(0)]
    total = torch.zeros_like(x)
    for k in range(len(step)):
        state, outs = x.new_zeros(len(x), *decay.shape[1:]), {}
        for at in orders[k].tolist():
            exponent = step[k, :, at, :, None] * decay[k]
            weight = step[k, :, at, :, None] if way == MAMBA_SSM else exponent.expm1() / decay[k]
            state = exponent.exp() * state + weight * x[:, at, :, None] * into[k, :, at, None]
            outs[at] = (state * out_of[k, :, at, None]).sum(-1)
        total = total + torch.stack([outs[at] for at in range(len(outs))], 1)
    return total


def results(scan: Scan, inputs: ScanInputs, size: Size, way: str = MAMBA_SSM) -> list[Tensor]:
    """The output and the five gradients."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    out = scan(*leaves, size, way)
    draws = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=draws).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def off(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Of each tensor, the largest error over the largest entry."""
    pairs = zip(found, wanted, strict=True)
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs
    ]


def doubled(inputs: ScanInputs) -> ScanInputs:
    return ScanInputs(*(each.double() for each in inputs))


def choose(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == ODD_EVEN:
        monkeypatch.setattr(module, "is_compiled", lambda: False)
        monkeypatch.setattr(odd_even, "PIECE", 64)


@pytest.mark.parametrize("longest_step", [0.1, 2, 20])
@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("form", [C, ODD_EVEN])
def test_every_form_gives_what_a_loop_gives(form, directions, longest_step, monkeypatch):
    choose(form, monkeypatch)
    for images, size, channels, states in SHAPES:
        inputs = inputs_of(directions, images, size, channels, states, longest_step)
        wanted = results(loop, doubled(inputs), size)
        out, *grads = off(results(selective_scan, inputs, size), wanted)
        assert out < 1e-6
        assert max(grads) < 4e-6, (size, grads)


@pytest.mark.parametrize("longest_step", [0.1, 2, 20])
def test_a_zero_order_hold_is_the_equation_of_the_paper(longest_step):
    for directions, (images, size, channels, states) in zip((1, 2, 4), SHAPES, strict=False):
        inputs = inputs_of(directions, images, size, channels, states, longest_step)
        wanted = results(loop, doubled(inputs), size, "zero_order_hold")
        out, *grads = off(results(selective_scan, inputs, size, "zero_order_hold"), wanted)
        assert out < 1e-6
        assert max(grads) < 4e-6, (size, grads)


@needs_c
def test_over_many_positions_its_exponential_adds_up_no_more_error_than_torchs():
    """The states remember hundreds of positions."""
    inputs = inputs_of(1, 1, (64, 64), 4, 3)
    inputs = inputs._replace(decay=-0.05 + 0.04 * inputs.decay / 16, x=inputs.x.abs())
    inputs = inputs._replace(into=inputs.into.abs(), out_of=inputs.out_of.abs())
    wanted = [loop(*doubled(inputs), (64, 64), MAMBA_SSM)]
    (found,) = off([selective_scan(*inputs, (64, 64))], wanted)
    (allowed,) = off([loop(*inputs, (64, 64), MAMBA_SSM)], wanted)
    assert found < 2 * allowed + 2e-7


@pytest.mark.parametrize("way", DISCRETISATIONS)
@pytest.mark.parametrize("piece", [1024, 3])
def test_in_float64_its_gradients_are_those_of_differences(way, piece, monkeypatch):
    monkeypatch.setattr(odd_even, "PIECE", piece)
    inputs = doubled(inputs_of(2, 1, (2, 4), 2, 2, longest_step=0.5))
    leaves = [each.requires_grad_() for each in inputs]
    assert selective_scan(*leaves, (2, 4), way).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda *call: selective_scan(*call, (2, 4), way), leaves)


def test_a_zero_order_holds_weight_is_exact_for_any_exponent():
    """In fp32, where exp(z) - expm1(z) / z has few digits."""
    z = -torch.logspace(-6, 2, 500)
    exact = z.double()
    exact = (exact.exp() - exact.expm1() / exact) / exact
    series = 0.5 + z.double() / 3 + z.double().square() / 8
    exact = torch.where(z > -1e-4, series, exact)
    assert ((odd_even._slope(z) - exact) / exact).abs().max() < 2e-6


@needs_c
def test_any_number_of_threads_gives_the_same_bits():
    inputs, before, found = inputs_of(4, 3, (9, 11), 72, 16), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(selective_scan, inputs, (9, 11)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_c
def test_without_avx_512_it_is_the_same_to_rounding(monkeypatch):
    names = ("f", "vl", "bw", "dq")
    without = (*native.FLAGS, *(f"-mno-avx512{name}" for name in names))
    monkeypatch.setattr(native, "FLAGS", without)
    forget_c()
    try:
        assert scan_passes.is_compiled()
        for images, size, channels, states in SHAPES:
            inputs = inputs_of(2, images, size, channels, states, 2)
            errors = off(
                results(selective_scan, inputs, size), results(loop, doubled(inputs), size)
            )
            assert max(errors) < 4e-6
    finally:
        forget_c()


def forget_c() -> None:
    """Forget the compiled functions, so that the next call compiles the file again."""
    for remembered in (native._library, scan_passes._functions):
        remembered.cache_clear()


@pytest.mark.parametrize("form", [C, ODD_EVEN])
def test_under_autocast_it_computes_and_gives_fp32(form, monkeypatch):
    choose(form, monkeypatch)
    inputs = inputs_of(2, 2, (5, 7), 5, 3)
    low = ScanInputs(*(each.bfloat16() for each in inputs))
    wanted = results(selective_scan, ScanInputs(*(each.float() for each in low)), (5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        found = results(selective_scan, low, (5, 7))
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], wanted[0])
    assert {each.dtype for each in found[1:]} == {torch.bfloat16}
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(found[1:], wanted[1:], strict=True))


@pytest.mark.parametrize("form", [C, ODD_EVEN])
def test_a_view_of_any_strides_is_read_right(form, monkeypatch):
    choose(form, monkeypatch)
    inputs = inputs_of(4, 2, (5, 7), 5, 3)
    views = ScanInputs(*(each.transpose(0, -1).contiguous().transpose(0, -1) for each in inputs))
    assert not any(each.is_contiguous() for each in views)
    pairs = zip(
        results(selective_scan, views, (5, 7)), results(selective_scan, inputs, (5, 7)), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", [C, ODD_EVEN])
def test_it_keeps_at_most_two_fifths_of_the_states(form, monkeypatch):
    choose(form, monkeypatch)
    for directions in (1, 4):
        inputs = inputs_of(directions, 2, (24, 24), 64, 16)
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        leaves = [each.requires_grad_() for each in inputs]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            selective_scan(*leaves, (24, 24))
        assert 0 < sum(kept.values()) < 0.4 * directions * 2 * 24 * 24 * 64 * 16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "step", "into", "out_of"])
def test_what_is_not_finite_stays_so(name, value):
    """C gives nan, inf and numbers where a loop does."""
    for channels in (3, 20):
        inputs = inputs_of(1, 1, (1, 40), channels, 3)
        changed = getattr(inputs, name)
        changed.view(40, -1)[20, 1] = value
        found = selective_scan(*inputs, (1, 40))
        wanted = loop(*inputs, (1, 40), MAMBA_SSM)
        assert not torch.isfinite(wanted).all()
        torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"x": torch.zeros(2, 34, 5)},
            r"x has the shape \(2, 34, 5\): it must be \(images, 35, ch",
        ),
        ({"step": torch.zeros(3, 2, 35, 5)}, r"step has .*: it must be .* 1, 2 or 4 directions"),
        ({"step": torch.zeros(2, 2, 35, 4)}, r"step has .*: it must be \(2, 2, 35, 5\)"),
        ({"decay": torch.zeros(2, 3, 5)}, r"decay has .*: it must be \(2, 5, 5\)"),
        ({"decay": torch.zeros(5, 3)}, r"decay has .*: it must be \(directions, channels, states"),
        ({"into": torch.zeros(2, 35, 3)}, r"into has .*: it must be \(2, 2, 35, 3\)"),
        ({"out_of": torch.zeros(2, 2, 35, 4)}, r"out_of has .*: it must be \(2, 2, 35, 3\)"),
    ],
)
def test_a_wrong_shape_is_refused_with_the_right_one(change, words):
    inputs = inputs_of(2, 2, (5, 7), 5, 3)._replace(**change)
    with pytest.raises(ValueError, match=words):
        selective_scan(*inputs, (5, 7))


def test_an_unknown_discretisation_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'euler': choose from .*zero_order_hold"):
        selective_scan(*inputs_of(1, 1, (2, 2), 2, 2), (2, 2), "euler")


# -- other forms and programs that watch ----------------------------------------------------------


class ScanOfMap(nn.Module):
    def forward(self, x: Tensor, step: Tensor, decay: Tensor, into: Tensor, out: Tensor) -> Tensor:
        return selective_scan(x, step, decay, into, out, (5, 7))


def test_what_watches_torchs_operations_sees_them():
    inputs = inputs_of(4, 2, (5, 7), 5, 3)
    wanted = selective_scan(*inputs, (5, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each of our checks of a shape gives a tracer's warning
        traced = torch.jit.trace(ScanOfMap(), tuple(inputs))
    exported = torch.export.export(ScanOfMap(), tuple(inputs)).module()
    with FlopCounterMode(display=False):
        counted = selective_scan(*inputs, (5, 7))
    x, *others = inputs
    mapped = torch.func.vmap(lambda each: selective_scan(each, *others, (5, 7)))(x[None])[0]
    for found in (traced(*inputs), exported(*inputs), counted, mapped):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert "mambaout::" not in str(traced.inlined_graph)


def test_onnx_takes_it_with_any_number_of_images(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    inputs = inputs_of(4, 2, (5, 7), 5, 3)
    file = io.BytesIO()
    axes = {"x": {0: "images"}} | {name: {1: "images"} for name in ("step", "into", "out_of")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            ScanOfMap(), tuple(inputs), file, dynamo=False, opset_version=17,
            input_names=list(ScanInputs._fields), dynamic_axes=axes | {"y": {0: "images"}},
            output_names=["y"],
        )  # fmt: skip
    session = onnxruntime.InferenceSession(file.getvalue())
    for images in (2, 3):
        inputs = inputs_of(4, images, (5, 7), 5, 3)
        fed = {name: each.numpy() for name, each in inputs._asdict().items()}
        (found,) = session.run(None, fed)
        torch.testing.assert_close(
            torch.from_numpy(found), selective_scan(*inputs, (5, 7)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("form", [C, ODD_EVEN])
def test_torch_compile_takes_it_without_a_break(form, monkeypatch):
    choose(form, monkeypatch)
    torch._dynamo.reset()
    inputs = inputs_of(2, 2, (5, 7), 5, 3)
    compiled = torch.compile(ScanOfMap(), backend="aot_eager", fullgraph=True)
    found = results(lambda *call: compiled(*call[:5]), inputs, (5, 7))
    wanted = results(selective_scan, inputs, (5, 7))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def selective_scan_stand_in(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
) -> Tensor:
    """mamba_ssm's function by a loop: u, delta (B, D, L), A (D, N), B and C (B, groups, N, L)."""
    into, out_of = (each.repeat_interleave(len(A) // each.shape[1], 1) for each in (B, C))
    state, outs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        factor = (delta[:, :, t, None] * A).exp()
        state = factor * state + (delta[:, :, t] * u[:, :, t])[..., None] * into[..., t]
        outs.append((state * out_of[..., t]).sum(-1))
    return torch.stack(outs, 2)


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_mamba_ssms_function_gets_the_layouts_that_it_wants(directions):
    inputs = inputs_of(directions, 2, (5, 7), 5, 3)

    def scan(*call: Any) -> Tensor:
        return mamba_ssm_scan.mamba_ssm_scan(selective_scan_stand_in, ScanInputs(*call[:5]), (5, 7))

    errors = off(results(scan, inputs, (5, 7)), results(loop, doubled(inputs), (5, 7)))
    assert max(errors) < 4e-6


def test_a_second_derivative_is_refused_and_never_wrong():
    inputs = inputs_of(1, 1, (2, 2), 2, 2)
    inputs.x.requires_grad_()
    out = selective_scan(*inputs, (2, 2))
    (grad,) = torch.autograd.grad(out.square().sum(), inputs.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_without_a_compiler_torch_computes_it_and_the_remedy_is_named(tmp_path):
    code = (
        "import logging; logging.basicConfig(); import torch\n"
        "from mambaout import native; from mambaout.model.selective_scan import *\n"
        "from mambaout.model.scan_passes import c_files\n"
        "ones = torch.ones(1, 1, 6, 2)\n"
        "print(selective_scan(ones[0], ones, -ones[0, :, :2], ones, ones, (2, 3)).shape)\n"
        "native.prepare(c_files(), LOSS)"
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
    assert "[1, 6, 2]" in done.stdout
    assert "times slower: there is no C compiler" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_on_xla_it_gives_the_same_and_its_graph_grows_with_the_logarithm(tmp_path):
    environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1"}
    command = [sys.executable, str(TESTS / "xla_runs.py"), "scans", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scans.json").read_text())
    assert max(found["errors"]) < 1e-5
    assert found["fallbacks"] == []
    small, medium, large = found["instructions"]
    assert large - medium <= 1.2 * (medium - small)
    assert large < 1500
