"""Every sweep is built for any data, takes any field, and refuses what it varies itself."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from starts import start_of

from mambaout.accounting import cost
from mambaout.fields import flat_fields
from mambaout.launch.cli import acting_rules
from mambaout.recipe import BASELINE, steps_per_epoch
from mambaout.study.axes import Choice, LinearRange, LogRange, WholeRange
from mambaout.study.price.plan import plan, plan_table
from mambaout.study.search.space import check_all
from mambaout.study.start import Start, check_given
from mambaout.study.study import Study

SWEEPS = sorted((Path(__file__).parents[1] / "sweeps").glob("*.py"))
FUNCTIONS = {path.stem: runpy.run_path(str(path))[path.stem] for path in SWEEPS}
NEEDS: dict[str, dict[str, Any]] = {"mine": {"shapes": ["thin=1,1,1,1/8,16,24,32", "femto"]}}
DATA = {
    "two hundred images": (150, 375),
    "digits of 8 px": (1432, 8),
    "garments": (60_000, 28),
    "photographs": (750, 375),
    "hundred thousand of 96 px": (100_000, 96),
    "ImageNet": (1_281_167, 375),
    "fourteen million": (14_000_000, 4000),
}
mine = FUNCTIONS["mine"]


def built(name: str, start: Start, **own: Any) -> Study:
    study = FUNCTIONS[name](start, **(NEEDS.get(name, {}) | own))
    check_given(study, start)
    return study


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_sweep_is_built_counted_and_priced_for_any_data(name, smoke, data):
    num_train, side = DATA[data]
    study = built(name, start_of(num_train, side, smoke=smoke))
    trials = study.trials("data")
    assert trials or study.searches
    assert len({trial.key for trial in trials}) == len(trials)
    check_all(study.searches, study.recipes)
    for recipe in [*study.recipes.values(), *(search.base for search in study.searches)]:
        assert steps_per_epoch(recipe, int(num_train * (1 - recipe.minival_fraction))) >= 1
    text = plan_table(plan(trials, num_train, 10, searches=study.searches))
    assert "device-hours" in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_names_tell_the_sweeps_apart(name):
    start = start_of(*DATA["photographs"])
    names = [built(other, start).name for other in FUNCTIONS]
    assert len(set(names)) == len(names)
    assert built(name, start).question.endswith("?")


@pytest.mark.parametrize("data", ["photographs", "garments", "ImageNet"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_given_field_is_in_every_trial(name, data):
    given = {"precision": "bf16", "image_size": 48, "kernel_size": 5, "train_images": 500}
    if name == "recipe":
        del given["kernel_size"]  # it searches that itself
    study = built(name, start_of(*DATA[data], given=given))
    for recipe in [*study.recipes.values(), *(search.base for search in study.searches)]:
        assert given.items() <= flat_fields(recipe).items()


def test_a_part_of_imagenet_is_a_study_of_small_data():
    few = built("scale", start_of(*DATA["ImageNet"], given={"train_images": 2000}))
    assert "w8-d4-e12" in few.recipes
    many = built("scale", start_of(*DATA["ImageNet"], given={"train_images": 100_000}))
    assert "femto" in many.recipes


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
        built(name, start_of(*DATA[data], given=given))


def test_one_length_for_all_where_the_study_has_one():
    start = start_of(*DATA["ImageNet"], given={"epochs": 30})
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
    found = set(built(name, start_of(*DATA[data], variants=variants), **own).recipes)
    assert {label.split(" ")[0] for label in found} <= labels | {"kernel_size=3", "kernel_size=5"}
    assert name == "mine" or found == labels


def test_an_unknown_variant_and_a_study_without_shapes_are_refused():
    with pytest.raises(ValueError, match=r"'fempto' is no shape of this study.*'femto'"):
        built("scale", start_of(*DATA["ImageNet"], variants=("fempto",)))
    plain = Study(name="plain", question="?", recipes={"x": BASELINE})
    with pytest.raises(ValueError, match="--variants: study plain has no catalogue"):
        check_given(plain, start_of(600, 28, variants=("femto",)))


# -- one's own question ---------------------------------------------------------------------------


def test_own_shapes_are_compared_with_the_same_seeds_and_nothing_else_differs():
    start = start_of(*DATA["photographs"])
    shapes = ["small=1,1,1,1/16,32,64,96", "wide=1,1,2,1/32,64,128,192", "femto"]
    study = mine(start, shapes=shapes)
    assert list(study.recipes) == ["small", "wide", "femto"]
    assert study.recipes["wide"].model.depths == (1, 1, 2, 1)
    assert study.name == "mine-small-wide-femto"
    rest = [flat_fields(r) for r in study.recipes.values()]
    fields = set(rest[0]) - {"depths", "dims", "hidden_multiple", "drop_path"}
    assert all(values[name] == rest[0][name] for values in rest for name in fields)
    assert len(study.trials("d")) == 9


def test_a_value_that_follows_the_data_is_not_told_where_a_grid_sets_the_field():
    start = start_of(*DATA["photographs"])
    study = mine(start, grid=["peak_lr=1e-3,2e-3"])
    told = {rule.name for rule in acting_rules(start.rules, study)}
    assert "peak_lr" in {rule.name for rule in start.rules}
    assert "peak_lr" not in told
    assert "global_batch" in told


def test_a_grid_is_every_combination_and_changes_only_its_fields():
    study = mine(start_of(*DATA["photographs"]), grid=["kernel_size=3,5,7", "mixup=0,0.8"])
    assert len(study.recipes) == 6
    assert study.recipes["kernel_size=5 mixup=0.8"].model.kernel_size == 5
    macs = {cost(r.model, r.image_size).macs for r in study.recipes.values()}
    assert len(macs) == 3


def test_ranges_become_axes_of_their_kind_and_the_base_lies_inside():
    words = ["peak_lr=1e-4..1e-2", "weight_decay=0..0.2", "epochs=5..20", "kernel_size=3,5,7"]
    study = mine(start_of(*DATA["photographs"]), search=words, trials=5)
    (search,) = study.searches
    assert [type(axis) for axis in search.axes] == [LogRange, LinearRange, WholeRange, Choice]
    assert search.num_trials == 5
    check_all(study.searches)


def test_each_size_gets_the_same_search():
    shapes = ["a=1,1,1,1/8,16,24,32", "b=1,1,1,1/16,32,48,64"]
    study = mine(start_of(*DATA["photographs"]), shapes=shapes, search=["peak_lr=1e-4..1e-2"])
    assert [search.label for search in study.searches] == ["a", "b"]
    assert len({search.axes for search in study.searches}) == 1


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({}, "nothing to compare"),
        ({"shapes": ["small=1,1,1/16,32,64"]}, "give 4 whole numbers"),
        ({"shapes": ["little"]}, "NAME=DEPTHS/WIDTHS"),
        ({"shapes": ["a/b=1,1,1,1/8,8,8,8"]}, "NAME=DEPTHS/WIDTHS"),
        ({"shapes": ["femto", "femto"]}, "'femto' is there twice"),
        ({"grid": ["kernel=3,5"]}, "'kernel' cannot be compared; did you mean 'kernel_size'"),
        ({"grid": ["dims=1,2"]}, "--shapes compares depths and widths"),
        ({"grid": ["kernel_size=4,5"]}, "kernel_size=4"),
        ({"grid": ["kernel_size"]}, "FIELD=A,B,C"),
        ({"grid": ["kernel_size=7"]}, "one recipe, kernel_size=7, is nothing to compare; give two"),
        ({"grid": ["peak_lr=1e-4..1e-2"]}, "a range is for --search; give values"),
        ({"grid": ["image_size=,64"]}, "--grid image_size=,64: image_size=''"),
        ({"search": ["peak_lr=1e-4.."]}, r"--search peak_lr=1e-4..: peak_lr=''"),
        ({"grid": ["mixup=0,0"]}, "mixup=0 is there twice"),
        ({"grid": ["mixup=0,1", "mixup=0.5,0.7"]}, "names a field twice"),
        ({"search": ["peak_lr=1e-2..1e-4"]}, "the smaller first"),
        ({"search": ["peak_lr=low..high"]}, "peak_lr='low' must be a finite number"),
        ({"search": ["precision=fp32..bf16"]}, "give two numbers"),
        ({"trials": 4}, "give --search"),
        ({"grid": ["mixup=0,1"], "search": ["peak_lr=1e-4..1e-2"]}, "give one of the two"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_with_a_remedy(own, says):
    with pytest.raises(ValueError, match=says):
        mine(start_of(*DATA["photographs"]), **own)


def test_every_own_option_of_a_sweep_has_a_help():
    for function in FUNCTIONS.values():
        for name, parameter in inspect.signature(function).parameters.items():
            assert name == "start" or "Annotated" in str(parameter.annotation)


def test_the_sweep_that_the_guide_shows_is_built_for_any_data():
    guide = (SWEEPS[0].parents[1] / "docs" / "my-images.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    found: dict[str, Any] = {"__name__": "kernels"}
    exec(script, found)
    for data in DATA.values():
        start = start_of(*data, given={"precision": "bf16"})
        study = found["kernels"](start)
        check_given(study, start)
        assert len({trial.key for trial in study.trials("data")}) == 8
