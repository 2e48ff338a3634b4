"""The token mixers beside the convolution: what each computes, sees, and starts with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaout.model.first_weights import new_model
from mambaout.model.mixers import MIXERS, ConvScan, SelectiveScan
from mambaout.model.network import MambaOut, build
from mambaout.model.timm_call import timm_code
from mambaout.recipe import BASELINE, Recipe, tuned
from mambaout.train.backend import Cpu
from mambaout.train.optim import optimizer
from mambaout.variants import ModelConfig

SHAPE = ModelConfig(depths=(1, 1, 1, 1), dims=(16, 24, 32, 40), stem_stride=2, ssm_state=4)
SSM = ("conv_ssm", "conv_ssm_two_way", "conv_ssm_four_way")
HEIGHT, WIDTH, CHANNELS = 5, 6, 12


def mixer(name: str, **fields) -> torch.nn.Module:
    torch.manual_seed(0)
    return MIXERS[name](CHANNELS, replace(SHAPE, **fields)).eval()


def recipe(name: str, **fields) -> Recipe:
    return tuned(replace(BASELINE, model=replace(SHAPE, mixer=name)), **fields)


def drawn(name: str, **fields) -> MambaOut:
    torch.manual_seed(3)
    return new_model(recipe(name, **fields), num_classes=5)


# -- the SSM --------------------------------------------------------------------------------------


def orders(height: int, width: int) -> list[list[int]]:
    """The positions in the order of each direction: along rows, back, along columns, back."""
    rows = list(range(height * width))
    columns = [row * width + column for column in range(width) for row in range(height)]
    return [rows, rows[::-1], columns, columns[::-1]]


def by_hand(scan: SelectiveScan, x: Tensor) -> Tensor:
    """Mamba's Algorithm 2, one step after another, in float64; x (B, H, W, channels)."""
    weights = {name: weight.double() for name, weight in scan.state_dict().items()}
    ways, rank, channels = weights["dt_proj"].shape
    flat = x.double().flatten(1, 2)
    state = weights["A_log"].numel() // (ways * channels)
    decays = -weights["A_log"].view(ways, channels, state).exp()
    biases = weights["dt_bias"].view(ways, channels)
    of_ways = weights["x_proj"].view(ways, rank + 2 * state, channels)
    out = weights["D"] * flat
    for way, order in enumerate(orders(*x.shape[1:3])[:ways]):
        origin, into, out_of = (flat @ of_ways[way].T).split([rank, state, state], dim=-1)
        steps = F.softplus(origin @ weights["dt_proj"][way] + biases[way])
        h = torch.zeros(len(x), channels, state, dtype=torch.float64)
        for at in order:
            step = steps[:, at, :, None]
            h = (step * decays[way]).exp() * h
            h = h + step * into[:, at, None] * flat[:, at, :, None]
            out[:, at] = out[:, at] + (h * out_of[:, at, None]).sum(-1)
    return out.view_as(x)


@pytest.mark.parametrize("name", SSM)
def test_the_ssm_is_mamba_s_recurrence_along_each_direction(name):
    scan = mixer(name).get_submodule("scan")
    assert isinstance(scan, SelectiveScan)
    torch.nn.init.normal_(scan.D)
    x = torch.randn(2, HEIGHT, WIDTH, CHANNELS)
    wanted = by_hand(scan, x)
    assert (scan(x) - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_the_paper_s_zero_order_hold_is_another_ssm():
    x = torch.randn(2, HEIGHT, WIDTH, CHANNELS)
    one, other = mixer("conv_ssm")(x), mixer("conv_ssm", ssm_discretisation="zero_order_hold")(x)
    assert not torch.allclose(one, other, rtol=1e-3)


def test_without_its_ssm_the_mixer_is_the_convolution_and_silu():
    whole = mixer("conv_ssm")
    assert isinstance(whole, ConvScan)
    with torch.no_grad():
        whole.scan.x_proj.zero_()  # B is 0: the state stays empty, and D is 1
    x = torch.randn(2, HEIGHT, WIDTH, CHANNELS)
    assert torch.equal(whole(x), F.silu(whole.depthwise(x)))


@pytest.mark.parametrize("weight_init", ["trunc_normal", "fan_in"])
@pytest.mark.parametrize("name", SSM)
def test_the_network_s_first_weights_leave_the_memory_of_its_ssm_long(name, weight_init):
    for module in drawn(name, weight_init=weight_init).modules():
        if isinstance(module, SelectiveScan):
            steps = F.softplus(module.dt_bias.detach())
            assert 0.00099 <= float(steps.min()) <= float(steps.max()) <= 0.101
            decays = module.A_log.exp().view(-1, SHAPE.ssm_state)
            assert torch.allclose(decays, torch.arange(1.0, SHAPE.ssm_state + 1))
            assert bool((module.D == 1).all())
            assert float(module.x_proj.detach().abs().max()) > 0.1


@pytest.mark.parametrize("name", SSM)
def test_decays_skips_and_steps_of_an_ssm_have_no_weight_decay(name):
    model = drawn(name)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays = {
        names[parameter].rpartition(".")[2]: group["decays"]
        for group in optimizer(model, recipe(name), Cpu()).param_groups
        for parameter in group["params"]
        if ".scan." in names[parameter]
    }
    assert decays == {
        "x_proj": True,
        "dt_proj": True,
        "dt_bias": False,
        "A_log": False,
        "D": False,
    }


@pytest.mark.parametrize("name", SSM)
def test_a_scan_stays_in_fp32_under_autocast(name):
    scan = mixer(name).get_submodule("scan")
    x = torch.randn(2, HEIGHT, WIDTH, CHANNELS).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = scan(x)
    whole = scan(x.float())
    assert low.dtype == torch.bfloat16
    # One linear layer and the output are rounded, and the sum over positions is not.
    assert (low.float() - whole).abs().max() <= 2**-7 * whole.abs().max()


# -- what a position sees -------------------------------------------------------------------------


def seen_from(module: torch.nn.Module, at: int) -> set[int]:
    """The positions, row by row, on which the output at position `at` depends."""
    x = torch.randn(1, HEIGHT, WIDTH, CHANNELS, requires_grad=True)
    module(x).flatten(1, 2)[0, at].sum().backward()
    assert x.grad is not None
    moved = x.grad.flatten(1, 2)[0].abs().amax(-1) > 0
    return {place for place, is_moved in enumerate(moved.tolist()) if is_moved}


AT, LAST = 16, HEIGHT * WIDTH - 1


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("identity", {AT}),
        ("attention", set(range(LAST + 1))),
        ("causal_attention", set(range(AT + 1))),
    ],
)
def test_a_mixer_sees_what_its_name_says(name, wanted):
    assert seen_from(mixer(name), AT) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("conv_ssm", set(range(AT + 1))), ("conv_ssm_two_way", set(range(LAST + 1)))],
)
def test_a_scan_sees_what_came_before_in_one_of_its_directions(name, wanted):
    assert seen_from(mixer(name).get_submodule("scan"), AT) == wanted


# -- networks -------------------------------------------------------------------------------------


def test_with_patchify_only_the_mixer_mixes_tokens():
    shape = replace(SHAPE, downsampling="patchify")
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 5, 9] += 1  # in the patch of every map's (0, 0), but of the first two maps'
    for name, local in (("identity", True), ("gated_conv", False)):
        torch.manual_seed(0)
        model = build(replace(shape, mixer=name), num_classes=5).eval()
        for map_, other, side in zip(
            model.forward_pyramid(images),
            model.forward_pyramid(changed),
            (2, 4, 8, 16),
            strict=True,
        ):
            moved = (map_ != other).any(-1)[0].nonzero().tolist()
            assert [5 // side, 9 // side] in moved
            assert (len(moved) == 1) == local


@pytest.mark.parametrize("size", [(29, 45), (32, 64)])
def test_maps_of_patches_have_the_sizes_of_those_that_overlap(size):
    shapes = [
        [tuple(map_.shape) for map_ in build(shape, 5).forward_pyramid(torch.zeros(1, 3, *size))]
        for shape in (SHAPE, replace(SHAPE, downsampling="patchify"))
    ]
    assert shapes[0] == shapes[1]


def test_stages_without_the_mixer_have_the_convolution():
    config = replace(SHAPE, mixer="attention", mixer_stages=(3, 4))
    model = build(config, 5)
    found = [
        type(model.get_submodule(f"stages.{stage}.blocks.0.conv")).__name__ for stage in range(4)
    ]
    assert found == ["DepthwiseConv", "DepthwiseConv", "Attention", "Attention"]


@pytest.mark.parametrize("stages", [(), (3, 3), (4, 3), (0, 1), (5,)])
def test_stages_that_are_none_are_refused_with_an_example(stages):
    with pytest.raises(ValueError, match=r"mixer_stages=.*like 3,4"):
        replace(SHAPE, mixer_stages=stages)


@pytest.mark.parametrize("weight_init", ["trunc_normal", "fan_in"])
@pytest.mark.parametrize("name", sorted(MIXERS))
def test_what_two_mixers_networks_share_starts_equal(name, weight_init):
    one = drawn("gated_conv", weight_init=weight_init).state_dict()
    other = drawn(name, weight_init=weight_init).state_dict()
    renamed = {key.replace(".conv.depthwise.", ".conv."): value for key, value in other.items()}
    shared = one.keys() & renamed.keys()
    assert shared >= {key for key in one if ".conv." not in key or "downsample" in key}
    assert "conv_ssm" not in name or shared == one.keys()
    assert all(torch.equal(one[key], renamed[key]) for key in shared)


def test_a_seed_decides_the_weights_that_are_not_shared():
    one, same = drawn("conv_ssm").state_dict(), drawn("conv_ssm").state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    torch.manual_seed(4)
    other = new_model(recipe("conv_ssm"), num_classes=5).state_dict()
    assert not torch.equal(
        one["stages.0.blocks.0.conv.scan.x_proj"], other["stages.0.blocks.0.conv.scan.x_proj"]
    )


@pytest.mark.parametrize(
    "fields", [{"mixer": "identity"}, {"mixer": "conv_ssm"}, {"downsampling": "patchify"}]
)
def test_timm_s_class_is_not_named_for_a_network_that_it_cannot_build(fields, tmp_path):
    (name, value), *_ = fields.items()
    with pytest.raises(ValueError, match=f"timm's MambaOut has no {name}='{value}'"):
        timm_code(tuned(replace(BASELINE, model=SHAPE), **fields), 5, tmp_path / "a.safetensors")


def test_mup_has_no_rule_for_an_ssm():
    with pytest.raises(ValueError, match="mup_base_dim=8 has no rule for mixer='conv_ssm'"):
        recipe("conv_ssm", mup_base_dim=8)
