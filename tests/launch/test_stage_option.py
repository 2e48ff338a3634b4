"""`--stage DIR`: of train, of evaluate and of every sweep; it changes where, not what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_sweep import tiny

from mambaout.__main__ import main
from mambaout.data.shards.encoded import EncodedImages
from mambaout.launch import calibrate, cli
from mambaout.launch.request import Request
from mambaout.launch.rerun import Rerun
from mambaout.launch.resources import share, this_machine
from mambaout.launch.trial import train_trial
from mambaout.launch.tune import _Launch
from mambaout.recipe import tuned
from mambaout.study.study import StudyFolder

SHAPE = "--depths 1,1,1,1 --dims 8,16,24,32 --stem-stride 2 --image-size 16 --global-batch 64"
LENGTH = "--train-images 128 --minival-fraction 0.1 --epochs 1 --warmup-epochs 0.5"
TINY = f"{SHAPE} {LENGTH}".split()


@pytest.fixture
def read_from(monkeypatch) -> set[str]:
    """The folders that images are read from."""
    folders = set()
    read = EncodedImages.__init__

    def noted(self, shards, *options) -> None:
        folders.update(str(Path(shard.location).parent) for shard in shards)
        read(self, shards, *options)

    monkeypatch.setattr(EncodedImages, "__init__", noted)
    return folders


def test_train_and_evaluate_read_the_staged_shards(digits, tmp_path, read_from, capsys):
    out, fast = tmp_path / "run", tmp_path / "fast"
    staged = f"{fast}/digits-{digits.fingerprint}-"
    options = ["--data", "digits", "--stage", str(fast)]
    assert main(["train", *options, "--out", str(out), *TINY]) == 0
    # The rules look at a few images before anything is copied.
    assert [folder.startswith(staged) for folder in sorted(read_from)].count(True) == 1
    outcome = json.loads((out / "outcome.json").read_text())
    assert outcome["facts"]["data"] == digits.fingerprint
    read_from.clear()
    assert main(["evaluate", str(out / "last.ckpt"), *options]) == 0
    (folder,) = read_from
    assert folder.startswith(staged)
    assert f"top-1 {outcome['metrics']['top1']:.3f} %" in capsys.readouterr().out


def test_an_evaluation_stages_the_shards_of_its_split_alone(digits, tmp_path):
    assert main(["train", "--data", "digits", "--out", str(tmp_path), *TINY]) == 0
    command = ["evaluate", str(tmp_path / "last.ckpt"), "--data", "digits"]
    for split, copied in (("val", "validation"), ("minival", "train"), ("train", "train")):
        fast = tmp_path / f"fast-{split}"
        assert main([*command, "--split", split, "--stage", str(fast)]) == 0
        assert {path.name.split("-")[0] for path in fast.rglob("*.parquet")} == {copied}


def test_no_room_to_stage_is_one_line(digits, tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["train", "--data", "digits", "--stage", str(tmp_path / "file")]
    assert main([*command, "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "digits cannot be staged in" in capsys.readouterr().err


def requested(monkeypatch, *options: str) -> Request:
    """What a sweep with these options would run."""
    asked: list[Request] = []
    monkeypatch.setattr(cli, "run_study", lambda request: asked.append(request) or 0)
    assert cli.main(tiny, ["--data", "digits", "--accelerator", "cpu", *options]) == 0
    return asked[0]


def test_a_sweeps_trials_are_told_where_to_stage_and_keep_their_keys(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = requested(monkeypatch, "--storage", str(tmp_path / "runs"))
    staged = requested(monkeypatch, "--storage", str(tmp_path / "runs"), "--stage", "fast")
    assert plain.stage is None
    assert staged.stage == str(tmp_path / "fast")  # a worker has another working directory
    assert [trial.key for trial in staged.trials] == [trial.key for trial in plain.trials]
    nodes = [this_machine("cpu")]
    for request in (plain, staged):
        folder = StudyFolder(request.storage, request.name)
        folder.write(request.study, request.trials)
        launch = _Launch(request, folder, nodes, share("cpu", nodes), Rerun(folder), joined=False)
        assert launch.task().stage == request.stage
    assert not (tmp_path / "fast").exists()


def test_a_trial_stages_and_trains_on_what_it_staged(digits, tmp_path, monkeypatch, read_from):
    request = requested(monkeypatch, "--storage", str(tmp_path), "--stage", str(tmp_path / "fast"))
    nodes = [this_machine("cpu")]
    folder = StudyFolder(request.storage, request.name)
    folder.write(request.study, request.trials)
    task = _Launch(request, folder, nodes, share("cpu", nodes), Rerun(folder), joined=False).task()
    trial = replace(request.trials[0], recipe=tuned(request.trials[0].recipe, epochs=2))
    read_from.clear()
    train_trial(task, trial, tmp_path / "run", lambda record: None, lambda: False)
    assert json.loads((tmp_path / "run/outcome.json").read_text())["status"] == "finished"
    (folder,) = read_from
    assert folder.startswith(f"{tmp_path}/fast/digits-{digits.fingerprint}-")


def test_a_calibration_stages_and_measures_what_it_staged(digits, tmp_path, monkeypatch, read_from):
    request = requested(monkeypatch, "--storage", str(tmp_path), "--stage", str(tmp_path / "fast"))
    part = share("cpu", [this_machine("cpu")])
    crew = calibrate._Crew(request, part, slots=1, seconds=0.1, width=0)
    crew._work = SimpleNamespace(remote=calibrate._calibrate)  # here, not in a worker of Ray's
    crew._ray = SimpleNamespace(get=lambda found: found)
    read_from.clear()
    recipe = tuned(request.trials[0].recipe, train_images=128)
    assert len(crew.calibrate({"thin": recipe}, print)) == 1
    (folder,) = read_from
    assert folder.startswith(f"{tmp_path}/fast/digits-{digits.fingerprint}-")


def test_how_the_images_were_re_encoded_is_in_the_record(digits, tmp_path, tiny_recipe):
    from mambaout.train.backend import Cpu
    from mambaout.train.loop import train

    recipe = tuned(tiny_recipe, epochs=1, warmup_epochs=0.5)
    for name, lossy in (("plain", None), ("small", "short side 288, quality 90")):
        data = replace(digits, lossy=lossy)
        train(recipe, data, out=tmp_path / name, backend=Cpu(), seed=0)
        facts = json.loads((tmp_path / name / "outcome.json").read_text())["facts"]
        assert facts["data_lossy"] == lossy
