"""`--compile` and `--no-compile` of a sweep: they reach the trials and change no trial's key."""

from __future__ import annotations

import pytest
from tiny_sweep import tiny

from mambaout.launch import cli
from mambaout.launch.request import Request
from mambaout.launch.rerun import Rerun
from mambaout.launch.resources import share, this_machine
from mambaout.launch.tune import _Launch
from mambaout.launch.worker import WorkerSetup
from mambaout.study.study import StudyFolder
from mambaout.train import compiler


@pytest.mark.parametrize(
    ("options", "compiles"), [([], None), (["--compile"], True), (["--no-compile"], False)]
)
def test_a_sweeps_trials_are_told_whether_to_compile(
    options, compiles, digits, tmp_path, monkeypatch
):
    asked: list[Request] = []
    monkeypatch.setattr(cli, "run_study", lambda request: asked.append(request) or 0)
    command = ["--data", "digits", "--accelerator", "cpu", "--storage", str(tmp_path)]
    assert cli.main(tiny, [*command, *options]) == 0
    assert cli.main(tiny, command) == 0
    request, plain = asked
    assert [trial.key for trial in request.trials] == [trial.key for trial in plain.trials]
    assert request.name == plain.name
    nodes = [this_machine("cpu")]
    folder = StudyFolder(request.storage, request.name)
    folder.write(request.study, request.trials)
    launch = _Launch(request, folder, nodes, share("cpu", nodes), Rerun(folder), joined=False)
    assert launch.task().compiles is compiles

    tried = []
    monkeypatch.setattr(compiler, "why_not", lambda kind: tried.append(kind) or "not in this test")
    WorkerSetup.of(request, share("cpu", nodes)).open(digits.fingerprint)  # as a calibration
    assert tried == (["cpu"] if compiles else [])
