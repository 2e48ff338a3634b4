"""A user's mistake is one line and status 2; a bug keeps its traceback and is status 1."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flaky_store import open_store
from image_files import nobody, open_folder, pictures, write_parquet
from study_files import finished_study

import mambaout
from mambaout.__main__ import main
from mambaout.errors import WrongRequest
from mambaout.fields import all_of
from mambaout.launch.lock import CannotHold, held

ROOT = Path(mambaout.__file__).parents[1]
OPTIONS = (
    "--depths 1,1,1,1 --dims 8,16,24,32 --stem-stride 2 --image-size 16 --global-batch 8 "
    "--minival-fraction 0.2 --epochs 2 --warmup-epochs 0.5 --backend cpu --workers 0"
)
TINY = OPTIONS.split()


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What a process of its own makes of it: the status that a shell sees, too."""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )


# -- bugs -----------------------------------------------------------------------------------------

BUGS = {
    "a zip that fails": "list(zip([1], [], strict=True))",
    "a file that the code forgot": "open('/nowhere/at/all')",
    "a file that is no folder": "__import__('os').listdir('/proc/version')",
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=list(BUGS))
def test_a_bug_in_a_subcommand_shows_its_traceback_and_is_status_1(bug):
    code = (
        "import sys\nimport mambaout.accounting\nfrom mambaout.__main__ import main\n"
        f"def broken(*_): {bug}\n"
        "mambaout.accounting.account_table = broken\n"
        "sys.exit(main(['account', 'femto']))"
    )
    done = python(code)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "in broken" in done.stderr


@pytest.mark.parametrize("bug", BUGS.values(), ids=list(BUGS))
def test_a_bug_in_a_studys_function_shows_its_traceback_and_is_status_1(bug, tmp_path, digits):
    code = (
        "import sys\nfrom mambaout.launch.cli import main\n"
        f"def broken(start): {bug}\n"
        "sys.exit(main(broken))"
    )
    done = python(code, "--data", "digits", "--storage", str(tmp_path / "runs"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "in broken" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bug_is_not_counted_among_what_is_wrong_with_a_request():
    def wrong() -> None:
        raise WrongRequest("--epochs is")

    def broken() -> None:
        list(zip([1], [], strict=True))

    with pytest.raises(ValueError, match="shorter") as raised:
        all_of(wrong, broken)
    assert not isinstance(raised.value, WrongRequest)


def test_a_study_whose_table_has_a_bug_is_not_called_damaged(tmp_path, monkeypatch):
    from mambaout.study.report import study_report as report

    def broken(*_: object) -> None:
        list(zip([1], [], strict=True))

    finished_study(tmp_path)
    monkeypatch.setattr(report, "ranked_cells", broken)
    with pytest.raises(ValueError, match="shorter") as raised:
        main(["report", "scale", "--storage", str(tmp_path)])
    assert not isinstance(raised.value, WrongRequest)


# Where text or bytes are parsed, which Python, Pillow and others say by a ValueError.
PARSES = {
    "launch/named.py": 1,  # json.loads
    "data/shards/columns.py": 1,
    "data/shards/description.py": 1,  # a damaged file of the cache
    "dense/coco.py": 1,  # json.loads
    "detect_recipe.py": 1,  # json.loads
    "durable.py": 1,  # a line of a file
    "data/images/decode.py": 1,
    "data/images/jpeg.py": 3,
    "fields.py": 1,  # int(text), float(text)
    "launch/sweep_options.py": 1,  # float(text)
    "launch/cluster.py": 1,  # ray.init, of an address
    "launch/rerun.py": 1,  # json.loads
    "launch/resources.py": 1,
    "recipe.py": 1,
    "segment_recipe.py": 1,  # json.loads
    "study/tracking/mlflow_client.py": 1,
    "study/price/rates.py": 1,
    "study/tracking/store.py": 1,
    "study/run_files.py": 1,
    "train/run_files.py": 1,  # an outcome.json that somebody changed
}


def test_no_bare_value_error_is_caught_to_tell_a_users_mistake():
    found: dict[str, int] = {}
    for path in [*(ROOT / "mambaout").rglob("*.py"), *(ROOT / "sweeps").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            caught = (
                ast.unparse(node.type) if isinstance(node, ast.ExceptHandler) and node.type else ""
            )
            if "ValueError" in caught.replace("(", " ").replace(",", " ").split():
                name = path.relative_to(ROOT).as_posix().removeprefix("mambaout/")
                found[name] = found.get(name, 0) + 1
    assert {name: count for name, count in found.items() if count > PARSES.get(name, 0)} == {}


# -- paths that a user gets wrong -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pack digits {file}/out", "OUT {file}/out: {file} is a file; give a folder"),
        ("pack digits /proc/out", "OUT /proc/out cannot be written"),
        ("pack digits {folder}", "{folder} is there and not an empty folder"),
        ("pack {idx} {new}", "train-images-idx3-ubyte"),
        ("evaluate {folder}/weights.pth --data digits", "{folder}/weights.pth"),
        ("evaluate {folder} --data digits", "{folder} holds no last.ckpt"),
        ("export {file} {new}/x.safetensors", "{new}, where x.safetensors goes, is no folder"),
        ("list --storage {file}", "{file} is no folder"),
        ("list --storage {long}", "is no folder"),
        ("list none --storage {file}", "no study 'none'"),
        ("report none --storage {long}", "no study 'none'"),
        ("sync none --storage {file}/x", "no study 'none'"),
        ("ui --storage {file}/x", "{file}"),
        ("ui --storage {long}", "{long}"),
        ("report bare --storage {folder}", "study.json cannot be read: it lacks name, question"),
        ("sync list --storage {folder}", "study.json cannot be read: it lacks name, question"),
    ],
)
def test_a_path_that_is_wrong_is_one_line_and_status_2(words, said, tmp_path, capsys, digits):
    places = {name: tmp_path / name for name in ("file", "folder", "idx", "new")}
    places["long"] = tmp_path / (300 * "x")
    places["file"].write_text("plain text")
    for name, text in (("bare", "{}"), ("list", "[1]")):
        (places["folder"] / name).mkdir(parents=True)
        (places["folder"] / name / "study.json").write_text(text)
    places["idx"].mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (places["idx"] / f"{name}-ubyte").write_bytes(b"\0")
    assert main([word.format(**places) for word in words.split()]) == 2
    shown = capsys.readouterr().err
    assert said.format(**places) in shown
    assert shown.count("\n") == 1


def test_a_study_of_another_user_is_one_line_that_names_the_file(capsys):
    import mambaout.study.report.study_report  # noqa: F401 - before the process is nobody's

    with open_folder() as folder:
        path = finished_study(folder).path / "study.json"
        path.chmod(0)
        with nobody():
            assert main(["report", "scale", "--storage", str(folder)]) == 2
        shown = capsys.readouterr().err
        assert f"{path} cannot be read (Permission denied)" in shown
        assert shown.count("\n") == 1


def test_a_folder_that_cannot_be_held_says_so(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(CannotHold, match=r"study x cannot be written to \(Not a directory\)"),
        held(tmp_path / "file" / "x", "study x"),
    ):
        raise AssertionError


# -- after the start ------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path) -> Path:
    """Photographs of two sizes, which are read from the shards step by step."""
    images = [*pictures(48, size=20), *pictures(48, size=24, seed=1)]
    images = [images[i // 2 + 48 * (i % 2)] for i in range(96)]
    labels = [i % 3 for i in range(96)]
    write_parquet(tmp_path / "set" / "train-0.parquet", images[:64], labels[:64])
    write_parquet(tmp_path / "set" / "val-0.parquet", images[64:], labels[64:])
    return tmp_path / "set"


def test_a_shard_that_vanishes_while_a_run_trains_is_one_line_and_status_1(
    shards, tmp_path, monkeypatch, capsys
):
    store, out = open_store(monkeypatch), tmp_path / "run"

    def vanish(path: str) -> None:
        if (out / "recipe.json").exists():
            raise FileNotFoundError(2, "No such file or directory")

    command = ["train", "--data", f"flaky://{shards}", "--out", str(out), *TINY]
    store.on_read = vanish
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "train-0.parquet cannot be read" in said
    assert "the same command continues" in said
    assert "Traceback" not in said
    store.on_read = lambda path: None
    assert main(command) == 0
    # Before anything was begun the same is a wrong request.
    store.on_read = vanish
    other = ["train", "--data", f"flaky://{shards}/not", "--out", str(tmp_path / "not"), *TINY]
    assert main(other) == 2


def test_a_shard_that_vanishes_while_weights_are_evaluated_is_status_1(
    shards, tmp_path, monkeypatch, capsys
):
    store, out = open_store(monkeypatch), tmp_path / "run"
    assert main(["train", "--data", f"flaky://{shards}", "--out", str(out), *TINY]) == 0
    capsys.readouterr()
    command = ["evaluate", str(out), "--data", f"flaky://{shards}", "--workers", "0"]

    def vanish(path: str) -> None:
        if "last.ckpt: " in capsys.readouterr().out:
            store.errors = [FileNotFoundError("gone")] * 100

    store.on_read = vanish
    assert main([*command, "--backend", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "val-0.parquet cannot be read" in said
    assert "Traceback" not in said
