"""Promises of the joint law over size and length, and of the spread that its intervals draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mambaout.accounting import TRAIN_FORWARDS
from mambaout.study.law import two_powers
from mambaout.study.law.fit import Size, TooFew
from mambaout.study.law.joint import REPEATS, JointLaw, fit_joint, images_worth
from mambaout.study.law.noise import SeedNoise, noise_of
from mambaout.study.law.spread import SHARE, SpreadDraws, spread_draws

NUM_IMAGES = 1000
COSTS = tuple(np.geomspace(1e6, 16e6, 6))
LENGTHS = (4, 12, 36)

Truth = Callable[[float, float], float]


def known(cost: float, epochs: float) -> float:
    return 5 + 6 * (cost / 1e6) ** -0.5 + 8 * (epochs / 4) ** -0.7


def grid(
    truth: Truth = known,
    costs: Sequence[float] = COSTS,
    lengths: Sequence[int] = LENGTHS,
    *,
    seeds: int = 2,
    sd: float = 0.2,
    scatter: float = 0.0,
    seed: int = 0,
) -> list[Size]:
    rng = np.random.default_rng(seed)
    beside = {cost: scatter * rng.standard_normal() for cost in costs}
    return [
        Size(
            label=f"s{i}-e{epochs}",
            cost=cost,
            errors=tuple(truth(cost, epochs) + beside[cost] + sd * rng.standard_normal(seeds)),
            epochs=epochs,
        )
        for i, cost in enumerate(costs)
        for epochs in lengths
    ]


def noise(sizes: Sequence[Size], num_images: int | None = None) -> SeedNoise:
    return noise_of([size.seeds for size in sizes], num_images)


def fitted(sizes: Sequence[Size], *, repeats: float = math.inf, num_resamples: int = 100):
    return fit_joint(sizes, NUM_IMAGES, noise(sizes), repeats=repeats, num_resamples=num_resamples)


# -- the law --------------------------------------------------------------------------------------


def test_the_joint_law_recovers_one_that_it_was_given():
    law = fitted(grid(sd=0.001))
    assert law.c.value == pytest.approx(5, abs=0.05)
    assert law.size_exponent.value == pytest.approx(0.5, abs=0.01)
    assert law.length_exponent.value == pytest.approx(0.7, abs=0.01)
    assert law.size_factor.value == pytest.approx(6, abs=0.1)  # per 1M
    assert law.length_factor.value == pytest.approx(8 * 4**0.7, abs=0.4)  # per 1k images
    assert law.predict(32e6, 100).value == pytest.approx(known(32e6, 100), abs=0.02)
    assert law.is_determined


def test_the_search_finds_the_least_squares_that_scipy_finds_from_many_starts():
    from scipy.optimize import least_squares

    rng = np.random.default_rng(0)
    x, y = np.tile(np.geomspace(0.25, 4, 6), 3), np.repeat([1 / 3, 1.0, 3.0], 6)
    errors = 8 + 3 * x**-0.5 + 4 * y**-0.7 + 0.2 * rng.standard_normal((12, 18))
    weights = rng.uniform(0.5, 2, 18)
    found = two_powers.solve(x, y, errors, weights)
    misfits = (weights * (two_powers.value(found, x, y) - errors) ** 2).sum(axis=1)
    low, high = [0, 0, 0.02, 0, 0.02], [np.inf, np.inf, 3, np.inf, 3]
    for row, misfit in zip(errors, misfits, strict=True):

        def off(p: np.ndarray, row: np.ndarray = row) -> np.ndarray:
            return (p[0] + p[1] * x ** -p[2] + p[3] * y ** -p[4] - row) * np.sqrt(weights)

        starts = rng.uniform([0, 1, 0.1, 1, 0.1], [10, 8, 2, 8, 2], (4, 5))
        best = min(2 * least_squares(off, s, bounds=(low, high)).cost for s in starts)
        assert misfit <= best * (1 + 1e-6)


@pytest.mark.parametrize(
    ("costs", "lengths", "reason"),
    [
        (COSTS, (4, 12), "12 trainings of 6 sizes and 2 lengths"),
        (COSTS[:2], LENGTHS, "6 trainings of 2 sizes and 3 lengths"),
    ],
)
def test_two_sizes_or_two_lengths_are_refused_with_what_is_needed(costs, lengths, reason):
    with pytest.raises(TooFew, match=rf"{reason}, .* 3 sizes and 3 lengths; add"):
        fitted(grid(costs=costs, lengths=lengths))


def test_a_length_that_changes_nothing_has_no_exponent():
    law = fitted(grid(lambda cost, _: known(cost, 4)))
    assert not law.is_determined
    assert "of the length not determined" in law.text()


def test_the_largest_size_and_the_longest_training_are_predicted_by_the_others():
    law = fitted(grid(lengths=(4, 8, 16, 32), sd=0.05))
    largest, longest = law.left_out
    assert (largest.name, longest.name) == ("the largest size", "the longest training")
    assert [one.size.label for one in largest.holdouts] == ["s5-e4", "s5-e8", "s5-e16", "s5-e32"]
    assert {one.size.epochs for one in longest.holdouts} == {32}
    for one in (*largest.holdouts, *longest.holdouts):
        truth = known(one.size.cost, one.size.epochs or 0)
        assert one.prediction.low < truth < one.prediction.high


def test_three_lengths_cannot_leave_one_out_and_say_so():
    law = fitted(grid())
    assert [group.name for group in law.left_out] == ["the largest size"]
    assert any("the longest training cannot be left out" in note for note in law.notes)


def test_more_seeds_are_surer():
    law = fitted(grid())
    assert law.predict(16e6, 36, num_seeds=4).sigma < law.predict(16e6, 36).sigma


# -- repeated images ------------------------------------------------------------------------------


def test_a_repeated_image_counts_in_full_or_for_less_and_the_first_epoch_always_in_full():
    epochs = np.array([0.5, 1.0, 4.0, 1000.0])
    assert images_worth(100, epochs).tolist() == [50, 100, 400, 100_000]
    less = images_worth(100, epochs, REPEATS)
    assert less[:2].tolist() == [50, 100]
    assert 370 < less[2] < 400
    assert less[3] == pytest.approx(100 * (1 + REPEATS))


def test_a_law_of_repeated_images_recovers_a_truth_of_its_kind():
    def truth(cost: float, epochs: float) -> float:
        images = float(images_worth(1, np.array([epochs]), REPEATS)[0])
        return 5 + 6 * (cost / 1e6) ** -0.5 + 8 * images**-0.7

    sizes = grid(truth, lengths=(2, 8, 32), sd=0.001)
    law = fitted(sizes, repeats=REPEATS)
    assert law.length_exponent.value == pytest.approx(0.7, abs=0.01)
    assert law.predict(16e6, 100).value == pytest.approx(truth(16e6, 100), abs=0.02)
    assert fitted(sizes).predict(16e6, 100).value < truth(16e6, 100) - 0.1


# -- the best size and length ---------------------------------------------------------------------


def test_the_optimum_is_that_of_the_closed_form():
    law, budget = fitted(grid(sd=0.001)), 3e11
    found = law.optimum(budget)
    images = budget / TRAIN_FORWARDS / NUM_IMAGES  # MACs of one image times epochs
    # a A N^-a = b B (K / N)^-b, with N in 1M and the epochs in units of 4
    k = images / 1e6 / 4
    best = 1e6 * (0.5 * 6 / (0.7 * 8) * k**0.7) ** (1 / 1.2)
    assert found.macs.value == pytest.approx(best, rel=0.05)
    assert found.macs.value * found.epochs.value == pytest.approx(images)
    assert found.macs.low <= found.macs.value <= found.macs.high
    assert found.doubt == ""


def test_an_optimum_outside_the_data_says_how_far():
    found = fitted(grid(sd=0.01)).optimum(TRAIN_FORWARDS * NUM_IMAGES * 40e6 * 60)
    assert 1.05 < found.beyond <= 4
    assert "beyond the data" in found.doubt


def test_a_budget_far_outside_the_data_is_refused_by_its_value():
    with pytest.raises(TooFew, match=r"30T MACs of training lie more than x4 outside"):
        fitted(grid()).optimum(30e12)


# -- coverage -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_joint_intervals_cover_a_new_size_at_the_longest_length():
    """30 studies of random laws. results/coverage.json has the same for 200 of each kind."""
    rng = np.random.default_rng(0)
    held = []
    for study in range(30):
        c, large_a, a, large_b, b = (
            rng.uniform(*r) for r in ((2, 10), (3, 12), (0.2, 0.8), (3, 12), (0.3, 1.0))
        )

        def truth(cost: float, epochs: float, p: tuple = (c, large_a, a, large_b, b)) -> float:
            return p[0] + p[1] * (cost / 1e6) ** -p[2] + p[3] * (epochs / 4) ** -p[4]

        scatter = (0.0, 0.2)[study % 2]
        sizes = grid(truth, seeds=2, sd=0.3, scatter=scatter, seed=study)
        prediction = fitted(sizes).predict(32e6, 36)
        run = truth(32e6, 36) + math.hypot(0.3, scatter) * rng.standard_normal()
        held.append(prediction.low <= run <= prediction.high)
    assert 0.88 <= np.mean(held) <= 1


# -- the spread -----------------------------------------------------------------------------------


def spread_of(
    sizes: Sequence[Size], residuals: np.ndarray, num_images: int | None = None
) -> SpreadDraws:
    costs = np.array([size.cost for size in sizes])
    means = [size.seeds for size in sizes]
    rng = np.random.default_rng(0)
    return spread_draws(
        costs, means, noise(sizes, num_images), residuals, len(sizes) - 4, rng, 2000
    )


def noisy(growth: float, seeds: int = 6) -> list[Size]:
    rng = np.random.default_rng(0)
    return [
        Size(
            label=str(cost), cost=cost, errors=tuple(20 + cost**growth * rng.standard_normal(seeds))
        )
        for cost in np.geomspace(1, 16, 8)
    ]


def test_noise_that_grows_with_size_is_seen_and_even_noise_is_left_even():
    calm = np.full(8, 0.1)
    assert spread_of(noisy(0.5), calm).growth.mean() > 0.25
    assert abs(spread_of(noisy(0.0), calm).growth.mean()) < 0.15


def test_shapes_that_lie_far_beside_a_law_are_seen_in_its_residuals():
    far = 3.0 * np.array([1, -1, 1, -1, 1, -1, 1, -1.0])
    scatter = np.sqrt(np.median(spread_of(noisy(0.0), far).scatter))
    near = np.sqrt(np.median(spread_of(noisy(0.0), far / 30).scatter))
    assert near < 1 < 2 < scatter < 6


def test_without_seeds_the_images_of_val_give_a_part_of_the_noise():
    sizes = [Size(label=str(i), cost=2.0**i, errors=(20.0,)) for i in range(6)]
    found = spread_of(sizes, np.zeros(6), 10_000)
    assert found.scale.min() >= SHARE[0]
    assert found.scale.max() <= SHARE[1]


def test_four_single_runs_tell_no_spread():
    sizes = [Size(label=str(i), cost=2.0**i, errors=(20.0,)) for i in range(4)]
    assert not spread_of(sizes, np.zeros(4)).are_known


def test_the_joint_law_says_when_its_noise_is_only_that_of_the_sizes():
    law = fitted(grid(seeds=1))
    assert isinstance(law, JointLaw)
    assert any("no size has two seeds" in note for note in law.notes)
    assert math.isfinite(law.predict(16e6, 36).low)
