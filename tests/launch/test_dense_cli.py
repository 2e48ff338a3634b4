"""What the command line of a study of detectors or segmenters asks of the launch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweep_scripts import DENSE

from mambaout.dense.shapes import ShapesSize, write_shapes
from mambaout.errors import WrongRequest
from mambaout.launch import dense_cli
from mambaout.launch.dense_sweeps import DETECT_SWEEP, SEGMENT_SWEEP
from mambaout.launch.request import Request, check_task
from mambaout.study.study import StudyFolder
from mambaout.train.tasks import CLASSIFY, DETECT

NETWORKS = ["--variants", "femto,kobe"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sets") / "photos"
    write_shapes(root, ShapesSize(train=3, val=1, side=48))
    return root


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A function from a command line to the request that the launch gets."""

    def ask(*words: str, task: str = "detect") -> Request:
        found: list[Request] = []
        monkeypatch.setattr(dense_cli, "run_study", lambda request: found.append(request) or 0)
        sweep = DETECT_SWEEP if task == "detect" else SEGMENT_SWEEP
        argv = ["--storage", str(tmp_path / "runs"), *words]
        assert dense_cli.main(sweep, DENSE[task], argv) == 0
        return found[0]

    return ask


def test_one_seed_of_every_network_is_trained_before_the_next_and_the_dearest_first(asked, photos):
    request = asked("--data", str(photos), *NETWORKS, "--seeds", "2", "--global-batch", "2")
    names = [trial.name for trial in request.trials]
    assert names == ["kobe-s0", "femto-s0", "kobe-s1", "femto-s1"]


def test_a_link_a_slash_and_a_relative_path_name_the_same_trials(asked, photos, monkeypatch):
    link = photos.parent / "link"
    if not link.exists():
        link.symlink_to(photos)
    monkeypatch.chdir(photos.parent)
    batch = ["--global-batch", "2", *NETWORKS]
    requests = [
        asked("--data", given, *batch)
        for given in (str(photos), f"{photos}/", "photos", "./photos", str(link))
    ]
    assert len({tuple(trial.key for trial in request.trials) for request in requests}) == 1
    assert {request.data for request in requests} == {str(photos)}
    assert {request.name.split("-")[1] for request in requests} == {"photos", "link"}


def test_a_study_without_masks_costs_no_mask_head(asked, photos, tmp_path):
    bare = tmp_path / "bare"
    write_shapes(bare, ShapesSize(train=3, val=1, side=48))
    for path in (bare / "annotations").glob("*.json"):
        body = json.loads(path.read_text())
        for each in body["annotations"]:
            del each["segmentation"]
        path.write_text(json.dumps(body))
    options = ["--global-batch", "2", "--variants", "femto"]
    with_masks, without = (asked("--data", str(d), *options) for d in (photos, bare))
    macs = [request.job(request.trials[0]).train_macs for request in (with_masks, without)]
    assert macs[1] < macs[0]


def test_the_command_that_is_kept_does_not_train_all_anew(asked, photos, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweeps/detect.py"])
    request = asked("--data", str(photos), "--variants", "femto", "--global-batch", "2", "--rerun")
    assert request.rerun
    assert request.command.startswith("python sweeps/detect.py --storage ")
    assert "--rerun" not in request.command


def test_what_the_user_gave_names_the_study_and_is_kept_with_it(asked, photos):
    request = asked("--data", str(photos), "--steps", "4", "--variants", "femto", task="segment")
    assert request.name == "segment-photos-steps4-femto"
    assert request.facts["given"] == {"steps": "4"}
    assert request.facts["num_classes"] == 4
    assert any(line.startswith("--warmup-steps 0: ") for line in request.rules)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--data is missing"),
        (["--smoke", "--data", "x"], "--smoke generates its images; leave --data out"),
        (["--smoke", "--name", "a/b"], "--name 'a/b': use letters"),
        (["--smoke", "--micro-batch", "0"], "--micro-batch"),
        (["--data", "digits"], "digits is a set for classification, without boxes or maps"),
        (["--data", "shape"], "shape is not there; give a folder that is, or shapes"),
        (["--smoke", "--grid", "init=a,b"], "--init gives each network its weights"),
        (["--smoke", "--grid", "=1"], "--grid '=1': write FIELD=A,B,C"),
        (["--smoke", "--ssm-state", "8"], "--ssm-state: no network here has an SSM; leave it out"),
        (["--smoke", "--grant-hours", "2"], "add --plan"),
    ],
)
def test_a_wrong_word_ends_with_2_and_its_remedy(words, said, tmp_path, capsys):
    argv = ["--storage", str(tmp_path / "runs"), *words]
    try:
        status = dense_cli.main(DETECT_SWEEP, DENSE["detect"], argv)
    except SystemExit as error:  # argparse's own
        status = error.code
    assert status == 2
    assert said in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "runs")


def test_the_weights_of_a_run_are_named_with_its_folder(tmp_path):
    run, file = tmp_path / "runs" / "boxes" / "last.ckpt", tmp_path / "femto.pth"
    weights: list[Any] = [
        SimpleNamespace(weights=SimpleNamespace(path=p), digest="d") for p in (run, file)
    ]
    study: Any = SimpleNamespace(recipes={"a": SimpleNamespace(init="d")})
    text = dense_cli._about_weights(weights, study)
    assert text.startswith(f"the backbones start from {run} (d), femto.pth (d); ")


@pytest.mark.parametrize("plan", [[], ["--plan"]])
@pytest.mark.parametrize("there", ["classify", "segment"])
def test_a_study_of_another_task_is_not_replaced(there, plan, tmp_path, capsys):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    body = json.dumps({"name": "mine", "task": there})
    (folder / "study.json").write_text(body)
    argv = ["--smoke", "--name", "mine", "--storage", str(tmp_path / "runs"), *plan]
    assert dense_cli.main(DETECT_SWEEP, DENSE["detect"], argv) == 2
    said = capsys.readouterr().err
    assert f"{folder} is a study of --task {there}" in said
    assert "give it another --name or --storage" in said
    assert (folder / "study.json").read_text() == body
    assert [path.name for path in folder.iterdir()] == ["study.json"]


def test_a_study_of_classifiers_does_not_replace_detectors_either(tmp_path):
    folder = StudyFolder(tmp_path, "mine")
    check_task(folder, CLASSIFY)
    folder.path.mkdir()
    (folder.path / "study.json").write_text('{"name": "mine"}')  # before there were tasks
    check_task(folder, CLASSIFY)
    (folder.path / "study.json").write_text('{"name": "mine", "task": "detect"}')
    check_task(folder, DETECT)
    with pytest.raises(WrongRequest, match="is a study of --task detect, and this one is of"):
        check_task(folder, CLASSIFY)
