"""Weights travel: from timm and the authors to us, from us to timm, and wrong files are refused."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.mambaout import checkpoint_filter_fn
from torch import Tensor, nn

from mambaout import build
from mambaout.model.file_shape import shape_in
from mambaout.model.network import MambaOut
from mambaout.model.tensor_names import from_authors
from mambaout.model.weights import (
    BackboneLoad,
    difference,
    load_backbone,
    load_weights,
    read_weights,
    save_weights,
)
from mambaout.recipe import BASELINE, canonical_json, tuned
from mambaout.train import checkpoint
from mambaout.variants import VARIANTS, ModelConfig

SMALL = ModelConfig(depths=(1, 1, 2, 1), dims=(12, 24, 48, 72), stem_stride=2)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def authors_names(config: ModelConfig) -> Iterator[str]:
    """Every name in the authors' checkpoints, written down from their models/mambaout.py."""
    layers = [f"downsample_layers.0.{layer}" for layer in ("conv1", "norm1", "conv2", "norm2")]
    layers += [f"downsample_layers.{i}.{layer}" for i in (1, 2, 3) for layer in ("conv", "norm")]
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            layers += [f"stages.{stage}.{block}.{x}" for x in ("norm", "fc1", "conv", "fc2")]
    layers += ["norm", "head.fc1", "head.norm", "head.fc2"]
    for layer in layers:
        yield from (f"{layer}.weight", f"{layer}.bias")


def to_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state under the authors' names, by a rule of its own."""
    renamed = {}
    for name, value in state.items():
        name = name.replace(".blocks.", ".").replace("stem.", "downsample_layers.0.")
        name = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", name)
        if name.startswith("head.norm"):
            name = name.removeprefix("head.")
        name = name.replace("head.fc.", "head.fc2.").replace("pre_logits.fc", "fc1")
        renamed[name.replace("pre_logits.norm", "norm")] = value
    return renamed


def random_model(config: ModelConfig = SMALL, num_classes: int = 10) -> MambaOut:
    model = build(config, num_classes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def same(first: MambaOut, second: MambaOut) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_authors_names_map_one_to_one(name):
    with torch.device("meta"):
        model = build(name)  # whose names are timm's: test_model.py
    authors = {key: torch.tensor(i) for i, key in enumerate(authors_names(VARIANTS[name]))}
    ours = from_authors(authors)
    assert ours.keys() == model.state_dict().keys()
    assert len(ours) == len(authors)
    assert ours == checkpoint_filter_fn(authors, model)  # timm's reading of the same names
    assert from_authors(ours) == ours


@pytest.mark.parametrize("form", ["pth", "state_dict", "model", "safetensors", "authors"])
def test_weights_load_from_every_form(form, tmp_path):
    source, target = random_model(), random_model()
    state = source.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "authors":
        assert to_authors(state).keys() == set(authors_names(SMALL))
        torch.save({"model": to_authors(state)}, path)
    elif form == "pth":
        torch.save(state, path)
    else:
        torch.save({form: state, "epoch": 3}, path)
    load_weights(target, read_weights(path))
    assert same(source, target)


def test_weights_load_from_half_precision(tmp_path):
    source, target = random_model(), random_model()
    torch.save({n: v.bfloat16() for n, v in source.state_dict().items()}, tmp_path / "w.pth")
    load_weights(target, read_weights(tmp_path / "w.pth"))
    assert next(target.parameters()).dtype == torch.float32
    assert same(source.bfloat16().float(), target)


def test_timm_loads_what_we_save(tmp_path):
    path = tmp_path / "femto.safetensors"
    model = random_model(VARIANTS["femto"], 10)
    save_weights(model, path)
    theirs = timm.create_model("mambaout_femto", num_classes=10, checkpoint_path=str(path)).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_a_saved_file_loads_back_and_says_what_to_build(tmp_path):
    path, model = tmp_path / "small.safetensors", random_model()
    save_weights(model, path)
    assert read_weights(path).recipe == replace(BASELINE, model=SMALL)
    recipe = tuned(replace(BASELINE, model=SMALL), image_size=28, peak_lr=1e-3)
    save_weights(model, path, recipe)
    assert read_weights(path).recipe == recipe
    assert read_weights(path).num_classes == 10
    again = build(SMALL, 10)
    load_weights(again, read_weights(path))
    assert same(model, again)
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"]


def test_a_checkpoint_says_its_recipe_and_others_files_say_none(tmp_path):
    model = random_model()
    torch.save({"model": model.state_dict(), "recipe": canonical_json(BASELINE)}, tmp_path / "a.pt")
    torch.save(model.state_dict(), tmp_path / "b.pt")
    save_file(model.state_dict(), tmp_path / "c.safetensors")
    assert read_weights(tmp_path / "a.pt").recipe == BASELINE
    assert read_weights(tmp_path / "b.pt").recipe is None
    assert read_weights(tmp_path / "c.safetensors").recipe is None


def test_a_file_of_another_network_is_refused_with_a_few_names_and_their_count(tmp_path):
    model = random_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = random_model(replace(SMALL, kernel_size=5)).state_dict()
    del state["stem.norm1.bias"], state["stages.2.blocks.1.fc1.weight"]
    torch.save(state | {"ls\n.gamma": torch.ones(3)}, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not fit the network") as error:
        load_weights(model, weights)
    for said in (
        str(tmp_path / "w.pth"),
        "2 missing: stem.norm1.bias, stages.2.blocks.1.fc1.weight",
        "1 unexpected: 'ls\\n.gamma'",
        "5 misshapen: stages.0.blocks.0.conv.weight is (12, 1, 5, 5), the model's (12, 1, 7, 7)",
        "and 2 more",
        "10 classes",
    ):
        assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    differing = difference(model, weights)
    assert differing.missing == ("stem.norm1.bias", "stages.2.blocks.1.fc1.weight")
    assert differing.unexpected == ("ls\n.gamma",)
    assert len(differing.misfits) == 5


def test_a_file_of_nothing_in_common_is_refused_in_a_short_line(tmp_path):
    torch.save({f"layer{i}.weight": torch.ones(1) for i in range(500)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="500 unexpected") as error:
        load_weights(random_model(), read_weights(tmp_path / "w.pth"))
    assert len(str(error.value)) < 600


def test_a_head_of_other_classes_is_said_with_both_numbers(tmp_path):
    torch.save(random_model(num_classes=12).state_dict(), tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    assert difference(random_model(), weights).in_classifier_alone
    with pytest.raises(ValueError, match="a head of 12 classes, and the data has 10"):
        load_weights(random_model(), weights)


def test_tensors_that_are_no_dense_numbers_are_refused(tmp_path):
    model = random_model()
    for odd in (torch.ones(12).long(), torch.ones(12, device="meta"), torch.ones(12).to_sparse()):
        torch.save(model.state_dict() | {"stem.norm2.bias": odd}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"stem\.norm2\.bias .* not dense numbers"):
            load_weights(model, read_weights(tmp_path / "w.pth"))


class Trap:
    """Unpickling it makes a file, as running any other code would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    sprung = tmp_path / "sprung"
    torch.save({"model": random_model().state_dict(), "x": Trap(sprung)}, tmp_path / "w.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    for name in ("w.pth", "raw.pth"):
        with pytest.raises(ValueError, match="could run code") as error:
            read_weights(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "pathlib.Path" in str(error.value) or "getattr" in str(error.value)
        assert "\n" not in str(error.value)
    assert not sprung.exists()


def test_a_run_does_not_go_on_from_a_checkpoint_that_is_not_its_own(tmp_path):
    torch.save({"format": 1, "x": Trap(tmp_path / "sprung")}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt is not read: it holds"):
        checkpoint.load_latest(tmp_path)
    assert not (tmp_path / "sprung").exists()
    for other, found in (([1], "None"), ({"format": 9}, "9")):
        torch.save(other, tmp_path / "last.ckpt")
        with pytest.raises(ValueError, match=rf"last\.ckpt has checkpoint format {found}"):
            checkpoint.load_latest(tmp_path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file_and_a_missing_one_are_named(name, tmp_path):
    path, model = tmp_path / name, random_model()
    with pytest.raises(FileNotFoundError, match=name):
        read_weights(path)
    if path.suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_weights(model, path)
    for damaged in (path.read_bytes()[:-1000], b"no weights", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            read_weights(path)


@pytest.mark.parametrize("saved", [{"model": {"epoch": 3}}, {}, [1, 2], {3: torch.ones(1)}, None])
def test_a_file_without_weights_is_refused(saved, tmp_path):
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds no weights"):
        read_weights(tmp_path / "w.pth")


def test_two_naming_schemes_in_one_file_are_an_error():
    state = {"downsample_layers.0.conv1.bias": torch.ones(1), "stem.conv1.bias": torch.ones(1)}
    with pytest.raises(ValueError, match=r"two tensors are called stem\.conv1\.bias"):
        from_authors(state)


def test_a_name_that_timm_cannot_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_weights(random_model(), tmp_path / "small.pth")


# -- a part of a file, to start a training from ----------------------------------------------------


def loaded(model: nn.Module, path: Path) -> BackboneLoad:
    return load_backbone(model, read_weights(path))


@pytest.mark.parametrize("form", ["timm", "authors", "ours"])
def test_a_backbone_comes_from_every_form_and_the_last_linear_alone_is_new(form, tmp_path):
    source, model = random_model(num_classes=12), random_model(num_classes=3)
    path = tmp_path / ("w.safetensors" if form == "ours" else "w.pth")
    if form == "ours":
        save_weights(source, path)
    else:
        state = source.state_dict()
        torch.save(state if form == "timm" else {"model": to_authors(state)}, path)
    drawn = {name: model.state_dict()[name].clone() for name in ("head.fc.weight", "head.fc.bias")}
    found = loaded(model, path)
    assert found.fresh == ("head.fc.weight", "head.fc.bias")
    state = model.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(state[name], drawn.get(name, value)), name
    num = len(state)
    assert found.text == (
        f"{num - 2} of {num} tensors from {path}; new: head.fc (the file has 12 classes, and the "
        "network 3 classes)"
    )


def test_a_head_of_the_same_number_of_classes_is_loaded_too(tmp_path):
    source, model = random_model(), random_model()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    found = loaded(model, tmp_path / "w.pth")
    assert same(source, model)
    assert (found.fresh, found.unused) == ((), ())
    assert found.text == f"{len(found.loaded)} of {len(found.loaded)} tensors from {found.path}"


def test_a_module_without_a_head_takes_the_backbone_and_says_what_is_left(tmp_path):
    source, model = random_model(), random_model()
    del model.head
    torch.save(source.state_dict(), tmp_path / "w.pth")
    found = loaded(model, tmp_path / "w.pth")
    assert found.fresh == ()
    assert all(name.startswith("head.") for name in found.unused)
    assert found.text.endswith(
        "not used: head.norm, head.pre_logits.fc, head.pre_logits.norm, head.fc"
    )
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.forward_features(images), source.forward_features(images))


def test_a_file_without_a_head_leaves_the_whole_head_new(tmp_path):
    source, model = random_model(), random_model()
    body = {n: v for n, v in source.state_dict().items() if not n.startswith("head.")}
    torch.save(body, tmp_path / "w.pth")
    found = loaded(model, tmp_path / "w.pth")
    assert len(found.fresh) == 8
    assert "(the file has no head, and the network 10 classes)" in found.text


def other_network(config: ModelConfig, file: ModelConfig, tmp_path: Path) -> str:
    """What is said of a file with `file`'s network for a model of `config`."""
    with torch.device("meta"):
        names = build(file, 3).state_dict()
    path = tmp_path / "w.pth"
    torch.save({name: torch.zeros(()).expand(v.shape) for name, v in names.items()}, path)
    with torch.device("meta"):
        model = build(config, 3)
    with pytest.raises(ValueError, match=r"w\.pth does not fit") as error:
        loaded(model, path)
    return str(error.value)


@pytest.mark.parametrize(
    ("config", "file", "said"),
    [
        (
            "femto",
            "tiny",
            "which is femto (depths (3, 3, 9, 3), dims (48, 96, 192, 288)): it seems to be tiny "
            "(depths (3, 3, 9, 3), dims (96, 192, 384, 576)); the first difference: "
            "stem.conv1.weight is (48, 3, 3, 3), the model's (24, 3, 3, 3)",
        ),
        (
            "kobe",
            "femto",
            "seems to be femto (depths (3, 3, 9, 3), dims (48, 96, 192, 288)); the "
            "first difference: it has no stages.2.blocks.9.norm.weight",
        ),
        (
            "femto",
            "kobe",
            "seems to be kobe (depths (3, 3, 15, 3), dims (48, 96, 192, 288)); the "
            "first difference: the network has no stages.2.blocks.9.norm.weight",
        ),
    ],
)
def test_another_network_is_named_with_the_first_difference(config, file, said, tmp_path):
    assert said in other_network(VARIANTS[config], VARIANTS[file], tmp_path)


@pytest.mark.parametrize("change", [{"kernel_size": 5}, {"expansion": 2.0}, {"conv_ratio": 0.5}])
def test_another_block_is_no_fit_and_the_shape_is_told_from_the_tensors(change, tmp_path):
    said = other_network(SMALL, replace(SMALL, **change), tmp_path)
    assert f"seems to be depths {SMALL.depths}, dims {SMALL.dims}; the first difference: " in said
    with torch.device("meta"):
        found = shape_in(build(replace(SMALL, **change), 3).state_dict())
    assert found is not None
    assert replace(found, stem_stride=2) == replace(SMALL, **change)


def test_a_checkpoint_with_another_mixer_names_it(tmp_path):
    theirs = replace(SMALL, mixer="conv_ssm")
    path = tmp_path / "w.safetensors"
    save_weights(build(theirs, 3), path, replace(BASELINE, model=theirs))
    with pytest.raises(ValueError, match=r"seems to be .*, mixer conv_ssm; the first difference"):
        loaded(build(SMALL, 3), path)


def test_weights_of_another_architecture_are_no_mambaout(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"seems to be no MambaOut; the first difference: it has"):
        loaded(random_model(), tmp_path / "w.pth")
    rw = timm.create_model("test_mambaout").state_dict()  # has a scale in each block
    torch.save(rw, tmp_path / "rw.pth")
    with pytest.raises(ValueError, match=r"rw\.pth does not fit the network"):
        loaded(random_model(), tmp_path / "rw.pth")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_shape_of_a_published_variant_is_told_from_its_tensors(name):
    with torch.device("meta"):
        assert shape_in(build(name).state_dict()) == VARIANTS[name]
