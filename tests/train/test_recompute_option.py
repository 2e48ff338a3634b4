"""`--recompute`, of train and of every sweep: it changes the memory of a run, not what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_sweep import tiny

from mambaout.__main__ import main
from mambaout.errors import WrongRequest
from mambaout.launch import calibrate, cli
from mambaout.launch.request import Request, check_share, hello
from mambaout.launch.rerun import Rerun
from mambaout.launch.resources import POD_TYPE, SLICE_NAME, Node, share, this_machine
from mambaout.launch.trial import train_trial
from mambaout.launch.tune import _Launch
from mambaout.model.network import MambaOut
from mambaout.recipe import tuned
from mambaout.recompute import ALL_STAGES, Stages
from mambaout.study.study import StudyFolder
from mambaout.train import checkpoint
from mambaout.train.backend import Cpu
from mambaout.train.loop import train
from mambaout.train.outcomes import OutOfMemory
from mambaout.train.stepper import Stepper

SHAPE = "--depths 1,1,1,1 --dims 8,16,24,32 --stem-stride 2 --image-size 16 --global-batch 64"
LENGTH = "--train-images 128 --minival-fraction 0.1 --epochs 1 --warmup-epochs 0.5"
TINY = f"{SHAPE} {LENGTH}".split()


@pytest.fixture
def recomputed(monkeypatch) -> list[Stages]:
    """The stages that each run has asked its network to recompute."""
    asked: list[Stages] = []
    usual = MambaOut.set_recompute

    def noted(self: MambaOut, stages: Stages) -> None:
        asked.append(stages)
        usual(self, stages)

    monkeypatch.setattr(MambaOut, "set_recompute", noted)
    return asked


def test_a_resume_may_change_it_and_comes_to_the_same_bits(digits, tiny_recipe, tmp_path):
    for name, parts in {
        "plain": {None: ()},
        "mixed": {3: (1,), 6: ALL_STAGES, None: ()},
    }.items():
        for last, stages in parts.items():
            train(
                tiny_recipe, digits, out=tmp_path / name, backend=Cpu(),
                recompute=stages, max_steps=last,
            )  # fmt: skip
    plain, mixed = (checkpoint.load(tmp_path / name / "last.ckpt") for name in ("plain", "mixed"))
    assert plain["step"] == mixed["step"] == 8
    for name, weight in plain["model"].items():
        assert torch.equal(weight, mixed["model"][name]), name


def test_the_command_line_hands_it_to_the_run_which_notes_it(digits, tmp_path, recomputed):
    command = ["train", "--data", "digits", "--out", str(tmp_path), *TINY]
    assert main([*command, "--recompute", "1,2"]) == 0
    assert recomputed == [(1, 2)]
    assert json.loads((tmp_path / "outcome.json").read_text())["facts"]["recompute"] == "1,2"


def test_the_first_micro_batch_reckons_with_it(tiny_recipe):
    class LittleMemory(Cpu):
        def usable_bytes(self) -> float:
            return 12 * 2**20

    recipe = tuned(tiny_recipe, depths=(1, 6, 6, 1), global_batch=256)
    plain = Stepper(recipe, 10, 0, LittleMemory())
    less = Stepper(recipe, 10, 0, LittleMemory(), ALL_STAGES)
    assert less.micro_batch > plain.micro_batch
    assert less.topology == plain.topology


def test_xla_is_refused_before_anything_starts(tmp_path, capsys):
    command = ["train", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]
    assert main([*command, "--backend", "xla", "--recompute", "all"]) == 2
    shown = capsys.readouterr().err
    assert "--recompute all: XLA's compiler decides" in shown
    assert "leave --recompute out" in shown
    assert not (tmp_path / "run").exists()


class NoMemory(Cpu):
    """A CPU on which no image fits, as on a GPU that other work has filled."""

    def place(self, rows):
        raise torch.OutOfMemoryError("no room")


@pytest.mark.parametrize("stages", [(), (1,), ALL_STAGES])
def test_a_run_that_fits_in_no_memory_names_it_as_a_remedy(digits, tiny_recipe, tmp_path, stages):
    outcome = train(tiny_recipe, digits, out=tmp_path, backend=NoMemory(), recompute=stages)
    assert isinstance(outcome, OutOfMemory)
    remedy = "" if stages == ALL_STAGES else " (--recompute all needs less)"
    assert outcome.text == f"out of memory even with a micro-batch of 2{remedy}: no room"
    assert str(outcome.as_error()) == outcome.text


# -- sweeps ---------------------------------------------------------------------------------------


def requested(monkeypatch, *options: str) -> Request:
    """What a sweep with these options would run."""
    asked: list[Request] = []
    monkeypatch.setattr(cli, "run_study", lambda request: asked.append(request) or 0)
    assert cli.main(tiny, ["--data", "digits", "--accelerator", "cpu", *options]) == 0
    return asked[0]


def test_a_sweeps_trials_recompute_and_keep_their_keys(digits, tmp_path, monkeypatch, recomputed):
    plain = requested(monkeypatch, "--storage", str(tmp_path))
    less = requested(monkeypatch, "--storage", str(tmp_path), "--recompute", "3,1")
    assert (plain.recompute, less.recompute) == ((), (1, 3))
    assert less.name == plain.name
    assert [trial.key for trial in less.trials] == [trial.key for trial in plain.trials]
    assert "--recompute 3,1" in less.command
    assert any("--recompute 1,3: less memory" in line for line in hello(less))
    assert not any("--recompute" in line for line in hello(plain))
    nodes = [this_machine("cpu")]
    folder = StudyFolder(less.storage, less.name)
    folder.write(less.study, less.trials)
    task = _Launch(less, folder, nodes, share("cpu", nodes), Rerun(folder), joined=False).task()
    trial = replace(less.trials[0], recipe=tuned(less.trials[0].recipe, epochs=2))
    train_trial(task, trial, tmp_path / "run", lambda record: None, lambda: False)
    assert recomputed == [(1, 3)]


def test_a_calibration_measures_what_the_trials_will_do(
    digits, tmp_path, monkeypatch, recomputed, tiny_recipe
):
    request = requested(monkeypatch, "--storage", str(tmp_path), "--recompute", "all")
    crew = calibrate._Crew(request, share("cpu", [this_machine("cpu")]), 1, seconds=0.1, width=0)
    crew._work = SimpleNamespace(remote=calibrate._calibrate)  # here, not in a worker of Ray's
    crew._ray = SimpleNamespace(get=lambda found: found)
    assert len(crew.calibrate({"tiny": tiny_recipe}, print)) == 1
    assert recomputed == [ALL_STAGES]


def test_a_sweep_on_a_tpu_is_refused(digits, monkeypatch, tmp_path, capsys):
    request = requested(monkeypatch, "--storage", str(tmp_path), "--recompute", "all")
    check_share(request, share("cpu", [this_machine("cpu")]))
    host = Node({"CPU": 96, "TPU": 4}, {POD_TYPE: "v3-8", SLICE_NAME: "alone"})
    with pytest.raises(WrongRequest, match="--recompute all: XLA's compiler decides"):
        check_share(request, share("tpu-v3-8", [host]))
    options = ["--data", "digits", "--storage", str(tmp_path), "--recompute", "1", "--plan"]
    assert cli.main(tiny, [*options, "--accelerator", "tpu-v3-8"]) == 2
    assert "--recompute 1: XLA's compiler decides" in capsys.readouterr().err
