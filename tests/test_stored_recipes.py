"""What has been stored stays readable and keeps its key, whatever fields are added to a recipe."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mambaout.errors import WrongRequest
from mambaout.recipe import (
    BASELINE,
    canonical_json,
    content_key,
    field_types,
    flat_fields,
    parse_field,
    recipe_from_json,
    tuned,
)
from mambaout.stored_format import LEFT_OUT

ROOT = Path(__file__).parent.parent
# Recipes as earlier versions stored them, each with its key for seed 0, data "digits" and code
# version 4. Lines are only added.
STORED = [
    json.loads(line) for line in (ROOT / "tests/stored_recipes.jsonl").read_text().splitlines()
]
WRONG_KEY = (
    "stored recipes are read, and their keys made, by mambaout/stored_format.py. Its lines are "
    "frozen: take back what was changed there. A new field needs no line there; one of the "
    "first fields must neither go nor be renamed, or every study on disk is lost"
)


def opened(body: dict[str, Any]) -> dict[str, Any]:
    """Every value by its own name, parts opened."""
    flat: dict[str, Any] = {}
    for name, value in body.items():
        flat |= opened(value) if isinstance(value, dict) else {name: value}
    return flat


@pytest.mark.parametrize("stored", STORED, ids=lambda row: row["about"])
def test_a_stored_recipe_is_read_and_keeps_its_text_and_its_key(stored):
    try:
        recipe = recipe_from_json(json.dumps(stored["recipe"]))
    except WrongRequest as error:
        pytest.fail(f"{error}. But {WRONG_KEY}")
    before, now = opened(stored["recipe"]), opened(json.loads(canonical_json(recipe)))
    new, gone = sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys())
    moved = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    assert (new, gone, moved) == ([], [], []), (
        f"written now and not before: {new}; left out now and not before: {gone}; written with "
        f"another value: {moved}. So the keys of stored runs would change: {WRONG_KEY}"
    )
    assert content_key(recipe, 0, "digits", 4) == stored["key"]


def test_what_a_recipe_of_the_first_format_does_not_say_keeps_its_meaning():
    recipe = recipe_from_json(json.dumps(STORED[0]["recipe"]))
    assert {name: flat_fields(recipe)[name] for name in ("mup_base_dim", "pixels")} == {
        "mup_base_dim": None,
        "pixels": "exact",
    }, WRONG_KEY


def test_every_run_of_an_early_study_has_the_key_that_it_was_stored_under():
    with (ROOT / "tests/stored_study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 51
    for row in rows:
        said = {name: parse_field(name, row[name]) for name in field_types() if name in row}
        recipe = tuned(BASELINE, **(LEFT_OUT | said))
        assert content_key(recipe, int(row["seed"]), row["data"], 1) == row["key"], WRONG_KEY


def changed_defaults(page: str) -> list[str]:
    return runpy.run_path(str(ROOT / "docs" / "recipe_page.py"))["changed_defaults"](page)


def test_a_default_that_changes_is_asked_for_before_the_page_forgets_it(monkeypatch):
    page = (ROOT / "docs" / "recipe.md").read_text()
    assert changed_defaults(page) == []
    monkeypatch.delitem(LEFT_OUT, "pixels")
    assert changed_defaults(page) == []
    (line,) = changed_defaults(page.replace(" | exact | ", " | fast | "))
    assert "the default of pixels was fast" in line
    assert "    'pixels': 'fast',\nto LEFT_OUT in mambaout/stored_format.py" in line


def test_what_a_missing_field_means_is_a_value_that_it_can_have():
    for name, value in LEFT_OUT.items():
        assert name in field_types(), (
            f"no recipe has a field {name!r} any more. Recipes that were stored with it are "
            "refused by its name; where that is meant, take its line out of LEFT_OUT"
        )
        again = flat_fields(tuned(BASELINE, **{name: value}))[name]
        assert (again, type(again)) == (value, type(value)), f"LEFT_OUT[{name!r}]"


# -- what the author of a field does, done to a copy of the sources --------------------------------

READ_ALL = """
import json, sys
from mambaout.recipe import content_key, field_types, recipe_from_json
rows = [json.loads(line) for line in open(sys.argv[1])]
recipes = [recipe_from_json(json.dumps(row["recipe"])) for row in rows]
print(json.dumps({
    "keys": [content_key(recipe, 0, "digits", 4) for recipe in recipes],
    "pixels": [recipe.augment.pixels for recipe in recipes],
    "invented": [name for name in field_types() if name.startswith("invented")],
}))
"""
A_FIELD = '    invented_{}: float = knob(0.25, "a field that is new", unit=None)\n\n'
A_PART = '''@dataclass(frozen=True, kw_only=True, slots=True)
class Invented:
    """A part that is new."""

    invented_depth: int = knob(3, "a field that is new", unit=None)
    RULES: ClassVar[tuple[Rule, ...]] = ()


'''


def read_by(package: Path) -> dict[str, Any]:
    """The stored recipes, by the sources of `package`."""
    ran = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(ROOT / "tests/stored_recipes.jsonl")],
        capture_output=True,
        text=True,
        cwd=package.parent,
        env={"PYTHONPATH": str(package.parent)},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the modules that a recipe is made of."""
    copy = tmp_path / "mambaout"
    copy.mkdir()
    (copy / "__init__.py").touch()
    for path in (ROOT / "mambaout").glob("[!_]*.py"):
        shutil.copy(path, copy)
    return copy


def test_fields_and_a_part_that_are_added_change_no_stored_recipe_and_no_key(package):
    number = iter(range(100))
    for path in package.glob("*.py"):
        text = path.read_text()
        rules = r"    RULES: ClassVar"
        path.write_text(re.sub(rules, lambda at: A_FIELD.format(next(number)) + at[0], text))
    recipe = package / "recipe.py"
    text = recipe.read_text()
    for place, added in (
        ("@dataclass(frozen=True, kw_only=True, slots=True)\nclass Recipe:", A_PART),
        ("    global_batch: int = knob(", "    invented: Invented = Invented()\n"),
        ('    "optim": Optim,', '    "invented": Invented,\n'),
    ):
        assert text.count(place) == 1
        text = text.replace(place, added + place)
    recipe.write_text(text)
    read = read_by(package)
    assert len(read["invented"]) == 6  # one in each of five classes, and the new part's
    assert read["keys"] == [stored["key"] for stored in STORED]


def test_a_default_that_changes_changes_no_stored_recipe_and_no_key(package):
    parts = package / "recipe_parts.py"
    text = parts.read_text()
    parts.write_text(text.replace('knob(\n        "exact",', 'knob(\n        "fast",'))
    assert parts.read_text() != text
    read = read_by(package)
    assert read["pixels"] == ["exact", "exact", "exact", "fast"]
    assert read["keys"] == [stored["key"] for stored in STORED]


def test_a_recipe_with_a_field_that_is_gone_is_refused_by_the_fields_name_and_the_files():
    body = STORED[0]["recipe"]
    older = body | {"augment": body["augment"] | {"sharpness": 0.1}}
    with pytest.raises(ValueError, match=r"^runs/old/recipe\.json: augment .*\['sharpness'\].*use"):
        recipe_from_json(json.dumps(older), "runs/old/recipe.json")


def test_a_recipe_of_mup_s_rates_alone_is_refused_because_it_would_train_otherwise_now():
    body = STORED[0]["recipe"]
    older = body | {"optim": body["optim"] | {"lr_base_dim": 48}}
    with pytest.raises(WrongRequest, match=r"lr_base_dim was muP's .* mup_base_dim .* use the"):
        recipe_from_json(json.dumps(older))
