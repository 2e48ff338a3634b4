"""How precisely a study shall know its answer: --detect, --until, and the plan's lines on power.

The answer is a difference within a seed if the study compares recipes so (pairing.py). Otherwise it
is the gain of width against depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from mambaout.data.shards.data_set import DataSet
from mambaout.errors import WrongRequest
from mambaout.launch.request import Request
from mambaout.recipe import BASELINE
from mambaout.study.law.planned import PlannedSize, planned_ladders
from mambaout.study.price.foresight import (
    KnownSpread,
    check_compares,
    foresight,
    known_spread,
    seeds_to_detect,
)
from mambaout.study.price.paired_foresight import paired_lines, seeds_to_detect_pairs
from mambaout.study.search.ledger import Ledger
from mambaout.study.search.more_seeds import MoreSeeds
from mambaout.study.study import STUDY_FILE, Study, StudyFolder, Trial

DETECT, UNTIL = "detect", "until"  # in study.json


def with_seeds(
    study: Study, folder: StudyFolder, data: DataSet, points: float
) -> tuple[Study, dict[str, Any]]:
    """The study with the seeds that find a difference of `points`, and the facts to store.

    A study that was begun with the same `points` keeps its seeds, whatever its trials have shown
    since. Raises WrongRequest if the study compares neither pairs nor width and depth.
    """
    kept = folder.read().get(DETECT) if (folder.path / STUDY_FILE).exists() else None
    if kept and kept["points"] == points and set(kept["seeds"]) <= set(study.recipes):
        chosen = kept["seeds"]
    else:
        num_train = data.num_images("train", BASELINE)
        spread = known_spread(folder.path.parent, data.fingerprint, num_train)
        if study.pairing is not None:
            chosen = seeds_to_detect_pairs(study.pairing, spread, points)
        else:
            chosen = seeds_to_detect(_ladders(study, data), spread, points)
        kept = {"points": points, "spread": asdict(spread), "seeds": chosen}
    seeds = {
        label: tuple(range(chosen[label])) if label in chosen else _given(study, label)
        for label in study.recipes
    }
    return replace(study, seeds=seeds), {DETECT: kept}


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
