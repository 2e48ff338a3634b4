"""The lines that `mambaout export` prints compute in timm what our network computes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from mambaout.data.batches.device_augment import prepare_eval
from mambaout.data.images.augment import eval_crop
from mambaout.model.network import MambaOut, build
from mambaout.model.timm_call import check, timm_code
from mambaout.model.weights import save_weights
from mambaout.recipe import BASELINE, Recipe, tuned
from mambaout.variants import VARIANTS, ModelConfig, deepen, widen

TINY = ModelConfig(depths=(1, 1, 2, 1), dims=(16, 32, 48, 64))
SHAPES = {
    "small stem": replace(TINY, stem_stride=2),
    "kernel": replace(TINY, kernel_size=3),
    "expansion": replace(TINY, expansion=2.0),
    "conv ratio": replace(TINY, conv_ratio=1.25),
    "less convolved": replace(TINY, conv_ratio=0.4),
    "drop path": replace(TINY, drop_path=0.3),
    "one expansion for all": replace(TINY, dims=(16, 16, 16, 16), hidden_multiple=8),
    "an expansion a stage": replace(TINY, hidden_multiple=8, kernel_size=5, conv_ratio=0.7),
    "all at once": replace(
        TINY, hidden_multiple=32, stem_stride=2, expansion=1.3, kernel_size=1, conv_ratio=1.1
    ),
    "of a study": deepen(widen(replace(VARIANTS["femto"], stem_stride=2), 0.5), -6),
}


def random_model(config: ModelConfig, num_classes: int = 10) -> MambaOut:
    """Weights that leave no part of the network without a say."""
    torch.manual_seed(0)
    model = build(config, num_classes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def exported(model: MambaOut, path: Path, recipe: Recipe = BASELINE) -> str:
    recipe = replace(recipe, model=model.config)
    save_weights(model, path, recipe)
    return timm_code(recipe, model.num_classes, path)


@pytest.mark.parametrize("name", SHAPES)
def test_the_printed_lines_compute_the_same_for_own_shapes(name, tmp_path):
    model = random_model(SHAPES[name])
    code = exported(model, tmp_path / "w.safetensors")
    assert check(code, model, 64).startswith("checked: timm")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_published_shape_is_called_by_its_name(name):
    recipe = replace(BASELINE, model=VARIANTS[name])
    code = timm_code(recipe, 7, Path("w.safetensors"))
    assert f'model = timm.create_model("mambaout_{name}", num_classes=7)\nload_checkpoint' in code


def test_the_printed_lines_run_in_a_fresh_python_for_a_published_shape(tmp_path):
    model = random_model(VARIANTS["femto"])
    path = tmp_path / "it's \\ a name.safetensors"
    images = torch.randn(2, 3, 64, 64)
    torch.save(images, tmp_path / "images.pt")
    lines = [
        exported(model, path),
        "import torch",
        f"torch.save(model(torch.load({str(tmp_path / 'images.pt')!r})), "
        f"{str(tmp_path / 'logits.pt')!r})",
    ]
    (tmp_path / "load.py").write_text("\n".join(lines))
    subprocess.run([sys.executable, tmp_path / "load.py"], check=True, cwd=tmp_path, timeout=300)
    logits = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(logits, model(images), rtol=1e-5, atol=1e-5)


def test_a_call_that_computes_something_else_is_found_out(tmp_path):
    model = random_model(SHAPES["small stem"])
    code = exported(model, tmp_path / "w.safetensors")
    wrong = "\n".join(line for line in code.splitlines() if "stride" not in line)
    assert wrong != code
    with pytest.raises(ValueError, match="computes something else"):
        check(wrong, model, 64)


def test_weights_that_give_no_number_are_not_called_checked(tmp_path):
    model = random_model(TINY)
    model.head.fc.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="logits that are not finite"):
        check(exported(model, tmp_path / "w.safetensors"), model, 64)


def test_a_mixer_that_timm_lacks_is_refused():
    config = replace(TINY)
    object.__setattr__(config, "mixer", "identity")  # one that a later version may have
    with pytest.raises(ValueError, match="timm's MambaOut has no mixer='identity'"):
        timm_code(replace(BASELINE, model=config), 10, Path("w.safetensors"))


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    dims=st.lists(st.integers(4, 20).map(lambda n: 2 * n), min_size=4, max_size=4),
    expansion=st.floats(1.0, 4.0),
    multiple=st.sampled_from([1, 2, 8, 24]),
    ratio=st.floats(0.2, 1.0),
    kernel=st.sampled_from([1, 3, 7]),
    stride=st.sampled_from([2, 4]),
)
def test_any_shape_has_its_right_call(
    dims, expansion, multiple, ratio, kernel, stride, tmp_path_factory
):
    config = ModelConfig(
        depths=(1, 1, 1, 1), dims=tuple(dims), expansion=expansion, hidden_multiple=multiple,
        conv_ratio=ratio, kernel_size=kernel, stem_stride=stride,
    )  # fmt: skip
    model = random_model(config, 3)
    path = tmp_path_factory.mktemp("any") / "w.safetensors"
    assert check(exported(model, path), model, 32).startswith("checked: timm")


@pytest.mark.parametrize(("size", "crop"), [((90, 61), 1.0), ((61, 90), 0.875), ((32, 32), 1.0)])
def test_the_printed_transform_prepares_an_image_as_our_evaluation_does(size, crop, tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    image = coarse.resize(size, Image.Resampling.BILINEAR)
    recipe = tuned(BASELINE, image_size=32, eval_crop=crop)
    model = random_model(TINY)
    made = {}
    exec(exported(model, tmp_path / "w.safetensors", recipe), made)
    theirs = made["transform"](image)
    ours = prepare_eval(torch.from_numpy(eval_crop(np.array(image), recipe))[None])[0]
    assert theirs.shape == ours.shape == (3, 32, 32)
    grey_level = 1 / 255 / 0.22
    assert float((theirs - ours).abs().max()) <= 1.01 * grey_level
