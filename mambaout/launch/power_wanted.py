"""How precisely a study shall know its answer: --detect, --until, and the plan's lines on power.

The answer is a difference within a seed if the study compares recipes so (pairing.py). Otherwise it
is the gain of width against depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from mambaout.data.shards.data_set import DataSet
from mambaout.errors import WrongRequest
from mambaout.launch.request import Request
from mambaout.recipe import BASELINE, Recipe
from mambaout.study.law.planned import PlannedSize, planned_ladders
from mambaout.study.price.budget import StudyHours, design_within
from mambaout.study.price.design import Design, Designs
from mambaout.study.price.foresight import (
    KnownSpread,
    check_compares,
    foresight,
    known_spread,
)
from mambaout.study.price.paired_foresight import (
    check_pairs_fit,
    paired_lines,
    seeds_to_detect_pairs,
)
from mambaout.study.price.plan import Plan
from mambaout.study.search.ledger import Ledger
from mambaout.study.search.more_seeds import MoreSeeds
from mambaout.study.study import STUDY_FILE, Study, StudyFolder, Trial

DETECT, UNTIL = "detect", "until"  # in study.json
LEFT_OUT, BUDGET = "left_out", "budget"  # in DETECT


def budget_of(budget_hours: float | None, grant_hours: float | None) -> StudyHours:
    return StudyHours(wall=budget_hours or math.inf, device=grant_hours or math.inf)


def with_design(
    study: Study,
    folder: StudyFolder,
    data: DataSet,
    points: float,
    budget: StudyHours,
    price: Callable[[Study], Plan],
) -> tuple[Study, dict[str, Any]]:
    """The study with the shapes and seeds that find `points`, and the facts to store.

    Only a budget leaves shapes out. `price` is that of a whole study. A study that was begun with
    the same `points` keeps its choice, whatever its trials have shown since and whatever the budget
    is now. Raises WrongRequest if the study compares neither pairs nor width and depth, or if the
    budget is too small.
    """
    kept = folder.read().get(DETECT) if (folder.path / STUDY_FILE).exists() else None
    if not (kept and kept["points"] == points and _fits(study, kept)):
        kept = _chosen(study, folder, data, points, budget, price)
    return _designed(study, kept["seeds"], kept.get(LEFT_OUT, ())), {DETECT: kept}


def _fits(study: Study, kept: Mapping[str, Any]) -> bool:
    return {*kept["seeds"], *kept.get(LEFT_OUT, ())} <= set(study.recipes)


def _chosen(
    study: Study,
    folder: StudyFolder,
    data: DataSet,
    points: float,
    budget: StudyHours,
    price: Callable[[Study], Plan],
) -> dict[str, Any]:
    spread = known_spread(folder.path.parent, data.fingerprint, data.num_images("train", BASELINE))
    facts = {"points": points, "spread": asdict(spread), BUDGET: budget.text}

    def hours_of(design: Design) -> StudyHours:
        priced = price(_designed(study, design.seeds, design.left_out))
        return StudyHours(wall=priced.wall_seconds / 3600, device=priced.device_seconds / 3600)

    if study.pairing is not None:
        seeds = seeds_to_detect_pairs(study.pairing, spread, points)
        check_pairs_fit(study.pairing, spread, points, seeds, budget, hours_of)
        return facts | {"seeds": seeds}
    ladders = _ladders(study, data)
    if not budget.is_limited:
        designs = Designs(ladders=ladders, spread=spread, points=points)
        return facts | {"seeds": designs.whole().seeds}
    seconds = {row.label: row.seconds for row in price(study).rows}
    designs = Designs(
        ladders={
            epochs: [replace(size, price=seconds[size.label]) for size in sizes]
            for epochs, sizes in ladders.items()
        },
        spread=spread,
        points=points,
        kept=_needed_for_predictions(study, ladders),
    )
    found = design_within(designs, budget, hours_of)
    whole = hours_of(designs.whole())
    return facts | {
        "seeds": found.seeds,
        LEFT_OUT: found.left_out,
        "whole": whole.limited_as(budget).text,
    }


def _designed(study: Study, chosen: Mapping[str, int], left_out: Collection[str]) -> Study:
    """The study with these seeds, and without these labels.

    A shape is left out at its length of training in all recipes. Otherwise those with another
    learning rate, for example, would be the larger group, and the report would compare them.
    """
    gone = {_shape_and_length(study.recipes[label]) for label in left_out}
    recipes = {
        label: recipe
        for label, recipe in study.recipes.items()
        if label in study.predicted
        or label == study.baseline
        or not (gone and _shape_and_length(recipe) in gone)
    }
    seeds = {
        label: tuple(range(chosen[label])) if label in chosen else _given(study, label)
        for label in recipes
    }
    return replace(study, recipes=recipes, seeds=seeds)


def _shape_and_length(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.model.depths, recipe.model.dims, recipe.schedule.total_epochs


def _needed_for_predictions(
    study: Study, ladders: Mapping[int, Sequence[PlannedSize]]
) -> frozenset[str]:
    """The largest size of each length at which larger ones are predicted from the others."""
    lengths = {study.recipes[label].schedule.total_epochs for label in study.predicted}
    largest = (max(ladders[e], key=lambda size: size.cost) for e in lengths if e in ladders)
    return frozenset(size.label for size in largest)


def about_design(facts: Mapping[str, Any], budget: StudyHours) -> str:
    """A line on what --detect has left out for its budget, or on a budget that came too late."""
    detect = facts.get(DETECT)
    if detect is None:
        return ""
    parts, before = [], detect.get(BUDGET, "")
    if left_out := detect.get(LEFT_OUT):
        parts.append(
            f"--detect {detect['points']:g} within {before} leaves out {', '.join(left_out)}: most "
            f"hours for what is told; with all shapes it needs {detect['whole']}"
        )
    if before != budget.text:
        parts.append(
            f"the study began with the shapes and seeds for {before or 'no budget'} and keeps them "
            "(another --name chooses anew, and takes over what is trained)"
        )
    return "; ".join(parts)


def _given(study: Study, label: str) -> Sequence[int]:
    return study.seeds[label] if isinstance(study.seeds, Mapping) else tuple(study.seeds)


def _ladders(study: Study, data: DataSet) -> dict[int, list[PlannedSize]]:
    return planned_ladders(
        _compared(study, study.trials(data.fingerprint)),
        partial(data.num_images, "train"),
        data.num_classes,
    )


def _compared(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """The trials whose shapes are compared: not those that are predicted from the others."""
    return [trial for trial in trials if trial.label not in study.predicted]


def check_until(study: Study, data: DataSet) -> None:
    """Raise WrongRequest if --until could never be reached."""
    if study.pairing is not None:
        raise WrongRequest(
            f"--until: study {study.name} compares recipes within a seed, with seeds that are "
            "chosen beforehand; give --seeds, or --detect POINTS"
        )
    check_compares(_ladders(study, data), "--until")


def plan_lines(request: Request, grant_share: float | None = None) -> list[str]:
    """The plan's lines on power; empty if the study compares neither pairs nor width and depth."""
    num_train, num_classes = request.facts["num_train"], request.facts["num_classes"]
    detect = request.facts.get(DETECT)
    if detect:
        spread = KnownSpread(**detect["spread"])
    else:
        spread = known_spread(request.storage, request.fingerprint, num_train)
    study = request.study
    if study.pairing is not None:
        seeds = {label: _given(study, label) for label in study.recipes}
        return paired_lines(study.pairing, seeds, spread, detect and detect["points"])
    trials = _compared(request.study, request.trials) or _winners(request)
    ladders = planned_ladders(trials, partial(request.num_images, "train"), num_classes)
    lines = foresight(ladders, spread, detect and detect["points"], grant_share)
    if lines and request.until is not None:
        lines.append(f"{'':<13}--until {request.until:g}: seeds are added until it is that precise")
    return lines


def _winners(request: Request) -> list[Trial]:
    """The winners of the searches, with the seeds that report them: all but the one that chose."""
    return [
        Trial(label=search.label, recipe=search.base, seed=seed, data=request.fingerprint)
        for search in request.study.searches
        for seed in search.seeds[1:]
    ]


def seeds_until(
    request: Request, folder: StudyFolder
) -> Callable[[Sequence[Trial], Ledger], MoreSeeds] | None:
    """Makes the part of the agenda that adds seeds; None without --until."""
    if request.until is None:
        return None
    until = request.until

    def more_seeds(trials: Sequence[Trial], ledger: Ledger) -> MoreSeeds:
        return MoreSeeds(
            until,
            _compared(request.study, trials),
            folder,
            ledger,
            num_train=partial(request.num_images, "train"),
            num_classes=request.facts["num_classes"],
        )

    return more_seeds


def check_given_seeds(detect: float | None, seeds: int | None) -> None:
    if detect is not None and seeds is not None:
        raise WrongRequest(
            f"--detect {detect:g} chooses the seeds, and --seeds {seeds} gives them; leave one of "
            "the two out"
        )
