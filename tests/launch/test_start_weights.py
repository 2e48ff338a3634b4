"""`--init` of a sweep: its plan, the trials that it refuses, and a study without the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from drivers import NAME, Driver, trial
from sweep_scripts import FUNCTIONS
from tiny_sweep import recipe

from mambaout import build
from mambaout.launch.cli import main
from mambaout.launch.task import Task
from mambaout.launch.trial import train_trial
from mambaout.model.initial import read_initial
from mambaout.recipe import Recipe, tuned
from mambaout.rules import SMALL_MODEL
from mambaout.study.kept_weights import kept_weights
from mambaout.study.report.trial_files import reproduce_command
from mambaout.study.study import StudyFolder, Trial
from mambaout.train import checkpoint
from mambaout.variants import ModelConfig


def weights_file(path: Path, model: ModelConfig, seed: int = 7, num_classes: int = 4) -> Path:
    torch.manual_seed(seed)
    torch.save(build(model, num_classes).state_dict(), path)
    return path


def planned(build_study, *words: str) -> int:
    return main(build_study, ["--data", "digits", *words, "--plan"])


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


# -- before anything starts -----------------------------------------------------------------------


def test_a_plan_says_the_weights_the_fine_tuning_recipe_and_writes_nothing(
    tmp_path, storage, capsys
):
    path = weights_file(tmp_path / "w.pth", SMALL_MODEL)
    words = ["--grid", "weight_decay=0,0.1", "--storage", str(storage), "--init", str(path)]
    assert planned(FUNCTIONS["mine"], *words) == 0
    said = capsys.readouterr().out
    digest = read_initial(path).digest
    assert said.count(f"starting from weights {digest}: ") == 1
    assert "new: head.fc (the file has 4 classes, and the network 10 classes)" in said
    assert "what follows the data, the weights and the device" in said
    assert "drop_path 0.1 (paper: 0.025): fine-tuning" in said
    assert f"init{digest}" in said.splitlines()[0]
    assert not storage.exists() or not any(storage.iterdir())
    assert planned(FUNCTIONS["mine"], *words, "--drop-path", "0.3", "--epochs", "3") == 0
    said = capsys.readouterr().out
    assert "drop_path" not in said.partition("what follows")[2]


def test_the_key_of_a_trial_is_of_the_content_and_not_of_the_path():
    def key(digest: str | None) -> str:
        mine = tuned(recipe("thin"), init=digest)
        return Trial(label="thin", recipe=mine, seed=0, data="d").key

    keys = {key(None), key("0123456789ab"), key("0123456789ac")}
    assert len(keys) == 3
    assert key(None) == Trial(label="thin", recipe=recipe("thin"), seed=0, data="d").key
    again = Trial.from_json(
        Trial(
            label="x", recipe=tuned(recipe("thin"), init="0123456789ab"), seed=0, data="d"
        ).to_json()
    )
    assert (again.key, again.recipe.init) == (key("0123456789ab"), "0123456789ab")
    command = reproduce_command(again, "digits", storage=Path("runs"))
    assert "--init runs/.weights/0123456789ab.safetensors" in command


SCALE = ("--init", "w.pth")
REFUSED = {
    "scale varies the shape": (
        "scale",
        SCALE,
        "trial w8-d4-e4: w.pth does not fit the network, which is depths (1, 1, 1, 1), dims (8, 16",
    ),
    "tuning every size": (
        "scale",
        (*SCALE, "--tune-per-size", "2"),
        "and --tune-per-size compares several",
    ),
    "a search over the kernel": (
        "mine",
        (*SCALE, "--search", "kernel_size=3,5,7"),
        "--init: search fitting: w.pth does not fit the network",
    ),
    "a search over the width": (
        "mine",
        (*SCALE, "--search", "conv_ratio=0.5..1"),
        "Weights start one shape only, so every trial must have it",
    ),
    "a digest without its file": (
        "mine",
        ("--grid", "init=0123456789ab,none"),
        "starts from weights 0123456789ab; give their file with --init FILE",
    ),
    "a text that is no digest": (
        "mine",
        ("--grid", "init=tiny.pth,none"),
        "init='tiny.pth' is no digest of weights; give the weights' file, with --init FILE",
    ),
    "no file": ("mine", ("--grid", "hflip=0,1", "--init", "gone.pth"), "--init: gone.pth is not"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_weights_cannot_start_is_refused_before_anything_starts(
    name, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    weights_file(tmp_path / "w.pth", SMALL_MODEL)
    script, words, said = REFUSED[name]
    assert main(FUNCTIONS[script], ["--data", "digits", *words, "--storage", "runs"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_scale_takes_the_shape_that_fits_by_its_name(tmp_path, storage, capsys):
    path = weights_file(tmp_path / "w.pth", SMALL_MODEL)
    words = ["--init", str(path), "--variants", "baseline", "--storage", str(storage)]
    assert planned(FUNCTIONS["scale"], *words) == 0
    assert "starting from weights" in capsys.readouterr().out


def test_the_recipe_search_with_weights_searches_no_shape(tmp_path, storage, capsys):
    path = weights_file(tmp_path / "w.pth", SMALL_MODEL)
    assert planned(FUNCTIONS["recipe"], "--init", str(path), "--storage", str(storage)) == 0
    said = capsys.readouterr().out
    assert "shape (search" not in said
    assert "recipe" in said


def test_a_file_that_is_gone_is_replaced_by_the_copy_of_its_content(tmp_path, storage, capsys):
    path = weights_file(tmp_path / "w.pth", SMALL_MODEL)
    words = ["--grid", "hflip=0,1", "--init", str(path), "--storage", str(storage)]
    initial = read_initial(path)
    initial.keep(kept_weights(storage, initial.digest))
    path.unlink()
    assert planned(FUNCTIONS["mine"], *words) == 0
    said = capsys.readouterr().out
    assert f"w.pth is not there any more; its copy {storage}" in said
    assert f"starting from weights {initial.digest}" in said
    other = read_initial(weights_file(path, SMALL_MODEL, seed=8))
    other.keep(kept_weights(storage, other.digest))
    path.unlink()
    assert planned(FUNCTIONS["mine"], *words) == 2
    error = capsys.readouterr().err
    assert "copies of several contents of it" in error
    assert initial.digest in error
    assert other.digest in error


# -- a worker -------------------------------------------------------------------------------------


def worked(storage: Path, mine: Recipe, data) -> Path:
    task = Task(
        storage=str(storage), data="digits", backend="cpu", cpus=1, num_workers=0, study="s",
        launch="a", stop_file=str(storage / "stop"), commit="c", trainer="",
    )  # fmt: skip
    found = Trial(label="thin", recipe=mine, seed=0, data=data.fingerprint)
    train_trial(task, found, storage / "run", lambda record: None, lambda: False)
    return storage / "run"


def test_a_worker_finds_the_weights_in_the_storage_by_their_digest(digits, tmp_path, storage):
    path = weights_file(tmp_path / "w.pth", recipe("thin").model)
    initial = read_initial(path)
    still = tuned(
        recipe("thin"), init=initial.digest, epochs=1, warmup_epochs=0, weight_decay=0.0,
        peak_lr=1e-12, final_lr=0.0,
    )  # fmt: skip
    storage.mkdir()
    with pytest.raises(ValueError, match="is not there, and the run starts from weights"):
        worked(storage, still, digits)
    initial.keep(kept_weights(storage, initial.digest))
    path.unlink()
    found = checkpoint.load(worked(storage, still, digits) / "last.ckpt")["model"]
    body = {name: value for name, value in initial.weights.tensors.items() if "head" not in name}
    for name, value in body.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)


# -- a study on Ray -------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_a_study_goes_on_without_the_file_and_finds_its_trials_from_another_path(
    digits, tmp_path, storage
):
    path = weights_file(tmp_path / "w.pth", recipe("thin").model)
    digest = read_initial(path).digest
    folder = StudyFolder(storage, f"{NAME}-init{digest}")
    mine = Trial(
        label="thin",
        recipe=tuned(recipe("thin"), init=digest),
        seed=0,
        data=digits.fingerprint,
    )
    driver = Driver(storage, "--init", str(path), labels="thin")
    driver.wait_for((folder.run_directory(mine) / "last.ckpt").exists)
    driver.process.send_signal(2)
    assert driver.ends() == 130, driver.text
    assert "starting from weights" in driver.text
    moved = tmp_path / "elsewhere" / "other.pth"
    moved.parent.mkdir()
    shutil.move(path, moved)

    driver = Driver(storage, "--init", str(path), labels="thin")
    assert driver.ends() == 0, driver.text
    assert "is not there any more; its copy" in driver.text
    run = folder.run(mine)
    assert run.status == "finished"
    assert json.loads((folder.path / "study.json").read_text())["given"] == {"init": digest}

    driver = Driver(storage, "--init", str(moved), labels="thin")
    assert driver.ends() == 0, driver.text
    assert "1 trial, 1 of them over" in driver.text
    assert not StudyFolder(storage, NAME).path.exists()
    assert trial("thin", digits).key != mine.key
    command = folder.path / "trials.csv"
    assert f"--init {kept_weights(storage, digest)}" in command.read_text()
