"""The package as its users get it: a wheel, in an environment far from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from needs import needs_c
from places import ROOT

from mambaout import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Ran = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a folder `build` behind, and packs what lies in it."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mambaout", copy / "mambaout", ignore=caches)
    out = tmp_path_factory.mktemp("wheel")
    words = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run a command of an environment that has the wheel, in an empty folder; what it printed.

    The libraries are those of the environment that runs the tests, on its path. An editable install
    is not: Python reads a .pth file in the first folder alone.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    words = ["--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=120)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
    folder, cache = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("cache")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["MAMBAOUT_CACHE"] = str(cache)

    def run(command: str, *words: str) -> str:
        done = subprocess.run(
            [home / "bin" / command, *words], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = Path(run("python", "-c", "import mambaout; print(mambaout.__file__)").strip())
    assert where.is_relative_to(home), "the tests would be of another mambaout"
    return run


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with ZipFile(wheel) as files:
        packed = {name for name in files.namelist() if ".dist-info/" not in name}
        same = [files.read(name) == (ROOT / name).read_bytes() for name in packed]
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mambaout").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == there
    assert all(same)
    assert wheel.name == f"mambaout-{__version__}-py3-none-any.whl"


def test_the_command_says_its_version_its_help_and_what_a_network_costs(installed):
    assert installed("mambaout", "--version").startswith(f"mambaout {__version__}, Python ")
    assert "train one recipe" in installed("mambaout", "--help")
    assert "7,304,536" in installed("mambaout", "account", "femto")


def test_a_smoke_training_runs_in_an_empty_folder_and_says_where_its_files_are(installed):
    short = ["--epochs", "1", "--dims", "8,8,16,16"]
    shown = installed("mambaout", "train", "--smoke", *short)
    assert "into runs/train-smoke" in shown
    last = shown.splitlines()[-1]
    assert last.startswith("finished: top-1 ")
    assert last.endswith("runs/train-smoke/outcome.json")
    assert "top-1" in installed("mambaout", "evaluate", "runs/train-smoke")


@needs_c
def test_the_c_files_compile_from_the_installed_package(installed):
    code = (
        "from mambaout.data.images.c_files import C_FILES\n"
        "from mambaout.native import why_not\n"
        "print(why_not(C_FILES))"
    )
    assert installed("python", "-c", code) == "None\n"


def test_the_published_results_come_with_the_package(installed):
    code = "from mambaout.study.law.published import published; print(len(published()))"
    assert int(installed("python", "-c", code)) > 0
