"""Promises of `mambaout evaluate`, `export`, `list` and `account`: weights are found by the names
that the tables show, what is printed is true, and bad input is one line that names it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from study_files import DATA, SMALL, finished_study, mixed_study, searched_study

from mambaout.__main__ import main
from mambaout.model.network import build
from mambaout.model.weights import load_weights, read_weights, save_weights
from mambaout.recipe import tuned
from mambaout.study.report.ranking import standing
from mambaout.study.study import Study, StudyFolder, Trial
from mambaout.train.backend import backend
from mambaout.train.loop import train
from mambaout.train.outcomes import Finished
from mambaout.variants import ModelConfig

SHAPE = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))


@pytest.fixture(scope="module")
def storage(digits, tmp_path_factory) -> Path:
    """A study of which one trial was trained, one stopped on its way and two not begun."""
    storage = tmp_path_factory.mktemp("runs")
    recipe = tuned(
        SMALL, **SHAPE, hidden_multiple=8, image_size=16, train_images=256, epochs=2,
        warmup_epochs=0.5, global_batch=64,
    )  # fmt: skip
    recipes = {"w8-d4": recipe, "w8-d5": tuned(recipe, depths=(1, 1, 2, 1))}
    study = Study(name="scale-digits", question="Deeper?", recipes=recipes, seeds=(0, 1))
    folder = StudyFolder(storage, study.name)
    trials = study.trials(digits.fingerprint)
    folder.write(study, trials, data="digits", data_name="digits", command="none")
    for trial, max_steps in zip(trials[:2], (None, 2), strict=True):
        out = folder.run_directory(trial)
        outcome = train(trial.recipe, digits, out=out, backend=backend("cpu"), max_steps=max_steps)
        assert isinstance(outcome, Finished) == (max_steps is None)
    return storage


def trained_run(storage: Path) -> Path:
    (outcome,) = storage.glob("scale-digits/trials/*/outcome.json")
    return outcome.parent


@pytest.mark.parametrize("way", ["file", "folder", "study/trial", "path/trial", "key"])
def test_evaluate_finds_a_run_by_every_name_and_repeats_its_own_number(way, storage, capsys):
    run = trained_run(storage)
    named = {
        "file": run / "last.ckpt",
        "folder": run,
        "study/trial": "scale-digits/w8-d4-s0",
        "path/trial": storage / "scale-digits" / "w8-d4-s0",
        "key": f"scale-digits/{run.name}",
    }[way]
    assert main(["evaluate", str(named), "--storage", str(storage)]) == 0
    shown = capsys.readouterr().out
    top1 = json.loads((run / "outcome.json").read_text())["metrics"]["top1"]
    assert f"digits val (1029 images at 16 px): top-1 {top1:.3f} %" in shown
    assert f"{run / 'last.ckpt'}: plain weights, the only ones in the file\n" in shown


def test_a_run_folder_of_its_own_knows_its_named_data(storage, tmp_path, capsys):
    shutil.copytree(trained_run(storage), tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "digits val" in capsys.readouterr().out


def test_the_weights_of_an_unfinished_run_are_said_to_be_such(storage, tmp_path, capsys):
    name = "scale-digits/w8-d5"  # the label is enough where one trial has it, and two have
    assert main(["evaluate", name, "--storage", str(storage)]) == 2
    assert "has 2 trials 'w8-d5': w8-d5-s0, w8-d5-s1" in capsys.readouterr().err
    assert (
        main(["export", f"{name}-s0", str(tmp_path / "w.safetensors"), "--storage", str(storage)])
        == 0
    )
    assert "of a run that has not finished" in capsys.readouterr().out


def test_what_export_prints_is_python_that_gives_our_logits(storage, tmp_path, capsys):
    out = tmp_path / "best.safetensors"
    command = ["export", "scale-digits/w8-d4-s0", str(out), "--storage", str(storage)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"# {out}: " in shown
    assert "# checked: timm" in shown
    images = torch.randn(2, 3, 16, 16)
    torch.save(images, tmp_path / "images.pt")
    script = tmp_path / "load.py"
    script.write_text(
        f"{shown}\nimport torch\nassert not model.training\n"
        "torch.save(model(torch.load('images.pt')), 'logits.pt')\n"
    )
    subprocess.run([sys.executable, script], check=True, cwd=tmp_path, timeout=300)
    weights = read_weights(trained_run(storage) / "last.ckpt")
    assert weights.recipe is not None
    ours = build(weights.recipe.model, 10).eval()
    load_weights(ours, weights)
    logits = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(logits, ours(images), rtol=1e-5, atol=1e-5)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["timm"] in shown
    config = json.loads(metadata["timm_data_config"])
    assert config["input_size"] == [3, 16, 16]
    assert config["crop_pct"] == 1.0
    assert config["interpolation"] == "bicubic"


def test_evaluate_and_export_take_ema_weights_or_the_plain_ones_and_say_which(
    digits, tmp_path, capsys
):
    """Of a checkpoint that says its shape by timm's name alone."""
    path, out = tmp_path / "model_best.pth.tar", tmp_path / "w.safetensors"
    plain, averaged = (timm.create_model("mambaout_femto", num_classes=10) for _ in range(2))
    states = {"state_dict": plain.state_dict(), "state_dict_ema": averaged.state_dict()}
    torch.save({"arch": "mambaout_femto", "args": Namespace(lr=1e-3), **states}, path)

    def loss(weights: Path, *options: str) -> str:
        rest = ["--data", "digits", "--split", "minival", "--image-size", "32"]
        assert main(["evaluate", str(weights), *rest, *options]) == 0
        shown = capsys.readouterr().out
        assert weights == out or f"weights ({name}; " in shown
        return shown.split("loss")[1].split(",")[0]

    losses = []
    for name, options in (("state_dict_ema", []), ("state_dict", ["--no-ema"])):
        losses.append(loss(path, *options))
        assert main(["export", str(path), str(out), *options]) == 0
        shown = capsys.readouterr().out
        assert f"weights ({name}; " in shown
        assert "# checked: timm" in shown
        assert read_weights(out).is_ema == (not options)
        assert loss(out) == losses[-1]
    assert losses[0] != losses[1]


def test_list_shows_the_studies_under_a_storage(tmp_path, capsys):
    finished_study(tmp_path)
    searched_study(tmp_path)
    assert main(["list", "--storage", str(tmp_path)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["study", "finished"]
    assert [line.split()[:2] for line in lines] == [["scale", "14/14"], ["search", "44/64"]]
    folder = StudyFolder(tmp_path, "scale")
    best = standing(folder.runs(), folder.read()).best
    assert best is not None
    assert f"{best.mean('top1').value:.2f}  {best.label} (n=2)" in lines[0]


def test_list_of_a_study_shows_each_trial_with_its_checkpoint(tmp_path, capsys):
    folder = mixed_study(tmp_path)
    assert main(["list", "scale", "--storage", str(tmp_path)]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [trial.name for trial in folder.trials()]
    for line, run in zip(lines, folder.runs(), strict=True):
        assert run.status in line
        path = folder.run_directory(run.trial) / "last.ckpt"
        assert line.endswith(str(path) if path.exists() else "none")
    assert "so far" in lines[-3]


def test_list_leaves_out_no_run_that_an_earlier_command_asked_for(tmp_path, capsys):
    folder = finished_study(tmp_path)
    first, *others = folder.trials()
    path = folder.path / "trials.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert [trial.key for trial in folder.trials()] == [trial.key for trial in others]
    assert main(["list", "scale", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(folder.run_directory(first)))


def test_list_names_a_study_that_it_cannot_read(tmp_path, capsys):
    finished_study(tmp_path)
    shutil.copytree(tmp_path / "scale", tmp_path / "older")
    lines = (tmp_path / "older" / "trials.jsonl").read_text().replace('"mixer"', '"blender"')
    (tmp_path / "older" / "trials.jsonl").write_text(lines)
    assert main(["list", "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "scale" in shown
    assert f"{tmp_path / 'older' / 'trials.jsonl'} cannot be read: " in shown
    assert main(["list", "older", "--storage", str(tmp_path)]) == 2
    assert f"{tmp_path / 'older' / 'trials.jsonl'} cannot be read: " in capsys.readouterr().err


def test_list_says_that_there_is_no_study(tmp_path, capsys):
    assert main(["list", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path} holds no study yet\n"


def test_a_reader_that_stops_reading_is_no_traceback(tmp_path):
    finished_study(tmp_path)
    command = [sys.executable, "-m", "mambaout", "list", "scale", "--storage", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait() == 1


def test_account_takes_an_own_shape_and_changes_of_a_published_one(capsys):
    own = "account --depths 1,1,3,1 --dims 16,32,64,96 --stem-stride 2 --hidden-multiple 8"
    assert main([*own.split(), "--image-size", "28", "--num-classes", "10"]) == 0
    shown = capsys.readouterr().out
    shape = ModelConfig(
        depths=(1, 1, 3, 1), dims=(16, 32, 64, 96), stem_stride=2, hidden_multiple=8
    )
    model = build(shape, 10)
    assert f"{sum(p.numel() for p in model.parameters()):,}" in shown
    assert main(["account", "femto", "--kernel-size", "5", "--expansion", "3"]) == 0
    shown = capsys.readouterr().out
    changed = build(replace(build("femto").config, kernel_size=5, expansion=3.0))
    assert "7,304,536" in shown
    assert f"{sum(p.numel() for p in changed.parameters()):,}" in shown


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("mambaout 0.")


class Trap:
    """Unpickling it makes a file, as running any other code would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def files(storage, tmp_path) -> dict[str, Path]:
    """Files that no command can use, by what is wrong with them; `ok` is right."""
    run = trained_run(storage)
    whole = (run / "last.ckpt").read_bytes()
    recipe = read_weights(run / "last.ckpt").recipe
    assert recipe is not None
    model = build(recipe.model, 7)
    (tmp_path / "ok.ckpt").write_bytes(whole)
    torch.save({"model": {}, "x": Trap(tmp_path / "sprung")}, tmp_path / "hostile.pth")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "short.ckpt").write_bytes(whole[:-2000])
    save_weights(model, tmp_path / "7.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "7.safetensors").read_bytes()[:-999])
    torch.save([1, 2], tmp_path / "list.pth")
    saved = torch.load(tmp_path / "ok.ckpt", weights_only=True)
    saved["recipe"] = saved["recipe"].replace('"mixer"', '"blender"')
    torch.save(saved, tmp_path / "newer.ckpt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "trains").mkdir()
    (tmp_path / "trains" / "model_best.pth.tar").write_bytes(b"")
    return {path.name: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("export {hostile.pth} {new}", "{hostile.pth} is not read: it holds"),
        ("evaluate {hostile.pth} --data digits", "{hostile.pth} is not read: it holds"),
        ("export {empty.ckpt} {new}", "{empty.ckpt} is no whole file"),
        ("export {short.ckpt} {new}", "{short.ckpt} is no whole file"),
        ("export {short.safetensors} {new}", "{short.safetensors} is no whole safetensors file"),
        ("export {list.pth} {new}", "{list.pth} holds no weights"),
        ("export {folder} {new}", "{folder} holds no last.ckpt, model.safetensors or py"),
        ("export {trains} {new}", "name one of model_best.pth.tar"),
        ("export {newer.ckpt} {new}", "{newer.ckpt}: "),
        ("export {ok.ckpt}/x {new}", "{ok.ckpt}/x is not there"),
        ("export {ok.ckpt} {ok.ckpt}", "{ok.ckpt} must end in .safetensors"),
        ("export {7.safetensors} {7.safetensors}", "{7.safetensors} is the file that is exported"),
        ("export {ok.ckpt} {folder}", "{folder} must end in .safetensors"),
        ("export {ok.ckpt} {folder}/a/b.safetensors", "{folder}/a, where b.safetensors goes"),
        ("export {ok.ckpt} /proc/b.safetensors", "/proc"),
        ("export {ok.ckpt} {new} --variant femto", "does not fit the network"),
        ("evaluate {ok.ckpt} --data digits --image-size 0", "image_size=0 is out of range"),
        ("evaluate {ok.ckpt}", "--data is missing: give digits, fashion-mnist"),
        ("evaluate {7.safetensors} --data digits", "a head of 7 classes, and the data has 10"),
        ("evaluate scale-digits/w8-d4 --storage {storage}", "w8-d4-s0, w8-d4-s1"),
        ("evaluate scale-digits/w8-d6-s0 --storage {storage}", "did you mean 'w8-d5-s0' or"),
        ("evaluate scale-digts/w8-d4-s0 --storage {storage}", "did you mean 'scale-digits'?"),
        ("evaluate scale-digits --storage {storage}", "scale-digits is a study; name one of its"),
        ("evaluate {storage}/scale-digits", "scale-digits is a study; name one of its trials"),
        ("evaluate scale-digits/w8-d4-s1 --storage {storage}", "is unfinished and has no checkp"),
        ("evaluate none --storage {storage}", "none is not there"),
        ("list none --storage {storage}", "no study 'none'"),
        ("list --storage {folder}/none", "{folder}/none is no folder"),
        ("account --depths 1,1,1,1", "--dims is missing"),
        ("account --kernel-size 5", "is missing"),
        ("account --depths 1,1,1 --dims 8,16,24,32", "depths=(1, 1, 1): give 4 whole numbers"),
        ("account femto --stem-stride 3", "--stem-stride '3' must be one of 4, 2"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_it_and_nothing_is_written(
    words, said, files, storage, digits, tmp_path, capsys
):
    paths = files | {"new": tmp_path / "new.safetensors", "storage": storage}

    def filled(text: str) -> str:
        for name, path in paths.items():
            text = text.replace("{" + name + "}", str(path))
        return text

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([filled(word) for word in words.split()]) == 2
    shown = capsys.readouterr()
    assert filled(said) in shown.err
    assert shown.err.strip().count("\n") == 0
    assert len(shown.err) < 600
    assert shown.out == ""
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", ""])
@pytest.mark.parametrize(
    "command", ["evaluate w.ckpt --batch-size", "account --image-size", "account --num-classes"]
)
def test_a_size_that_is_none_is_one_line_with_its_bound(command, size, capsys):
    with pytest.raises(SystemExit) as ended:
        main(f"{command}={size}".split(" "))
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert f"{command.split()[-1]}: {size!r} must be a whole number" in shown
    assert shown.strip().count("\n") == 0


def test_two_trials_of_one_name_are_told_apart_by_their_keys(tmp_path, capsys):
    folder = mixed_study(tmp_path)
    first = folder.trials()[0]
    folder.add(twin := Trial(
        label=first.label, recipe=tuned(first.recipe, peak_lr=9e-3), seed=first.seed, data=DATA
    ))  # fmt: skip
    assert main(["export", f"scale/{first.name}", "w.safetensors", "--storage", str(tmp_path)]) == 2
    assert f"2 trials {first.name!r}: {first.key}, {twin.key}" in capsys.readouterr().err


def test_evaluate_takes_no_more_memory_than_the_images_need(storage, capsys):
    run = str(trained_run(storage))
    assert main(["evaluate", run, "--data", "digits", "--batch-size", "2147483647"]) == 0
    assert "digits val (1029 images" in capsys.readouterr().out
