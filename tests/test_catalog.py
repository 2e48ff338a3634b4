"""The catalogue: every script of sweeps/ is built for any data, counted, priced and named.

The scripts are found by listing the folder, and their options by their signatures: a new one is
held to all of this as it stands.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from places import ROOT
from starts import start_of
from sweep_scripts import ASKED, DATA, FUNCTIONS, built, start_on

from mambaout.fields import flat_fields
from mambaout.launch.sweep_options import sweep_parser
from mambaout.recipe import BASELINE, steps_per_epoch
from mambaout.study.axes import axis_names
from mambaout.study.price.plan import plan, plan_table
from mambaout.study.search.space import check_all
from mambaout.study.start import check_given
from mambaout.study.study import Study


def questions(name: str) -> Iterator[dict[str, Any]]:
    """What a sweep may be asked: nothing, and each of its switches and numbers alone."""
    yield {}
    if name in ASKED:  # its options go together
        return
    _, *parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    for parameter in parameters:
        if parameter.default is False:
            yield {parameter.name: True}
        elif str(parameter.annotation).startswith("Annotated[int"):
            yield {parameter.name: 3}


ASKS = [(name, own) for name in FUNCTIONS for own in questions(name)]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize(("name", "own"), ASKS, ids=str)
def test_every_sweep_is_built_counted_and_priced_for_any_data(name, own, smoke, data):
    num_train, _ = DATA[data]
    study = built(name, start_on(data, smoke=smoke), **own)
    trials = study.trials("data")
    assert len({trial.key for trial in trials}) == len({trial.name for trial in trials})
    assert len({trial.name for trial in trials}) == len(trials)
    check_all(study.searches, study.recipes)
    for recipe in [*study.recipes.values(), *(search.base for search in study.searches)]:
        assert steps_per_epoch(recipe, int(num_train * (1 - recipe.minival_fraction))) >= 1
    priced = plan(trials, num_train, 10, searches=study.searches)
    searched = sum(search.num_trials for search in study.searches)
    assert priced.num_trials >= len(trials) + searched > 0
    assert searched or priced.num_trials == len(trials)
    assert priced.device_seconds > 0
    assert "device-hours" in plan_table(priced)


@pytest.mark.parametrize("smoke", [False, True])
def test_every_study_of_the_catalogue_has_a_name_and_a_question_of_its_own(smoke):
    start = start_on("photographs", smoke=smoke)
    studies = [built(name, start, **own) for name, own in ASKS if own != {"predict": True}]
    for about in ([study.name for study in studies], [study.question for study in studies]):
        assert len(set(about)) == len(about)
    assert all(study.question.endswith("?") for study in studies)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_sweep_has_a_command_line(name, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        sweep_parser(FUNCTIONS[name]).parse_args(["--help"])
    shown = capsys.readouterr().out
    _, *own = inspect.signature(FUNCTIONS[name]).parameters
    assert all(f"--{option.replace('_', '-')}" in shown for option in own)


GIVEN = {"precision": "bf16", "image_size": 48, "kernel_size": 5, "train_images": 500}


def varied(study: Study) -> set[str]:
    """The fields that a study varies or searches itself."""
    rows = [flat_fields(recipe) for recipe in study.recipes.values()]
    found = {name for row in rows for name in row if row[name] != rows[0][name]}
    return found | {name for search in study.searches for name in axis_names(search.axes)}


@pytest.mark.parametrize("data", ["photographs", "garments", "ImageNet"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_given_field_is_in_every_trial(name, data):
    few = {"train_images": GIVEN["train_images"]}
    own = varied(built(name, start_on(data, given=few)))
    given = {field: value for field, value in GIVEN.items() if field not in own}
    assert len(given) >= len(GIVEN) - 1
    study = built(name, start_on(data, given=given))
    for recipe in [*study.recipes.values(), *(search.base for search in study.searches)]:
        assert given.items() <= flat_fields(recipe).items()


@pytest.mark.parametrize(
    ("name", "data", "given", "says"),
    [
        ("scale", "garments", {"epochs": 30}, r"--epochs: study scale varies epochs itself"),
        ("scale", "garments", {"depths": (1, 1, 1, 1)}, "--depths: this study varies it"),
        ("scale", "ImageNet", {"drop_path": 0.1, "dims": (8, 8, 8, 8)}, "--dims: this study"),
        ("recipe", "garments", {"mixup": 0.0}, "--mixup: study recipe searches mixup itself"),
        ("recipe", "garments", {"dims": (8, 16, 24, 32)}, "--dims: study recipe searches dims"),
    ],
)
def test_a_field_that_the_study_varies_is_refused_by_its_name(name, data, given, says):
    with pytest.raises(ValueError, match=says):
        built(name, start_on(data, given=given))


def test_one_length_for_all_where_the_study_has_one():
    start = start_on("ImageNet", given={"epochs": 30})
    lengths = {recipe.schedule.epochs for recipe in built("scale", start).recipes.values()}
    assert lengths == {30}


@pytest.mark.parametrize(
    ("name", "data", "variants", "labels"),
    [
        ("scale", "ImageNet", ("femto", "tiny"), {"femto", "tiny"}),
        ("scale", "garments", ("w8-d4",), {"w8-d4-e4", "w8-d4-e12", "w8-d4-e36"}),
        ("scale", "photographs", ("femto",), {"femto-e10", "femto-e29", "femto-e87"}),
        ("baseline", "ImageNet", ("small", "base"), {"small", "base"}),
        ("baseline", "garments", ("kobe",), {"kobe"}),
        ("mine", "photographs", ("femto",), {"femto"}),
    ],
)
def test_variants_take_a_part_of_the_catalogue_or_published_networks(name, data, variants, labels):
    own = {"grid": ["kernel_size=3,5"]} if name == "mine" else {}
    found = set(built(name, start_on(data, variants=variants), **own).recipes)
    assert {label.split(" ")[0] for label in found} <= labels | {"kernel_size=3", "kernel_size=5"}
    assert name == "mine" or found == labels


def test_an_unknown_variant_and_a_study_without_shapes_are_refused():
    with pytest.raises(ValueError, match=r"'fempto' is no shape of this study.*'femto'"):
        built("scale", start_on("ImageNet", variants=("fempto",)))
    plain = Study(name="plain", question="?", recipes={"x": BASELINE})
    with pytest.raises(ValueError, match="--variants: study plain has no catalogue"):
        check_given(plain, start_of(600, 28, variants=("femto",)))


def test_the_sweep_that_the_guide_shows_is_built_for_any_data():
    guide = (ROOT / "docs" / "my-images.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    found: dict[str, Any] = {"__name__": "kernels"}
    exec(script, found)
    for data in DATA:
        start = start_on(data, given={"precision": "bf16"})
        study = found["kernels"](start)
        check_given(study, start)
        assert len({trial.key for trial in study.trials("data")}) == 8
