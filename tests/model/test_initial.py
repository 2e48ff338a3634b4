"""The weights that a training starts from: their digest, their network, and the copy of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mambaout import build
from mambaout.model.initial import copies_of, load_initial, read_initial
from mambaout.model.network import MambaOut
from mambaout.model.weights import read_weights, save_weights
from mambaout.recipe import BASELINE, canonical_json
from mambaout.variants import VARIANTS, ModelConfig

SMALL = ModelConfig(depths=(1, 1, 2, 1), dims=(12, 24, 48, 72), stem_stride=2)


def model_of(seed: int, config: ModelConfig = SMALL, num_classes: int = 10) -> MambaOut:
    torch.manual_seed(seed)
    model = build(config, num_classes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def test_the_digest_is_of_the_content_and_not_of_the_name_the_place_or_the_format(tmp_path):
    state = model_of(0).state_dict()
    (tmp_path / "folder").mkdir()
    save_file(state, tmp_path / "b.safetensors")
    checkpoint = {"model": state, "recipe": canonical_json(BASELINE), "step": 3}
    paths = [
        saved(tmp_path / "a.pth", state),
        saved(tmp_path / "folder" / "other.pth.tar", {"state_dict": state, "epoch": 1}),
        tmp_path / "b.safetensors",
        saved(tmp_path / "last.ckpt", checkpoint),
        saved(tmp_path / "c.pth", dict(reversed(state.items()))),
        saved(tmp_path / "d.pth", {name: value.double() for name, value in state.items()}),
    ]
    digests = {read_initial(path).digest for path in paths}
    assert len(digests) == 1
    (digest,) = digests
    assert len(digest) == 12
    int(digest, 16)


@pytest.mark.parametrize("name", ["stem.conv1.bias", "head.fc.weight"])
def test_one_number_that_differs_gives_another_digest(name, tmp_path):
    state = model_of(0).state_dict()
    before = read_initial(saved(tmp_path / "w.pth", state)).digest
    state[name] = state[name].clone()
    state[name].view(-1)[0] += 1e-6
    assert read_initial(saved(tmp_path / "w.pth", state)).digest != before


def test_the_ema_weights_are_taken_as_in_timm(tmp_path):
    ema, plain = model_of(1).state_dict(), model_of(2).state_dict()
    both = read_initial(saved(tmp_path / "both.pth", {"state_dict": plain, "state_dict_ema": ema}))
    assert both.digest == read_initial(saved(tmp_path / "ema.pth", ema)).digest
    load = both.plan(SMALL, 10)
    assert both.about(load).startswith(f"starting from EMA weights {both.digest}: {len(ema)} of ")


def test_the_network_is_the_one_that_the_file_says_or_shows(tmp_path):
    model = model_of(0)
    save_weights(model, tmp_path / "ours.safetensors")
    assert read_initial(tmp_path / "ours.safetensors").model == SMALL  # with the stem's stride
    plain = read_initial(saved(tmp_path / "plain.pth", model.state_dict()))
    assert plain.model == replace(SMALL, stem_stride=4)
    with torch.device("meta"):
        names = build("kobe", 3).state_dict()
    kobe = {name: torch.zeros(()).expand(value.shape) for name, value in names.items()}
    said = {"state_dict": kobe, "arch": "mambaout_femto"}  # changed, and called as before
    assert read_initial(saved(tmp_path / "kobe.pth", said)).model == VARIANTS["kobe"]


def test_loading_keeps_what_the_seed_drew_for_the_new_layer(tmp_path):
    source, model = model_of(0), build(SMALL, 3)
    drawn = model.head.fc.weight.detach().clone()
    path = saved(tmp_path / "w.pth", source.state_dict())
    found = load_initial(model, path, read_initial(path).digest)
    assert torch.equal(model.head.fc.weight, drawn)
    assert torch.equal(model.stem.conv1.weight, source.stem.conv1.weight)
    assert found.fresh == ("head.fc.weight", "head.fc.bias")


def test_other_weights_than_the_recipes_are_refused_and_none_are_asked_for(tmp_path):
    path = saved(tmp_path / "w.pth", model_of(0).state_dict())
    digest, model = read_initial(path).digest, model_of(1)
    with pytest.raises(ValueError, match=rf"w\.pth holds weights {digest}, .* from 0123456789ab"):
        load_initial(model, path, "0123456789ab")
    with pytest.raises(ValueError, match="weights 0123456789ab; give their file with --init FILE"):
        load_initial(model, None, "0123456789ab")
    with pytest.raises(ValueError, match=r"gone\.pth is not there, .* --init FILE"):
        load_initial(model, tmp_path / "gone.pth", digest)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    state = model_of(0).state_dict()
    state["stages.1.blocks.0.fc1.weight"][3, 4] = value
    path = saved(tmp_path / "w.pth", state)
    with pytest.raises(ValueError, match=r"w\.pth: stages\.1\.blocks\.0\.fc1\.weight .*not finite"):
        _ = read_initial(path).digest


def test_a_file_of_another_architecture_is_refused(tmp_path):
    path = saved(tmp_path / "w.pth", timm.create_model("resnet10t").state_dict())
    with pytest.raises(ValueError, match=r"w\.pth holds no MambaOut: its \d+ tensors .*like conv1"):
        read_initial(path)


def test_a_copy_has_the_digest_says_the_network_and_names_its_source(tmp_path):
    model = model_of(0)
    save_weights(model, tmp_path / "w.safetensors")
    first = read_initial(tmp_path / "w.safetensors")
    folder = tmp_path / "kept"
    copy = folder / f"{first.digest}.safetensors"
    first.keep(copy)
    again = read_initial(copy)
    assert (again.digest, again.model) == (first.digest, SMALL)
    written = copy.stat().st_mtime_ns
    first.keep(copy)
    assert copy.stat().st_mtime_ns == written
    assert [path.name for path in folder.iterdir()] == [copy.name]
    assert copies_of(tmp_path / "w.safetensors", folder) == {first.digest: copy}
    assert copies_of(tmp_path / "other.safetensors", folder) == {}
    assert copies_of(tmp_path / "w.safetensors", tmp_path / "none") == {}
    assert read_weights(copy).num_classes == 10
