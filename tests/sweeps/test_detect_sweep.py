"""sweeps/detect.py: a study of detectors is priced, refused with a remedy, or built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sweep_scripts import DENSE

from mambaout import dense_options
from mambaout.dense.shapes import ShapesSize, write_shapes
from mambaout.detect_recipe import DetectRecipe
from mambaout.detect_rules import SHAPES_FIELDS, fitted_detect
from mambaout.errors import WrongRequest
from mambaout.launch.dense_cli import main
from mambaout.launch.dense_sweeps import DETECT_SWEEP
from mambaout.model.network import build
from mambaout.study.dense_start import DenseStart
from mambaout.study.study import StudyFolder, Trial
from mambaout.train.tasks import DETECT
from mambaout.variants import VARIANTS, variant

detect = DENSE["detect"]


def start_on(num_images: int, *, is_small: bool = False, **more) -> DenseStart:
    small = SHAPES_FIELDS if is_small else None
    return DenseStart(
        kind=DETECT,
        fit=lambda shape, fields: fitted_detect(num_images, shape, fields, small),
        is_small=is_small,
        **more,
    )


def test_on_coco_it_trains_the_papers_three_backbones_with_the_papers_recipe():
    study = detect(start_on(117_266))
    assert list(study.recipes) == ["tiny", "small", "base"]
    for name, recipe in study.recipes.items():
        assert recipe == DetectRecipe(model=VARIANTS[name])


def test_a_batch_is_no_larger_than_the_training_images_and_the_rate_follows_it():
    recipe, lines = fitted_detect(11, None, {})
    assert (recipe.global_batch, recipe.peak_lr) == (8, 5e-5)
    assert "--global-batch 8: there are 11 training images" in lines
    given, _ = fitted_detect(11, None, {"peak_lr": 3e-4})
    assert (given.global_batch, given.peak_lr) == (8, 3e-4)


def test_a_grid_is_every_combination_at_each_network():
    start = start_on(117_266, variants=("tiny", "femto"))
    study = detect(start, grid=["peak_lr=5e-5,1e-4", "drop_path=0.1,0.2"])
    assert len(study.recipes) == 8
    one = study.recipes["femto peak_lr=5e-05 drop_path=0.2"]
    assert (one.peak_lr, one.model.drop_path) == (5e-5, 0.2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid", "peak_lr=1e-4,2e-4", "--peak-lr", "1e-3"], "--peak-lr: this study varies it"),
        (["--grid", "learning_rate=1e-4"], "'learning_rate' cannot be compared"),
        (["--grid", "peak_lr=1e-4,1e-4"], "a value is there twice"),
        (["--grid", "peak_lr=fast"], "'fast' must be a finite number"),
        (["--grid", "peak_lr="], "write FIELD=A,B,C"),
        (["--mixer", "attend"], "--mixer 'attend' must be one of gated_conv"),
        (["--precision", "fp16"], "'fp16' must be one of fp32, tf32, bf16"),
        (["--grid", "dims=8,8,8,8"], "--variants compares networks"),
        (["--variants", "tny"], "did you mean 'tiny'?"),
        (["--peak-lr", "0"], "--peak-lr '0' must be"),
        (["--depths", "1,1,1,1"], "--depths: this study varies it"),
        (["--micro-batch", "7"], "--micro-batch 7 is more than the global batch 6"),
        (["--global-batch", "400"], "try global_batch=300"),
        (["--plan", "--accelerator", "tpu-v3-8"], "Mask R-CNN does not run on XLA"),
        (["--init", "nothing.pth"], "--init: nothing.pth"),
        (["--price-per-hour", "2"], "add --plan"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(words, said, tmp_path, capsys):
    storage = ["--storage", str(tmp_path / "runs")]
    assert main(DETECT_SWEEP, detect, ["--data", "shapes", *storage, *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_without_pycocotools_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(dense_options, "find_spec", lambda name: None)
    assert main(DETECT_SWEEP, detect, ["--data", "shapes", "--plan"]) == 2
    assert "pip install -c constraints.txt -e '.[dense]'" in capsys.readouterr().err


def planned(tmp_path: Path, capsys, *words: str) -> str:
    argv = ["--data", "shapes", "--storage", str(tmp_path / "runs"), "--plan", *words]
    assert main(DETECT_SWEEP, detect, argv) == 0
    return capsys.readouterr().out


def test_a_plan_prices_the_trials_and_writes_nothing(tmp_path, capsys):
    text = planned(tmp_path, capsys, "--seeds", "2", "--epochs", "3", "--price-per-hour", "2")
    assert re.search(r"w24-d5 +2 +\S+ +\S+ +900 ", text), "2 seeds of 3 epochs of 300 images"
    assert "to run       4 trials: 3.6k training images" in text
    assert "an image of 96x96 px" in text
    assert "money" in text
    assert not (tmp_path / "runs").exists()


def test_each_network_starts_from_the_weights_that_fit_it(tmp_path, capsys):
    from safetensors.torch import save_file

    names = {"femto": tmp_path / "one.safetensors", "kobe": tmp_path / "two.safetensors"}
    for name, path in names.items():
        save_file(build(variant(name), 10).state_dict(), path)
    init = ["--variants", "femto,kobe", "--init", *map(str, names.values())]
    text = planned(tmp_path, capsys, *init)
    assert "the backbones start from one.safetensors" in text
    argv = ["--data", "shapes", "--storage", str(tmp_path / "runs"), "--plan"]
    assert main(DETECT_SWEEP, detect, [*argv, "--variants", "tiny", *init[2:]]) == 2
    assert "no file has the weights of the network 3,3,9,3/96,192,384,576" in (
        capsys.readouterr().err
    )
    assert main(DETECT_SWEEP, detect, [*argv, "--variants", "femto", *init[2:]]) == 2
    assert "two.safetensors: no network of this study starts from it" in capsys.readouterr().err


def test_the_weights_are_in_the_trials_key():
    one = Trial(label="a", recipe=DetectRecipe(), seed=0, data="d")
    other = Trial(label="a", recipe=DetectRecipe(init="0123456789ab"), seed=0, data="d")
    assert one.key != other.key


def test_a_trial_is_read_back_with_the_recipe_of_its_task(tmp_path):
    trial = Trial(label="a", recipe=DetectRecipe(peak_lr=3e-4), seed=1, data="d")
    back = Trial.from_json(trial.to_json())
    assert (back.recipe, back.key, back.kind) == (trial.recipe, trial.key, DETECT)
    folder = StudyFolder(tmp_path, "one")
    study = detect(start_on(117_266))
    folder.write(study, study.trials("d"))
    assert folder.read()["task"] == "detect"
    assert [trial.recipe for trial in folder.trials()] == list(study.recipes.values())


def test_a_study_without_variants_of_its_own_says_so():
    with pytest.raises(WrongRequest, match="did you mean 'small'"):
        detect(start_on(117_266, variants=("smal",)))


@pytest.mark.parametrize("given", [".", "../photos", "../photos/", "../photos/train/.."])
def test_a_relative_path_gives_the_study_the_name_of_the_folder(
    given, tmp_path, capsys, monkeypatch
):
    root = tmp_path / "photos"
    write_shapes(root, ShapesSize(train=3, val=1, side=48))
    monkeypatch.chdir(root)
    argv = ["--data", given, "--storage", str(tmp_path / "runs"), "--plan", "--variants", "femto"]
    assert main(DETECT_SWEEP, detect, [*argv, "--global-batch", "2"]) == 0
    assert capsys.readouterr().out.startswith("detect-photos-global_batch2-femto: ")
