"""A recipe is one value: the paper's by default, keyed by content, wrong ones refused by name."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import typing
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest

from mambaout.detect_recipe import DETECT_BASELINE
from mambaout.fields import Bound, WrongValues, knobs
from mambaout.recipe import (
    BASELINE,
    RELEASED_CODE,
    Augment,
    Optim,
    Recipe,
    Schedule,
    canonical_json,
    content_key,
    field_knobs,
    field_types,
    flat_fields,
    following,
    parse_field,
    recipe_from_json,
    steps_per_epoch,
    tuned,
    with_global_batch,
)
from mambaout.segment_recipe import SEGMENT_BASELINE
from mambaout.variants import VARIANTS, ModelConfig

OTHER = tuned(
    BASELINE, depths=(1, 1, 2, 1), peak_lr=1e-3, clip_norm=1.0, epochs=30, train_images=8192
)


def test_the_baseline_is_the_papers_table_5():
    papers = {
        "global_batch": 4096,
        "peak_lr": 0.004,
        "weight_decay": 0.05,
        "beta1": 0.9,
        "beta2": 0.999,
        "adam_eps": 1e-8,
        "clip_norm": None,
        "epochs": 300,
        "warmup_epochs": 20,
        "randaugment": 9,
        "randaugment_std": 0.5,
        "mixup": 0.8,
        "cutmix": 1.0,
        "erasing": 0.25,
        "label_smoothing": 0.1,
        "hflip": 0.5,
        "image_size": 224,
        "eval_crop": 1.0,
        "drop_path": 0.025,
    }
    flat = flat_fields(BASELINE)
    assert {name: flat[name] for name in papers} == papers
    assert BASELINE.schedule.total_epochs == 300
    assert RELEASED_CODE.schedule.total_epochs == 310
    assert RELEASED_CODE.schedule.lr_steps == "epoch"


def test_a_recipe_is_frozen():
    with pytest.raises(FrozenInstanceError):
        BASELINE.global_batch = 8  # pyright: ignore[reportAttributeAccessIssue] - frozen


# -- the key --------------------------------------------------------------------------------------


def test_equal_values_have_equal_keys():
    # An integer where a float is declared is the same value; written and read back is too.
    twins = [
        (tuned(BASELINE, warmup_epochs=20), BASELINE),
        (replace(BASELINE, optim=Optim(peak_lr=1)), replace(BASELINE, optim=Optim(peak_lr=1.0))),
        (recipe_from_json(canonical_json(OTHER)), OTHER),
        (recipe_from_json(json.dumps(json.loads(canonical_json(OTHER)), indent=2)), OTHER),
        (tuned(OTHER, depths=[1, 1, 2, 1]), OTHER),
    ]
    for first, second in twins:
        assert first == second
        assert content_key(first, 0) == content_key(second, 0)


def test_every_field_and_the_seed_move_the_key():
    seen = {content_key(BASELINE, 0), content_key(BASELINE, 1), content_key(BASELINE)}
    for name, value in flat_fields(OTHER).items():
        if value != flat_fields(BASELINE)[name]:
            seen.add(content_key(tuned(BASELINE, **{name: value}), 0))
    assert len(seen) == 3 + 5


def test_the_key_is_the_same_in_every_process():
    code = "from mambaout.recipe import *; print(content_key(BASELINE, 7, 'data'))"
    keys = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert keys == {content_key(BASELINE, 7, "data")}


def test_the_key_of_a_stored_value_stays():
    # Stored at the format's start: a change here orphans every study on disk, so make it knowingly.
    assert content_key({"b": 2.5, "a": [1, 1.0, None, "é"], "c": True}, 3) == "4a51d4af88f3"


def test_a_field_that_came_later_changes_no_key_and_no_stored_recipe():
    assert (content_key(BASELINE), content_key(RELEASED_CODE)) == ("b4a7bd35703c", "82ee8e594afc")
    assert "mup_base_dim" not in canonical_json(BASELINE)
    moved = tuned(BASELINE, mup_base_dim=48)
    assert recipe_from_json(canonical_json(moved)) == moved
    assert content_key(moved) != content_key(BASELINE)


# -- fields by name -------------------------------------------------------------------------------


def test_field_names_are_unique_over_the_parts():
    owners = (ModelConfig, Optim, Schedule, Augment)
    names = [item.name for owner in owners for item in fields(owner)]
    names += [item.name for item in fields(Recipe)]
    assert len(names) == len(set(names))
    assert set(flat_fields(BASELINE)) == set(field_types())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("peak_rl", "no field 'peak_rl'; did you mean 'peak_lr'"),
        ("globalbatch", "did you mean 'global_batch'"),
        ("zzz", "fields are .*depths, dims"),
        ("optim", "no field 'optim'"),
    ],
)
def test_a_misspelled_field_is_an_error_that_names_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        tuned(BASELINE, **{name: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peak_lr", 0.0),
        ("peak_lr", "high"),
        ("peak_lr", float("nan")),
        ("peak_lr", True),
        ("weight_decay", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("adam_eps", 0.0),
        ("clip_norm", 0.0),
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", 10**400),
        ("warmup_epochs", 300),
        ("warmup_epochs", -1),
        ("cooldown_epochs", -1),
        ("warmup_lr", -1e-6),
        ("final_lr", -1e-6),
        ("lr_steps", "hour"),
        ("crop_scale_min", 0.0),
        ("crop_ratio_min", 1.1),
        ("hflip", 1.5),
        ("interpolation", "nearest"),
        ("randaugment", 11),
        ("randaugment_std", -1),
        ("randaugment_layers", -1),
        ("color_jitter", -0.4),
        ("mixup", -0.8),
        ("cutmix", -1),
        ("mixup_prob", 1.1),
        ("cutmix_prob", -0.1),
        ("erasing", 2),
        ("label_smoothing", 1.0),
        ("global_batch", 0),
        ("global_batch", 4095),
        ("global_batch", 64.0),
        ("image_size", 8),
        ("eval_crop", 0.0),
        ("minival_fraction", 0.0),
        ("minival_fraction", 0.5),
        ("train_images", 100),
        ("eval_every_epochs", 0),
        ("precision", "fp8"),
        ("depths", (1, 1, 1)),
        ("depths", "3,3,9,3"),
        ("kernel_size", 7.0),
        ("drop_path", 1.0),
        ("mixer", "mamba"),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_an_error_that_names_the_field(name, value):
    with pytest.raises(ValueError, match=name):
        tuned(BASELINE, **{name: value})


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(WrongValues) as caught:
        tuned(BASELINE, peak_lr="x", beta1=2.0, kernel_size=4, depths=(1, 1), global_batch=63)
    named = ("peak_lr='x'", "beta1=2.0", "kernel_size=4", "depths=(1, 1)", "global_batch=63")
    assert len(caught.value.args) == len(named)
    for name in named:
        assert sum(name in fault for fault in caught.value.args) == 1
    assert str(caught.value).splitlines()[0] == "5 things are wrong:"
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


@pytest.mark.parametrize(
    "values",
    [
        {"global_batch": 1, "mixup": 0.0, "cutmix": 0.0},
        {"global_batch": 1, "mixup_prob": 0.0},
        {"epochs": 10, "warmup_epochs": 1},
        {"train_images": 100, "global_batch": 64},
        {"conv_ratio": 4.0, "expansion": 4.0},
        {"conv_ratio": 0.01, "dims": (100, 200, 300, 400)},
    ],
)
def test_fields_that_are_given_together_are_judged_together_in_any_order(values):
    one = tuned(BASELINE, **values)
    assert tuned(BASELINE, **dict(reversed(values.items()))) == one
    assert recipe_from_json(canonical_json(one)) == one


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"global_batch": "x", "train_images": 100}, 1),
        ({"expansion": 0.0, "conv_ratio": 2.0}, 1),
        ({"epochs": 0, "warmup_epochs": 5}, 1),
    ],
)
def test_a_field_that_is_wrong_by_itself_is_not_blamed_on_another(values, wrong):
    with pytest.raises(WrongValues) as caught:
        tuned(BASELINE, **values)
    assert len(caught.value.args) == wrong


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"global_batch": 63}, {"global_batch": 62}),
        ({"global_batch": 1}, {"global_batch": 2}),
        ({"global_batch": 63}, {"mixup": 0, "cutmix": 0}),
        ({"epochs": 10}, {"warmup_epochs": 0.667}),
        ({"train_images": 1000}, {"global_batch": 512}),
        ({"subset": "seed"}, {"train_images": 6000}),
        ({"kernel_size": 4}, {"kernel_size": 3}),
        ({"dims": (1, 2, 3, 4)}, {"dims": (2, 2, 3, 4)}),
        ({"conv_ratio": 0.01}, {"conv_ratio": 0.0209}),
        ({"conv_ratio": 3.0}, {"expansion": 3.0}),
    ],
)
def test_the_remedy_of_a_conflict_can_be_followed(values, remedy):
    with pytest.raises(WrongValues) as caught:
        tuned(BASELINE, **values)
    (said,) = caught.value.args
    for name, value in remedy.items():
        number = value[0] if isinstance(value, tuple) else value
        assert name in said or "expansion" in said
        assert f"{number:g}" in said or name in ("conv_ratio", "expansion")
    assert tuned(BASELINE, **(values | remedy))


def test_an_odd_batch_is_fine_where_nothing_mixes():
    plain = tuned(BASELINE, mixup=0.0, cutmix=0.0)
    assert tuned(plain, global_batch=4095).global_batch == 4095


def test_tuned_changes_the_named_fields_alone():
    changed = tuned(BASELINE, peak_lr=8e-3, epochs=30, dims=(8, 16, 24, 32), global_batch=64)
    before, after = flat_fields(BASELINE), flat_fields(changed)
    assert {name: after[name] for name in after if after[name] != before[name]} == {
        "peak_lr": 8e-3,
        "epochs": 30,
        "dims": (8, 16, 24, 32),
        "global_batch": 64,
    }
    assert tuned(BASELINE) == BASELINE
    assert tuned(BASELINE, clip_norm=None) == BASELINE


def test_a_field_parses_from_the_command_line():
    assert parse_field("peak_lr", "8e-3") == 8e-3
    assert parse_field("depths", "3,3,15,3") == (3, 3, 15, 3)
    assert parse_field("clip_norm", "none") is None
    assert parse_field("clip_norm", "1") == 1.0
    assert parse_field("lr_steps", "epoch") == "epoch"
    for name, text in (("epochs", "2.5"), ("peak_lr", "fast"), ("dims", "48,x")):
        with pytest.raises(ValueError, match=f"{name}='{text}' must be"):
            parse_field(name, text)


def test_every_variant_round_trips_through_the_command_line():
    for config in VARIANTS.values():
        texts = {"depths": config.depths, "dims": config.dims}
        parsed = {n: parse_field(n, ",".join(map(str, v))) for n, v in texts.items()}
        assert tuned(BASELINE, **parsed).model.depths == config.depths
        assert tuned(BASELINE, **parsed).model.dims == config.dims


# -- what is said of a field ----------------------------------------------------------------------

# Of MambaOut, arXiv 2405.07992: what its Table 4 and Table 5 list.
PAPERS_FIELDS = {
    *("depths", "dims", "drop_path", "peak_lr", "weight_decay", "beta1", "beta2", "adam_eps"),
    *("clip_norm", "epochs", "warmup_epochs", "randaugment", "randaugment_std", "mixup", "cutmix"),
    *("cutmix_prob", "erasing", "label_smoothing", "global_batch", "image_size"),
}


def test_every_field_says_what_it_means_its_unit_and_where_its_default_comes_from():
    assert field_knobs().keys() == field_types().keys()
    for name, said in field_knobs().items():
        assert len(said.help) > 15, name
        assert said.unit is None or said.unit, name  # None is written where the field is defined
        if name in PAPERS_FIELDS:
            assert "paper, Table" in str(said.source), name


def test_every_number_has_a_bound_that_its_default_is_in():
    for name, said in field_knobs().items():
        value = flat_fields(BASELINE)[name]
        hint = field_types()[name]
        is_text = str in typing.get_args(hint)  # a rule of the recipe checks a text
        assert said.bound or said.choices or typing.get_origin(hint) is typing.Literal or is_text, (
            name
        )
        if said.bound is not None:
            assert value is None or value in said.bound, name
        if said.choices:
            assert value in said.choices, name


@pytest.mark.parametrize("baseline", [BASELINE, DETECT_BASELINE, SEGMENT_BASELINE])
def test_every_number_has_an_upper_end(baseline):
    parts = [baseline, *(getattr(baseline, each.name) for each in fields(baseline))]
    for part in filter(is_dataclass, parts):
        for name, said in knobs(type(part)).items():
            bound = said.bound
            assert bound is None or bound.most or bound.below, f"{name} has no upper end"


@pytest.mark.parametrize(
    ("bound", "words", "inside", "outside"),
    [
        (Bound(least=0, most=1), "0 to 1", (0, 1), (-1e-9, 1.1)),
        (Bound(above=0, below=10), "above 0 and below 10", (1e-9, 9.9), (0, 10)),
        (Bound(least=0, below=1), "at least 0 and below 1", (0,), (1, -1)),
        (Bound(above=0, most=1), "above 0 and at most 1", (1,), (0, 1.1)),
        (Bound(least=1), "at least 1", (1, 10**400), (0,)),
        (Bound(least=1), "at least 1", ((1, 2),), ((1, 0),)),
        (Bound(least=0), "at least 0", (0,), (float("nan"),)),
        (Bound(least=1, most=2147483647), "at least 1", (2147483647,), (0, 2147483648)),
        (Bound(above=0, most=0.5), "above 0 and at most 0.5", (0.5,), (0.51,)),
    ],
)
def test_a_bound_says_what_it_holds(bound, words, inside, outside):
    assert str(bound) == words
    assert all(value in bound for value in inside)
    assert not any(value in bound for value in outside)


def test_an_upper_end_that_only_guards_is_told_to_a_value_beyond_it():
    count = Bound(least=1, most=2147483647)
    assert count.text_for(0) == "at least 1"
    assert count.text_for(2**31) == count.text_for((1, 2**31)) == "1 to 2147483647"
    assert Bound(least=0, most=1).text_for(2) == "0 to 1"
    with pytest.raises(ValueError, match="epochs=2147483648 is out of range: 1 to 2147483647"):
        tuned(BASELINE, epochs=2**31)


# -- JSON -----------------------------------------------------------------------------------------


def test_a_recipe_reads_back_typed():
    for recipe in (BASELINE, RELEASED_CODE, OTHER):
        again = recipe_from_json(canonical_json(recipe))
        assert again == recipe
        values = flat_fields(again)
        assert {n: type(v) for n, v in values.items()} == {
            n: type(v) if n != "warmup_epochs" else float for n, v in flat_fields(recipe).items()
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 0.9}, r"unknown fields \['momentum'\]"),
        ({"optim": {"peak_lr": 1}}, "missing fields.*adam_eps"),
        ({"optim": 3}, "optim must be a JSON object"),
        ({"global_batch": "64"}, "global_batch='64' must be a"),
    ],
)
def test_a_recipe_that_does_not_fit_is_an_error_that_says_where(change, message):
    body = json.loads(canonical_json(BASELINE)) | change
    with pytest.raises(ValueError, match=message):
        recipe_from_json(json.dumps(body))


@pytest.mark.parametrize("text", ["", "no JSON", "{", "[" * 100_000])
def test_a_file_that_is_no_json_is_an_error_that_names_it(text):
    with pytest.raises(ValueError, match=r"^a/recipe\.json is no JSON .*; give the recipe.json"):
        recipe_from_json(text, "a/recipe.json")


def test_all_that_is_wrong_in_a_file_is_said_at_once_and_names_it():
    body = json.loads(canonical_json(BASELINE))
    body["optim"] |= {"peak_lr": 1e400, "beta1": 2}
    body |= {"global_batch": 63, "image_size": 10**400}
    with pytest.raises(WrongValues) as caught:
        recipe_from_json(json.dumps(body), "old.json")
    assert len(caught.value.args) == 4
    assert all(fault.startswith("old.json: ") for fault in caught.value.args)


# -- the batch ------------------------------------------------------------------------------------


def test_learning_rates_follow_the_batch_linearly():
    # The paper's rule: global_batch / 1024 * 1e-3
    for batch in (256, 1024, 4096):
        assert with_global_batch(BASELINE, batch).optim.peak_lr == pytest.approx(batch / 1024e3)
    small = with_global_batch(BASELINE, 64)
    assert small.schedule.final_lr == pytest.approx(1e-5 / 64)
    assert tuned(small, peak_lr=4e-3, final_lr=1e-5, warmup_lr=1e-6, global_batch=4096) == BASELINE


def test_rates_follow_the_batch_and_warm_up_the_epochs_unless_they_are_given():
    flat = flat_fields(BASELINE)
    assert following(flat, {"global_batch": 1024}) == pytest.approx(
        {"peak_lr": 1e-3, "warmup_lr": 2.5e-7, "final_lr": 2.5e-6}
    )
    assert following(flat, {"global_batch": 1024, "peak_lr": 2e-3}) == {}
    assert following(flat, {"epochs": 30}) == {"warmup_epochs": 2.0}
    assert following(flat, {"epochs": 30, "warmup_epochs": 1.0}) == {}
    assert following(flat, {"epochs": 300, "global_batch": 4096, "mixup": 0.0}) == {}


def test_steps_an_epoch_drop_the_remainder():
    assert steps_per_epoch(BASELINE, 1_281_167) == 312
    few = tuned(BASELINE, global_batch=64, train_images=640)
    assert steps_per_epoch(few, 60_000) == 10
    assert steps_per_epoch(few, 300) == 4
    with pytest.raises(ValueError, match=r"global_batch=64 is more than the 63 .* try 32"):
        steps_per_epoch(few, 63)
