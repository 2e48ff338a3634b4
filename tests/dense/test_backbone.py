"""The backbone gives the stages' maps of the classifier, and loads what was saved of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mambaout import build
from mambaout.dense.backbone import Backbone, load_backbone
from mambaout.model.network import MambaOut
from mambaout.model.weights import read_weights, save_weights
from mambaout.variants import VARIANTS, ModelConfig

SMALL = ModelConfig(depths=(1, 1, 2, 1), dims=(8, 12, 16, 20), drop_path=0.5)


def random_model(config: ModelConfig = SMALL) -> MambaOut:
    model = build(config, 5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def loaded(path: Path, config: ModelConfig = SMALL) -> Backbone:
    backbone = Backbone(config).eval()
    load_backbone(backbone, read_weights(path))
    return backbone


def is_trunk_of(backbone: Backbone, model: MambaOut) -> bool:
    theirs = model.state_dict()
    return all(
        torch.equal(value, theirs[name])
        for name, value in backbone.state_dict().items()
        if not name.startswith("norms.")
    )


@pytest.mark.parametrize("size", [(64, 96), (33, 70), (1, 5)])
def test_any_size_gives_four_maps_at_4_8_16_and_32(size):
    backbone = Backbone(SMALL).eval()
    assert backbone.strides == (4, 8, 16, 32)
    maps = backbone(torch.randn(2, 3, *size))
    for each, dim, stride in zip(maps, SMALL.dims, backbone.strides, strict=True):
        assert each.shape == (2, dim, *(-(-side // stride) for side in size))


def test_a_stem_of_stride_2_halves_the_strides():
    backbone = Backbone(replace(SMALL, stem_stride=2)).eval()
    assert backbone.strides == (2, 4, 8, 16)
    sides = [each.shape[-1] for each in backbone(torch.randn(1, 3, 32, 32))]
    assert sides == [16, 8, 4, 2]


def test_each_map_has_a_norm_of_its_own():
    torch.manual_seed(0)
    backbone = Backbone(SMALL).eval()
    images = torch.randn(1, 3, 64, 64)
    for each, plain in zip(backbone(images), backbone.forward_pyramid(images), strict=True):
        expected = (plain - plain.mean(-1, keepdim=True)) * torch.rsqrt(
            plain.var(-1, correction=0, keepdim=True) + 1e-6
        )
        torch.testing.assert_close(each.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-5)
    before = backbone(images)
    with torch.no_grad():
        backbone.state_dict()["norms.2.bias"].add_(1.0)
    moved = [not torch.equal(*pair) for pair in zip(before, backbone(images), strict=True)]
    assert moved == [False, False, True, False]


def test_the_norms_are_the_parameters_more_than_a_classifiers_stages():
    for config in VARIANTS.values():
        with torch.device("meta"):
            backbone, model = Backbone(config), build(config)
        ours = sum(p.numel() for p in backbone.parameters())
        stages = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head."))
        assert ours - stages == 2 * sum(config.dims)


def test_drop_path_acts_in_training_alone():
    torch.manual_seed(0)
    backbone, images = Backbone(SMALL), torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if name.endswith("fc2.weight"):
                weight.mul_(50)

    def last(drop_scales: Tensor | None = None) -> Tensor:
        return backbone(images, drop_scales)[-1]

    backbone.train()
    assert not torch.equal(last(), last())
    ones = torch.ones(8, SMALL.num_blocks)
    torch.testing.assert_close(last(ones), backbone.eval()(images)[-1])
    assert torch.equal(last(), last())


# -- weights --------------------------------------------------------------------------------------


def test_our_own_file_loads_without_its_head(tmp_path):
    model = random_model()
    save_weights(model, tmp_path / "w.safetensors")
    backbone = Backbone(SMALL)
    said = load_backbone(backbone, read_weights(tmp_path / "w.safetensors"))
    assert "8 tensors of its head are left out" in said
    assert "norms on the four outputs are not in it" in said
    assert is_trunk_of(backbone, model)
    images = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(
        backbone.forward_pyramid(images, torch.ones(1, SMALL.num_blocks)),
        model.forward_pyramid(images),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("num_classes", [1000, 0])
def test_timms_file_loads_with_and_without_its_head(num_classes, tmp_path):
    theirs: Any = timm.create_model("mambaout_femto", num_classes=num_classes).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pth.tar")
    backbone = loaded(tmp_path / "w.pth.tar", VARIANTS["femto"])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.stem(images)
        for stage, ours in zip(theirs.stages, backbone.forward_pyramid(images), strict=True):
            x = stage(x)
            torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-5)


def test_the_authors_file_loads(tmp_path):
    model = random_model()
    theirs = {}
    for name, value in model.state_dict().items():
        name = name.replace(".blocks.", ".").replace("stem.", "downsample_layers.0.")
        for stage in "123":
            name = name.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}")
        if name.startswith("head.norm"):
            name = name.removeprefix("head.")
        name = name.replace("head.fc.", "head.fc2.").replace("pre_logits.fc", "fc1")
        theirs[name.replace("pre_logits.norm", "norm")] = value
    torch.save(theirs, tmp_path / "w.pth")
    assert is_trunk_of(loaded(tmp_path / "w.pth"), model)


def test_a_backbones_own_file_brings_its_norms(tmp_path):
    first = Backbone(SMALL)
    torch.nn.init.normal_(first.state_dict()["norms.1.weight"])
    save_file(first.state_dict(), tmp_path / "w.safetensors")
    second = Backbone(SMALL)
    said = load_backbone(second, read_weights(tmp_path / "w.safetensors"))
    assert "it has no head" in said
    assert "norms" not in said
    ours = second.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in first.state_dict().items())


def test_a_file_of_another_shape_is_refused_and_loads_nothing(tmp_path):
    save_weights(random_model(replace(SMALL, dims=(8, 12, 16, 24))), tmp_path / "w.safetensors")
    backbone = Backbone(SMALL)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit the backbone \(dims .*misshapen: stages.3"):
        load_backbone(backbone, read_weights(tmp_path / "w.safetensors"))
    assert all(torch.equal(before[n], value) for n, value in backbone.state_dict().items())


def test_a_file_that_lacks_one_norm_is_refused(tmp_path):
    state = Backbone(SMALL).state_dict()
    del state["norms.3.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: norms\.3\.bias"):
        load_backbone(Backbone(SMALL), read_weights(tmp_path / "w.safetensors"))
