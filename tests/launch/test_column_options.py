"""`--image-column` and `--label-column`: of train, of evaluate, of pack and of every sweep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import pictures
from tiny_sweep import tiny

from mambaout.__main__ import main
from mambaout.data.packing.sources import open_data
from mambaout.launch import calibrate, cli
from mambaout.launch.request import Request
from mambaout.launch.rerun import Rerun
from mambaout.launch.resources import share, this_machine
from mambaout.launch.trial import train_trial
from mambaout.launch.tune import _Launch
from mambaout.recipe import tuned
from mambaout.study.report.study_report import write_report
from mambaout.study.study import StudyFolder

SHAPE = "--depths 1,1,1,1 --dims 8,16,24,32 --stem-stride 2 --image-size 16 --global-batch 64"
LENGTH = "--train-images 128 --minival-fraction 0.2 --epochs 1 --warmup-epochs 0.5"
TINY = f"{SHAPE} {LENGTH}".split()
COARSE = ["--image-column", "left", "--label-column", "coarse"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two image columns and two label columns: nothing is read without the options."""
    path = tmp_path_factory.mktemp("two") / "flowers"
    path.mkdir()
    images = pa.array(pictures(800))
    fine = [row % 6 for row in range(800)]
    coarse = [("rose", "lily")[row % 2] for row in range(800)]
    table = pa.table({"left": images, "right": images, "fine": fine, "coarse": coarse})
    pq.write_table(table[:700], path / "train.parquet")
    pq.write_table(table[700:], path / "validation.parquet")
    return path


def requested(monkeypatch, *options: str) -> Request:
    """What a sweep with these options would run."""
    asked: list[Request] = []
    monkeypatch.setattr(cli, "run_study", lambda request: asked.append(request) or 0)
    assert cli.main(tiny, options) == 0
    return asked[0]


def test_train_evaluate_and_pack_read_the_named_columns(folder, tmp_path, data_cache, capsys):
    out, packed = tmp_path / "run", tmp_path / "packed"
    assert main(["train", "--data", str(folder), *COARSE, "--out", str(out), *TINY]) == 0
    outcome = json.loads((out / "outcome.json").read_text())
    assert outcome["facts"]["num_classes"] == 2
    assert main(["evaluate", str(out / "last.ckpt"), "--data", str(folder), *COARSE]) == 0
    assert f"top-1 {outcome['metrics']['top1']:.3f} %" in capsys.readouterr().out
    assert main(["pack", str(folder), str(packed), *COARSE]) == 0
    assert open_data(str(packed)).class_names == ("lily", "rose")


def test_without_the_options_the_columns_are_asked_for(folder, tmp_path, data_cache, capsys):
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "--image-column left" in capsys.readouterr().err
    options = ["--data", str(folder), "--image-column", "left", "--storage", str(tmp_path / "runs")]
    assert cli.main(tiny, options) == 2
    assert "none is known as the label" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sweeps_trials_calibration_and_report_have_the_columns(
    folder, tmp_path, data_cache, monkeypatch
):
    request = requested(monkeypatch, "--data", str(folder), *COARSE, "--storage", str(tmp_path))
    assert request.facts["num_classes"] == 2
    nodes = [this_machine("cpu")]
    study = StudyFolder(request.storage, request.name)
    study.write(request.study, request.trials, data_name="flowers", columns=request.columns)
    task = _Launch(request, study, nodes, share("cpu", nodes), Rerun(study), joined=False).task()
    short = tuned(request.trials[0].recipe, epochs=2, train_images=128, minival_fraction=0.2)
    trial = replace(request.trials[0], recipe=short)
    train_trial(task, trial, study.run_directory(trial), lambda record: None, lambda: False)
    outcome = json.loads((study.run_directory(trial) / "outcome.json").read_text())
    assert outcome["facts"]["num_classes"] == 2
    told = {"data_name": "flowers", "data": request.data, "columns": request.columns}
    study.write(request.study, [trial], **told)
    assert main(["evaluate", str(study.run_directory(trial))]) == 0  # on the study's own data
    write_report(study)
    options = "--image-column left --label-column coarse"
    assert (
        f"--data flowers --out again/{trial.name} --seed 0 {options}"
        in (study.path / "results.md").read_text()
    )

    crew = calibrate._Crew(request, share("cpu", nodes), slots=1, seconds=0.1, width=0)
    crew._work = SimpleNamespace(remote=calibrate._calibrate)  # here, not in a worker of Ray's
    crew._ray = SimpleNamespace(get=lambda found: found)
    assert len(crew.calibrate({"thin": short}, print)) == 1
