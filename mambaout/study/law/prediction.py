"""Predict, then run: what the trained sizes say about a size that is not trained yet.

Writes STORAGE/NAME/prediction.json before the size is trained. Once the training has begun, the
file is never written again. So the prediction cannot depend on the outcome.

The mean of several seeds is surer than one run. So the file has an interval for each number of
seeds, and the outcome of n seeds is judged by the interval for n.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mambaout.accounting import cost
from mambaout.durable import read_whole, write_whole
from mambaout.endings import Ending
from mambaout.numbers import percent_text
from mambaout.recipe import BASELINE, Recipe, content_key
from mambaout.study.law.fit import Size, TooFew, fit_law
from mambaout.study.law.noise import noise_of_runs
from mambaout.study.study import Run, StudyFolder
from mambaout.train.metrics import MACS, TOP1

PREDICTION_FILE = "prediction.json"
PREDICTIONS = "predictions"  # in it


def predict(folder: StudyFolder) -> str:
    """Write prediction.json for the predicted recipes. Returns its content as text for people.

    If the training of one has begun, the existing predictions are kept. If the sizes give no
    prediction, the file says why.
    """
    study, runs = folder.read(), folder.runs()
    mine = [run for run in runs if run.trial.is_predicted]
    before = read_predictions(folder)
    if before and any(run.records for run in mine):
        return "\n".join(str(one["text"]) for one in before)
    others = [run for run in runs if not run.trial.is_predicted]
    labels = dict.fromkeys(run.trial.label for run in mine)
    found = [
        _prediction([run for run in mine if run.trial.label == label], others, study)
        for label in labels
    ]
    write_whole(folder.path / PREDICTION_FILE, json.dumps({PREDICTIONS: found}, indent=1) + "\n")
    return "\n".join(str(one["text"]) for one in found)


def read_predictions(folder: StudyFolder) -> list[dict[str, Any]]:
    """The content of prediction.json, one for each size; empty if the study predicts no result."""
    text = read_whole(folder.path / PREDICTION_FILE)
    body = json.loads(text) if text is not None else {PREDICTIONS: []}
    return body.get(PREDICTIONS, [body])  # earlier versions predicted one size


def _prediction(
    mine: Sequence[Run], others: Sequence[Run], study: Mapping[str, Any]
) -> dict[str, Any]:
    """What the other runs say of one recipe, whose runs are `mine`."""
    label, recipe = mine[0].trial.label, mine[0].trial.recipe
    sizes = family(recipe, others)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    begun = {"begun": True} if any(run.records for run in mine) else {}
    body: dict[str, Any] = {"label": label, "made": made, **begun}
    body["sizes"] = [size.label for size in sizes]
    runs = [*mine, *others]
    try:
        law = fit_law(sizes, noise_of_runs(others, num_images=_fact(runs, "num_val")))
    except TooFew as error:
        return body | {"refused": str(error), "text": f"no prediction for {label}: {error}"}
    num_classes = _fact(runs, "num_classes") or study["num_classes"]
    macs = cost(recipe.model, recipe.image_size, num_classes).macs
    epochs = recipe.schedule.total_epochs
    found = [law.predict(macs, num_seeds, epochs) for num_seeds in range(1, len(mine) + 1)]
    intervals = [
        {"low": 100 - one.high, "high": min(100.0, 100 - one.low), "sigma": one.sigma}
        for one in found
    ]
    planned = intervals[-1]
    return body | {
        "cost": macs,
        "predicted": 100 - found[0].value,
        "intervals": intervals,  # for the mean of one seed, of two, ...
        "law": law.text(),
        "text": f"predicted before it is trained: {label} reaches "
        f"{percent_text(100 - found[0].value)} top-1 (95 % interval {planned['low']:.2f} to "
        f"{planned['high']:.2f} for {seeds_text(len(mine))}), from {len(sizes)} smaller sizes",
    }


@dataclass(frozen=True, kw_only=True)
class JudgedPrediction:
    """What was predicted for a size, and what its seeds reached. All in percent of top-1."""

    value: float
    low: float  # of the interval for `num_seeds` seeds
    high: float
    sigma: float
    num_seeds: int  # of the interval
    reached: float | None  # the mean of the first `num_seeds` seeds; None before the first ends

    @property
    def is_inside(self) -> bool:
        return self.reached is not None and self.low <= self.reached <= self.high


def judged(said: Mapping[str, Any], reached: Sequence[float]) -> JudgedPrediction | None:
    """The prediction with the interval for as many seeds as have finished.

    `said` is one of read_predictions, and `reached` is the top-1 of each finished seed in
    their order. If more seeds have finished than there are intervals, only the first ones count.
    None if nothing was predicted.
    """
    if "predicted" not in said:
        return None
    # Older files have one interval, which is for one seed.
    intervals = said.get("intervals") or [{n: said[n] for n in ("low", "high", "sigma")}]
    num_seeds = min(len(reached), len(intervals)) or len(intervals)
    counted = reached[:num_seeds]
    return JudgedPrediction(
        value=said["predicted"],
        num_seeds=num_seeds,
        reached=statistics.fmean(counted) if counted else None,
        **intervals[num_seeds - 1],
    )


def seeds_text(num_seeds: int) -> str:
    return "one seed" if num_seeds == 1 else f"the mean of {num_seeds} seeds"


def family(recipe: Recipe, runs: Sequence[Run]) -> list[Size]:
    """The finished recipes, as sizes, that differ from `recipe` only in the network."""

    def but_model(other: Recipe) -> str:
        return content_key(replace(other, model=BASELINE.model))

    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.status is Ending.FINISHED and but_model(run.trial.recipe) == but_model(recipe):
            groups.setdefault(content_key(run.trial.recipe), []).append(run)
    return [
        Size(
            label=group[0].trial.label,
            cost=group[0].metrics[MACS],
            errors=tuple(100 - run.metrics[TOP1] for run in group),
            depth=group[0].trial.recipe.model.num_blocks,
            width=group[0].trial.recipe.model.dims[0],
            epochs=recipe.schedule.total_epochs,
        )
        for group in groups.values()
    ]


def _fact(runs: Sequence[Run], name: str) -> Any:
    return next((run.facts[name] for run in runs if name in run.facts), None)
