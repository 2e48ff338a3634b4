"""The network is timm's and the paper's: on their weights, number by number, and in every knob."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from knob_moves import BESIDE, moves
from torch import Tensor, nn

from mambaout import build
from mambaout.fields import flat_fields
from mambaout.model.network import INIT_STD, GatedCNNBlock, MambaOut
from mambaout.variants import VARIANTS, ModelConfig

SMALL = ModelConfig(depths=(1, 1, 2, 1), dims=(12, 24, 48, 72), drop_path=0.3)


@pytest.fixture(autouse=True)
def one_seed_one_thread():
    """One thread, since two that wait for each other on a busy machine take 20 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def timm_model(name: str) -> nn.Module:
    """timm's network with random weights in every parameter, norms and biases too."""
    with torch.device("meta"):  # spares timm's initialisation, seconds for Base
        model = timm.create_model(f"mambaout_{name}")
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model.eval()


def run(model: nn.Module, images: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the gradients of their weighted sum."""
    logits = model(images)
    return logits, list(torch.autograd.grad((logits * weights).sum(), list(model.parameters())))


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_gradients_equal_timms_on_timms_weights(name):
    theirs = timm_model(name)
    with torch.device("meta"):
        ours = build(name).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    images, weights = torch.randn(2, 3, 64, 64), torch.randn(2, 1000)
    expected, expected_grads = run(theirs, images, weights)
    logits, grads = run(ours, images, weights)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    names = [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_parameters()] == names
    for parameter, grad, expected_grad in zip(names, grads, expected_grads, strict=True):
        # Relative to the largest entry: a sum over positions has small entries by cancellation.
        off = (grad - expected_grad).abs().max() / expected_grad.abs().max()
        assert off < 1e-5, f"{parameter}: gradient off by {off:.1e}"


@pytest.mark.parametrize(
    ("image_size", "stem_stride", "sides"),
    [(64, 4, [16, 8, 4, 2]), (28, 4, [7, 4, 2, 1]), (28, 2, [14, 7, 4, 2]), (50, 4, [13, 7, 4, 2])],
)
def test_the_pyramid_halves_from_stage_to_stage(image_size, stem_stride, sides):
    model = build(replace(SMALL, stem_stride=stem_stride), num_classes=5).eval()
    images = torch.randn(2, 3, image_size, image_size)
    maps = model.forward_pyramid(images)
    assert [tuple(m.shape) for m in maps] == [
        (2, side, side, dim) for side, dim in zip(sides, SMALL.dims, strict=True)
    ]
    assert torch.equal(maps[-1], model.forward_features(images))
    assert torch.equal(model.head(maps[-1]), model(images))
    assert model(images).shape == (2, 5)


# First weights are so small that the step's rule changes no bit of these logits. A training shows
# it (tests/train/test_knobs.py), and the mixer alone (test_mixers.py).
TOO_SMALL = {"ssm_discretisation"}
MODEL_MOVES = [
    (name, moved)
    for name, value in flat_fields(SMALL).items()
    for moved in moves(name, value)
    if name not in TOO_SMALL
]


@pytest.mark.parametrize(("name", "value"), MODEL_MOVES, ids=str)
def test_every_knob_moves_the_model(name, value):
    def logits(config: ModelConfig) -> Tensor:
        torch.manual_seed(0)
        model = build(config, num_classes=7)
        images = torch.randn(4, 3, 32, 32)
        return model(images)

    base = replace(SMALL, **BESIDE.get(name, {}))
    moved = replace(base, **{name: value})
    assert torch.equal(logits(base), logits(base))
    assert not torch.equal(logits(base), logits(moved))


def block_of(model: MambaOut, stage: int = 0) -> GatedCNNBlock:
    block = model.get_submodule(f"stages.{stage}.blocks.0")
    assert isinstance(block, GatedCNNBlock)
    return block


def sizes(config: ModelConfig) -> tuple[int, tuple[int, ...], int]:
    """Of the first block: fc1's output, the mixer's weight, fc2's input."""
    block = block_of(build(config))
    return (
        block.fc1.out_features,
        tuple(block.conv.state_dict()["weight"].shape),
        block.fc2.in_features,
    )


def test_every_knob_moves_what_it_names():
    model = build(SMALL)
    assert [len(list(stage.get_submodule("blocks").children())) for stage in model.stages] == [
        *SMALL.depths
    ]
    assert [m.shape[-1] for m in model.forward_pyramid(torch.randn(1, 3, 32, 32))] == [*SMALL.dims]
    assert sizes(SMALL) == (64, (12, 1, 7, 7), 32)  # two times int(8/3 * 12)
    assert sizes(replace(SMALL, expansion=2.0)) == (48, (12, 1, 7, 7), 24)
    assert sizes(replace(SMALL, kernel_size=5)) == (64, (12, 1, 5, 5), 32)
    assert sizes(replace(SMALL, conv_ratio=0.5)) == (64, (6, 1, 7, 7), 32)
    assert sizes(replace(SMALL, hidden_multiple=24)) == (96, (12, 1, 7, 7), 48)  # 32, rounded up
    assert build(SMALL).stem.conv1.stride == (2, 2)
    assert build(replace(SMALL, stem_stride=2)).stem.conv1.stride == (1, 1)
    assert SMALL.drop_path_rates == pytest.approx([0, 0.075, 0.15, 0.225, 0.3])


def test_the_small_stem_keeps_the_parameters():
    paper, small = build(SMALL).state_dict(), build(replace(SMALL, stem_stride=2)).state_dict()
    assert {n: v.shape for n, v in paper.items()} == {n: v.shape for n, v in small.items()}


# -- stochastic depth -----------------------------------------------------------------------------


def loud(config: ModelConfig) -> MambaOut:
    """A network whose blocks change their input by far more than rounding."""
    model = build(config, num_classes=10)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def dropped(draws: torch.Tensor, rate: float) -> torch.Tensor:
    return (draws >= rate) / (1 - rate)


def test_a_batch_of_64_drops_and_learns_as_four_of_16():
    config = replace(SMALL, drop_path=0.6)
    model = loud(config)
    images, scales = torch.randn(64, 3, 32, 32), dropped(torch.rand(64, config.num_blocks), 0.6)
    whole = model(images, scales)
    whole.square().mean().backward()
    whole_grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    logits = []
    for micro, part in zip(images.split(16), scales.split(16), strict=True):
        logits.append(model(micro, part))
        (logits[-1].square().mean() / 4).backward()
    torch.testing.assert_close(torch.cat(logits), whole, rtol=1e-5, atol=1e-5)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    for grad, expected in zip(grads, whole_grads, strict=True):
        torch.testing.assert_close(
            grad, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
        )


def test_a_scale_of_0_skips_the_block_and_any_other_scales_its_branch():
    block = block_of(loud(SMALL), stage=3)
    x = torch.randn(3, 4, 4, 72)
    out = block(x, torch.tensor([0.0, 1.0, 2.5]))
    branch = block(x, None) - x
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1], x[1] + branch[1])
    torch.testing.assert_close(out[2], x[2] + branch[2] * 2.5)


def test_every_block_reads_its_own_scale():
    model, skipped = loud(SMALL), []
    blocks = [block for block in model.modules() if isinstance(block, GatedCNNBlock)]
    for block in blocks:
        block.register_forward_hook(
            lambda _, inputs, output: skipped.append(torch.equal(inputs[0], output))
        )
    for chosen in range(len(blocks)):
        scales = torch.ones(2, len(blocks))
        scales[:, chosen] = 0
        skipped.clear()
        model(torch.randn(2, 3, 32, 32), scales)
        assert skipped == [index == chosen for index in range(len(blocks))]


def test_drawn_here_or_given_the_scales_drop_the_same():
    model = loud(SMALL)
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(7)
    drawn = model(images)
    torch.manual_seed(7)
    rates = torch.tensor(SMALL.drop_path_rates)
    scales = (torch.rand(8, SMALL.num_blocks) >= rates) / (1 - rates)
    assert torch.equal(drawn, model(images, scales))
    assert not torch.equal(drawn, model(images))


def test_evaluation_and_a_zero_rate_drop_nothing_and_draw_nothing():
    images = torch.randn(2, 3, 32, 32)
    state = torch.get_rng_state()
    for model in (loud(SMALL).eval(), loud(replace(SMALL, drop_path=0.0)).train()):
        torch.set_rng_state(state)
        logits = model(images)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(logits, model(images, torch.zeros(2, SMALL.num_blocks)))


def test_scales_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"drop_scales is \(2, 4\).*\(2, 5\)"):
        build(SMALL).train()(torch.randn(2, 3, 32, 32), torch.rand(2, 4))


# -- building -------------------------------------------------------------------------------------


def test_weights_start_as_the_paper_starts_them():
    for name, parameter in build(replace(SMALL, dims=(96, 96, 96, 96))).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(INIT_STD, rel=0.1), name
            assert abs(parameter.mean().item()) < INIT_STD / 10, name


def test_the_seed_decides_the_weights():
    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(build(SMALL).state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(1), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True))


def test_an_unknown_name_and_no_classes_are_errors():
    with pytest.raises(ValueError, match=r"unknown variant 'tiney'.*did you mean 'tiny'"):
        build("tiney")
    with pytest.raises(ValueError, match="num_classes=0"):
        build(SMALL, num_classes=0)


def test_bf16_autocast_trains_near_fp32():
    model = build(SMALL, num_classes=10).eval()
    images = torch.randn(4, 3, 32, 32)
    expected = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    logits.float().square().mean().backward()
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
