"""The command in a report trains the same recipe again, whatever the data's own rules are."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mambaout.dense_options import dense_field
from mambaout.detect_recipe import DetectRecipe
from mambaout.detect_rules import SMALL_DETECT, fitted_detect
from mambaout.segment_recipe import SegmentRecipe
from mambaout.segment_rules import SMALL_SEGMENT, fitted_segment
from mambaout.study.report.dense_command import dense_command
from mambaout.study.study import Trial
from mambaout.variants import VARIANTS

SETS = {DetectRecipe: (fitted_detect, SMALL_DETECT), SegmentRecipe: (fitted_segment, SMALL_SEGMENT)}
RECIPES: list[Any] = [
    DetectRecipe(),
    DetectRecipe(model=VARIANTS["small"], peak_lr=3e-4, epochs=36, smallest_anchor=16),
    DetectRecipe(model=replace(VARIANTS["femto"], drop_path=0.1, kernel_size=5), warmup_steps=7),
    SegmentRecipe(),
    SegmentRecipe(
        model=replace(VARIANTS["base"], dims=(8, 16, 24, 32)),
        steps=400,
        warmup_steps=9,
        dropout=0.0,
    ),
    SegmentRecipe(steps=4, warmup_steps=0, eval_every_steps=3, global_batch=6, precision="bf16"),
]


def words_of(recipe: Any, data: str, **more: Any) -> list[str]:
    trial = Trial(label="a b", recipe=recipe, seed=3, data="d")
    return shlex.split(dense_command(trial, data, storage=Path("/studies"), **more))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("data", ["coco", "shapes", "shapes-smoke"])
def test_the_command_gives_the_recipe_back_on_any_data(recipe, data):
    words = words_of(recipe, data)
    variant, options = words[2], dict(zip(words[3::2], words[4::2], strict=True))
    for name in ("--task", "--data", "--out", "--seed"):
        del options[name]
    named = {option[2:].replace("-", "_"): text for option, text in options.items()}
    given = {name: dense_field(name, text, type(recipe)) for name, text in named.items()}
    fit, small = SETS[type(recipe)]
    assert fit(300, VARIANTS[variant], given, small.get(data))[0] == recipe


def test_the_command_stays_one_line_of_whole_words_for_any_path():
    words = words_of(DetectRecipe(), "/my sets/<b>it's</b>, 猫", micro_batch=2)
    assert words[words.index("--data") + 1] == "/my sets/<b>it's</b>, 猫"
    assert words[words.index("--out") + 1] == "again/a-b-s3"
    assert words[words.index("--micro-batch") + 1] == "2"


def test_first_weights_are_named_by_their_copy_in_the_storage():
    words = words_of(DetectRecipe(init="0123456789ab"), "coco")
    path = words[words.index("--init") + 1]
    assert path.startswith("/studies/")
    assert "0123456789ab" in path
