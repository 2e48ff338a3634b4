"""Who asked for a trial is stored with it; no label is read to find it out."""

from __future__ import annotations

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from places import ROOT
from searches import AXES, DATA, SMALL, Driver, search, study
from study_files import finish, sized, write_study

from mambaout.commands.list import trial_table
from mambaout.errors import WrongRequest
from mambaout.launch.named import named_weights
from mambaout.recipe import tuned
from mambaout.study.origin import (
    BaselinePoint,
    ConfirmingSeed,
    GridPoint,
    Origin,
    PredictedPoint,
    SearchPoint,
    earlier,
    searches_of,
    trial_label,
)
from mambaout.study.price.plan import plan
from mambaout.study.report.rows import rows
from mambaout.study.report.search_findings import searched
from mambaout.study.report.tables import ranked_table
from mambaout.study.report.trial_files import trial_lines
from mambaout.study.search.best import best, runs_of
from mambaout.study.search.memory import OPTUNA_FILE, open_store
from mambaout.study.search.space import check_all
from mambaout.study.study import Study, StudyFolder, Trial
from mambaout.study.tracking.store import default_tracking_uri
from mambaout.study.tracking.tracker import Tracker

PACKAGE = ROOT / "mambaout"
LR = AXES[:1]

# Labels that look like what the others' trials are called.
labels = st.text(alphabet="at-s01=", min_size=1, max_size=9)
origins: st.SearchStrategy[Origin] = st.one_of(
    st.sampled_from([GridPoint(), BaselinePoint(), PredictedPoint()]),
    st.builds(SearchPoint, labels, st.integers(0, 2000)),
    st.builds(ConfirmingSeed, labels, st.integers(0, 2000)),
)


@pytest.fixture(autouse=True)
def _unsynced():
    """No waiting for the disk: it is most of these tests' time, and guards against a power cut."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def unsync(connection, _) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", unsync)
    yield
    event.remove(Engine, "connect", unsync)


# -- a trial and its line --------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(origins, min_size=1, max_size=3, unique=True), labels)
def test_a_trial_keeps_its_origins_through_its_line(found, label):
    trial = Trial(label=label, recipe=SMALL, seed=0, data=DATA, origins=tuple(found))
    again = Trial.from_json(trial.to_json())
    assert again.origins == trial.origins
    plain = replace(trial, origins=(GridPoint(),))
    assert (plain, plain.key) == (trial, trial.key), "they say nothing of what the trial is"


@settings(deadline=None)
@given(labels, labels, st.integers(-3, 20), st.integers(-3, 20))
def test_two_trials_of_one_name_have_one_label_and_one_seed(one, other, seed, another):
    names = [
        Trial(label=label, recipe=SMALL, seed=number, data=DATA).name
        for label, number in ((one, seed), (other, another))
    ]
    assert (names[0] == names[1]) == ((one, seed) == (other, another))


def test_a_study_says_which_recipe_is_the_baseline_and_which_is_predicted():
    recipes = {name: sized(8, depth) for depth, name in enumerate(("a", "baseline", "b"), start=1)}
    one = Study(name="s", question="?", recipes=recipes, baseline="a", predicted=("b",))
    assert [trial.origins for trial in one.trials(DATA)] == [
        (BaselinePoint(),),
        (GridPoint(),),
        (PredictedPoint(),),
    ]


def test_a_recipe_that_is_only_called_like_a_baseline_is_a_grid_point(tmp_path):
    recipes = {"baseline": sized(8, 2), "baseline-wide": sized(16, 2), "mine": sized(32, 2)}
    folder = write_study(tmp_path, Study(name="s", question="?", recipes=recipes, baseline="mine"))
    for trial in folder.trials():
        finish(folder, trial)
    assert [row.label for row in rows(folder.runs()) if row.is_baseline] == ["mine"]
    assert ranked_table(folder.runs()).count("baseline recipe") == 1


# -- what an earlier version stored ----------------------------------------------------------------


def without_origins(folder: StudyFolder) -> None:
    """Have trials.jsonl as versions before origins wrote it."""
    path = folder.path / "trials.jsonl"
    bodies = [json.loads(line) for line in path.read_text().splitlines()]
    last = {body["key"]: {k: v for k, v in body.items() if k != "origins"} for body in bodies}
    path.write_text("".join(json.dumps(body) + "\n" for body in last.values()))


def test_trials_stored_without_origins_get_those_they_had(tmp_path):
    recipes = {
        "paper": SMALL,
        "baseline": tuned(SMALL, mixup=0.5),
        "large": tuned(SMALL, depths=(3, 3, 20, 3)),
    }
    searches = [
        search(label=label, axes=LR, num_trials=3, seeds=(0, 1), sampler_seed=i)
        for i, label in enumerate(("recipe", "recipe-t", "recipe-tuned"))
    ]
    one = study(
        *searches, recipes=recipes, baseline="baseline", predicted=("large",), seeds=(0, 1, 2)
    )
    driver = Driver(tmp_path, one).run()
    stored = {trial.key: trial.origins for trial in driver.folder.trials()}
    without_origins(driver.folder)
    found = {trial.key: trial.origins for trial in driver.folder.trials()}
    # All but one thing is known: that a search has confirmed its base, which is a grid's as well.
    confirmed = {trial.key for trial in one.trials(DATA) if trial.label == "paper" and trial.seed}
    for key in stored.keys() - confirmed:
        assert found[key] == stored[key]
    assert found.keys() == stored.keys()
    # The next launch takes nothing up again, and stores what it knows.
    again = Driver(tmp_path, one).run()
    assert again.started == []
    assert '"origins"' in (again.folder.path / "trials.jsonl").read_text()
    assert {trial.key: trial.origins for trial in again.folder.trials()} == stored


@settings(deadline=None)
@given(st.lists(labels, min_size=3, max_size=3, unique=True), st.integers(0, 1500))
def test_an_earlier_label_is_read_as_its_own_search_named_it(found, number):
    one, other, grid = found
    searches = [search(label=label, num_trials=2000, axes=LR) for label in (one, other)]
    try:
        check_all(searches, [grid])
    except WrongRequest:
        assume(False)
    recipe = tuned(SMALL, mixup=0.5)
    assert earlier(grid, recipe, 0, searches, ()) == (GridPoint(),)
    for label in (one, other):
        own = trial_label(label, number)
        assert earlier(own, recipe, 0, searches, ()) == (SearchPoint(label, number),)
        assert earlier(own, recipe, 1, searches, ()) == (ConfirmingSeed(label, number),)


# -- searches that are called alike ----------------------------------------------------------------

ALIKE = [
    (("recipe", "recipe-t", "recipe-tuned"), ("recipe-t-s1", "recipe-tuned-x")),
    (("a", "a-s1", "a-t001"), ("a-t1", "a-s0", "a-t004")),
    (("paper", "w8", "w8-t000"), ("paper", "w8-s1-s0", "baseline-t001")),
]


def decided(storage: Path, label: str) -> set[str]:
    """The keys of what the search's memory holds."""
    import optuna

    kept = optuna.load_study(study_name=label, storage=open_store(storage / "x" / OPTUNA_FILE))
    return {trial.user_attrs["key"] for trial in kept.get_trials(deepcopy=False)}


@pytest.fixture(scope="module", params=ALIKE, ids=lambda param: "-and-".join(param[0]))
def alike(request, tmp_path_factory) -> Driver:
    """Three searches of one base, which the study's grid has, too; all with a few trials."""
    names, recipes = request.param
    searches = [
        search(label=name, axes=LR, num_trials=4, seeds=(0, 1), sampler="random", sampler_seed=i)
        for i, name in enumerate(names)
    ]
    grid = {label: tuned(SMALL, mixup=i / 10) for i, label in enumerate(recipes)}
    base = grid[recipes[0]]
    searches = [replace(one, base=base) for one in searches]
    driver = Driver(tmp_path_factory.mktemp("alike"), study(*searches, recipes=grid), slots=2).run()
    for trial in driver.folder.trials():
        (driver.folder.run_directory(trial) / "last.ckpt").write_bytes(trial.key.encode())
    return driver


def test_a_search_has_the_trials_that_its_memory_has_and_the_seeds_of_its_best(alike):
    runs = alike.runs()
    for one in alike.study.searches:
        own = runs_of(one, runs)
        first = {run.trial.key for run in own if run.trial.seed == 0}
        assert first == decided(alike.folder.path.parent, one.label)
        found = best(one, runs)
        assert found is not None
        (other,) = [run.trial for run in own if run.trial.seed == 1]
        assert other.recipe == found.recipe
        assert len(found.scores) == 1


def test_the_reports_of_searches_called_alike_are_apart(alike):
    for one, search_ in zip(
        searched(alike.folder.read(), alike.runs()), alike.study.searches, strict=True
    ):
        assert one.search.label == search_.label
        assert len(one.rows) == search_.num_trials
        assert one.best_row is not None
    assert not any(row.is_baseline for row in rows(alike.runs()))


def test_nothing_of_searches_called_alike_is_priced_again(alike):
    found = plan(
        alike.study.trials(DATA), 5000, 10, searches=alike.study.searches, runs=alike.runs()
    )
    assert found.num_trials == 0


def test_mlflow_and_the_csv_say_who_asked_for_a_trial(alike, empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    tracker = Tracker(default_tracking_uri(tmp_path), "x", "?")
    runs = alike.runs()
    assert tracker.sync(alike.folder) == len(runs)
    client = MlflowClient(tracking_uri=tracker.uri)
    found = client.search_runs([tracker.experiment_id], "tags.`mambaout.role` = 'trial'")
    tags = {run.data.tags["mambaout.key"]: run.data.tags for run in found}
    lines = trial_lines(alike.folder, runs, {run.trial.key: "" for run in runs})
    for run, line in zip(runs, lines, strict=True):
        told = tags[run.trial.key]
        told_searches = ", ".join(searches_of(run.trial.origins))
        assert told["origin"] == line["origin"] == run.trial.origins[0].kind
        assert told.get("search", "") == line["search"] == told_searches
    base = next(run.trial for run in runs if run.trial.recipe == alike.study.searches[0].base)
    assert tags[base.key]["search"] == ", ".join(one.label for one in alike.study.searches)


def test_each_trial_of_searches_called_alike_is_listed_and_found_by_its_name(alike):
    storage, trials = alike.folder.path.parent, alike.folder.trials()
    listed = [line.split()[0] for line in trial_table(alike.folder).splitlines()[1:]]
    assert listed == [trial.name for trial in trials]
    for trial in trials:
        path = named_weights(f"x/{trial.name}", storage).path
        assert path.read_bytes().decode() == trial.key


# -- a trial that several parts ask for ------------------------------------------------------------


def test_a_search_that_tries_the_best_of_the_one_before_it_has_it_among_its_own(tmp_path):
    first = search(label="recipe", axes=LR, num_trials=4)
    second = search(label="shape", axes=LR, num_trials=3, sampler_seed=1, follows="recipe")
    driver = Driver(tmp_path, study(first, second)).run()
    runs = driver.runs()
    found = best(first, runs)
    assert found is not None
    (taken,) = [run.trial for run in runs_of(second, runs) if run.trial.label == found.label]
    assert searches_of(taken.origins) == ["recipe", "shape"]
    assert taken.origins[0] in {SearchPoint("recipe", number) for number in range(4)}
    assert {run.trial.key for run in runs_of(second, runs)} == decided(tmp_path, "shape")
    lines = (driver.folder.path / "trials.jsonl").read_text().splitlines()
    again = Driver(tmp_path, study(first, second)).run()
    assert again.runs() == runs
    assert [run.trial.origins for run in again.runs()] == [run.trial.origins for run in runs]
    assert len((again.folder.path / "trials.jsonl").read_text().splitlines()) < len(lines)


def test_a_search_stops_its_own_trials_also_beside_one_called_alike(tmp_path):
    bad = tuned(SMALL, peak_lr=2.6e-4)
    short, long = (
        search(label=label, base=bad, num_trials=9, early_stop=True, sampler_seed=i)
        for i, label in enumerate(("recipe", "recipe-tuned"))
    )
    driver = Driver(tmp_path, study(short, long), slots=6).run()
    base, *others = driver.runs()
    assert base.status == "finished", "the base of both"
    for one in (short, long):
        own = [run for run in others if searches_of(run.trial.origins) == [one.label]]
        assert {"finished", "stopped"} == {run.status for run in own}


def test_what_two_parts_ask_for_is_stopped_by_neither(tmp_path):
    grid = {"recipe-t": tuned(SMALL, peak_lr=2.6e-4)}
    one = search(
        label="recipe", num_trials=9, early_stop=True, axes=LR, base=tuned(SMALL, peak_lr=3e-3)
    )
    two = search(label="other", num_trials=2, axes=LR, base=grid["recipe-t"], sampler_seed=1)
    driver = Driver(tmp_path, study(one, two, recipes=grid), slots=6).run()
    run = next(run for run in driver.runs() if run.trial.label == "recipe-t")
    assert run.status == "finished"
    assert searches_of(run.trial.origins) == ["other"]


def test_a_recipe_that_the_grid_has_no_more_stays_a_search_s_under_its_own_name(tmp_path):
    one = search(label="recipe", axes=LR, num_trials=3)
    grid = {"paper": SMALL, "other": tuned(SMALL, mixup=0.5)}
    first = Driver(tmp_path, study(one, recipes=grid)).run()
    assert [trial.label for trial in first.folder.trials()][:2] == ["paper", "other"]
    again = Driver(tmp_path, study(one, recipes={})).run()
    assert again.started == []
    assert [trial.label for trial in again.folder.trials()] == [
        f"recipe-t{number:03d}" for number in range(3)
    ]
    assert [trial.origins for trial in again.folder.trials()] == [
        (SearchPoint("recipe", number),) for number in range(3)
    ]


def test_one_name_for_a_recipe_and_a_search_s_trial_is_refused_and_a_like_one_is_not():
    one = search(label="recipe", num_trials=4)
    with pytest.raises(WrongRequest, match=r"'recipe-t003' is called like a trial of the search"):
        check_all([one], ["recipe-t003"])
    check_all([one], ["recipe-t3", "recipe-t004", "recipe-tuned", "recipe", "recipe-t003-s0"])


# -- the sources -----------------------------------------------------------------------------------

READS = {"startswith", "endswith", "partition", "rpartition", "split", "rsplit", "removeprefix"}
READS |= {"removesuffix", "find", "index", "match", "fullmatch", "search"}


@pytest.mark.parametrize(
    "path",
    [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "sweeps").glob("*.py")],
    ids=lambda path: path.name,
)
def test_no_label_or_name_of_a_trial_is_read_but_in_origin_py(path):
    """A call like trial.label.startswith(...) or re.match(pattern, trial.name)."""
    if path == PACKAGE / "study" / "origin.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            said = [ast.unparse(node.func.value), *map(ast.unparse, node.args)]
            read = [text for text in said if text.endswith((".label", "trial.name"))]
            assert node.func.attr not in READS or not read, f"line {node.lineno}: {read}"
