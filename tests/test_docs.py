"""The pages: every command is one that there is, every link leads somewhere, and what needs neither
a cloud nor data of one's own is run."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import photograph
from PIL import Image

from mambaout import build
from mambaout.__main__ import command_parser
from mambaout.__main__ import main as run_mambaout
from mambaout.data.packing import named_sets
from mambaout.dense_options import given_dense_fields
from mambaout.launch import cli, dense_cli
from mambaout.launch.dense_sweeps import DETECT_SWEEP, SEGMENT_SWEEP
from mambaout.launch.sweep_options import dense_parser, sweep_parser
from mambaout.options import given_fields
from mambaout.train import metrics

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "my-images.md"
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md")
    ),
    *sorted(ROOT.glob("docs/*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

# What a reader fills in or makes: not to be looked for, not to be run.
FILLED_IN = re.compile(r"[A-Z]{4,}|~|gs://|\bshards\b")
DENSE_SWEEPS = {"detect": DETECT_SWEEP, "segment": SEGMENT_SWEEP}  # by the script's name
MADE_BY_READERS = {"kernels.py", "load.py", "model_best.pth.tar"}
FOLDERS = ["benchmarks", "cluster", "docs", "mambaout", "results", "sweeps", "tests"]
OWN_FILE = re.compile(rf"(?<![\w/.~-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w\.\w+")


# -- what the pages say ---------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of a page: those of its `sh` blocks, and those inside a line,
    where two words are a name."""
    text = page.read_text()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from command_words(block)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", outside):
        if re.match(r"(python|mambaout) \S+ \S", code):
            yield from command_words(re.sub(r"[][]", "", code.replace("\n", " ")))


def command_words(text: str) -> Iterator[list[str]]:
    """The commands of some lines of shell, each as its words; a job's own command, not `ray`'s."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for token in [*lexer, ";"]:
            if token[0] not in ";&|<>":
                words.append(token)
                continue
            if found := own_command(words):
                yield found
            words = []


def own_command(words: list[str]) -> list[str]:
    """`words` from our program on: "mambaout", or "python" and a script; else nothing."""
    words = words[words.index("--") + 1 :] if "--" in words else words
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[:3] == ["python", "-m", "mambaout"]:
        words = words[2:]
    ours = words[:1] == ["mambaout"] or (words[:1] == ["python"] and "/" in words[1])
    return words if ours else []


@cache
def sweep(path: str) -> Callable[..., Any]:
    """The function of a sweep: of a script, or of the one that the guide shows."""
    name = Path(path).stem
    if (ROOT / path).exists():
        return runpy.run_path(str(ROOT / path))[name]
    (script,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    found: dict[str, Any] = {"__name__": name}
    exec(script, found)
    return found[name]


@cache
def benchmark_options(path: str) -> frozenset[str]:
    """The options that a benchmark's source declares."""
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
    ]
    return frozenset(
        word.value
        for call in calls
        for word in call.args
        if isinstance(word, ast.Constant) and isinstance(word.value, str)
    )


ALL = [(name, words) for name, page in zip(NAMES, PAGES, strict=True) for words in commands(page)]
EACH = {shlex.join(words): words for _, words in ALL}  # a command that two pages have is one


# -- the promises ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", EACH)
def test_every_command_of_the_pages_is_one_that_there_is(command):
    program, *words = EACH[command]
    if {"--help", "--version"} & set(words):
        with pytest.raises(SystemExit, match=r"^0$"):
            command_parser().parse_args(words)
    elif program == "mambaout":
        given_fields(command_parser().parse_args(words))
    elif words[0].startswith("sweeps/"):
        function, dense = sweep(words[0]), DENSE_SWEEPS.get(Path(words[0]).stem)
        if dense is None:
            given_fields(sweep_parser(function).parse_args(words[1:]))
        else:
            parser = dense_parser(function, dense.kind.baseline, dense.data)
            given_dense_fields(parser.parse_args(words[1:]), dense.kind.recipe_type)
    elif words[0].startswith("benchmarks/"):
        options = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert options <= benchmark_options(words[0])
    else:
        assert (ROOT / words[0]).is_file()


def test_the_pages_have_commands_of_every_kind():
    programs = {words[1] if words[0] == "python" else words[0] for _, words in ALL}
    scripts = {f"sweeps/{path.name}" for path in ROOT.glob("sweeps/*.py")}
    assert programs >= scripts | {"mambaout", "sweeps/kernels.py", "benchmarks/loader.py"}
    (subcommands,) = [action for action in command_parser()._actions if action.dest == "command"]
    assert {words[1] for _, words in ALL if words[0] == "mambaout"} >= set(
        subcommands.choices or ()
    )


def test_the_readme_has_the_command_that_ci_runs():
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    text = without_blocks(ROOT / name)
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        if not page.exists() or (anchor and anchor not in anchors(page)):
            lost.append(target)
    assert not lost


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_names_is_there(name):
    text = (ROOT / name).read_text()
    named = set(OWN_FILE.findall(text)) | {
        f"**/{code}" for code in re.findall(r"`([\w-]+\.(?:py|c|sh|yaml))`", text)
    }
    lost = {
        path
        for path in named
        if Path(path).name not in MADE_BY_READERS and not any(ROOT.glob(path))
    }
    assert not lost


@pytest.mark.parametrize("name", NAMES)
def test_every_page_can_be_reached_from_the_readme(name):
    reached, new = set(), {"README.md"}
    while new:
        reached |= new
        targets = {
            ((ROOT / page).parent / target.partition("#")[0]).resolve()
            for page in new
            for target in re.findall(r"\]\(([^)\s:]+)\)", without_blocks(ROOT / page))
        }
        new = {str(path.relative_to(ROOT)) for path in targets if path in PAGES} - reached
    assert name in reached


@pytest.mark.parametrize("name", NAMES)
def test_python_of_the_pages_can_be_compiled(name):
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.S | re.M):
        compile(block, name, "exec")


def test_the_python_of_one_network_builds_what_it_says():
    page = (ROOT / "docs" / "one-network.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    found: dict[str, Any] = {}
    exec(block, found)
    assert found["recipe"].optim.peak_lr == 8e-3
    assert found["model"].config.dims[0] == 72
    assert found["model"].config.num_blocks == 18 + 6


def test_the_page_of_fields_is_what_the_code_says():
    path = ROOT / "docs" / "recipe_page.py"
    made = runpy.run_path(str(path))["page"]()
    page = (ROOT / "docs" / "recipe.md").read_text()
    assert page == made, "docs/recipe.md is not what the code says; run: python docs/recipe_page.py"


def test_every_metric_has_its_line_in_the_page_of_metrics():
    facts = {metrics.DEVICE, metrics.NUM_DEVICES, metrics.EARLIER_DEVICES}
    names = {value for value in vars(metrics).values() if type(value) is str} - facts
    names = {name for name in names if re.fullmatch(r"[a-z0-9_/]+", name)}
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert {name for name in names if f"`{name}`" not in page} == set()


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        found.add(plain.replace(" ", "-"))
    return found


# -- really run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder to run in: `photos` of three classes, weights of Femto, and no study yet."""
    folder = tmp_path_factory.mktemp("docs")
    torch.save(build("femto").state_dict(), folder / "femto.pth")
    (folder / "runs").mkdir()
    for name in ("cat", "dog", "owl"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(60):
            image = Image.fromarray(photograph(100 + number, 130))
            image.save(folder / "photos" / name / f"{number}.jpg")
    return folder


def needs_nothing(text: str) -> bool:
    """Whether a reader runs the command as it stands: without a cloud, without data of one's own
    but some photographs."""
    return not FILLED_IN.search(text)


STUDIES = [
    text for text, words in EACH.items() if words[1].startswith("sweeps/") and needs_nothing(text)
]
COUNTS = [text for text in EACH if text.startswith("mambaout account") and needs_nothing(text)]


@pytest.mark.slow
@pytest.mark.parametrize("command", STUDIES)
def test_a_study_of_the_pages_is_planned(command, place, monkeypatch, capsys):
    _, path, *words = EACH[command]
    if "fashion-mnist" in words and not named_sets.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("needs Debian's dataset-fashion-mnist")
    monkeypatch.chdir(place)
    plain = [word for word in words if word != "--calibrate"]
    plain += [] if "--plan" in plain else ["--plan"]
    dense = DENSE_SWEEPS.get(Path(path).stem)
    if dense is None:
        assert cli.main(sweep(path), plain) == 0
    else:
        assert dense_cli.main(dense, sweep(path), plain) == 0
    assert "device-hours" in capsys.readouterr().out


@pytest.mark.parametrize("command", COUNTS)
def test_what_the_pages_count_is_counted(command, capsys):
    assert run_mambaout(EACH[command][1:]) == 0
    words = EACH[command]
    what = "tokens" if "--sequence" in words else "params" if "--json" in words else "parameters"
    assert what in capsys.readouterr().out


def test_studies_are_listed_where_there_is_none_yet(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert run_mambaout(EACH["mambaout list"][1:]) == 0
    assert "no study yet" in capsys.readouterr().out


@pytest.mark.slow
def test_the_doctor_of_the_pages_trains(capsys):
    assert run_mambaout(EACH["mambaout doctor"][1:]) != 2  # 1: something else is wrong here
    assert "first steps" in capsys.readouterr().out


@pytest.mark.slow
def test_the_first_fine_tuning_of_the_pages_trains(place, monkeypatch, capsys):
    (command,) = [words for words in EACH.values() if "--init" in words and "runs/tuned" in words]
    monkeypatch.chdir(place)
    short = ["--image-size", "32", "--max-steps", "1"]
    assert run_mambaout([*command[1:], *short]) == 0
    said = "170 of 172 tensors from femto.pth; new: head.fc (the file has 1000 classes, and the"
    assert f"{said} network 3 classes)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_first_training_of_the_pages_trains(place, monkeypatch):
    (command,) = [words for words in EACH.values() if "train" in words and "runs/try" in words]
    monkeypatch.chdir(place)
    run_mambaout([*command[1:], "--max-steps", "2"])
    assert (place / "runs" / "try" / "last.ckpt").exists()
