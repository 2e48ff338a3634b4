"""sweeps/mine.py: one's own question becomes a study, or is refused with a remedy."""

from __future__ import annotations

import pytest
from sweep_scripts import FUNCTIONS, start_on

from mambaout.accounting import cost
from mambaout.fields import flat_fields
from mambaout.launch.cli import acting_rules
from mambaout.study.axes import Choice, LinearRange, LogRange, WholeRange
from mambaout.study.search.space import check_all

mine = FUNCTIONS["mine"]


def test_own_shapes_are_compared_with_the_same_seeds_and_nothing_else_differs():
    start = start_on("photographs")
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
    start = start_on("photographs")
    study = mine(start, grid=["peak_lr=1e-3,2e-3"])
    told = {rule.name for rule in acting_rules(start.rules, study)}
    assert "peak_lr" in {rule.name for rule in start.rules}
    assert "peak_lr" not in told
    assert "global_batch" in told


def test_a_grid_is_every_combination_and_changes_only_its_fields():
    study = mine(start_on("photographs"), grid=["kernel_size=3,5,7", "mixup=0,0.8"])
    assert len(study.recipes) == 6
    assert study.recipes["kernel_size=5 mixup=0.8"].model.kernel_size == 5
    macs = {cost(r.model, r.image_size).macs for r in study.recipes.values()}
    assert len(macs) == 3


def test_ranges_become_axes_of_their_kind_and_the_base_lies_inside():
    words = ["peak_lr=1e-4..1e-2", "weight_decay=0..0.2", "epochs=5..20", "kernel_size=3,5,7"]
    study = mine(start_on("photographs"), search=words, trials=5)
    (search,) = study.searches
    assert [type(axis) for axis in search.axes] == [LogRange, LinearRange, WholeRange, Choice]
    assert search.num_trials == 5
    check_all(study.searches)


def test_each_size_gets_the_same_search():
    shapes = ["a=1,1,1,1/8,16,24,32", "b=1,1,1,1/16,32,48,64"]
    study = mine(start_on("photographs"), shapes=shapes, search=["peak_lr=1e-4..1e-2"])
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
        mine(start_on("photographs"), **own)
