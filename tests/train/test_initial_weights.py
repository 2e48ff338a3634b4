"""Training from trained weights: the values at step 0, a resume without the file, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mambaout import build
from mambaout.__main__ import main
from mambaout.model.initial import read_initial
from mambaout.recipe import Recipe, recipe_from_json, tuned
from mambaout.train import checkpoint
from mambaout.train.backend import Cpu
from mambaout.train.loop import train
from mambaout.train.outcomes import Finished, Preempted


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights_file(path: Path, recipe: Recipe, seed: int = 7, num_classes: int = 10) -> Path:
    torch.manual_seed(seed)
    torch.save(build(recipe.model, num_classes).state_dict(), path)
    return path


def starting_from(recipe: Recipe, path: Path) -> Recipe:
    return tuned(recipe, init=read_initial(path).digest)


def go_on(recipe: Recipe, data, out: Path, **options):
    return train(recipe, data, out=out, backend=Cpu(), log_every_steps=1, **options)


def model_in(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / "last.ckpt")["model"]


@pytest.mark.parametrize("num_classes", [10, 4])
def test_a_run_starts_from_the_weights_and_the_seed_draws_a_head_of_other_classes(
    num_classes, digits, tiny_recipe, tmp_path
):
    path = weights_file(tmp_path / "w.pth", tiny_recipe, num_classes=num_classes)
    still = tuned(tiny_recipe, peak_lr=1e-12, warmup_lr=0.0, final_lr=0.0, weight_decay=0.0)
    recipe = starting_from(still, path)
    go_on(recipe, digits, tmp_path / "run", seed=3, init=path, max_steps=1)
    torch.manual_seed(3)
    drawn = build(recipe.model, 10).state_dict()
    source, found = torch.load(path), model_in(tmp_path / "run")
    for name, value in found.items():
        is_new = num_classes != 10 and name.startswith("head.fc.")
        expected = drawn[name] if is_new else source[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)
    assert any(not torch.equal(source[name], drawn[name]) for name in source)


def test_a_resumed_run_needs_no_file_and_equals_an_uninterrupted_one(digits, tiny_recipe, tmp_path):
    path = weights_file(tmp_path / "w.pth", tiny_recipe)
    recipe = starting_from(tiny_recipe, path)
    assert isinstance(go_on(recipe, digits, tmp_path / "whole", init=path), Finished)
    assert go_on(recipe, digits, tmp_path / "parts", init=path, max_steps=3) == Preempted(3)
    path.unlink()
    assert isinstance(go_on(recipe, digits, tmp_path / "parts", init=path), Finished)
    whole, parts = model_in(tmp_path / "whole"), model_in(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert isinstance(go_on(tiny_recipe, digits, tmp_path / "scratch"), Finished)
    scratch = model_in(tmp_path / "scratch")
    assert not all(torch.equal(value, scratch[name]) for name, value in whole.items())


def test_a_run_does_not_go_on_with_other_weights(digits, tiny_recipe, tmp_path):
    first = weights_file(tmp_path / "first.pth", tiny_recipe)
    other = weights_file(tmp_path / "other.pth", tiny_recipe, seed=8)
    recipe = starting_from(tiny_recipe, first)
    with pytest.raises(ValueError, match=r"other\.pth holds weights .* the run starts from"):
        go_on(recipe, digits, tmp_path / "run", init=other)
    with pytest.raises(ValueError, match="give their file with --init FILE"):
        go_on(recipe, digits, tmp_path / "run")
    go_on(recipe, digits, tmp_path / "run", init=first, max_steps=1)
    for asked in (starting_from(tiny_recipe, other), tiny_recipe):
        with pytest.raises(ValueError, match=rf"another recipe \(init '{recipe.init}' not "):
            go_on(asked, digits, tmp_path / "run", init=other)


# -- the command ----------------------------------------------------------------------------------

WORDS = ("--data", "digits", "--image-size", "16", "--epochs", "1", "--train-images", "128")
WORDS = (*WORDS, "--global-batch", "64", "--warmup-epochs", "0")


def run_train(*words: str) -> int:
    return main(["train", *WORDS, *words])


def test_the_command_takes_the_weights_network_and_says_once_what_is_new(
    tiny_recipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = weights_file(tmp_path / "w.pth", tiny_recipe, num_classes=4)
    assert run_train("--init", "w.pth", "--out", "run") == 0
    said = capsys.readouterr().out
    digest = read_initial(path).digest
    num = len(torch.load(path))
    assert said.count("starting from") == 1
    assert (
        f"starting from weights {digest}: {num - 2} of {num} tensors from w.pth; new: head.fc (the "
        "file has 4 classes, and the network 10 classes)"
    ) in said
    assert "what follows the data, the weights and the device" in said
    assert "drop_path 0.1 (paper: 0.025): fine-tuning" in said
    recipe = recipe_from_json((tmp_path / "run" / "recipe.json").read_text())
    assert recipe.init == digest
    assert recipe.model.dims == tiny_recipe.model.dims
    path.rename(tmp_path / "moved.pth")
    for file in ("moved.pth", "w.pth"):  # the content counts, and a begun run needs no file
        assert run_train("--init", file, "--out", "run") == 0
        said = capsys.readouterr().out
        assert "finished" in said
        assert "starting from" not in said
        assert ("w.pth is not there; the run in run goes on without it" in said) is (
            file == "w.pth"
        )
    other = weights_file(tmp_path / "other.pth", tiny_recipe, seed=8)
    assert run_train("--init", str(other), "--out", "run") == 2
    assert f"init '{digest}' not '{read_initial(other).digest}'" in capsys.readouterr().err


def test_a_field_that_is_given_overrides_the_fine_tuning_recipe(tiny_recipe, tmp_path, capsys):
    path = weights_file(tmp_path / "w.pth", tiny_recipe)
    fields = ["--peak-lr", "3e-3", "--mixup", "0.5", "--drop-path", "0"]
    out = tmp_path / "run"
    assert run_train("--init", str(path), "--out", str(out), *fields, "--max-steps", "1") == 0
    recipe = recipe_from_json((out / "recipe.json").read_text())
    assert (recipe.optim.peak_lr, recipe.augment.mixup, recipe.model.drop_path) == (3e-3, 0.5, 0)
    again = tmp_path / "again"
    stored = ["--recipe", str(out / "recipe.json"), "--out", str(again), "--max-steps", "1"]
    assert main(["train", "--data", "digits", *stored]) == 2
    assert f"starts from weights {recipe.init}; give their file" in capsys.readouterr().err
    assert main(["train", "--data", "digits", *stored, "--init", str(path)]) == 0
    assert recipe_from_json((again / "recipe.json").read_text()) == recipe


@pytest.mark.parametrize(
    ("file", "words", "said"),
    [
        ("w.pth", ["femto"], "does not fit the network, which is femto (depths (3, 3, 9, 3), dims"),
        ("w.pth", ["--kernel-size", "5"], "the first difference: stages.0.blocks.0.conv.weight is"),
        ("gone.pth", [], "gone.pth is not there; give a file, a run's folder, or STUDY/TRIAL"),
        ("", [], "--init is empty; give a file of weights"),
        ("text.pth", [], "text.pth is no whole file of torch.save"),
        ("text.safetensors", [], "text.safetensors is no whole safetensors file"),
        ("empty", [], "empty holds no last.ckpt, model.safetensors or pytorch_model.bin"),
        ("net.pth", [], "net.pth holds no MambaOut: its 1 tensors are another network's, like fc"),
    ],
)
def test_a_file_that_cannot_be_started_from_is_refused_in_a_line(
    file, words, said, tiny_recipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    weights_file(tmp_path / "w.pth", tiny_recipe)
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "net.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
    (tmp_path / "empty").mkdir()
    assert run_train(*words, "--init", file, "--out", "run") == 2
    error = capsys.readouterr().err
    assert error.startswith("mambaout train: --init")
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_a_run_and_its_folder_start_another_run(digits, tiny_recipe, tmp_path):
    first = tmp_path / "first"
    go_on(tiny_recipe, digits, first, max_steps=2)
    for name, init in (("by-folder", first), ("by-file", first / "last.ckpt")):
        out = tmp_path / name
        assert run_train("--init", str(init), "--out", str(out), "--max-steps", "1") == 0
        recipe = recipe_from_json((out / "recipe.json").read_text())
        assert recipe.init == read_initial(first / "last.ckpt").digest
        assert recipe.model.stem_stride == tiny_recipe.model.stem_stride
