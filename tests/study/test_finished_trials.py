"""The outcomes of a storage folder are read once, however many parts of a plan need them."""

from __future__ import annotations

import json
import sys

import pytest
from study_files import DATA, finish, write_study

from mambaout.study.price.finished_trials import finished_trials
from mambaout.study.price.foresight import known_spread
from mambaout.study.price.rates import known_rates
from mambaout.study.study import OUTCOME_FILE, REUSED_FILE

_seen: list[list[str]] = []  # a hook cannot be removed, so it counts only if a list is here


def _hook(event: str, arguments: tuple) -> None:
    if _seen and event == "open" and str(arguments[0]).endswith(OUTCOME_FILE):
        _seen[-1].append(str(arguments[0]))


@pytest.fixture
def opened():
    """The outcomes that are opened during the test."""
    sys.addaudithook(_hook)
    _seen.append([])
    yield _seen[-1]
    _seen.clear()


def test_a_plan_opens_every_outcome_once(tmp_path, opened):
    folder = write_study(tmp_path)
    for trial in folder.trials():
        finish(folder, trial)
    opened.clear()
    for _ in range(2):
        known_rates(tmp_path, "cpu")
        known_spread(tmp_path, DATA, 5000)
    assert len(opened) == len(set(opened)) == len(folder.trials())


def test_an_outcome_that_has_changed_is_read_again(tmp_path):
    folder = write_study(tmp_path)
    first, second, *_ = folder.trials()
    assert finished_trials(tmp_path) == []
    for trial in (first, second):
        finish(folder, trial)
    assert {each.recipe for each in finished_trials(tmp_path)} == {first.recipe, second.recipe}
    path = folder.run_directory(first) / OUTCOME_FILE
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"metrics": {"top1": 12.5}}))
    assert 12.5 in [each.metrics.get("top1") for each in finished_trials(tmp_path)]
    path.write_text("")  # as a power loss leaves it
    (left,) = finished_trials(tmp_path)
    assert left.recipe == second.recipe
    (folder.run_directory(second) / REUSED_FILE).write_text("{}")
    assert finished_trials(tmp_path) == [], "a copy counts in the study where it was trained"
