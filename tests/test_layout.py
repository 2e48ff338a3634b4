"""The layers of LAYOUT.md, held by reading the sources: imports point one way, a home a library."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mambaout"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A folder may import itself and what stands to its right.
BOTTOM = {
    "cache",
    "code_version",
    "durable",
    "endings",
    "errors",
    "fields",
    "recipe",
    "recipe_parts",
    "segment_recipe",
    "segment_rules",
    "stored_format",
    "options",
    "command_line",
    "rules",
    "variants",
    "layer_kinds",
    "mixer_layers",
    "sequence_layers",
    "layers",
    "chips",
    "accounting",
    "dense_layers",
    "dense_accounting",
    "dense_options",
    "detect_recipe",
    "dense_rules",
    "detect_rules",
    "applied_rules",
    "memory",
    "recompute",
    "sequence",
    "numbers",
    "native",
}
MAY_IMPORT = {
    "commands": {"launch", "study", "dense", "train", "model", "data"} | BOTTOM,
    "launch": {"study", "dense", "train", "model", "data"} | BOTTOM,
    "study": {"train"} | BOTTOM,  # of train, only metrics and tasks: see below
    "dense": {"train", "model", "data"} | BOTTOM,
    "train": {"model", "data"} | BOTTOM,
    "model": BOTTOM,
    "data": BOTTOM,
}
# Inside a folder: a room may import itself, what stands to its right, and the folder's ground,
# which are the files that lie in no room.
GROUND = ""
ROOMS = {
    "study": {
        "report": {"search", "law", GROUND},
        "price": {"search", "law", GROUND},
        "tracking": {"search", "law", GROUND},
        "search": {"law", GROUND},
        "law": {GROUND},
        GROUND: set(),
    },
    "data": {
        "packing": {"batches", "images", "shards", GROUND},
        "batches": {"images", "shards", GROUND},
        "images": {"shards", GROUND},
        "shards": {GROUND},
        GROUND: set(),
    },
    "launch": {GROUND: set(), "files": {GROUND}},
}
HOMES = {
    "ray": {"launch"},
    "mlflow": {
        "study/tracking/tracker.py",
        "study/tracking/tracked_study.py",
        "study/tracking/mlflow_client.py",
    },
    "optuna": {"study/search/memory.py", "study/search/importances.py"},
    "matplotlib": {"study/report"},
    "torch_xla": {"train/backend.py"},
    "pyarrow": {"data"},
    "PIL": {"data", "study/report/picture.py"},
    "timm": {"model/timm_call.py"},
    "tqdm": {"data/bar.py"},
    "pycocotools": {"dense"},
    "faster_coco_eval": {"dense/evaluate.py"},
    "torchvision.models": {"dense"},
    "onnx": {"model/onnx_file.py"},
    "onnxruntime": {"model/onnx_file.py"},
}


def imported(path: Path) -> set[str]:
    """Every module that the file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer in ("__main__", "__init__"):
        return  # the command and the package's front door reach every layer
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("mambaout.")}
    allowed = BOTTOM if layer in BOTTOM else MAY_IMPORT[layer] | {layer}
    assert ours <= allowed, f"{path} imports {sorted(ours - allowed)}"
    if layer == "study":
        reached = {name for name in imported(path) if name.startswith("mambaout.train")}
        pure = ("mambaout.train.metrics", "mambaout.train.tasks")
        assert all(name.startswith(pure) for name in reached)


def module_of(path: Path) -> str:
    """mambaout.study.law.fit of mambaout/study/law/fit.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def modules_imported(path: Path) -> set[str]:
    """The package's modules that the file imports."""
    return (imported(path) & MODULES.keys()) - {"mambaout", module_of(path)}


def room_of(module: str) -> tuple[str, str]:
    """The folder and its room: ("study", "law") of mambaout.study.law.fit."""
    parts = MODULES[module].relative_to(PACKAGE).parts
    return parts[0], parts[1] if len(parts) > 2 else GROUND


@pytest.mark.parametrize("folder", ROOMS)
def test_rooms_import_what_stands_below_them(folder):
    rooms = ROOMS[folder]
    wrong = []
    for module in MODULES:
        layer, room = room_of(module)
        if layer != folder:
            continue
        assert room in rooms, f"{module} is in a room that nobody has named"
        for other in modules_imported(MODULES[module]):
            other_layer, other_room = room_of(other)
            is_folder = other == f"mambaout.{folder}" or other == f"mambaout.{folder}.{other_room}"
            if other_layer == folder and not is_folder and other_room not in rooms[room] | {room}:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_no_two_modules_import_each_other_directly_or_in_a_circle():
    reached = {module: modules_imported(path) for module, path in MODULES.items()}
    rests = dict(reached)
    while free := [module for module, others in rests.items() if not others & rests.keys()]:
        for module in free:
            del rests[module]
    circle = {module: sorted(others & rests.keys()) for module, others in rests.items()}
    assert circle == {}


def is_inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_library_has_one_home(path):
    where = path.relative_to(PACKAGE)
    for name in imported(path):
        homes = HOMES.get(next((home for home in HOMES if is_inside(name, home)), ""))
        if homes is not None:
            assert any(where.is_relative_to(home) for home in homes), f"{where} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_pure_values_import_no_library(path):
    if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in BOTTOM:
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots <= set(sys.stdlib_module_names) | {"mambaout"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("mambaout.train.loop", ("ray", "mlflow", "optuna", "torch_xla", "timm")),
        ("mambaout.study.report.study_report", ("torch", "ray")),
        ("mambaout.study.price.plan", ("torch", "ray", "mlflow")),
        ("mambaout.__main__", ("torch", "ray", "mlflow")),
    ],
)
def test_a_layer_runs_without_the_libraries_above_it(module, absent):
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert shown.stdout.strip() == "[]"


MOST_LINES = 400


def test_no_file_is_longer_than_400_lines():
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".c", ".h")
    }
    too_long = {name: length for name, length in lengths.items() if length > MOST_LINES}
    assert too_long == {}, "a file that is more than one thing gives one of them a file of its own"


CLASSES = [
    (node.name, path.relative_to(PACKAGE).as_posix())
    for path in SOURCES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ClassDef)
]


def test_no_two_classes_share_a_name():
    files: dict[str, set[str]] = {}
    for name, file in CLASSES:
        files.setdefault(name, set()).add(file)
    assert {name: where for name, where in files.items() if len(where) > 1} == {}


# "ed" makes a participle, but not in Feed, Seed or Speed. What is a noun, too, is left out: Bound,
# Cut, Fit, Split, and all in "ing", like Pricing.
PARTICIPLE = re.compile(r"_?[A-Z][a-z]*(?<!e)ed")
IRREGULAR = re.compile(
    "_?(Begun|Bought|Brought|Broken|Built|Chosen|Done|Drawn|Fed|Found|Given|Grown|Held|Kept|Known|"
    "Laid|Left|Lost|Made|Meant|Met|Paid|Put|Read|Seen|Sent|Shown|Shut|Sold|Spent|Taken|Taught|"
    "Thrown|Told|Understood|Won|Written)"
)
OUTCOMES = {"Diverged", "Finished", "Preempted"}  # of a run, each a type of its own


def is_participle(name: str) -> bool:
    return bool(PARTICIPLE.fullmatch(name) or IRREGULAR.fullmatch(name))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *(("Filled", True), ("_Packed", True), ("Sent", True), ("_Drawn", True)),
        *(("FilledBatch", False), ("Speed", False), ("Feed", False), ("Pricing", False)),
    ],
)
def test_a_bare_participle_is_told_from_a_noun(name, is_one):
    assert is_participle(name) is is_one


def test_no_class_is_named_by_a_bare_participle():
    bare = {name for name, _ in CLASSES if is_participle(name)}
    assert bare - OUTCOMES == set(), "a class is a noun: FilledBatch, not Filled"
    assert OUTCOMES - bare == set(), "take what is mended out of OUTCOMES"


IGNORE = re.compile(r"# pyright: ignore\[report\w+\](?P<reason> - \w.*)?$")
CHECKED = [
    path
    for folder in ("mambaout", "sweeps", "tests", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_what_the_type_checker_is_to_ignore_has_its_rule_and_its_reason():
    """The reason stands behind the rule, or in a comment on the line above."""
    wrong = []
    for path in CHECKED:
        text = path.read_text()
        lines = text.splitlines()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.COMMENT or not re.search(r"(pyright|type): ", token.string):
                continue
            row = token.start[0]
            ignore = IGNORE.search(token.string)
            has_comment_above = row > 1 and lines[row - 2].lstrip().startswith("# ")
            if ignore is None or not (ignore["reason"] or has_comment_above):
                wrong.append(f"{path.relative_to(ROOT)}:{row}: {token.string}")
    assert wrong == []


def test_no_file_is_a_drawer_for_everything():
    assert not [path for path in SOURCES if path.name in ("utils.py", "helpers.py", "common.py")]
