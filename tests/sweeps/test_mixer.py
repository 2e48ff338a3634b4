"""sweeps/mixer.py and sweeps/resolution.py: one recipe a mixer, equal in all but the mixer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sweep_scripts import DENSE, FUNCTIONS, built, start_on

from mambaout.accounting import cost
from mambaout.detect_recipe import DETECT_BASELINE
from mambaout.errors import WrongRequest
from mambaout.fields import flat_fields
from mambaout.mixer_layers import MIXER_LAYERS
from mambaout.recipe import Recipe, parse_field
from mambaout.rules import WeightsFacts
from mambaout.study.dense_start import DenseStart
from mambaout.study.matched import matched_expansion
from mambaout.study.pairing import Pair
from mambaout.train.tasks import DETECT
from mambaout.variants import FEMTO, TINY, VARIANTS, ModelConfig

ALL = [name for name in MIXER_LAYERS if name not in ("identity", "gated_conv")]
FITTING = [name for name in ALL if name != "conv_ssm_four_way"]  # on narrow networks


def costs(recipe: Recipe, by: str) -> int:
    return getattr(cost(recipe.model, recipe.image_size, 10), by)


# -- the match ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["macs", "params"])
@pytest.mark.parametrize("mixer", ["identity", "conv_ssm", "conv_ssm_two_way"])
@pytest.mark.parametrize("beside", [FEMTO, TINY], ids=["femto", "tiny"])
def test_a_mixer_has_the_convolutions_cost_to_half_a_percent_by_its_expansion(beside, mixer, by):
    shape = replace(beside, mixer=mixer)
    found = matched_expansion(shape, beside=beside, image_size=224, num_classes=1000, by=by)
    wanted = getattr(cost(beside), by)
    got = getattr(cost(replace(shape, expansion=found)), by)
    assert got == pytest.approx(wanted, rel=0.005)
    assert found > 8 / 3 if mixer == "identity" else found < 8 / 3


def test_femtos_expansions_are_those_of_the_closed_form():
    found = {
        (mixer, by): matched_expansion(
            replace(FEMTO, mixer=mixer), beside=FEMTO, image_size=224, num_classes=1000, by=by
        )
        for mixer in ("identity", "conv_ssm")
        for by in ("macs", "params")
    }
    assert found == pytest.approx(
        {
            ("identity", "macs"): 2.81,
            ("identity", "params"): 2.75,
            ("conv_ssm", "macs"): 2.11,
            ("conv_ssm", "params"): 2.55,
        },
        abs=0.01,
    )


def test_no_other_expansion_is_nearer():
    shape = ModelConfig(depths=(1, 1, 1, 1), dims=(24, 48, 96, 144), hidden_multiple=8)
    ssm = replace(shape, mixer="conv_ssm", ssm_state=8)
    found = matched_expansion(ssm, beside=shape, image_size=64, num_classes=10)
    wanted = cost(shape, 64, 10).macs

    def off(expansion: float) -> int:
        return abs(cost(replace(ssm, expansion=expansion), 64, 10).macs - wanted)

    assert off(found) == min(off(1 + step / 1000) for step in range(3000))


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({"ssm_state": 1024}, {}),
        ({"conv_ratio": 2.0}, {}),
        ({"dims": (2, 2, 2, 2)}, {}),
        ({"kernel_size": 127}, {}),
        ({"mixer_stages": (1, 2, 3, 4)}, {"mixers": ["attention"]}),
    ],
)
def test_every_change_that_a_refused_study_names_makes_it_possible(given, own):
    with pytest.raises(WrongRequest, match="; give ") as refused:
        built("mixer", start_on("garments", given=given), **own)
    remedies = str(refused.value).rpartition("; give ")[2].removeprefix("one of ").split(", ")
    for remedy in remedies:
        option, text = remedy.split(" ")
        name = option.removeprefix("--").replace("-", "_")
        changed = {**given, name: parse_field(name, text)}
        assert built("mixer", start_on("garments", given=changed), **own).recipes


def test_a_mixer_that_is_too_expensive_is_refused_with_changes_that_help():
    narrow = ModelConfig(depths=(1, 1, 1, 1), dims=(16, 32, 48, 64), stem_stride=2)
    ssm = replace(narrow, mixer="conv_ssm", ssm_state=64)
    with pytest.raises(WrongRequest, match="cannot be below conv_ratio=1; give one of") as refused:
        matched_expansion(ssm, beside=narrow, image_size=64, num_classes=10)
    _, _, remedies = str(refused.value).partition("give one of ")
    assert "--ssm-state 8" in remedies
    assert "--dims 96,192,288,384" in remedies
    for changed in ({"ssm_state": 8}, {"dims": (96, 192, 288, 384)}):
        matched_expansion(
            replace(ssm, **changed),
            beside=replace(narrow, **changed),
            image_size=64,
            num_classes=10,
        )


# -- the mixers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["garments", "photographs", "ImageNet"])
def test_the_rows_differ_in_the_mixer_and_its_expansion_alone(data):
    study = built("mixer", start_on(data))
    assert list(study.recipes) == ["identity", "gated_conv", "conv_ssm"]
    rows = [flat_fields(recipe) for recipe in study.recipes.values()]
    varied = {name for name in rows[0] if len({row[name] for row in rows}) > 1}
    assert varied <= {"mixer", "expansion", "ssm_state"}
    macs = [costs(recipe, "macs") for recipe in study.recipes.values()]
    assert max(macs) == pytest.approx(min(macs), rel=0.005)
    trials = study.trials("data")
    seeds = {label: [t.seed for t in trials if t.label == label] for label in study.recipes}
    assert list(seeds.values()) == [[0, 1, 2, 3, 4]] * 3
    assert study.pairing is not None
    assert study.pairing.gate == Pair("identity", "gated_conv")
    assert study.pairing.pairs == (Pair("conv_ssm", "gated_conv"),)


def test_on_small_data_nothing_but_the_mixer_mixes_tokens_and_large_data_get_femto():
    small, large = (built("mixer", start_on(data)) for data in ("garments", "ImageNet"))
    for recipe in small.recipes.values():
        assert recipe.model.downsampling == "patchify"
        assert (recipe.model.stem_stride, recipe.image_size) == (2, 64)
    assert small.recipes["conv_ssm"].model.ssm_state == 8
    assert large.recipes["gated_conv"].model == FEMTO


def test_attention_is_in_the_last_two_stages_beside_an_ssm_there():
    study = built("mixer", start_on("garments"), mixers=FITTING)
    late = {"attention", "causal_attention", "conv_ssm-stages-3-4"}
    stages = {label: recipe.model.mixer_stages for label, recipe in study.recipes.items()}
    assert {label for label, own in stages.items() if own == (3, 4)} == late
    assert study.pairing is not None
    assert Pair("causal_attention", "attention") in study.pairing.pairs
    given = built("mixer", start_on("garments", given={"mixer_stages": (4,)}), mixers=FITTING)
    assert {recipe.model.mixer_stages for recipe in given.recipes.values()} == {(4,)}
    assert "conv_ssm-stages-3-4" not in given.recipes


def test_both_ways_to_match_share_the_convolution():
    study = built("mixer", start_on("garments"), match="both")
    assert study.pairing is not None
    macs, params = study.pairing.groups
    assert macs.labels == {name: name for name in ("identity", "gated_conv", "conv_ssm")}
    assert params.labels["gated_conv"] == "gated_conv"
    wanted = costs(study.recipes["gated_conv"], "params")
    for label in params.labels.values():
        assert costs(study.recipes[label], "params") == pytest.approx(wanted, rel=0.005)
    with pytest.raises(WrongRequest, match="--match 'flops': choose macs, params or both"):
        built("mixer", start_on("garments"), match="flops")


@pytest.mark.parametrize(
    ("given", "own", "says"),
    [
        ({}, {"mixers": ["conv_smm"]}, "'conv_smm' is no mixer.*did you mean 'conv_ssm'"),
        ({}, {"mixers": ["conv_ssm,attention"]}, "is no mixer.*; put spaces between several"),
        ({}, {"mixers": ["CONV_SSM"]}, "'CONV_SSM' is no mixer.*did you mean 'conv_ssm'"),
        (
            {"mixer": "attention"},
            {},
            "--mixer: this study compares mixers; name them with",
        ),
        ({"expansion": 2.0}, {}, "--expansion: this study gives each mixer the expansion with"),
        ({"ssm_state": 128}, {}, "even with expansion=.* give one of"),
    ],
)
def test_what_cannot_be_compared_is_refused(given, own, says):
    with pytest.raises(WrongRequest, match=says):
        built("mixer", start_on("garments", given=given), **own)


def test_trained_weights_are_refused():
    weights = WeightsFacts(digest="0" * 12, model=VARIANTS["femto"])
    start = start_on("ImageNet", weights=weights, given={"init": weights.digest})
    with pytest.raises(WrongRequest, match="--init: trained weights belong to one mixer"):
        FUNCTIONS["mixer"](start)


# -- the length of the sequence -------------------------------------------------------------------


def test_every_size_has_every_mixer_at_equal_macs_and_more_tokens_than_the_last():
    study = built("resolution", start_on("garments"))
    assert study.pairing is not None
    groups = study.pairing.groups
    assert [group.place for group in groups] == [
        "32 px, 256 tokens", "64 px, 1,024 tokens", "128 px, 4,096 tokens",
    ]  # fmt: skip
    for group in groups:
        macs = [costs(study.recipes[label], "macs") for label in group.labels.values()]
        assert max(macs) == pytest.approx(min(macs), rel=0.005)
    assert study.pairing.num_comparisons == 3


def test_the_recipes_of_one_size_are_those_of_the_mixer_study():
    """So that one study takes the other's finished trials over."""
    one, several = (built(name, start_on("garments")) for name in ("mixer", "resolution"))
    assert one.recipes["conv_ssm"] == several.recipes["conv_ssm-64px"]


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (["64"], "--sizes 64: give two sides or more"),
        (["64", "wide"], "--sizes '64 wide': give whole numbers, 16 to 2048, with spaces"),
        (["64,128"], "--sizes '64,128': give whole numbers"),
        (["8", "32"], "--sizes '8 32': give whole numbers, 16 to 2048"),
    ],
)
def test_sizes_that_are_no_study_are_refused(sizes, says):
    with pytest.raises(WrongRequest, match=says):
        built("resolution", start_on("garments"), sizes=sizes)


def test_one_image_size_is_refused_where_sizes_are_compared():
    with pytest.raises(WrongRequest, match=r"--image-size 64: .*name them with --sizes"):
        built("resolution", start_on("garments", given={"image_size": 64}))


# -- detectors ------------------------------------------------------------------------------------


def dense_start(*, is_small: bool, **more: Any) -> DenseStart:
    from mambaout.detect_rules import SHAPES_FIELDS, fitted_detect

    small = SHAPES_FIELDS if is_small else None
    return DenseStart(
        kind=DETECT,
        fit=lambda shape, fields: fitted_detect(300, shape, fields, small),
        is_small=is_small,
        **more,
    )


@pytest.mark.parametrize("is_small", [True, False])
def test_detectors_with_other_mixers_have_backbones_of_equal_macs(is_small):
    study = DENSE["detect"](dense_start(is_small=is_small), mixers=["conv_ssm"])
    assert list(study.recipes) == ["identity", "gated_conv", "conv_ssm"]
    size = DETECT_BASELINE.counted_size
    macs = [cost(recipe.model, recipe.counted_size, 1).macs for recipe in study.recipes.values()]
    assert max(macs) == pytest.approx(min(macs), rel=0.005)
    assert is_small or study.recipes["gated_conv"].counted_size == size
    assert study.pairing is not None
    assert study.pairing.gate == Pair("identity", "gated_conv")


def test_detectors_compare_mixers_in_one_network_and_nothing_else():
    detect = DENSE["detect"]
    with pytest.raises(WrongRequest, match="--mixers and --grid are two studies"):
        detect(dense_start(is_small=True), mixers=["conv_ssm"], grid=["peak_lr=1e-3,2e-3"])
    two = dense_start(is_small=True, variants=("w24-d5", "w12-d5"))
    with pytest.raises(WrongRequest, match="--mixers compares mixers in one network; name one"):
        detect(two, mixers=["conv_ssm"])


def test_trained_weights_and_an_expansion_are_refused_for_detectors_too():
    detect = DENSE["detect"]
    with pytest.raises(WrongRequest, match="--init: trained weights belong to one mixer"):
        detect(dense_start(is_small=True, has_weights=True), mixers=["conv_ssm"])
    given = dense_start(is_small=True, given={"expansion": 2.0})
    with pytest.raises(WrongRequest, match="--expansion: this study gives each mixer the"):
        detect(given, mixers=["conv_ssm"])
