"""A sweep's own options are its function's signature, and a signature that cannot be is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import pytest

from mambaout.errors import WrongRequest
from mambaout.launch import cli
from mambaout.launch.sweep_options import own_values, sweep_parser
from mambaout.study.start import Start
from mambaout.study.study import Study


def own(
    start: Start,
    *,
    deep: Annotated[bool, "three blocks a stage"] = False,
    blocks: Annotated[int | None, "blocks of stage 3"] = None,
    share: Annotated[float, "50 % where it is not given"] = 0.5,
    tag: Annotated[str | None, "a word"] = None,
    names: Annotated[Sequence[str] | None, "several words"] = None,
) -> Study:
    """Is it read?"""
    raise WrongRequest(f"asked for {names}")


def given(*words: str) -> dict[str, Any]:
    return own_values(own, sweep_parser(own).parse_args(words))


def test_a_parameter_is_an_option_of_its_name_type_and_default():
    words = ["--deep", "--blocks", "3", "--share", "0.25", "--tag", "x", "--names", "a", "b"]
    assert given(*words) == {
        "deep": True,
        "blocks": 3,
        "share": 0.25,
        "tag": "x",
        "names": ["a", "b"],
    }
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(own).parameters.items()
        if name != "start"
    }
    assert given() == defaults


def test_an_option_of_several_words_that_is_there_twice_keeps_all_of_them():
    assert given(*["--names", "a=1", "b=2", "--names", "c=3"])["names"] == ["a=1", "b=2", "c=3"]


def test_the_help_of_an_option_is_its_annotation(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        sweep_parser(own).parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, hint in inspect.get_annotations(own, eval_str=True).items():
        if name not in ("start", "return"):
            assert hint.__metadata__[0] in shown


def test_a_negative_number_is_one_of_several_words():
    assert given("--names", "-1", "32")["names"] == ["-1", "32"]
    assert given("--share", "-1e-3")["share"] == -1e-3


@pytest.mark.parametrize("option", ["--detect", "--until"])
def test_no_difference_is_more_than_100_points(option, capsys):
    assert sweep_parser(own).parse_args([option, "100"])
    with pytest.raises(SystemExit, match=r"^2$"):
        sweep_parser(own).parse_args([option, "1000000000000"])
    assert "'1000000000000' must be a number above 0 and at most 100" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--blocks 0", "--blocks x", "--share x"])
def test_a_word_of_another_type_is_refused(words, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        given(*words.split())
    assert words.split()[0] in capsys.readouterr().err


# -- signatures that cannot be options ------------------------------------------------------------


def of_a_mapping(start, *, rates: Annotated[Mapping[str, float] | None, "rates"] = None): ...
def of_two_types(start, *, rates: Annotated[int | str, "rates"] = 1): ...
def without_a_type(start, *, rates=None): ...
def without_a_help(start, *, rates: int = 1): ...
def with_an_empty_help(start, *, rates: Annotated[int, ""] = 1): ...
def without_a_default(start, *, rates: Annotated[int, "rates"]): ...
# The name is missing on purpose.
def of_a_name_that_is_nowhere(start, *, rates: Annotated[Rates, "rates"] = 1): ...  # noqa: F821 # pyright: ignore[reportUndefinedVariable]
def of_any_number(start, *rates: Annotated[int, "rates"]): ...
def of_any_name(start, **rates: Annotated[int, "rates"]): ...
def switched_on(start, *, rates: Annotated[bool, "rates"] = True): ...
def called_as_a_shared_option(start, *, seeds: Annotated[int, "seeds"] = 1): ...
def called_as_a_field(start, *, epochs: Annotated[int, "epochs"] = 1): ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (of_a_mapping, "is of type .*Mapping.*, and an option is of bool, int, .*; take one"),
        (of_two_types, r"is of type int \| str, and an option is of bool, int, .*; take one"),
        (without_a_type, r"has no type; write rates: Annotated\["),
        (without_a_help, r'has no help; write rates: Annotated\[int, "help"\]'),
        (with_an_empty_help, "has no help"),
        (without_a_default, r"has no default; write rates: Annotated\[.*\] = None"),
        (of_a_name_that_is_nowhere, "'Rates' is not defined.*import the name at the top"),
        (of_any_number, "has no name of an option; write rates"),
        (of_any_name, "has no name of an option; write rates"),
        (switched_on, "is a switch whose default is True; make it False"),
        (called_as_a_shared_option, "would be --seeds, which .* every sweep; give .* another name"),
        (called_as_a_field, "would be --epochs, which .* every sweep; give .* another name"),
    ],
)
def test_a_parameter_that_cannot_be_an_option_is_refused_by_script_and_name(
    function: Callable[..., Study], says: str, capsys
):
    (name,) = [name for name in inspect.signature(function).parameters if name != "start"]
    where = f"^the parameter {name} of {function.__name__} in test_sweep_options.py "
    with pytest.raises(WrongRequest, match=where + ".*" + says):
        sweep_parser(function)
    assert cli.main(function, ["--smoke"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
