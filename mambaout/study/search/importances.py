"""Which axis of a search matters. Optuna computes it from the finished recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mambaout.study.axes import Axis, Choice, Search
from mambaout.study.search.best import runs_of, scores_of
from mambaout.study.search.memory import distribution, param, quiet
from mambaout.study.search.space import values_of
from mambaout.study.study import Run

LEAST_FOR_IMPORTANCES = 12  # finished recipes, and three an axis
TOP_SHARE, LEAST_TOP = 0.25, 4  # PED-ANOVA compares the best quarter with all


def importances(runs: Sequence[Run], search: Search) -> dict[str, float] | None:
    """How much each axis decides whether a recipe is in the search's best quarter (PED-ANOVA).

    The shares add up to 1, and the largest comes first. None if too few recipes have finished.

    Only first seeds that were trained to the end count, because stopped ones ended at another
    epoch.
    """
    quiet()
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    trials = {}
    for run in runs_of(search, runs):
        scores = scores_of(search, run)
        if scores is not None and run.trial.seed == search.seeds[0]:
            trials[run.trial.recipe] = scores[0]
    if len(trials) < max(LEAST_FOR_IMPORTANCES, 3 * len(search.axes)):
        return None
    rows = [(values_of(search, recipe), score) for recipe, score in trials.items()]
    spans = {}
    for axis in search.axes:
        tried = [row[axis.name] for row, _ in rows]
        if len(set(tried)) > 1:
            spans[axis.name] = _spanning(axis, tried)
    distributions = {name: distribution(axis) for name, axis in spans.items()}
    study = optuna.create_study(
        directions=["maximize" if search.goals[0][1] == "max" else "minimize"]
    )
    for row, score in rows:
        params = {name: param(axis, row[name]) for name, axis in spans.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=score)
        )
    top = max(TOP_SHARE, LEAST_TOP / len(rows))
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=top))
    return dict(found) | {axis.name: 0.0 for axis in search.axes if axis.name not in spans}


def _spanning(axis: Axis, values: Sequence[Any]) -> Axis:
    """The axis with a range that holds `values`, even if the search has widened it."""
    if isinstance(axis, Choice):
        return axis
    return replace(axis, low=min(axis.low, *values), high=max(axis.high, *values))
