"""The accuracy that a report gives of the best recipe: on seeds that did not choose it, or said to
be too high."""

from __future__ import annotations

import functools
import random
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from searches import AXES, search
from study_files import SMALL, sized
from test_noise import run_of

from mambaout.endings import Ending
from mambaout.recipe import Recipe, tuned
from mambaout.study.axes import Search
from mambaout.study.origin import ConfirmingSeed, SearchPoint, trial_label
from mambaout.study.report.findings import answer
from mambaout.study.report.fresh import fresh_top1
from mambaout.study.report.ranking import standing
from mambaout.study.report.reading import reading
from mambaout.study.report.search_findings import search_answer, searched
from mambaout.study.search.best import best
from mambaout.study.study import Run
from mambaout.train.metrics import MINIVAL_TOP1, TOP1

TRUE_TOP1, SEED_SD, CORRELATION, NUM_RECIPES, NUM_STUDIES = 80.0, 0.8, 0.92, 12, 150
WIDTHS = (8, 16, 24, 32)  # of several searches


def is_unbiased(values: list[float]) -> bool:
    """Whether the values of independent studies have a mean of 0 within Monte-Carlo error."""
    return abs(statistics.fmean(values)) < 3 * statistics.stdev(values) / len(values) ** 0.5


@functools.cache
def recipes() -> dict[str, Recipe]:
    return {f"r{i}": tuned(SMALL, peak_lr=1e-3 * (1 + i / 100)) for i in range(NUM_RECIPES)}


def drawn(draw: random.Random) -> tuple[float, float]:
    """Val and minival of a seed of equal recipes."""
    shared = draw.gauss(0, 1)
    own = (1 - CORRELATION**2) ** 0.5 * draw.gauss(0, 1)
    return TRUE_TOP1 + SEED_SD * shared, TRUE_TOP1 + SEED_SD * (CORRELATION * shared + own)


def plain_studies(num_seeds: int) -> Iterator[list[Run]]:
    """Studies of equal recipes, all with the same seeds."""
    for number in range(NUM_STUDIES):
        draw = random.Random(number)
        yield [
            run_of(label, recipe, seed, *drawn(draw))
            for label, recipe in recipes().items()
            for seed in range(num_seeds)
        ]


def of_search(one: Search, number: int, seed: int, draw: random.Random, origin: Any) -> Run:
    rate = recipes()[f"r{number}"].optim.peak_lr
    recipe = tuned(one.base, peak_lr=rate)
    run = run_of(trial_label(one.label, number), recipe, seed, *drawn(draw))
    return replace(run, trial=replace(run.trial, origins=(origin,)))


def search_studies(*searches: Search) -> Iterator[list[Run]]:
    """Searches over equal recipes. The highest on the first seed get the others."""
    for number in range(NUM_STUDIES):
        draw, runs = random.Random(number), []
        for one in searches:
            first = [
                of_search(one, i, 0, draw, SearchPoint(one.label, i)) for i in range(NUM_RECIPES)
            ]
            order = sorted(range(NUM_RECIPES), key=lambda i: -first[i].metrics[MINIVAL_TOP1])
            runs += first
            runs += [
                of_search(one, i, seed, draw, ConfirmingSeed(one.label, i))
                for i in order[: one.num_confirmed]
                for seed in one.seeds[1:]
            ]
        yield runs


def test_the_best_of_a_plain_study_is_read_on_seeds_left_out_of_the_choice():
    fresh, same = [], []
    for runs in plain_studies(3):
        found = standing(runs)
        value = fresh_top1(found)
        assert value is not None
        assert found.best is not None
        fresh.append(value.value - TRUE_TOP1)
        same.append(found.best.mean(TOP1).value - TRUE_TOP1)
    assert statistics.fmean(same) > 0.5  # the mean over the seeds that chose
    assert is_unbiased(fresh)


def test_the_best_of_a_search_is_reported_on_the_seeds_that_did_not_choose_it():
    """Also if several recipes were confirmed: the others' seeds do not choose between them."""
    one = search(axes=AXES[:1], seeds=(0, 1, 2), num_confirmed=3)
    body = {"searches": [one.to_json()]}
    reported, minival, first = [], [], []
    for runs in search_studies(one):
        row = standing(runs, body).best
        found = best(one, runs)
        assert row is not None
        assert found is not None
        assert row.recipe == found.recipe
        reported.append(row.mean(TOP1).value - TRUE_TOP1)
        minival.append(found.mean - TRUE_TOP1)
        first += [run.metrics[TOP1] - TRUE_TOP1 for run in row.finished if run.trial.seed == 0]
    assert statistics.fmean(first) > 1.0
    assert is_unbiased(reported)
    assert is_unbiased(minival)


def test_the_best_of_several_searches_is_read_on_seeds_left_out_of_the_choice_between_them():
    sizes = [
        search(label=f"w{w}", base=sized(w, 2), axes=AXES[:1], seeds=(0, 1, 2)) for w in WIDTHS
    ]
    body = {"searches": [one.to_json() for one in sizes]}
    fresh, same = [], []
    for runs in islice(search_studies(*sizes), NUM_STUDIES // 2):
        found = standing(runs, body)
        value = fresh_top1(found)
        assert value is not None
        assert found.best is not None
        fresh.append(value.value - TRUE_TOP1)
        same.append(found.best.mean(TOP1).value - TRUE_TOP1)
    assert statistics.fmean(same) > 0.3
    assert is_unbiased(fresh)


# -- in words -------------------------------------------------------------------------------------


def said(runs: list[Run]) -> str:
    return " ".join(answer(reading(runs)))


def test_an_accuracy_of_the_seed_that_chose_is_said_to_be_too_high():
    alone = said(next(plain_studies(1)))
    assert "on minival (" in alone
    assert "Both are of the seed that chose it, so they are too high." in alone
    (searched_alone,) = search_answer(searched({"searches": [ONE.to_json()]}, searched_runs(1)))
    assert "over 1 seed, which chose it, so this is too high" in searched_alone


def test_where_other_seeds_would_choose_another_recipe_the_accuracy_of_fresh_seeds_stands_beside():
    text = said(next(plain_studies(3)))
    assert "These seeds have chosen it, so its mean is too high." in text
    assert "the best recipe has 79." in text or "the best recipe has 80." in text


def test_a_best_recipe_that_any_seeds_choose_needs_no_other_number():
    clear = [
        run_of(label, recipe, seed, 80 + 5 * (label == "r3") + seed / 10, 79 + 5 * (label == "r3"))
        for label, recipe in recipes().items()
        for seed in range(3)
    ]
    text = said(clear)
    assert "r3 comes out best" in text
    assert "too high" not in text


def test_one_recipe_alone_was_not_chosen_and_is_not_too_high():
    assert "too high" not in said([run_of("r0", SMALL, 0, 80.0, 79.0)])
    (text,) = search_answer(searched({"searches": [ONE.to_json()]}, searched_runs(3)))
    assert "2 seeds, without the one that chose it" in text


ONE = search(axes=AXES[:1], seeds=(0, 1, 2))


def searched_runs(num_seeds: int) -> list[Run]:
    runs = next(search_studies(ONE))
    return [run for run in runs if run.trial.seed < num_seeds and run.status is Ending.FINISHED]
