"""Adding a mixer, a field, a metric, a named set or a study takes the edits that CONTRIBUTING.md
says, and everything else follows. The edits are read from that page and made in a copy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
COPIED = ("mambaout", "sweeps", "docs", "tests", "results", "pyproject.toml", "README.md")

Copy = Callable[[str], Path]


def edits(heading: str) -> list[str]:
    """The diffs of a section of the page."""
    (section,) = re.findall(rf"^### {heading}\n(.*?)^##", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(r"^```diff\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def make(edit: str, root: Path) -> None:
    """Make an edit: its lines of context must be there, once."""
    for of_file in re.split(r"^--- ", edit, flags=re.MULTILINE)[1:]:
        name, *hunks = of_file.split("@@\n")
        path = root / name.strip()
        text = path.read_text()
        for hunk in hunks:
            lines = hunk.splitlines()
            assert all(line[:1] in (" ", "+", "-", "") for line in lines), hunk
            before, after = (
                "".join(f"{line[1:]}\n" for line in lines if line[:1] not in left_out)
                for left_out in ("+", "-")
            )
            assert text.count(before) == 1, f"{name} has these lines {text.count(before)} times"
            text = text.replace(before, after)
        path.write_text(text)


def said(root: Path, *words: str, cache: Path | None = None, status: int = 0) -> str:
    """What Python says to `words`, with the copy as the only mambaout."""
    paths = os.pathsep.join(map(str, (root, root / "tests")))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    env |= {} if cache is None else {"MAMBAOUT_CACHE": str(cache)}
    command = [sys.executable, *words]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env)
    assert ran.returncode == status, f"{words}: {ran.stdout[-3000:]}{ran.stderr[-3000:]}"
    return ran.stdout + ran.stderr


def passed(root: Path, *words: str) -> int:
    """How many tests of the copy pass, of those that `words` choose; all must."""
    shown = said(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words)
    return sum(line.split("]")[0].count(".") for line in shown.splitlines() if "%]" in line)


@pytest.fixture(scope="module")
def copy_with(tmp_path_factory) -> Copy:
    """A copy of the project in which a section's edits are made; one a section."""
    made: dict[str, Path] = {}

    def copy(heading: str) -> Path:
        if heading not in made:
            root = tmp_path_factory.mktemp("copy")
            for name in COPIED:
                source = ROOT / name
                if source.is_dir():
                    hidden = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(source, root / name, ignore=hidden)
                else:
                    shutil.copy(source, root / name)
            for edit in edits(heading):
                make(edit, root)
            made[heading] = root
        return made[heading]

    return copy


# -- a mixer --------------------------------------------------------------------------------------


def test_a_mixer_is_a_value_of_the_command_line_and_has_its_cost(copy_with):
    root = copy_with("A token mixer")
    assert "one of gated_conv, pointwise, identity" in said(
        root, "-m", "mambaout", "train", "--help"
    )
    plain, other = (
        said(root, "-m", "mambaout", "account", "femto", "--mixer", mixer)
        for mixer in ("gated_conv", "pointwise")
    )
    assert plain != other
    for table in (plain, other):
        assert "matrix unit" in table
        assert "first micro-batch" in table


@pytest.mark.slow
def test_a_mixer_is_held_to_its_cost_its_memory_and_its_matrix_products(copy_with):
    root = copy_with("A token mixer")
    assert passed(root, "tests/test_layers.py", "-k", "test_every_mixer and pointwise") == 1


@pytest.mark.slow
def test_a_mixer_moves_the_run_and_the_model_without_a_row(copy_with):
    root = copy_with("A token mixer")
    tests = ("tests/train/test_knobs.py", "tests/model/test_model.py")
    assert passed(root, *tests, "-k", "test_every_number or test_every_knob and pointwise") == 3


# -- a field --------------------------------------------------------------------------------------

KEYS = """
from mambaout.recipe import BASELINE, content_key, recipe_from_json, canonical_json, tuned
warm = tuned(BASELINE, temperature=2.0)
print(content_key(BASELINE, 0), content_key(warm, 0))
assert "temperature" not in canonical_json(BASELINE)
assert recipe_from_json(canonical_json(BASELINE)) == BASELINE
assert recipe_from_json(canonical_json(warm)) == warm
"""


def test_a_field_is_an_option_with_a_help_and_a_bound(copy_with):
    root = copy_with("A field of the recipe")
    shown = " ".join(said(root, "-m", "mambaout", "train", "--help").split())
    meaning = "what the network's answers are divided by before the loss"
    assert f"--temperature X {meaning} [above 0]. Default: 1 (our choice)" in shown
    wrong = said(root, "-m", "mambaout", "train", "--temperature", "-1", status=2)
    assert "--temperature '-1' must be a finite number, above 0, like 1" in wrong


def test_a_field_is_part_of_the_key_and_changes_none_that_is_stored(copy_with):
    from mambaout.recipe import BASELINE, content_key

    plain, warm = said(copy_with("A field of the recipe"), "-c", KEYS).split()
    assert plain == content_key(BASELINE, 0)
    assert warm != plain


@pytest.mark.slow
def test_a_field_needs_no_edit_that_the_page_does_not_name(copy_with):
    root = copy_with("A field of the recipe")
    said(root, "docs/recipe_page.py")
    assert "`--temperature`" in (root / "docs" / "recipe.md").read_text()
    assert passed(root, "tests/test_stored_recipes.py", "tests/test_options.py") > 40
    chosen = "test_every_number or test_every_knob and temperature"
    assert passed(root, "tests/train/test_knobs.py", "-k", chosen) == 2


def test_a_number_without_a_row_in_the_knob_test_fails_by_its_name(copy_with, tmp_path):
    root = copy_with("A field of the recipe")
    path = root / "tests" / "knob_moves.py"
    whole = path.read_text()
    path.write_text(whole.replace('    "temperature": 2.0,\n', ""))
    try:
        code = "import knob_moves; print(knob_moves.fields_without_a_row())"
        assert said(root, "-c", code).split() == ["{'temperature'}"]
    finally:
        path.write_text(whole)


# -- a metric -------------------------------------------------------------------------------------

TRAIN = """
import json, sys
from pathlib import Path
from mambaout.__main__ import main
from mambaout.study.tracking.tracked_run import values_of
from mambaout.train.metrics import read_records
out = Path(sys.argv[1])
words = "train --smoke --max-steps 3 --log-every-steps 1 --backend cpu --out".split()
assert main([*words, str(out)]) == 0
print([values_of(record)["train/images"] for record in read_records(out / "records.jsonl")])
"""


def test_a_metric_is_in_the_records_and_in_mlflows_series(copy_with, data_cache, tmp_path):
    root = copy_with("A metric")
    shown = said(root, "-c", TRAIN, str(tmp_path / "run"), cache=data_cache)
    assert shown.splitlines()[-1] == "[64.0, 64.0, 64.0]"


# -- a named data set -----------------------------------------------------------------------------

OPEN = """
from mambaout.data.packing.sources import open_data
data = open_data("noise")
print(data.name, *data.class_names, *(len(labels) for labels in data.labels.values()))
"""


def test_a_named_set_is_read_and_listed_by_every_help_and_error(copy_with, tmp_path):
    root = copy_with("A named data set")
    name, *classes, num_train, num_val = said(root, "-c", OPEN, cache=tmp_path).split()
    assert (name, classes) == ("noise", ["dark", "bright"])
    assert int(num_train) + int(num_val) == 400
    for command in ("train", "pack"):
        assert "digits, fashion-mnist, noise," in said(root, "-m", "mambaout", command, "--help")
    lacking = said(root, "-m", "mambaout", "train", "--out", str(tmp_path / "run"), status=2)
    assert "--data is missing: give digits, fashion-mnist, noise" in lacking
    unknown = said(root, "-c", OPEN.replace('"noise"', '"nois"'), cache=tmp_path, status=1)
    assert "nor is it one of the sets digits, fashion-mnist, noise" in unknown


@pytest.mark.slow
def test_a_study_of_a_named_set_is_planned(copy_with, tmp_path):
    root = copy_with("A named data set")
    words = ("--data", "noise", "--plan", "--storage", str(tmp_path / "runs"))
    shown = said(root, "sweeps/baseline.py", *words, cache=tmp_path / "cache")
    assert "baseline-noise:" in shown
    assert "device-hours" in shown
    assert "digits, fashion-mnist, noise," in said(root, "sweeps/baseline.py", "--help")


# -- a study --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_a_study(copy_with) -> Path:
    """A copy with the script that the guide shows, and a keyword as the guide says."""
    root = copy_with("A study")
    guide = (ROOT / "docs" / "my-images.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    lines_joined = " ".join(guide.split())
    (keyword,) = re.findall(r"`def kernels\(start, \*, (.*?)\)` adds `--deep`", lines_joined)
    script = script.replace("import sys\n", "import sys\nfrom typing import Annotated\n")
    script = script.replace("start: Start)", f"start: Start, *, {keyword})")
    (root / "sweeps" / "kernels.py").write_text(script)
    return root


@pytest.mark.slow
def test_a_study_is_a_script_with_its_own_options_and_a_plan(with_a_study, data_cache, tmp_path):
    shown = " ".join(said(with_a_study, "sweeps/kernels.py", "--help").split())
    assert "--deep three blocks a stage" in shown
    words = ("--smoke", "--deep", "--plan", "--storage", str(tmp_path / "runs"))
    shown = said(with_a_study, "sweeps/kernels.py", *words, cache=data_cache)
    assert "kernels-smoke-digits: Does a larger kernel help more in a wider network?" in shown
    assert "8 trials" in shown


@pytest.mark.slow
def test_a_study_is_in_the_catalogue_test_without_a_row(with_a_study):
    assert passed(with_a_study, "tests/test_catalog.py", "-k", "kernels") > 20
