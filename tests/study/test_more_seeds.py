"""Promises of --until: seeds are added until width against depth is known, over any kill."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from study_files import DATA, SMALL, sized, write_outcome, write_study

from mambaout.recipe import tuned
from mambaout.study.law.noise import noise_of_runs
from mambaout.study.law.planned import planned_ladders
from mambaout.study.law.shape import gain_of_shape
from mambaout.study.origin import AddedSeed
from mambaout.study.report.families import families
from mambaout.study.report.ranking import standing
from mambaout.study.search.ledger import Ledger
from mambaout.study.search.more_seeds import MOST_UNTIL_SEEDS, MoreSeeds
from mambaout.study.study import Study, StudyFolder, Trial

NUM_TRAIN, NUM_CLASSES = 5000, 10


def study(seeds: int = 2, shapes: Sequence[tuple[int, int]] | None = None) -> Study:
    shapes = shapes or [(w, d) for w in (8, 16, 32) for d in (2, 6)]
    recipes = {f"w{w}-d{d}": tuned(sized(w, d, SMALL), epochs=4) for w, d in shapes}
    return Study(name="until", question="?", recipes=recipes, seeds=tuple(range(seeds)))


def more_seeds(folder: StudyFolder, study: Study, until: float) -> MoreSeeds:
    given = study.trials(DATA)
    trials = [*given, *folder.added(given)]
    ledger = Ledger(trials={trial.key: trial for trial in folder.trials()})
    return MoreSeeds(
        until, trials, folder, ledger, num_train=lambda _: NUM_TRAIN, num_classes=NUM_CLASSES
    )


def end(folder: StudyFolder, trial: Trial, sd: float = 0.8, shape: float = 0.0) -> None:
    """Leave the outcome of a finished run whose seed moves it by `sd` points."""
    draw = random.Random(f"{trial.label} {trial.seed}")
    own = random.Random(trial.label).gauss(0, shape)
    macs = planned_ladders([trial], lambda _: NUM_TRAIN, NUM_CLASSES)[4][0].cost
    top1 = 80 + 2e-7 * macs + own + draw.gauss(0, sd)
    metrics = {"top1": top1, "minival/top1": top1, "macs": macs, "params": macs / 12}
    write_outcome(folder.run_directory(trial), "finished", metrics)


def half_of(folder: StudyFolder) -> float:
    (family,) = families(standing(folder.runs()).rows)
    gain = gain_of_shape(family.sizes, noise_of_runs(folder.runs()))
    assert gain is not None
    return gain.high - gain.value


def run(folder: StudyFolder, part: MoreSeeds, most: int = 1000, **noise: float) -> list[Trial]:
    """Train what the part gives out, one at a time."""
    found = []
    while len(found) < most and (trial := part.next()) is not None:
        end(folder, trial, **noise)
        part.ended(folder.run(trial))
        found.append(trial)
    return found


def finished(tmp_path: Path, one: Study, **noise: float) -> StudyFolder:
    folder = write_study(tmp_path, one)
    for trial in one.trials(DATA):
        end(folder, trial, **noise)
    return folder


def test_seeds_are_added_until_the_reports_own_interval_is_narrow_enough(tmp_path):
    folder = finished(tmp_path, study())
    assert half_of(folder) > 0.4
    part = more_seeds(folder, study(), 0.4)
    assert part.num_undecided > 0
    added = run(folder, part)
    assert part.over
    assert part.notice is None
    assert added
    assert half_of(folder) <= 0.4
    assert all(trial.origins == (AddedSeed(),) for trial in added)
    assert {trial.key for trial in added} <= {trial.key for trial in folder.trials()}
    assert len({(trial.label, trial.seed) for trial in folder.trials()}) == len(folder.trials())


def test_a_study_that_knows_enough_adds_nothing(tmp_path):
    part = more_seeds(finished(tmp_path, study(3)), study(3), 5.0)
    assert part.over  # before it is asked, so that a launch starts nothing
    assert part.next() is None


def test_a_killed_launch_goes_on_with_the_seeds_that_it_had_added(tmp_path):
    whole = finished(tmp_path / "whole", study())
    wanted = [trial.name for trial in run(whole, more_seeds(whole, study(), 0.4))]
    folder = finished(tmp_path / "killed", study())
    part = more_seeds(folder, study(), 0.4)
    before = run(folder, part, most=2)
    begun = part.next()  # killed while it runs
    assert begun is not None
    again = more_seeds(folder, study(), 0.4)
    assert begun.key in {trial.key for trial in folder.added(study().trials(DATA))}
    assert again.num_undecided > 0
    end(folder, begun)
    after = run(folder, more_seeds(folder, study(), 0.4))
    assert [trial.name for trial in [*before, begun, *after]] == wanted


def test_running_trials_count_so_that_no_seed_is_one_too_many(tmp_path):
    folder = finished(tmp_path, study())
    part = more_seeds(folder, study(), 0.4)
    at_once = []
    while (trial := part.next()) is not None:
        at_once.append(trial)
    assert len(at_once) > 1
    assert not part.over
    for trial in at_once:
        end(folder, trial)
        part.ended(folder.run(trial))
    more = run(folder, part)
    assert len(more) <= len(at_once)
    assert part.over


def test_a_shape_without_a_second_seed_gets_one_first(tmp_path):
    folder = finished(tmp_path, study(1))
    part = more_seeds(folder, study(1), 0.5)
    added = run(folder, part)
    assert added[0].seed == 1
    assert half_of(folder) <= 0.5


def test_shapes_that_scatter_by_more_than_their_seeds_end_with_a_notice(tmp_path):
    folder = finished(tmp_path, study(), sd=0.05, shape=2.0)
    part = more_seeds(folder, study(), 0.05)
    run(folder, part, sd=0.05, shape=2.0)
    assert part.over
    assert part.notice is not None
    assert "more shapes would tell more" in part.notice
    counts = [sum(t.label == label for t in folder.trials()) for label in study().recipes]
    assert max(counts) == MOST_UNTIL_SEEDS


@pytest.mark.parametrize("until", [0.4, 5.0])
def test_a_failed_seed_is_replaced_and_never_waited_for(tmp_path, until):
    folder = finished(tmp_path, study())
    part = more_seeds(folder, study(), until)
    trial = part.next()
    if trial is not None:
        write_outcome(folder.run_directory(trial), "diverged", {})
        part.ended(folder.run(trial))
        assert part.next() is not None
    else:
        assert part.over
