"""A search's first draws: they cover the axes, and each size of a study has its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from searches import SMALL, Driver, search, study

from mambaout.recipe import tuned
from mambaout.study.axes import Choice, LinearRange, LogRange, Search, WholeRange
from mambaout.study.search import memory
from mambaout.study.search.best import share_of
from mambaout.study.search.first_draws import first_draw, num_startup, parts
from mambaout.study.search.space import base_values, tuning, values_of
from mambaout.variants import widen

pytestmark = pytest.mark.usefixtures("unsynced")
RATE = LogRange("peak_lr", 2.5e-4, 4e-3)
DECAY = LinearRange("weight_decay", 0.0, 0.2)
SIZES = {f"w{width}": replace(SMALL, model=widen(SMALL.model, width / 2)) for width in (1, 2)}


def rates(storage: Path, searches: tuple[Search, ...], **how) -> dict[str, list[float]]:
    """The learning rates of each search, in the order in which they were tried."""
    driver = Driver(storage, study(*searches), **how).run()
    found: dict[str, list[float]] = {one.label: [] for one in searches}
    for trial in driver.folder.trials():
        found[trial.label.split("-")[0]].append(trial.recipe.optim.peak_lr)
    return found


def drawn(one: Search, known: list[dict] | None = None, first: int = 0) -> list[dict]:
    """The values of all first draws after `known`."""
    found = list(known or [])
    while (values := first_draw(one, found, first + len(found))) is not None:
        found.append(values)
    return found


@pytest.mark.parametrize("base_lr", [3e-4, 1e-3, 3.8e-3])
@pytest.mark.parametrize("num_trials", [4, 6, 24, 60])
def test_first_draws_fill_every_part_of_a_range_and_both_sides_of_the_base(base_lr, num_trials):
    one = search(base=tuned(SMALL, peak_lr=base_lr), axes=(RATE, DECAY), num_trials=num_trials)
    for seed in range(20):
        found = drawn(one, first=100 * seed)
        assert len(found) == num_startup(one) - 1
        for axis in (RATE, DECAY):
            base = base_values(one)[axis.name]
            shares = sorted(share_of(axis, values[axis.name]) for values in found)
            for share, (low, high) in zip(shares, parts(axis, base, len(found)), strict=True):
                assert low - 1e-4 <= share <= high + 1e-4  # rounded to four digits
        tried = [values["peak_lr"] for values in found]
        assert min(tried) < base_lr
        if base_lr < 3.8e-3:  # nothing is left above it
            assert max(tried) > base_lr


def test_a_part_that_the_search_before_it_has_filled_is_left_out():
    one = search(axes=(RATE,), num_trials=6)
    carried = {"peak_lr": 3.5e-3}
    found = drawn(one, [carried])
    assert len(found) == 3
    shares = [share_of(RATE, values["peak_lr"]) for values in found]
    for low, high in parts(RATE, 1e-3, 3):
        assert sum(low <= share <= high for share in shares) == 1


def test_first_draws_try_the_values_of_a_choice_evenly_and_stop_at_the_length_of_the_search():
    axes = (Choice("kernel_size", (5, 7, 9)), WholeRange("blocks", 0, 4))
    found = drawn(search(axes=axes, num_trials=24))
    tried = [7, *(values["kernel_size"] for values in found[:5])]  # 7 is the base's
    assert [tried.count(size) for size in (5, 7, 9)] == [2, 2, 2]
    assert drawn(search(axes=axes, num_trials=1)) == []


def test_each_size_has_draws_of_its_own_and_the_same_ones_in_every_launch(tmp_path):
    searches = tuning(SIZES, (RATE,), 5)
    once = rates(tmp_path / "once", searches)
    assert len({tuple(found[2:4]) for found in once.values()}) == len(SIZES)
    for found in once.values():
        assert found[0] == 1e-3
        assert min(found[1:4]) < 1e-3 < max(found[1:4])
    begun = tmp_path / "begun"
    with pytest.raises(KeyboardInterrupt):
        rates(begun, searches, turn=interrupted_after(20))
    assert rates(begun, searches) == once


def interrupted_after(num_turns: int):
    """A `turn` of the driver that ends it after so many."""
    left = iter(range(num_turns))

    def turn() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return turn


def test_a_study_whose_first_recipes_an_older_version_drew_goes_on(tmp_path, monkeypatch):
    searches = tuning(SIZES, (RATE,), 6)
    with monkeypatch.context() as older:
        older.setattr(memory, "first_draw", lambda *_: None)
        before = rates(tmp_path, tuning(SIZES, (RATE,), 3))
    after = rates(tmp_path, searches)
    for label, found in after.items():
        assert found[:3] == before[label]
        assert len(found) == 6


def test_a_first_draw_is_a_valid_recipe_of_the_search():
    one = search(num_trials=40)
    for values in drawn(one):
        recipe = tuned(one.base, peak_lr=values["peak_lr"])
        assert values_of(one, recipe)["peak_lr"] == values["peak_lr"]
        assert values["drop_path"] == pytest.approx(round(values["drop_path"] / 0.05) * 0.05)
