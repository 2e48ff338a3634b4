"""Recomputed stages give the same bits; the words of --recompute are read or refused."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from needs import needs_c
from torch import Tensor

from mambaout import build
from mambaout.model.gated_block import modules_alone
from mambaout.model.network import MambaOut
from mambaout.recompute import ALL_STAGES, read_stages, stages_text
from mambaout.variants import ModelConfig

SMALL = ModelConfig(dims=(8, 16, 24, 32), depths=(2, 1, 2, 1), stem_stride=2, drop_path=0.3)


def small_network() -> MambaOut:
    torch.manual_seed(0)
    return build(SMALL, 5).train()


def results(model: MambaOut, network, precision: str = "fp32") -> list[Tensor]:
    """The logits of `network`, which is `model` or its compiled form, and all gradients."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 32, 32, generator=draws).requires_grad_()
    drops = torch.rand(3, SMALL.num_blocks, generator=draws).round() * 2
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = network(images, drops)
    logits.float().square().sum().backward()
    grads = [images.grad, *(parameter.grad for parameter in model.parameters())]
    return [logits.detach(), *(grad.clone() for grad in grads if grad is not None)]


@pytest.mark.parametrize("stages", [(1,), (2, 3), ALL_STAGES])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("blocks", ["modules", pytest.param("C", marks=needs_c)])
def test_recomputed_stages_give_the_same_bits(stages, precision, blocks):
    model = small_network()
    with modules_alone() if blocks == "modules" else nullcontext():
        plain = results(model, model, precision)
        model.set_recompute(stages)
        again = results(model, model, precision)
    assert len(plain) == 2 + len(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def calls_of_each_stage(model: MambaOut) -> list[int]:
    calls = [0] * len(model.stages)
    handles = []
    stages: list[Any] = list(model.stages)
    for index, stage in enumerate(stages):

        def count(*_: object, index: int = index) -> None:
            calls[index] += 1

        handles += [block.register_forward_pre_hook(count) for block in stage.blocks]
    results(model, model)
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return calls


def test_the_blocks_of_the_named_stages_alone_are_computed_twice_and_only_in_training():
    model = small_network()
    assert calls_of_each_stage(model) == [4, 2, 4, 2]  # one training, one evaluation
    model.set_recompute((1, 3))
    assert calls_of_each_stage(model) == [6, 2, 6, 2]
    model.set_recompute(())
    assert calls_of_each_stage(model) == [4, 2, 4, 2]
    with pytest.raises(ValueError, match=r"stages \[5\]: a network has the stages \(1, 2, 3, 4\)"):
        model.set_recompute((5,))


def test_without_given_draws_drop_path_is_drawn_once():
    model = small_network()
    model.set_recompute(ALL_STAGES)
    images, grads = torch.randn(4, 3, 32, 32), []
    for stages in ((), ALL_STAGES):
        model.set_recompute(stages)
        model.zero_grad()
        torch.manual_seed(3)
        model(images).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("blocks", ["modules", pytest.param("C", marks=needs_c)])
def test_torch_compile_recomputes_in_one_graph(precision, blocks):
    model = small_network()
    with modules_alone() if blocks == "modules" else nullcontext():
        torch._dynamo.reset()
        plain = results(model, torch.compile(model, backend="aot_eager", fullgraph=True), precision)
        model.set_recompute((1, 3))
        torch._dynamo.reset()
        again = results(model, torch.compile(model, backend="aot_eager", fullgraph=True), precision)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


# -- the option -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stages"),
    [("1", (1,)), ("1,2", (1, 2)), ("4, 2", (2, 4)), ("3,3", (3,)), ("all", (1, 2, 3, 4))],
)
def test_stages_are_read_in_any_order(text, stages):
    assert read_stages(text) == stages
    assert read_stages(stages_text(stages)) == stages


@pytest.mark.parametrize("text", ["", "0", "5", "1,5", "1,", "-1", "1.0", "first", "ALL", "1;2"])
def test_what_is_no_stage_is_refused_with_the_bound_and_an_example(text):
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        read_stages(text)
    assert str(refused.value) == (
        f"{text!r} must be stages from 1 to 4 joined by commas, like 1,2, or all"
    )


def test_no_stage_is_written_as_none():
    assert stages_text(()) == "none"
