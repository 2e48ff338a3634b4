"""Numbers are written in one way, wherever they are shown."""

from __future__ import annotations

import math

import pytest

from mambaout.numbers import (
    bytes_text,
    clock_text,
    count_text,
    counted,
    hours_text,
    percent_text,
    rate_text,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_147_984_992, "1.15G"), (7_304_536, "7.3M"), (940, "940"), (2.5e12, "2.5T"),
        (5.4e18, "5.4E"), (999.9e6, "1G"), (0.004, "0.004"), (0, "0"), (-2e6, "-2M"),
        (math.nan, "-"),
    ],
)  # fmt: skip
def test_a_count_has_three_digits_and_its_unit(value, text):
    assert count_text(value) == text


def test_bytes_have_a_space_and_their_unit():
    assert [bytes_text(n) for n in (0, 999, 1.01e9, 118e6)] == ["0 B", "999 B", "1.01 GB", "118 MB"]


def test_times_are_told_in_the_unit_that_people_would_take():
    assert [hours_text(h) for h in (2.5, 0.5, 0.01, math.nan)] == ["2.5 h", "30.0 min", "36 s", "-"]
    assert [clock_text(s) for s in (75, 7230)] == ["1:15", "2:00:30"]


def test_shares_and_rates_that_are_not_known_are_a_stroke():
    assert [percent_text(v) for v in (90.123, math.nan)] == ["90.12 %", "-"]
    assert percent_text(90.123, 1) == "90.1 %"
    assert [rate_text(v) for v in (12_000.4, 3.14, math.nan)] == ["12,000", "3.1", "-"]


def test_one_is_told_from_many():
    assert [counted(n, "trial") for n in (0, 1, 2000)] == ["0 trials", "1 trial", "2,000 trials"]
    assert counted(2, "class", "classes") == "2 classes"
