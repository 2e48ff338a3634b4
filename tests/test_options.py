"""The options that set a recipe's fields: one each, its help whole, its errors one line."""

from __future__ import annotations

import argparse
import contextlib
import re

import pytest
from sweep_scripts import FUNCTIONS

from mambaout.__main__ import command_parser
from mambaout.command_line import Parser
from mambaout.fields import WrongValues
from mambaout.launch.sweep_options import sweep_parser
from mambaout.options import (
    GROUPS,
    add_recipe_options,
    field_text,
    given_fields,
    given_recipe,
    option,
)
from mambaout.recipe import BASELINE, field_knobs, field_types, flat_fields, parse_field, tuned
from mambaout.variants import VARIANTS

(_COMMANDS,) = (
    each.choices
    for each in command_parser()._actions
    if isinstance(each, argparse._SubParsersAction)
)
PARSERS: dict[str, argparse.ArgumentParser] = {
    **_COMMANDS,
    **{name: sweep_parser(function) for name, function in FUNCTIONS.items()},
}


def parsed(*words: str) -> argparse.Namespace:
    parser = Parser(prog="test")
    add_recipe_options(parser)
    return parser.parse_args(words)


def helps(columns: int, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser = Parser(prog="test", usage="test")
    add_recipe_options(parser)
    return parser.format_help()


def test_every_field_has_an_option_and_a_skipped_one_has_none():
    assert parsed().__dict__.keys() == {f"field_{name}" for name in field_types()}
    parser = Parser(prog="test")
    add_recipe_options(parser, skip={"peak_lr", "depths"})
    lacking = field_types().keys() - {
        name.removeprefix("field_") for name in parser.parse_args([]).__dict__
    }
    assert lacking == {"peak_lr", "depths"}
    assert given_fields(parser.parse_args(["--epochs", "7"])) == {"epochs": 7}


def test_the_help_of_an_option_says_meaning_unit_default_and_source(monkeypatch):
    shown = helps(100, monkeypatch)
    blocks = [" ".join(block.split()) for block in re.split(r"\n\n|\n  (?=--)", shown)]
    own = {block.split()[0]: block for block in blocks if block.startswith("--")}
    assert own.keys() == {option(name) for name in field_types()}
    for name, said in field_knobs().items():
        text = own[option(name)]
        (default,) = re.findall(r"Default: (\S+) \(", text)
        assert parse_field(name, default) == flat_fields(BASELINE)[name]
        for part in (said.help, said.unit, said.bound, said.source or "our choice", *said.choices):
            assert part is None or str(part) in text, (name, part)
    for title, _ in GROUPS.values():
        assert f"\n{title}:\n" in shown


@pytest.mark.parametrize("columns", [80, 100])
def test_the_help_keeps_to_the_terminals_width(columns, monkeypatch):
    assert max(map(len, helps(columns, monkeypatch).splitlines())) <= columns


def test_a_fields_text_reads_back():
    for config in VARIANTS.values():
        for name, value in flat_fields(tuned(BASELINE, **flat_fields(config))).items():
            assert parse_field(name, field_text(value)) == value


def test_what_is_given_is_typed_and_what_is_not_is_left_out():
    words = "--peak-lr 8e-3 --depths 3,3,15,3 --clip-norm none --precision bf16 --train-images 500"
    assert given_fields(parsed(*words.split())) == {
        "peak_lr": 8e-3,
        "depths": (3, 3, 15, 3),
        "clip_norm": None,
        "precision": "bf16",
        "train_images": 500,
    }
    assert given_fields(parsed()) == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--peak-lr=fast", "--peak-lr 'fast' must be a finite number, above 0 and below 10"),
        ("--peak-lr=", "--peak-lr '' must be a finite number"),
        ("--peak-lr=nan", "--peak-lr 'nan' must be a finite number"),
        ("--peak-lr=-inf", "--peak-lr '-inf' must be a finite number"),
        ("--peak-lr=1e999", "--peak-lr '1e999' must be a finite number"),
        ("--peak-lr -1e-3", "--peak-lr '-1e-3' must be a finite number"),
        ("--peak-lr -.5", "--peak-lr '-.5' must be a finite number"),
        ("--peak-lr 50", "like 0.004"),
        ("--epochs 2.5", "--epochs '2.5' must be a whole number, at least 1, like 300"),
        (f"--epochs 1{400 * '0'}", "must be a whole number, 1 to 2147483647"),
        ("--epochs 1e3", "--epochs '1e3' must be a whole number"),
        ("--train-images 0", "must be a whole number, at least 1, or none"),
        ("--depths=3.5,3,3,3", "must be whole numbers joined by commas, 1 to 1000, like 3,3,9,3"),
        ("--depths=3,3,9,", "--depths '3,3,9,' must be"),
        ("--depths=", "--depths '' must be"),
        ("--dims -8,16,24,32", "--dims '-8,16,24,32' must be"),
        ("--precision fp16", "--precision 'fp16' must be one of fp32, tf32, bf16"),
        ("--stem-stride 3", "--stem-stride '3' must be one of 4, 2"),
        ("--mixer mamba", "--mixer 'mamba' must be one of gated_conv"),
        ("--image-size 2049", "16 to 2048"),
        ("--epochs ٣", "--epochs '٣' must be a whole number"),
        ("--peak-lr 1_0e-4", "--peak-lr '1_0e-4' must be a finite number"),
        ("--mixer-stages=", "--mixer-stages '' must be whole numbers joined by commas, 1 to 4"),
        ("--ssm-state 1025", "--ssm-state '1025' must be a whole number, 1 to 1024, like 16"),
        ("--epochs none", "--epochs 'none' must be a whole number"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_option_value_and_bound(words, said):
    with pytest.raises(WrongValues) as caught:
        given_fields(parsed(*words.split()))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert words.split("=")[0].split()[0] in str(caught.value)


def test_all_wrong_options_are_said_at_once_with_what_does_not_go_together():
    words = "--peak-lr fast --beta1 2 --global-batch 63 --depths 3,3,9"
    with pytest.raises(WrongValues) as caught:
        given_recipe(flat_fields(BASELINE), parsed(*words.split()))
    for name in ("--peak-lr", "--beta1", "global_batch=63", "depths=(3, 3, 9)"):
        assert sum(name in fault for fault in caught.value.args) == 1
    assert len(caught.value.args) == 4


def test_what_follows_from_an_option_is_blamed_on_it():
    with pytest.raises(WrongValues, match="so give --peak-lr too"):
        given_recipe(flat_fields(BASELINE), parsed("--global-batch", "100000000"))


@pytest.mark.parametrize("parser", PARSERS)
def test_a_whole_number_beyond_every_real_one_is_refused_by_every_command(parser):
    for action in PARSERS[parser]._actions:
        if not callable(action.type) or action.type is int:  # an int is bounded where it is used
            continue
        with contextlib.suppress(argparse.ArgumentTypeError):
            read = action.type("9" * 20)
            assert not isinstance(read, int), action.option_strings


def test_the_options_of_the_baseline_give_the_baseline():
    words = [w for n, v in flat_fields(BASELINE).items() for w in (option(n), field_text(v))]
    assert given_recipe(
        flat_fields(tuned(BASELINE, epochs=30, warmup_epochs=1)), parsed(*words)
    ) == (BASELINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--peak-lrr 1", "there is no option --peak-lrr (did you mean --peak-lr?)"),
        ("--peak 1", "there is no option --peak"),
        ("--peak-lrr=1", "did you mean --peak-lr?"),
        ("--batch-size 64", "did you mean --global-batch?"),
        ("--pretrained", "there is no option --pretrained"),
        ("--peak-lr", "expected one argument"),
    ],
)
def test_an_unknown_or_cut_option_is_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(*words.split())
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
