"""A file in ONNX computes what our network computes, for any number and size of images."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from mambaout import build
from mambaout.__main__ import main
from mambaout.dense.backbone import Backbone, load_backbone
from mambaout.model import onnx_file
from mambaout.model.network import Trunk
from mambaout.model.onnx_file import onnx_code, save_onnx
from mambaout.model.timm_call import check, timm_features_code
from mambaout.model.weights import load_trunk, read_weights, save_weights
from mambaout.variants import VARIANTS, ModelConfig

SMALL = ModelConfig(depths=(1, 1, 2, 1), dims=(16, 32, 48, 64), drop_path=0.3)
SHAPES = {
    "small": SMALL,
    "every field moved": replace(
        SMALL, stem_stride=2, conv_ratio=0.5, kernel_size=3, expansion=2.0
    ),
    "rounded hidden sizes": replace(SMALL, dims=(16, 16, 16, 16), hidden_multiple=8),
    "patches, and attention": replace(
        SMALL, downsampling="patchify", mixer="attention", mixer_stages=(3, 4)
    ),
    "femto": VARIANTS["femto"],
}


def with_weights(model: Any) -> Any:
    """Weights that leave no part of the network without a say."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def run(path: Path, images: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(each) for each in session.run(None, {"images": images.numpy()})]


def test_a_network_with_an_ssm_is_refused_with_what_reads_it(tmp_path):
    model = build(replace(SMALL, mixer="conv_ssm"), 7)
    with pytest.raises(ValueError, match=r"w\.onnx: .*SSM cannot be exported; `mambaout evaluate`"):
        save_onnx(model, tmp_path / "w.onnx", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SHAPES)
def test_onnxruntime_computes_the_logits_of_any_number_and_size_of_images(name, tmp_path):
    model = with_weights(build(SHAPES[name], 7))
    said = save_onnx(model, tmp_path / "w.onnx", {"fact": "1"})
    assert said.startswith("checked: onnxruntime")
    for shape in ((1, 3, 64, 64), (5, 3, 40, 100), (2, 3, 33, 31)):
        images = torch.randn(shape)
        (logits,) = run(tmp_path / "w.onnx", images)
        with torch.no_grad():
            torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [Trunk, Backbone])
def test_onnxruntime_computes_the_maps_of_the_stages(kind, tmp_path):
    model = with_weights(kind(SMALL))
    save_onnx(model, tmp_path / "w.onnx", {})
    images = torch.randn(3, 3, 50, 70)
    with torch.no_grad():
        expected = model.forward_pyramid(images)
    for found, each in zip(run(tmp_path / "w.onnx", images), expected, strict=True):
        torch.testing.assert_close(found, each.permute(0, 3, 1, 2), rtol=0, atol=1e-4)


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="onnxruntime computes something else"):
        save_onnx(with_weights(build(SMALL, 7)), tmp_path / "w.onnx", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [Trunk, build])
def test_weights_that_give_no_number_are_not_written(kind, tmp_path):
    model = with_weights(kind(SMALL))
    model.stages[3].blocks[0].fc2.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="outputs that are not finite"):
        save_onnx(model, tmp_path / "w.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime.*pip install .* '\.\[dense\]'"):
        save_onnx(build(SMALL, 7), tmp_path / "w.onnx", {})


# -- features in timm -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, shape in SHAPES.items() if not shape.not_in_timm])
def test_timm_loads_the_maps_by_name(name, tmp_path):
    model = with_weights(Trunk(SHAPES[name]))
    save_weights(model, tmp_path / "w.safetensors")
    code = timm_features_code(SHAPES[name], tmp_path / "w.safetensors")
    assert "features_only=True" in code
    assert check(code, model, 64).startswith("checked: timm")


def test_timm_takes_the_backbone_of_a_detector_without_its_norms(tmp_path):
    model = with_weights(Backbone(SMALL))
    path = tmp_path / "w.safetensors"
    save_weights(model, path)
    assert check(timm_features_code(SMALL, path), model, 64).startswith("checked: timm")
    again = Backbone(SMALL)
    load_backbone(again, read_weights(path))
    ours = again.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())


def test_what_timm_leaves_out_is_found_out(tmp_path):
    """With features_only timm says nothing of a tensor that is missing."""
    model = with_weights(Trunk(SMALL))
    save_weights(model, tmp_path / "w.safetensors")
    code = timm_features_code(SMALL, tmp_path / "w.safetensors")
    wrong = code.replace("'pretrained': True, ", "").replace("pretrained=True, ", "")
    assert wrong != code
    with pytest.raises(ValueError, match="its maps differ by up to"):
        check(wrong, model, 64)


def test_shapes_that_timms_features_cannot_have_are_refused():
    config = ModelConfig(depths=(1, 1, 1, 1), dims=(16, 32, 48, 64), hidden_multiple=64)
    with pytest.raises(ValueError, match="hidden_multiple=64 gives the stages other ratios"):
        timm_features_code(config, Path("w.safetensors"))


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def classifier(tmp_path) -> Path:
    save_weights(with_weights(build(SMALL, 7)), tmp_path / "classifier.safetensors")
    return tmp_path / "classifier.safetensors"


def test_export_writes_a_file_without_a_head(classifier, tmp_path, capsys):
    out = tmp_path / "features.safetensors"
    assert main(["export", str(classifier), str(out), "--features"]) == 0
    text = capsys.readouterr().out
    assert "no head, 8 tensors left out" in text
    assert "# checked: timm" in text
    made: dict[str, Any] = {}
    exec(text, made)
    trunk = Trunk(SMALL).eval()
    assert load_trunk(trunk, read_weights(out)) == 0
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for theirs, ours in zip(made["model"](images), trunk.forward_pyramid(images), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [False, True])
def test_export_writes_onnx_and_the_lines_that_run_it(features, classifier, tmp_path, capsys):
    out = tmp_path / "w.onnx"
    words = ["export", str(classifier), str(out), *(["--features"] if features else [])]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "# checked: onnxruntime" in text
    assert text.endswith(f"{onnx_code(out, has_head=not features)}\n")
    made: dict[str, Any] = {"images": np.zeros((2, 3, 40, 70), np.float32)}
    exec(
        text.replace("# logits, =", "outputs =").replace(
            "# map_1, map_2, map_3, map_4 =", "outputs ="
        ),
        made,
    )
    assert [each.shape for each in made["outputs"]] == (
        [(2, 16, 10, 18), (2, 32, 5, 9), (2, 48, 3, 5), (2, 64, 2, 3)] if features else [(2, 7)]
    )
    facts = made["session"].get_modelmeta().custom_metadata_map
    assert json.loads(facts["model"])["dims"] == [16, 32, 48, 64]
    assert json.loads(facts["timm_data_config"])["mean"] == [0.485, 0.456, 0.406]


def test_a_file_without_a_head_has_no_logits(tmp_path, capsys):
    save_weights(with_weights(Trunk(SMALL)), tmp_path / "w.safetensors")
    assert main(["export", str(tmp_path / "w.safetensors"), str(tmp_path / "o.onnx")]) == 2
    assert "has no head, whose classes a network needs; add --features" in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()
