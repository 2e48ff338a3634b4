"""What timm's train.py leaves is read as timm reads it: the same weights, by timm's own saver."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from timm.models import load_checkpoint
from timm.models.mambaout import MambaOut as TimmMambaOut
from timm.utils.checkpoint_saver import CheckpointSaver
from timm.utils.cuda import NativeScaler
from timm.utils.model_ema import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn

from mambaout.launch.named import named_weights
from mambaout.model.network import build
from mambaout.model.weights import Weights, load_weights, read_weights
from mambaout.recipe import BASELINE
from mambaout.variants import VARIANTS, ModelConfig

SHAPE = ModelConfig(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
# What timm's train.py has among its options, by type.
ARGS = dict(
    model="mambaout_own", lr=1e-3, opt_betas=None, decay_milestones=[90, 180], device="cpu",
    model_kwargs={}, model_dtype=torch.float32, opt="adamw", amp=False, mean=(0.5, 0.5, 0.5),
    torch_device=torch.device("cpu"),
)  # fmt: skip


def fresh() -> TimmMambaOut:
    return TimmMambaOut(num_classes=10, depths=SHAPE.depths, dims=SHAPE.dims)


def shifted(module: nn.Module, by: float) -> nn.Module:
    for parameter in module.parameters():
        parameter.data += by
    return module


def saved_by_timm(
    folder: Path, model: nn.Module, ema: nn.Module | None, metric: float = 71.25, **options: Any
) -> Path:
    """The checkpoint of one step of training, as timm's train.py has it written."""
    optimizer = torch.optim.AdamW(model.parameters())
    torch.stack([parameter.sum() for parameter in model.parameters()]).sum().backward()
    optimizer.step()
    saver = CheckpointSaver(
        model=model,
        optimizer=optimizer,
        args=Namespace(**ARGS),
        model_ema=ema,
        amp_scaler=NativeScaler(device="cpu"),
        checkpoint_dir=str(folder),
        **options,
    )
    saver.save_checkpoint(3, metric=metric)
    return folder / "model_best.pth.tar"


def our_logits(weights: Weights) -> Tensor:
    model = build(SHAPE, 10).eval()
    load_weights(model, weights)
    return model(IMAGES)


def timms_logits(path: Path, use_ema: bool = True) -> Tensor:
    model = fresh().eval()
    load_checkpoint(model, str(path), use_ema=use_ema)
    return model(IMAGES)


@pytest.mark.parametrize("average", [ModelEmaV2, ModelEmaV3])
def test_a_checkpoint_of_timms_gives_its_ema_weights_or_the_plain_ones(average, tmp_path):
    model = fresh()
    path = saved_by_timm(tmp_path, model, shifted(average(model), 0.01))
    averaged, plain = read_weights(path), read_weights(path, ema=False)
    assert averaged.is_ema
    assert not plain.is_ema
    assert averaged.text == "EMA weights (state_dict_ema; --no-ema takes state_dict)"
    assert plain.text == "plain weights (state_dict; without --no-ema it is state_dict_ema)"
    torch.testing.assert_close(our_logits(averaged), timms_logits(path))
    torch.testing.assert_close(our_logits(plain), timms_logits(path, use_ema=False))
    assert not torch.allclose(our_logits(averaged), our_logits(plain), atol=1e-3)


def test_a_checkpoint_without_ema_weights_says_that_it_has_the_plain_ones_alone(tmp_path):
    path = saved_by_timm(tmp_path, fresh(), None)
    for ema in (True, False):
        weights = read_weights(path, ema=ema)
        assert weights.text == "plain weights, the only ones in the file"
        torch.testing.assert_close(our_logits(weights), timms_logits(path))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_a_metric_that_is_numpys_is_read_too(kind, tmp_path):
    path = saved_by_timm(tmp_path, fresh(), None, metric=kind(71))
    load_checkpoint(model := fresh().eval(), str(path), weights_only=False)
    torch.testing.assert_close(our_logits(read_weights(path)), model(IMAGES))


def test_plain_weights_asked_of_a_file_with_ema_weights_alone_are_refused(tmp_path):
    torch.save({"model_ema": fresh().state_dict()}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").text == "EMA weights, the only ones in the file"
    with pytest.raises(ValueError, match=r"w\.pth holds EMA weights alone"):
        read_weights(tmp_path / "w.pth", ema=False)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda model: torch.compile(nn.DataParallel(model)),
        lambda model: nn.DataParallel(cast(nn.Module, torch.compile(model))),
    ],
    ids=["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."],
)
def test_the_prefixes_of_wrapped_models_are_taken_off_as_timm_does(
    wrap: Callable[[nn.Module], nn.Module], request, tmp_path
):
    prefix = request.node.callspec.id
    path = saved_by_timm(tmp_path, wrap(fresh()), None, unwrap_fn=lambda model: model)
    names = torch.load(path, weights_only=False)["state_dict"]
    assert all(name.startswith(prefix) for name in names)
    torch.testing.assert_close(our_logits(read_weights(path)), timms_logits(path))


def test_a_state_dict_of_timms_average_itself_is_read(tmp_path):
    torch.save(ModelEmaV2(fresh()).state_dict(), tmp_path / "w.pth")
    path = tmp_path / "w.pth"
    torch.testing.assert_close(our_logits(read_weights(path)), timms_logits(path))


def test_of_two_plain_sets_timms_choice_is_taken(tmp_path):
    other = shifted(fresh(), 0.1)
    torch.save(
        {"model": other.state_dict(), "state_dict": fresh().state_dict()}, tmp_path / "w.pth"
    )
    path = tmp_path / "w.pth"
    torch.testing.assert_close(our_logits(read_weights(path)), timms_logits(path))


def test_a_tensor_twice_with_a_prefix_and_without_is_refused(tmp_path):
    state = fresh().state_dict()
    state["module.stem.conv1.bias"] = torch.ones(4)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: two tensors are called stem\.conv1\.bias"):
        read_weights(tmp_path / "w.pth")


def test_a_checkpoint_of_timms_says_the_published_shape_that_its_arch_names(tmp_path):
    small = {"state_dict": fresh().state_dict(), "arch": "mambaout_femto"}
    said = []
    for args in (Namespace(model_kwargs={}), Namespace(model_kwargs={"kernel_size": 5})):
        torch.save(small | {"args": args}, tmp_path / "w.pth")
        said.append(read_weights(tmp_path / "w.pth").recipe)
    assert said[0] is not None
    assert said[0].model == VARIANTS["femto"]
    assert said[0].image_size == BASELINE.image_size
    assert said[1] is None  # its options changed the shape that the name stands for
    torch.save(small | {"arch": "resnet50"}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").recipe is None


def test_the_folders_that_timm_makes_for_hugging_face_are_read(tmp_path):
    model = timm.create_model("mambaout_femto", num_classes=10).eval()
    timm.models.save_for_hf(model, str(tmp_path / "new"), safe_serialization="both")
    timm.models.save_for_hf(model, str(tmp_path / "old"), safe_serialization=False)
    for file in ("new/model.safetensors", "old/pytorch_model.bin"):
        named = named_weights(str((tmp_path / file).parent), tmp_path)
        assert named.path == tmp_path / file
        ours = build("femto", 10).eval()
        load_weights(ours, read_weights(named.path))
        torch.testing.assert_close(ours(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
