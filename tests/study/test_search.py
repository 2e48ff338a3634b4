"""Searches: what they suggest, what they are told, and that a kill changes neither."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from searches import AXES, BEST_LR, DATA, EPOCHS, SMALL, Driver, search, study, suggested, top1
from study_files import suggested_trial

from mambaout.endings import Ending
from mambaout.fields import MOST_COUNT
from mambaout.recipe import tuned
from mambaout.study.axes import Choice, LinearRange, LogRange, Search, WholeRange
from mambaout.study.search import candidates
from mambaout.study.search.best import as_run, best, chosen, edges
from mambaout.study.search.importances import importances
from mambaout.study.search.memory import OPTUNA_FILE, open_store
from mambaout.study.search.space import check, check_all, doubts, points, tuning
from mambaout.study.search.study_agenda import agenda
from mambaout.study.study import Run, StudyFolder
from mambaout.train.metrics import MACS, MINIVAL_TOP1
from mambaout.variants import VARIANTS, widen

LR = AXES[0]
pytestmark = pytest.mark.usefixtures("unsynced")


def optuna_study(storage: Path, label: str = "femto"):
    """The search as optuna-dashboard reads it."""
    import optuna

    return optuna.load_study(study_name=label, storage=open_store(storage / "x" / OPTUNA_FILE))


def states(storage: Path, label: str = "femto") -> list[str]:
    return [trial.state.name for trial in optuna_study(storage, label).get_trials(deepcopy=False)]


# -- what a search may be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(axes=()), "no axes"),
        (dict(axes=(LogRange("peek_lr", 1e-4, 1e-2),)), "did you mean 'peak_lr'"),
        (dict(axes=(LR, LR)), "more than one axis 'peak_lr'"),
        (dict(axes=(LogRange("peak_lr", 2e-3, 1e-2),)), "base, whose peak_lr=0.001 is outside"),
        (dict(axes=(LogRange("peak_lr", 1e-2, 1e-4),)), "no range"),
        (dict(axes=(LogRange("weight_decay", 0, 0.1),)), "use Linear"),
        (dict(axes=(LinearRange("hflip", 0, 1.5),)), "hflip=1.5 is out of range"),
        (dict(axes=(WholeRange("kernel_size", 5, 9),)), "kernel_size=6 must be odd"),
        (dict(axes=(Choice("kernel_size", (3, 5)),)), "kernel_size=7 is not among"),
        (dict(axes=(LinearRange("depths", 1, 2),)), "use Choice"),
        (dict(axes=(LinearRange("global_batch", 64, 256),)), "use Whole"),
        (dict(axes=(WholeRange("blocks", -9, 4),)), "take away at most"),
        (dict(axes=(LogRange("width", 1.1, 2),)), "width=1.0 is outside"),
        (dict(axes=(LogRange("width", 0.5, 2), Choice("dims", ((8, 16, 24, 32),)))), "keep one"),
        (
            dict(axes=(LinearRange("conv_ratio", 0.5, 2), LinearRange("expansion", 1.5, 3))),
            "narrow the axis",
        ),
        (dict(num_trials=0), "num_trials=0"),
        (dict(num_trials=10**20), "must be 1 to 100000"),
        (dict(seeds=()), "seeds"),
        (dict(seeds=(0, 0)), "seeds"),
        (dict(num_confirmed=0), "num_confirmed=0"),
        (dict(goals=()), "no goal"),
        (dict(goals=(("top1", "max"),)), "val is reported once"),
        (dict(goals=(("mac", "min"),)), "choose from"),
        (dict(goals=((MINIVAL_TOP1, "max"), (MACS, "min")), early_stop=True), "needs one goal"),
        (dict(axes=(WholeRange("epochs", 5, 20),), early_stop=True), "not as far on"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_run_is_refused_with_the_value_and_a_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        check(search(**changes))


def test_searches_are_told_apart_and_follow_earlier_ones():
    check_all([search(), search(label="tiny", follows="femto")], ["femto", "other"])
    with pytest.raises(ValueError, match="each its own label"):
        check_all([search(), search()])
    with pytest.raises(ValueError, match="none of the ones before it"):
        check_all([search(follows="tiny"), search(label="tiny")])
    with pytest.raises(ValueError, match="called like a trial"):
        check_all([search()], ["femto-t003"])


def test_early_stopping_judges_what_trials_report(tmp_path):
    other = study(search(early_stop=True, goals=(("images_per_second", "max"),)))
    with pytest.raises(ValueError, match="stops early on images_per_second"):
        Driver(tmp_path, other)


def test_a_search_that_may_stop_slow_starters_says_so():
    (line,) = doubts([search(early_stop=True), search(label="other")])
    assert "search femto stops recipes early and varies drop_path" in line
    assert "--search drop_path=LOW..HIGH" in line
    assert doubts([search(early_stop=True, axes=(LR,))]) == []


# -- suggestions ----------------------------------------------------------------------------------


def test_a_search_starts_from_its_base_and_finds_better(tmp_path):
    driver = Driver(tmp_path, study(search(num_trials=30))).run()
    assert driver.started[0].recipe == SMALL
    assert [trial.label for trial in driver.started] == [f"femto-t{i:03d}" for i in range(30)]
    found = best(search(num_trials=30), driver.runs())
    assert found is not None
    assert found.mean > top1(SMALL, 0) + 1
    assert abs(found.recipe.optim.peak_lr / BEST_LR - 1) < 0.5
    kept = optuna_study(tmp_path)
    key = next(trial.key for trial in driver.started if trial.label == found.label)
    assert kept.best_trial.user_attrs == {
        "key": key,
        "label": found.label,
    }
    assert kept.best_value == pytest.approx(found.mean)
    assert kept.metric_names == [MINIVAL_TOP1]


def test_the_same_search_suggests_the_same_and_another_seed_something_else(tmp_path):
    def keys(name: str, seed: int) -> list[str]:
        driver = Driver(tmp_path / name, study(search(num_trials=8, sampler_seed=seed))).run()
        return [trial.key for trial in driver.started]

    once = keys("a", 0)
    assert keys("b", 0) == once
    assert keys("c", 1)[1:] != once[1:]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_suggestions_made_at_once_differ(tmp_path, sampler):
    few = search(axes=(LR, Choice("kernel_size", (5, 7, 9))), num_trials=24, sampler=sampler)
    driver = Driver(tmp_path, study(few), slots=8).run()
    rates = {(t.recipe.optim.peak_lr, t.recipe.model.kernel_size) for t in driver.started}
    assert len(rates) == 24


def test_values_lie_on_their_steps_and_read_well(tmp_path):
    driver = Driver(tmp_path, study(search())).run()
    for trial in driver.started[1:]:
        drop, rate = trial.recipe.model.drop_path, trial.recipe.optim.peak_lr
        assert drop == pytest.approx(round(drop / 0.05) * 0.05, abs=1e-9)
        assert float(f"{rate:.4g}") == rate


def test_an_exhausted_space_ends_the_search_with_a_notice(tmp_path):
    axes = (Choice("kernel_size", (5, 7, 9)), WholeRange("blocks", 0, 1))
    driver = Driver(tmp_path, study(search(axes=axes, num_trials=20)), slots=2).run()
    assert len({trial.key for trial in driver.started}) == 6 == len(driver.started)
    assert driver.agenda.notices == [
        "search femto: its axes have no recipe left to try after 6 of 20"
    ]
    assert driver.agenda.num_undecided == 0
    assert Driver(tmp_path, study(search(axes=axes, num_trials=20))).agenda.over


def test_a_recipe_that_the_study_has_is_not_run_again(tmp_path):
    """Nor are its early epochs judged: it is no suggestion."""
    fixed = {"paper": SMALL, "other": tuned(SMALL, weight_decay=0.2)}
    both = study(search(num_trials=6, early_stop=True), recipes=fixed)
    driver = Driver(tmp_path, both, slots=4).run()
    assert len({trial.key for trial in driver.started}) == len(driver.started) == 7
    first = optuna_study(tmp_path).trials[0]
    assert first.user_attrs["label"] == "paper"
    assert first.state.name == "COMPLETE"
    assert best(both.searches[0], driver.runs()) is not None


# -- what the search is told ----------------------------------------------------------------------


def test_every_end_is_told_as_what_it_is(tmp_path):
    ends = [Ending.FINISHED, Ending.DIVERGED, Ending.BROKEN, Ending.FINISHED]
    driver = Driver(
        tmp_path,
        study(search(num_trials=4)),
        outcome=lambda trial: ends[int(trial.label[-3:])],
    ).run()
    assert states(tmp_path) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    kept = optuna_study(tmp_path).trials
    assert kept[0].value == top1(driver.started[0].recipe, 0)
    assert kept[1].value is kept[2].value is None


def test_one_that_was_given_up_is_run_once_more_by_the_next_launch(tmp_path):
    one = study(search(num_trials=3))
    ends = [Ending.FINISHED, Ending.BROKEN, Ending.FINISHED]
    Driver(tmp_path, one, outcome=lambda trial: ends[int(trial.label[-3:])]).run()
    again = Driver(tmp_path, one).run()
    assert [trial.label for trial in again.started] == ["femto-t001"]
    assert states(tmp_path) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert Driver(tmp_path, one).run().started == []


def test_a_stopped_trial_is_pruned_and_never_complete_at_its_low_value(tmp_path):
    driver = Driver(tmp_path, study(search(num_trials=20, early_stop=True)), slots=2).run()
    stopped = [run for run in driver.runs() if run.status == "stopped"]
    assert 8 <= len(stopped) < 20
    kept = {trial.user_attrs["key"]: trial for trial in optuna_study(tmp_path).trials}
    for run in driver.runs():
        trial = kept[run.trial.key]
        if run.status == "stopped":
            assert trial.state.name == "PRUNED"
            assert max(trial.intermediate_values) == len(run.records) < EPOCHS
            assert "not in the best third" in run.facts["why"]
        else:
            assert trial.state.name == "COMPLETE"
            assert trial.value == top1(run.trial.recipe, 0)
    # Judged after the warm-up of one epoch, and at three times that.
    assert {len(run.records) for run in stopped} == {1, 3}


def test_the_base_is_never_stopped(tmp_path):
    bad = tuned(SMALL, peak_lr=2.6e-4)
    driver = Driver(
        tmp_path, study(search(base=bad, num_trials=12, early_stop=True)), slots=6
    ).run()
    base, *others = driver.runs()
    assert base.status == "finished"
    assert base.metrics[MINIVAL_TOP1] < max(run.metrics.get(MINIVAL_TOP1, 0) for run in others)


def test_other_seeds_are_for_the_best_alone_and_are_never_stopped(tmp_path):
    confirmed = search(num_trials=9, early_stop=True, seeds=(0, 1, 2), num_confirmed=2)
    driver = Driver(tmp_path, study(confirmed), slots=3)
    assert driver.agenda.num_undecided == 9 + 4
    driver.run()
    others = [trial for trial in driver.started if trial.seed > 0]
    assert driver.started[-4:] == others
    assert [trial.seed for trial in others] == [1, 1, 2, 2]
    first = [run for run in driver.runs() if run.trial.seed == 0 and run.status == "finished"]
    first.sort(key=lambda run: -run.metrics[MINIVAL_TOP1])
    assert {trial.label for trial in others} == {run.trial.label for run in first[:2]}
    assert all(driver.folder.run(trial).status == "finished" for trial in others)
    found = best(confirmed, driver.runs())
    assert found is not None
    assert len(found.scores) == 2  # without the seed that chose it
    assert set(optuna_study(tmp_path).user_attrs["confirmed"]) == {t.label for t in others}
    again = Driver(tmp_path, study(confirmed))
    assert again.agenda.over
    assert again.agenda.num_undecided == 0


def test_the_first_seed_chooses_and_the_others_only_report():
    results = {
        "first": {0: (91.0,), 1: (85.0,)},
        "steady": {0: (90.0,), 1: (90.0,)},
        "not confirmed": {0: (99.0,)},
    }
    assert chosen(search(seeds=(0, 1)), results) == "first"
    assert chosen(search(seeds=(0,)), results) == "not confirmed"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_two_goals_come_to_a_front(tmp_path, sampler):
    two = search(goals=((MINIVAL_TOP1, "max"), (MACS, "min")), sampler=sampler, num_trials=30)
    driver = Driver(tmp_path, study(two), slots=2).run()
    kept = optuna_study(tmp_path)
    assert [way.name for way in kept.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert len(kept.best_trials) >= 2
    assert len(driver.started) == 30


# -- kills ----------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def dies_after(num_turns: int):
    """A `turn` that ends the driver after so many."""
    left = [num_turns]

    def turn() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return turn


@pytest.mark.parametrize(
    ("sampler", "early_stop"),
    [
        pytest.param("tpe", False, marks=pytest.mark.slow),
        ("tpe", True),
        pytest.param("nsga2", False, marks=pytest.mark.slow),
    ],
)
def test_a_driver_that_dies_again_and_again_suggests_what_one_does_that_lives(
    tmp_path, sampler, early_stop
):
    one = study(search(num_trials=12, sampler=sampler, early_stop=early_stop, seeds=(0, 1)))
    lived = Driver(tmp_path / "lived", one, slots=2).run()
    for _ in range(100):
        try:
            died = Driver(tmp_path / "died", one, slots=2, turn=dies_after(10)).run()
            break
        except Killed:
            continue
    else:
        pytest.fail("never over")
    assert [t.key for t in died.folder.trials()] == [t.key for t in lived.folder.trials()]
    assert [run.status for run in died.runs()] == [run.status for run in lived.runs()]
    assert states(tmp_path / "died") == states(tmp_path / "lived")
    assert "RUNNING" not in states(tmp_path / "died")


def with_deadly_writes(driver: Driver, count: int | None = None) -> list[str]:
    """The driver is killed before its search writes the count-th time about a trial.

    Returns the list of what is written, which grows while the driver runs."""
    written: list[str] = []
    (part,) = driver.agenda._searches.values()
    store = part.memory._store

    def deadly(write: Callable[..., None]) -> Callable[..., None]:
        def killed_or_written(trial_id: int, name: Any, value: Any) -> None:
            if len(written) == count:
                raise Killed
            written.append(str(name))
            write(trial_id, name, value)

        return killed_or_written

    for name in ("user_attr", "system_attr", "intermediate_value"):
        setattr(store, f"set_trial_{name}", deadly(getattr(store, f"set_trial_{name}")))
    return written


def test_a_driver_that_dies_between_two_writes_of_a_report_stops_the_same_trials(tmp_path):
    one = study(search(num_trials=5, early_stop=True))
    lived = Driver(tmp_path / "lived", one)
    written = with_deadly_writes(lived)
    lived.run()
    wanted = [(t.state, t.values) for t in optuna_study(tmp_path / "lived").get_trials()]
    stop = written.index("stopped")
    for count in range(stop - 1, stop + 4):  # a report of a stop writes three times
        storage = tmp_path / str(count)
        died = Driver(storage, one)
        with_deadly_writes(died, count)
        with pytest.raises(Killed):
            died.run()
        died = Driver(storage, one).run()
        assert [t.key for t in died.folder.trials()] == [t.key for t in lived.folder.trials()]
        assert [(t.state, t.values) for t in optuna_study(storage).get_trials()] == wanted, count


def test_the_memory_is_what_makes_the_suggestions_the_same(tmp_path):
    """A sampler that has forgotten suggests something else: the test above is no accident."""
    one = study(search(num_trials=14))
    Driver(tmp_path, one).run()
    more = study(search(num_trials=15))
    (remembered,) = Driver(tmp_path, more).run().started
    (tmp_path / "x" / OPTUNA_FILE).rename(tmp_path / "gone.db")
    forgetful = Driver(tmp_path, more)
    forgotten = [forgetful.agenda.next() for _ in range(1)]
    assert remembered.key not in [trial.key for trial in forgotten if trial is not None]
    values = [trial.key for trial in suggested(forgetful.agenda, 14)]
    assert remembered.key not in values


def _killed_at(storage: Path, what: str, count: int) -> None:
    """Run a search and kill this process at the `count`th call of `what`, before or after it."""
    from mambaout.study.search.memory import Memory

    owner = Memory if what == "tell" else StudyFolder
    original, left = getattr(owner, what), [count]

    def deadly(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, what, deadly)
    Driver(storage, study(search(num_trials=10, early_stop=True)), slots=2).run()


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ("add", 5),
        pytest.param("tell", 4, marks=pytest.mark.slow),
        pytest.param("stop", 2, marks=pytest.mark.slow),
    ],
)
def test_sigkill_between_two_writes_loses_nothing(tmp_path, what, count):
    lived = Driver(tmp_path / "lived", study(search(num_trials=10, early_stop=True)), slots=2).run()
    process = get_context("fork").Process(target=_killed_at, args=(tmp_path / "died", what, count))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert "RUNNING" in states(tmp_path / "died")
    died = Driver(tmp_path / "died", study(search(num_trials=10, early_stop=True)), slots=2).run()
    assert [t.key for t in died.folder.trials()] == [t.key for t in lived.folder.trials()]
    assert states(tmp_path / "died") == states(tmp_path / "lived")


def test_what_was_running_goes_on_first(tmp_path):
    one = study(search(num_trials=8))
    with pytest.raises(Killed):
        Driver(tmp_path, one, slots=3, turn=dies_after(2)).run()
    assert states(tmp_path) == ["RUNNING"] * 3
    again = Driver(tmp_path, one, slots=3).run()
    assert [trial.label for trial in again.started[:3]] == [f"femto-t{i:03d}" for i in range(3)]
    assert states(tmp_path) == ["COMPLETE"] * 8


def test_more_trials_go_on_and_another_search_is_refused(tmp_path):
    Driver(tmp_path, study(search(num_trials=3))).run()
    more = Driver(tmp_path, study(search(num_trials=5))).run()
    assert [trial.label for trial in more.started] == ["femto-t003", "femto-t004"]
    with pytest.raises(ValueError, match=r"begun with other values of axes; .* --rerun"):
        Driver(tmp_path, study(search(axes=AXES[:2], num_trials=5)))


# -- the order of a study -------------------------------------------------------------------------


def test_the_predicted_recipe_waits_for_all_others(tmp_path):
    recipes = {"small": SMALL, "large": tuned(SMALL, depths=(3, 3, 20, 3))}
    one = study(
        search(num_trials=4, seeds=(0, 1)), recipes=recipes, predicted=("large",), seeds=(0, 1)
    )
    driver = Driver(tmp_path, one, slots=3).run()
    assert [trial.label for trial in driver.started[-2:]] == ["large", "large"]
    assert driver.predicting_after == len(driver.started) - 2
    assert Driver(tmp_path, one).run().started == []


def test_without_searches_no_database_is_made(tmp_path):
    driver = Driver(tmp_path, study(recipes={"small": SMALL}, searches=())).run()
    assert [trial.label for trial in driver.started] == ["small"]
    assert not (tmp_path / "x" / OPTUNA_FILE).exists()


# -- the same budget at every size ----------------------------------------------------------------

SIZES = {
    "wide": replace(SMALL, model=widen(SMALL.model, 2)),
    "thin": replace(SMALL, model=widen(SMALL.model, 0.5)),
}
NARROW = (LogRange("peak_lr", 5e-4, 1.2e-3), LinearRange("weight_decay", 0.0, 0.3))


def test_sizes_are_tuned_smallest_first_with_one_budget():
    searches = tuning(SIZES, NARROW, 8, seeds=(0, 1))
    assert [one.label for one in searches] == ["thin", "wide"]
    assert [one.num_trials for one in searches] == [8, 8]
    assert [one.follows for one in searches] == [None, "thin"]
    assert searches[1].base == SIZES["wide"]
    check_all(searches)
    published = {name: replace(SMALL, model=shape) for name, shape in VARIANTS.items()}
    assert [one.label for one in tuning(published, NARROW, 2)] == list(VARIANTS)


def test_an_optimum_at_the_edge_is_widened_carried_to_the_next_size_and_flagged(tmp_path):
    searches = tuning(SIZES, NARROW, 16)
    driver = Driver(tmp_path, study(*searches), slots=2).run()
    thin, wide = ([t for t in driver.started if t.label.startswith(s.label)] for s in searches)
    assert len(thin) == len(wide) == 16
    # The best rate of this world is above what the axis was given.
    assert all(trial.recipe.optim.peak_lr <= 1.2e-3 for trial in thin[:8])
    assert max(trial.recipe.optim.peak_lr for trial in thin) > 1.5e-3
    found = best(searches[0], driver.runs())
    assert found is not None
    assert wide[0].recipe == SIZES["wide"]
    assert wide[1].recipe.optim == found.recipe.optim
    assert wide[1].recipe.model == SIZES["wide"].model
    assert max(t.recipe.optim.peak_lr for t in wide) > 2.4e-3
    used = as_run(searches[1], driver.runs()).axes[0]
    assert isinstance(used, LogRange)
    assert used.high >= 2.4e-3


def finished(number: int, **values: float) -> Run:
    recipe = tuned(SMALL, **values)
    trial = suggested_trial(search(), number, recipe)
    return Run(trial=trial, status=Ending.FINISHED, metrics={MINIVAL_TOP1: top1(recipe, 0)})


def test_an_edge_is_named_with_its_range_and_a_field_s_own_end_is_none():
    low = search(axes=(LogRange("peak_lr", 2e-4, 1e-3), LinearRange("weight_decay", 0.0, 0.3)))
    runs = [finished(1, peak_lr=9.9e-4, weight_decay=0.1)]
    assert edges(low, runs) == ["peak_lr=0.00099 is the upper edge of 0.0002..0.001"]
    # A value that was tried beyond the range shows that it was widened.
    runs += [finished(2, peak_lr=1.9e-3, weight_decay=0.5)]
    assert edges(low, runs) == []
    # No decay at all is where the field ends.
    assert edges(low, [finished(1, peak_lr=5e-4, weight_decay=0.0)]) == []


def test_widening_never_raises_the_price(tmp_path):
    """Nor does it leave what a field may be: more depth is always better in this world."""
    deep = search(axes=(WholeRange("blocks", 0, 2), LinearRange("hflip", 0.0, 1.0)), num_trials=6)
    driver = Driver(tmp_path, study(deep)).run()
    assert max(t.recipe.model.depths[2] for t in driver.started) == SMALL.model.depths[2] + 2
    assert any("blocks=2 is the upper edge of 0..2" in text for text in edges(deep, driver.runs()))


def test_what_a_search_leaves_alone_stays_as_the_one_before_it_found_it(tmp_path):
    """All but its base, which is the study's own."""
    first = search(label="recipe", num_trials=10, axes=AXES[:2])
    shape = search(label="shape", num_trials=4, axes=(LR, AXES[3]), follows="recipe")
    driver = Driver(tmp_path, study(first, shape)).run()
    found = best(first, driver.runs())
    assert found is not None
    shapes = [trial for trial in driver.started if trial.label.startswith("shape")]
    assert [trial.label for trial in shapes] == ["shape-t002", "shape-t003"]
    # Its base is the first search's, and its second recipe the one that search came to.
    labels = [trial.user_attrs["label"] for trial in optuna_study(tmp_path, "shape").trials]
    assert labels[:2] == ["recipe-t000", found.label]
    for trial in shapes:
        assert trial.recipe.optim.weight_decay == found.recipe.optim.weight_decay


# -- importances ----------------------------------------------------------------------------------


def test_importances_name_the_axis_that_decides_and_few_recipes_tell_nothing():
    one = search(axes=(LR, LinearRange("weight_decay", 0.05, 0.15), LinearRange("mixup", 0.0, 1.0)))
    draw = random.Random(0)
    runs = [
        finished(
            i,
            peak_lr=LR.low * (LR.high / LR.low) ** draw.random(),
            weight_decay=draw.uniform(0.05, 0.15),
            mixup=draw.random(),
        )
        for i in range(60)
    ]
    found = importances(runs, one)
    assert found is not None
    assert set(found) == {"peak_lr", "weight_decay", "mixup"}
    assert sum(found.values()) == pytest.approx(1)
    assert found["peak_lr"] > 0.7
    assert next(iter(found)) == "peak_lr"
    assert importances(runs[:11], one) is None


def test_a_space_without_room_is_left_after_bounded_tries(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "RANDOM_TRIES", 3)
    monkeypatch.setattr(candidates, "SAMPLER_TRIES", 3)
    tiny = search(axes=(LinearRange("weight_decay", 0.05 - 1e-9, 0.05 + 1e-9),), num_trials=5)
    assert isinstance(tiny, Search)
    driver = Driver(tmp_path, study(tiny)).run()
    assert len(driver.started) < 5
    assert len(driver.agenda.notices) == 1


def test_the_agenda_is_that_of_the_study(tmp_path):
    folder = StudyFolder(tmp_path, "x")
    one = study(recipes={"small": SMALL}, searches=())
    folder.write(one, one.trials(DATA))
    assert suggested(agenda(one, folder, DATA, one.trials(DATA)), 3) == one.trials(DATA)


def test_a_range_of_any_length_is_not_listed():
    long = search(axes=(WholeRange("eval_every_epochs", 1, MOST_COUNT),))
    check(long)
    assert points(long) is None
    assert len(list(points(search(axes=(WholeRange("eval_every_epochs", 1, 40),))) or ())) == 40
