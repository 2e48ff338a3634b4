"""Promises of the checklist: the report tells the points of a scaling study about itself."""

from __future__ import annotations

import pytest
from study_files import finished_study, growing_study

from mambaout.study.report.checklist import UNKNOWN, checklist
from mambaout.study.report.reading import read


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, str]:
    folder = growing_study(tmp_path_factory.mktemp("checklist"), "grown", {4: 1.0, 36: 0.0})
    (section,) = checklist(read(folder))
    (table,) = section.tables
    assert table.header == ("part", "point", "this study")
    return {point: text for _, point, text in table.cells}


def test_every_point_has_an_answer(told):
    assert len(told) >= 20
    assert all(text.strip() and "None" not in text for text in told.values())


def test_numbers_come_from_the_study(told):
    assert told["networks"].startswith("6 shapes, ")
    assert told["trials"] == "24: 24 finished"
    assert told["seeds of a recipe"] == "2"
    assert "4, 36 times" in told["repeated data"]
    assert "a, b, c and d" in told["form and free parameters"]


def test_what_is_not_in_the_files_is_said_to_be_missing(told):
    assert told["metric"] == f"top-1 on val; images: {UNKNOWN}"


def test_a_study_without_laws_and_shapes_has_no_checklist(tmp_path):
    from dataclasses import replace

    from study_files import scaling_study

    study = scaling_study()
    few = {name: study.recipes[name] for name in ("w8-d2", "w8-d6")}
    folder = finished_study(tmp_path, replace(study, recipes=few, baseline=None))
    assert checklist(read(folder)) == []
