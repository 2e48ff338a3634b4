"""What `make setup` takes for its Python, and what it says where there is none."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mambaout import __version__

ROOT = Path(__file__).parent.parent
HERE = f'exec {sys.executable} "$@"'  # a Python that is tested
OLD = "exit 1"  # one that is asked and is not
GONE = "echo 'python3.11: command not found' >&2; exit 127"  # pyenv's name for what is not in use

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="wants make")


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder without a virtual environment, with the given Pythons on the path."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()

    def run(*words: str, **pythons: str) -> subprocess.CompletedProcess[str]:
        for name, script in pythons.items():
            path = tmp_path / "bin" / name.replace("_", ".")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        found = shutil.which("make")
        assert found is not None
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "PYTHON"))}
        return subprocess.run(
            [found, *words],
            env=env | {"PATH": str(tmp_path / "bin")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3_11": HERE, "python3_12": HERE, "python3": HERE}, "python3.11"),
        ({"python3_11": GONE, "python3_13": HERE, "python3": OLD}, "python3.13"),
        ({"python3": HERE}, "python3"),
    ],
)
def test_the_first_python_that_is_tested_is_taken(make, tmp_path, pythons, taken):
    shown = make("-n", "setup", **pythons).stdout
    assert f"{tmp_path}/bin/{taken} -m venv" in shown


def test_without_a_tested_python_one_line_says_which_are_wanted(make):
    done = make("setup", python3=OLD, python3_11=GONE)
    assert done.returncode == 2
    [line] = done.stdout.splitlines()
    assert line.startswith("Python 3.11, 3.12 or 3.13 is needed, and none is on the path")
    assert "make PYTHON=/path/to/python" in line


def test_a_python_without_venv_is_named_with_its_package(make):
    no_pip = f'case "$2" in *ensurepip*) exit 1;; esac\n{HERE}'
    done = make("setup", python3=no_pip)
    assert done.returncode == 2
    package = "python{}.{}-venv".format(*sys.version_info)
    assert done.stdout == f"Python's venv is missing: apt install {package}\n"


def test_the_tested_pythons_are_the_same_in_every_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first, last = map(int, re.findall(r"\(3, (\d+)\)", (ROOT / "Makefile").read_text())[:2])
    assert project["requires-python"] == f">=3.{first},<3.{last + 1}"
    named = [text.rpartition(" :: 3.")[2] for text in project["classifiers"]]
    assert list(map(int, named)) == list(range(first, last + 1))
    for path in (".ci/run", "Makefile"):
        text = (ROOT / path).read_text()
        assert f"python3.{last}" in text
        assert f"python3.{last + 1}" not in text


def test_every_version_is_exact_and_is_that_of_the_tested_set():
    """pyproject.toml says what is needed, constraints.txt all that comes with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    asked += [line for extra in extras for line in extra]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if line[0] != "#")
    }
    requirements = [Requirement(line) for line in asked]
    wrong = [
        str(each)
        for each in requirements
        if str(each.specifier) != f"=={tested.get(canonicalize_name(each.name))}"
    ]
    assert wrong == [], "one version in both files: the one that the tests ran with"


def test_what_the_package_imports_is_what_it_asks_for():
    """A library that comes with another one may stop coming."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    # Extras are imported where they are there: for TPUs, and for what few people do.
    extras = project["optional-dependencies"]
    for line in (*extras["tpu"], *extras["dense"]):
        asked.add(canonicalize_name(Requirement(line).name))
    installs = packages_distributions()
    tried = {"mamba_ssm"}  # used where somebody has it, on CUDA
    missing = set()
    for path in (ROOT / "mambaout").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for root in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                if root != "mambaout" and not asked & set(
                    map(canonicalize_name, installs.get(root, []))
                ):
                    missing.add(root)
    assert missing == tried


def test_the_version_is_said_once_and_heads_the_changelog():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mambaout.__version__"}
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__


def test_ci_says_how_long_the_tests_took_and_which_took_longest():
    """pytest's last line has the seconds; the lines above it are these tests."""
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "/pytest" in line]
    assert "--durations 10" in line
    assert "--durations-min" in line
    assert "make test" in (ROOT / ".ci" / "run").read_text()
