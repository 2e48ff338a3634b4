"""--detect with a budget, from the command line to the study's files."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from sweep_scripts import FUNCTIONS

from mambaout.launch import cli
from mambaout.launch.request import Request
from mambaout.study.study import StudyFolder

DETECT = ["--detect", "0.5", "--accelerator", "cpu", "--max-concurrent", "2"]


@pytest.fixture
def launched(tmp_path, monkeypatch, digits):
    """Launch a sweep with these words up to the moment at which trials would be placed."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def launch(*words: str, sweep: str = "scale") -> Request:
        seen: list[Request] = []
        monkeypatch.setattr(cli, "run_study", lambda request: seen.append(request) or 0)
        storage = ["--storage", str(tmp_path / "runs")]
        assert cli.main(FUNCTIONS[sweep], ["--data", "digits", *storage, *words]) == 0
        return seen[0]

    return launch


def begun(request: Request) -> None:
    """What the launch writes before its first trial."""
    folder = StudyFolder(request.storage, request.name)
    folder.write(request.study, request.trials, command=request.command, **request.facts)


def seeds_of(request: Request) -> Counter[str]:
    return Counter(trial.label for trial in request.trials)


def printed_hours(text: str) -> float:
    found = re.search(r"device-hours ([\d.]+) h", text)
    assert found, text
    return float(found[1])


def test_a_grant_leaves_shapes_out_and_the_plan_says_which_and_why(launched, tmp_path, capsys):
    def plan(*words: str) -> str:
        argv = ["--data", "digits", "--storage", str(tmp_path / "runs"), *DETECT, *words, "--plan"]
        assert cli.main(FUNCTIONS["scale"], argv) == 0
        return capsys.readouterr().out

    whole = printed_hours(plan("--grant-hours", "1000"))
    grant = 0.93 * whole
    text = plan("--grant-hours", f"{grant:.3f}")
    assert printed_hours(text) <= grant
    said = re.search(
        r"--detect 0.5 within --grant-hours \S+ leaves out (\S+)(, \S+)*: most hours for what is "
        r"told; with all shapes it needs --grant-hours (\S+)",
        text,
    )
    assert said, text
    assert float(said[3]) == pytest.approx(whole, abs=0.1)
    request = launched(*DETECT, "--grant-hours", f"{grant:.3f}")
    assert said[1] not in seeds_of(request)
    assert "baseline" in seeds_of(request)
    assert f"{said[1]} " not in text.partition("recipe  ")[2]


def test_a_study_that_has_begun_keeps_its_shapes_and_seeds(launched):
    whole = launched(*DETECT)
    words = [*DETECT, "--budget-hours", "2"]
    first = launched(*words)
    assert set(seeds_of(first)) < set(seeds_of(whole))
    begun(first)
    kept = StudyFolder(first.storage, first.name).read()["detect"]
    assert kept["budget"] == "--budget-hours 2"
    assert kept["left_out"]
    assert "--budget-hours 2" in first.command
    again = launched(*words)
    assert [trial.key for trial in again.trials] == [trial.key for trial in first.trials]
    assert again.about_design == first.about_design
    for other in ([*DETECT, "--budget-hours", "9"], DETECT):
        later = launched(*other)
        assert seeds_of(later) == seeds_of(first)
        assert (
            "the study began with the shapes and seeds for --budget-hours 2" in later.about_design
        )
    anew = launched(*DETECT, "--budget-hours", "9", "--name", "anew")
    assert set(seeds_of(anew)) == set(seeds_of(whole))
    assert anew.about_design == ""


def test_the_size_below_a_predicted_one_stays(launched):
    """A law that is to reach w48-d10 needs the largest of the others at its length."""
    request = launched(*DETECT, "--predict", "--budget-hours", "2.25")
    labels = set(seeds_of(request))
    assert {"w24-d10-e21", "w32-d10-e21", "w48-d10-e21", "baseline"} <= labels
    assert request.facts["detect"]["left_out"]


def test_a_shape_is_left_out_in_every_group_of_recipes(launched):
    """Otherwise another group would be the largest, and the report would compare that one."""
    depths = {4: "1,1,1,1", 10: "2,2,4,2"}
    shapes = [
        f"w{width}d{depth}={depths[depth]}/{width},{2 * width},{4 * width},{6 * width}"
        for width, depth in ((8, 4), (8, 10), (16, 4), (24, 4), (16, 10), (32, 4))
    ]
    words = ["--shapes", *shapes, "--grid", "peak_lr=1e-3,2e-3", "--epochs", "4", "--detect", "1"]
    whole = launched(*words, sweep="mine")
    hours = [*words, "--accelerator", "cpu", "--max-concurrent", "1", "--budget-hours"]
    request = launched(*hours, "0.22", sweep="mine")
    gone = set(seeds_of(whole)) - set(seeds_of(request))
    left_out = request.facts["detect"]["left_out"]
    assert len(gone) == 2 * len(left_out) > 0


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("scale", ["--smoke", "--detect", "1", "--budget-hours", "0.03"]),
        ("mixer", ["--detect", "0.5", "--grant-hours", "3"]),
    ],
)
def test_a_budget_that_is_too_small_is_one_line_with_what_it_finds(
    sweep, words, tmp_path, monkeypatch, capsys, digits
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    argv = ["--data", "digits", *words, "--storage", str(tmp_path / "runs"), "--accelerator", "cpu"]
    assert cli.main(FUNCTIONS[sweep], argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(
        r"finds? [\d.]+ points; (0.5|1) points need --(budget|grant)-hours [\d.]+", said
    )
