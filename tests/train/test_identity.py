"""A run and a study know which code version began them, and say so where this is another one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from study_files import finish, scaling_study

from mambaout.__main__ import main
from mambaout.code_version import CODE_VERSION
from mambaout.launch.request import about_others
from mambaout.model.weights import read_weights
from mambaout.recipe import Recipe
from mambaout.study.study import StudyFolder, Trial
from mambaout.train import checkpoint
from mambaout.train.backend import Cpu
from mambaout.train.facts import git_commit
from mambaout.train.loop import train
from mambaout.train.outcomes import Finished, Preempted

OLDER = CODE_VERSION - 1


def go_on(recipe: Recipe, data, out: Path, **options):
    return train(recipe, data, out=out, backend=Cpu(), log_every_steps=1, **options)


def alter_checkpoint(out: Path, **said: Any) -> None:
    """Have last.ckpt say something else; None takes it out."""
    state = checkpoint.load(out / "last.ckpt")
    for name, value in said.items():
        place = state if name == "git_commit" else state["identity"]
        place[name] = value
        if value is None:
            del place[name]
    torch.save(state, out / "last.ckpt")


def alter_outcome(out: Path, **facts: Any) -> None:
    body = json.loads((out / "outcome.json").read_text())
    body["facts"] |= facts
    (out / "outcome.json").write_text(json.dumps(body))


# -- a run directory ------------------------------------------------------------------------------


def test_a_run_says_its_code_version_and_its_commit(digits, tiny_recipe, tmp_path):
    go_on(tiny_recipe, digits, tmp_path, max_steps=1)
    saved = checkpoint.load(tmp_path / "last.ckpt")
    assert saved["identity"]["code_version"] == CODE_VERSION
    assert saved["git_commit"] == git_commit()
    go_on(tiny_recipe, digits, tmp_path)
    assert json.loads((tmp_path / "outcome.json").read_text())["facts"]["code_version"] == (
        CODE_VERSION
    )


@pytest.mark.parametrize("version", [OLDER, CODE_VERSION + 1])
@pytest.mark.parametrize("commit", ["abcdef123456", "unknown", None])
def test_a_run_that_another_code_version_began_is_refused_with_a_remedy(
    version, commit, digits, tiny_recipe, tmp_path
):
    go_on(tiny_recipe, digits, tmp_path, max_steps=1)
    alter_checkpoint(tmp_path, code_version=version, git_commit=commit)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match="code version") as refused:
        go_on(tiny_recipe, digits, tmp_path)
    said = str(refused.value)
    assert f"{tmp_path} holds a run of code version {version}" in said
    assert f"this mambaout is of code version {CODE_VERSION}" in said
    assert "another --out" in said
    assert said.endswith("of commit abcdef123456" if commit == "abcdef123456" else "began it")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_finished_run_of_another_code_version_is_not_taken_for_this_ones(
    digits, tiny_recipe, tmp_path
):
    go_on(tiny_recipe, digits, tmp_path)
    alter_outcome(tmp_path, code_version=OLDER, git_commit="abcdef123456")
    with pytest.raises(ValueError, match=f"version {OLDER}, .* of commit abcdef123456$"):
        go_on(tiny_recipe, digits, tmp_path)


def test_a_run_that_was_stored_without_a_code_version_goes_on_and_ends(
    digits, tiny_recipe, tmp_path
):
    assert go_on(tiny_recipe, digits, tmp_path, max_steps=3) == Preempted(3)
    alter_checkpoint(tmp_path, code_version=None, git_commit=None)
    ended = go_on(tiny_recipe, digits, tmp_path)
    assert isinstance(ended, Finished)
    body = json.loads((tmp_path / "outcome.json").read_text())
    del body["facts"]["code_version"]
    (tmp_path / "outcome.json").write_text(json.dumps(body))
    assert go_on(tiny_recipe, digits, tmp_path) == ended


# -- weights --------------------------------------------------------------------------------------


def test_evaluate_and_export_say_in_a_line_that_another_code_version_trained_the_weights(
    digits, tiny_recipe, tmp_path, capsys
):
    run, exported = tmp_path / "run", tmp_path / "w.safetensors"
    go_on(tiny_recipe, digits, run, max_steps=1)

    def shown(*words: str) -> list[str]:
        assert main([*words]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if "code version" in line]

    on = ["--data", "digits", "--split", "minival"]
    for version in (CODE_VERSION, None):  # None: stored before it was said
        alter_checkpoint(run, code_version=version)
        assert shown("evaluate", str(run), *on) == []
    alter_checkpoint(run, code_version=OLDER)
    said = f"trained by code version {OLDER}, and this mambaout is of {CODE_VERSION}: what the run"
    (line,) = shown("evaluate", str(run), *on)
    assert line.startswith(f"{run / 'last.ckpt'}: {said}")
    (line,) = shown("export", str(run), str(exported))
    assert line.startswith(f"# from {run / 'last.ckpt'}: {said}")
    assert read_weights(exported).code_version == OLDER
    (line,) = shown("evaluate", str(exported), *on)
    assert said in line


# -- a study --------------------------------------------------------------------------------------


def older_study(storage: Path) -> tuple[StudyFolder, list[Trial]]:
    """A study that an older code version finished, and the trials that this one makes of it."""
    study = scaling_study(seeds=1)
    trials = study.trials("d")
    older = [replace(trial, code_version=OLDER) for trial in trials]
    folder = StudyFolder(storage, study.name)
    folder.write(study, older)
    for trial in older:
        finish(folder, trial)
    return folder, trials


def test_a_study_of_an_older_code_version_is_listed_and_reported_as_it_was(tmp_path, capsys):
    folder, trials = older_study(tmp_path)
    assert {run.status for run in folder.runs()} == {"finished"}
    assert {run.trial.key for run in folder.runs()}.isdisjoint(trial.key for trial in trials)
    assert main(["list", "scale", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("finished") == len(trials)
    assert main(["report", "scale", "--storage", str(tmp_path)]) == 0


def test_a_trial_of_a_key_that_no_version_makes_is_this_versions(tmp_path):
    _, (trial, *_) = older_study(tmp_path)
    line = trial.to_json().replace(trial.key, "0123456789ab")
    assert Trial.from_json(line) == trial


def test_a_launch_says_once_that_trials_of_another_code_version_are_trained_anew(tmp_path):
    folder, trials = older_study(tmp_path)
    assert folder.trials_to_go_on() == []
    said = about_others(folder)
    assert said.startswith(f"{len(trials)} trials here of code version {OLDER}, and this")
    assert said.endswith(f"trained anew; the old ones stay in {folder.path / 'trials'}")
    folder.write(scaling_study(seeds=1), trials)  # as the launch does
    assert about_others(folder) == ""
    assert about_others(StudyFolder(tmp_path, "new")) == ""
