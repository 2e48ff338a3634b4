"""A recipe carried from width to width: what learns slower, and what the report says."""

from __future__ import annotations

import runpy
from dataclasses import replace

import pytest
import torch
from places import ROOT
from starts import start_of
from study_files import SMALL, finish, sized

from mambaout.model.first_weights import Role, role_of
from mambaout.model.network import build
from mambaout.recipe import tuned
from mambaout.study.report.ranking import standing
from mambaout.study.report.transfer import transfer_said
from mambaout.study.study import Study, StudyFolder
from mambaout.train.backend import Cpu
from mambaout.train.optim import optimizer, take_step
from mambaout.variants import ModelConfig

scale = runpy.run_path(str(ROOT / "sweeps" / "scale.py"))["scale"]
SHAPE = ModelConfig(depths=(1, 1, 2, 1), dims=(16, 32, 64, 96), stem_stride=2)


def moved(mup_base_dim: int | None) -> dict[str, float]:
    """How far each parameter goes in Adam's first step, which is the rate itself."""
    recipe = tuned(
        replace(SMALL, model=SHAPE), mup_base_dim=mup_base_dim, peak_lr=1e-2, weight_decay=0.0
    )
    torch.manual_seed(0)
    model = build(SHAPE, 10)
    steps = optimizer(model, recipe, Cpu())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    take_step(steps, 1e-2, 0.0, Cpu())
    return {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()}


def test_matrices_whose_fan_in_grows_learn_at_their_share_and_all_else_at_the_rate():
    far, near = moved(None), moved(4)
    roles = {name: role_of(name, p) for name, p in build(SHAPE, 10).named_parameters()}
    for name, role in roles.items():
        assert far[name] == pytest.approx(1e-2, rel=1e-3)
        assert near[name] == pytest.approx(1e-2 if role is Role.INPUT else 2.5e-3, rel=1e-3)


def test_at_the_width_it_comes_from_a_carried_rate_changes_nothing():
    assert moved(16) == moved(None)


# -- the study and its report ---------------------------------------------------------------------


def transferred(tmp_path, shift: float) -> list[str]:
    """What is said of a study whose carried rates are better by `shift` points."""
    plain = {f"w{w}": sized(w, 2) for w in (8, 16, 32)}
    mup = {f"{label}-mup": tuned(recipe, mup_base_dim=8) for label, recipe in plain.items()}
    folder = StudyFolder(tmp_path, "transfer")
    study = Study(name="transfer", question="?", recipes=plain | mup, seeds=(0, 1, 2))
    folder.write(study, study.trials("d"))
    for trial in folder.trials():
        finish(folder, trial, noise=0.1)
    runs = [
        replace(run, metrics={**run.metrics, "top1": run.metrics["top1"] + shift})
        if run.trial.label.endswith("mup")
        else run
        for run in folder.runs()
    ]
    return transfer_said(standing(runs))


@pytest.mark.parametrize(
    ("shift", "said"),
    [(3.0, "is better at each width"), (-3.0, "is worse at each width"), (-0.1, "no significant")],
)
def test_which_is_better_where_is_said_with_intervals(tmp_path, shift, said):
    (text,) = transferred(tmp_path, shift)
    assert said in text
    assert text.count(" to ") >= 2  # an interval a width
    assert "w8," not in text  # the same recipe twice


def test_a_study_without_transfer_says_nothing_of_it():
    assert transfer_said(standing([])) == []


def test_the_sweep_compares_both_at_each_wider_network_with_the_same_seeds():
    for side in (28, 224):
        study = scale(start_of(60_000, side), transfer=True)
        thinnest, *others = study.recipes.values()
        assert len(study.trials("d")) == 3 * len(study.recipes)
        for recipe in others:
            assert recipe.optim.peak_lr == thinnest.optim.peak_lr
        bases = {r.optim.mup_base_dim for r in others}
        assert bases == {None, thinnest.model.dims[0]}
    with pytest.raises(ValueError, match="three studies"):
        scale(start_of(60_000, 28), transfer=True, predict=True)
