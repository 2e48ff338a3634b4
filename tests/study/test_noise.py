"""Promises of the noise between seeds: it is one for a whole report, and luck is called luck."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from study_files import DATA, SMALL, final_metrics, sized

from mambaout.endings import Ending
from mambaout.recipe import Recipe, tuned
from mambaout.study.law.noise import SeedMean, noise_of, t95
from mambaout.study.origin import BaselinePoint, GridPoint
from mambaout.study.report.findings import answer
from mambaout.study.report.ranking import Standing
from mambaout.study.report.reading import Reading, reading
from mambaout.study.report.tables import WITHIN_NOISE, ranked_cells
from mambaout.study.study import Run, Trial
from mambaout.train.metrics import MINIVAL_TOP1, TOP1

FACTS = {
    "num_val": 10_000, "num_minival": 5_000, "num_classes": 10, "num_train": 50_000,
}  # fmt: skip


def run_of(
    label: str, recipe: Recipe, seed: int, top1: float, minival: float, **facts: object
) -> Run:
    origin = BaselinePoint() if label == "baseline" else GridPoint()
    return Run(
        trial=Trial(label=label, recipe=recipe, seed=seed, data=DATA, origins=(origin,)),
        status=Ending.FINISHED,
        metrics=final_metrics(recipe, seed) | {"top1": top1, "minival/top1": minival},
        facts=FACTS | facts,
    )


def means(values: Mapping[int, Sequence[Sequence[float]]]) -> list[SeedMean]:
    return [SeedMean(tuple(one), epochs) for epochs, each in values.items() for one in each]


# -- what it is known from ------------------------------------------------------------------------


def test_quantiles_are_students():
    assert [t95(degrees) for degrees in (1, 4, 30, float("inf"))] == pytest.approx(
        [12.706, 2.776, 2.042, 1.960], abs=1e-3
    )


def test_the_noise_says_from_which_recipes_and_how_many_degrees_of_freedom_it_is_known():
    many = [[80.0, 81.0, 82.0]] * 3
    assert "1.00 points (6 degrees of freedom, 3 recipes)" in noise_of(means({4: many})).text()
    assert "36 epochs 1.00 points (6 deg" in noise_of(means({36: many, 4: [[1, 2]]})).text()
    assert "binomial spread of 100 images" in noise_of(means({4: [[80.0]]}), 100).text()
    assert "not known" in noise_of(means({4: [[80.0]]})).text()


def test_vals_images_stand_in_for_seeds_only_where_no_recipe_has_two():
    alone = noise_of(means({4: [[90.0], [91.0]]}), 10_000)
    assert alone.variance(SeedMean((90.0,), 4)) == pytest.approx(90 * 10 / 10_000)
    seeds = noise_of(means({4: [[90.0, 91.0]], 36: [[90.0]]}), 10_000)
    assert seeds.variance(SeedMean((90.0,), 36)) == pytest.approx(0.5)


def test_without_seeds_no_difference_is_significant():
    found = noise_of(means({4: [[90.0], [50.0]]}), 10_000)
    difference = found.difference(SeedMean((90.0,), 4), SeedMean((50.0,), 4))
    assert not difference.is_significant
    assert difference.half < 2
    assert difference.doubt == "not told from luck"


def test_seeds_that_agree_to_the_last_digit_leave_no_equal_means_apart():
    noise = noise_of(means({4: [[90.0, 90.0], [90.0, 90.0]]}))
    same = SeedMean((90.0, 90.0), 4)
    assert not noise.difference(same, same).is_significant
    assert noise.difference(same, SeedMean((90.1,), 4)).is_significant


@pytest.mark.parametrize("sd", [0.3, 0.8, 1.2])
@pytest.mark.parametrize(
    "seeds", [{10: (3,) * 6}, {10: (2,) * 8}, {4: (3,) * 4, 36: (1,) * 4}, {4: (3,) * 4, 36: (3,)}]
)
def test_of_studies_without_a_difference_one_in_twenty_shows_one(sd, seeds):
    """The pair that is compared is named beforehand: the first recipe and the last one."""
    rng, studies = np.random.default_rng(0), 600
    called = 0
    for _ in range(studies):
        drawn = {
            epochs: [80 + sd * rng.standard_normal(count) for count in counts]
            for epochs, counts in seeds.items()
        }
        found = means({e: [one.tolist() for one in each] for e, each in drawn.items()})
        called += noise_of(found, 10_000).difference(found[0], found[-1]).is_significant
    assert 0.03 <= called / studies <= 0.07  # 5 % but for 2.2 standard errors


# -- what a seed gives to all recipes alike --------------------------------------------------------


def drawn(
    rng, *, own: float, shared: float, gain: float = 0.0, seeds=(0, 1, 2, 3)
) -> list[SeedMean]:
    """Six recipes at 80 %, the last one `gain` points higher."""
    shifts = {seed: shared * rng.standard_normal() for seed in seeds}
    found = []
    for place in range(6):
        level = 80 + gain * (place == 5)
        values = tuple(level + shifts[s] + own * rng.standard_normal() for s in seeds)
        found.append(SeedMean(values, 4, tuple(seeds)))
    return found


def test_what_a_seed_gives_to_all_recipes_cancels_in_their_difference():
    rng = np.random.default_rng(0)
    halves: dict[float, list[float]] = {0.0: [], 2.0: []}
    for _ in range(100):
        for shared, found in halves.items():
            means = drawn(rng, own=0.5, shared=shared)
            noise = noise_of(means)
            difference = noise.difference(means[0], means[-1])
            found.append(difference.half)
            assert (noise.half_width(means[0]) or 0.0) > 0
    assert np.mean(halves[2.0]) == pytest.approx(np.mean(halves[0.0]), rel=0.05)
    means = drawn(rng, own=0.5, shared=2.0)
    noise = noise_of(means)
    assert (noise.half_width(means[0]) or 0.0) > 2 * noise.difference(*means[:2]).half
    assert "are a recipe's own" in noise_of(means).text()


@pytest.mark.parametrize("shared", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("others", [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7)])
def test_a_difference_of_recipes_with_equal_or_other_seeds_is_rarely_false(shared, others):
    rng, studies, called = np.random.default_rng(1), 400, 0
    for _ in range(studies):
        shifts = {seed: shared * rng.standard_normal() for seed in range(8)}
        means = []
        for place in range(8):
            seeds = (0, 1, 2, 3) if place < 4 else others
            values = tuple(80 + shifts[s] + 0.5 * rng.standard_normal() for s in seeds)
            means.append(SeedMean(values, 4, seeds))
        called += noise_of(means).difference(means[0], means[-1]).is_significant
    assert called / studies <= 0.085


def test_seeds_of_unknown_numbers_are_not_paired():
    means = [
        SeedMean(m.values, m.epochs) for m in drawn(np.random.default_rng(0), own=0.5, shared=2)
    ]
    spread = noise_of(means).all_lengths
    assert spread is not None
    assert spread.own_points is None
    known = drawn(np.random.default_rng(0), own=0.5, shared=2)
    half = noise_of(known).difference(*known[:2]).half
    assert noise_of(means).difference(*means[:2]).half > 1.2 * half


# -- one noise for a report -----------------------------------------------------------------------


def test_a_length_with_one_seed_a_recipe_takes_the_seeds_of_the_other_lengths_everywhere():
    """Val's binomial is 0.31 points here and the seeds spread by 0.79: the fits of the length took
    the former while the table beside them took the latter."""
    runs = []
    for place, (width, depth) in enumerate(((8, 2), (16, 2), (32, 2), (8, 14), (16, 14))):
        for epochs, seeds in ((4, 3), (36, 1)):
            recipe = tuned(sized(width, depth), epochs=epochs)
            for seed in range(seeds):
                top1 = 89.1 + 0.79 * ((seed + place) % 3 - 1) * (seeds > 1)
                label = f"w{width}-d{depth}-e{epochs}"
                runs.append(run_of(label, recipe, seed, top1, top1))
    found = reading(runs)
    long = next(one for one in found.grown if one.family.epochs == 36)
    row = long.family.rows[0]
    half = found.noise.half_width(row.mean(TOP1))
    assert half == pytest.approx(t95(10) * 0.79)
    assert f"89.10 ± {half:.2f} (n=1)" in str(ranked_cells(found.standing).cells)
    assert long.slices
    # Two networks of one seed each: the part of the noise that the seed gives to both cancels.
    assert all(piece.difference.half > 1.2 * (half or 0.0) for piece in long.slices)
    (law,) = [one.law for one in found.laws if one.name == "36 epochs"]
    assert law is None or law.noise is found.noise


SHAPES = ((8, 2), (8, 6), (8, 14), (16, 2), (16, 6), (16, 14), (32, 2), (32, 6))


def random_study(seed: int) -> Reading:
    """Shapes at two lengths, some with a carried rate, and a baseline, whose true accuracies,
    numbers of seeds and noise are drawn."""
    draw = random.Random(seed)
    sd, effect = draw.choice((0.1, 0.3, 0.8, 1.2)), draw.choice((0.0, 0.5, 2.0))
    recipes: dict[str, Recipe] = {}
    for epochs in draw.sample((4, 12, 36), 2):
        for width, depth in draw.sample(SHAPES, draw.randint(2, len(SHAPES))):
            recipe = tuned(sized(width, depth), epochs=epochs)
            recipes[f"w{width}-d{depth}-e{epochs}"] = recipe
            if draw.random() < 0.3:
                recipes[f"w{width}-d{depth}-e{epochs}-mup"] = tuned(recipe, mup_base_dim=4)
    recipes["baseline"] = sized(16, 4, tuned(SMALL, peak_lr=4e-3))
    counts = {epochs: draw.choice((1, 2, 3)) for epochs in (4, 10, 12, 36)}
    few = draw.choice((60, 5_000))  # images of minival
    runs = []
    for label, recipe in recipes.items():
        truth = 80 + draw.gauss(0, effect)
        for i in range(counts[recipe.schedule.total_epochs]):
            top1, minival = (truth + draw.gauss(0, sd) for _ in range(2))
            runs.append(run_of(label, recipe, i, top1, minival, num_minival=few))
    # One that has not ended: a report then leaves the slow fit of exponents out.
    late = replace(runs[0].trial, seed=9)
    return reading([*runs, Run(trial=late, status=Ending.UNFINISHED)])


Verdict = tuple[str, str, str, bool]  # metric, two labels, whether they are told apart
POINTS = r"[\d.]+ points, (beyond|within) seed noise"


def verdicts(found: Reading) -> Iterator[Verdict]:
    """Every word that the report says on whether two recipes can be told apart."""
    standing, text = found.standing, "\n".join(answer(found))
    best = standing.best.label if standing.best else ""
    table = ranked_cells(standing)
    if standing.has_verdict and WITHIN_NOISE in str(table.cells):
        notes = [cells[-1] for cells in table.cells]
        for row, note in zip(standing.rows, notes, strict=True):
            if row.label != best:
                yield MINIVAL_TOP1, best, row.label, WITHIN_NOISE not in note
    for label, told in re.findall(rf"it is \w+ (\S+), the next, by {POINTS}", text):
        yield MINIVAL_TOP1, best, label, told == "beyond"
    for label, told in re.findall(rf"On val (\S+) is higher by {POINTS}", text):
        yield TOP1, best, label, told == "beyond"
    for one, other, told in re.findall(rf"step down is from (\S+) to (\S+): {POINTS}", text):
        yield TOP1, one, other, told == "beyond"
    for label, told in re.findall(rf"; (\S+), the nearest in MACs .*? by {POINTS}", text):
        yield TOP1, "baseline", label, told == "beyond"
    for label, told in re.findall(r"points \([^)]*\) over (\S+), (better|worse|not sig)", text):
        yield TOP1, f"{label}-mup", label, told != "not sig"
    for one in found.grown:
        for gain, count in ((one.growth.depth, "num_depth"), (one.growth.width, "num_width")):
            if gain is not None and len(one.family.rows) == 2 and standing.has_verdict:
                assert getattr(one.growth, count) == 2
                low, high = one.family.rows
                yield TOP1, low.label, high.label, gain.excludes_zero


def truth(standing: Standing, metric: str, one: str, other: str) -> bool:
    rows = {row.label: row for row in standing.rows}
    compared = standing.lead if metric == MINIVAL_TOP1 else standing.difference
    return compared(rows[one], rows[other]).is_significant


def test_no_two_parts_of_a_report_disagree_about_a_difference():
    told_apart, again = Counter[bool](), 0
    for seed in range(24):
        found = random_study(seed)
        before: dict[tuple[str, frozenset[str]], bool] = {}
        for metric, one, other, told in verdicts(found):
            pair = (metric, frozenset((one, other)))
            again += pair in before
            assert before.setdefault(pair, told) == told, (seed, metric, one, other)
            assert told == truth(found.standing, metric, one, other), (seed, metric, one, other)
            told_apart[told] += 1
        assert all(one.law.noise is found.noise for one in found.laws if one.law)
    assert min(told_apart[True], told_apart[False], again) >= 10, "enough is said"
