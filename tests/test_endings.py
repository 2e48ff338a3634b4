"""One vocabulary of how a run ends: every ending has a word in MLflow, in Optuna and for people."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest
from study_files import finished_study, write_outcome

from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.launch.failures import Failure, Kind, add_failure, read_failures
from mambaout.launch.progress import ended_line
from mambaout.study.report.findings import answer
from mambaout.study.report.reading import reading
from mambaout.study.report.rows import Row
from mambaout.study.search.memory import OPTUNA_STATES
from mambaout.study.study import StudyFolder
from mambaout.study.tracking.tracked_run import MLFLOW_STATUSES, MlflowStatus


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> StudyFolder:
    return finished_study(tmp_path_factory.mktemp("endings"))


def test_every_ending_has_a_status_of_mlflow_and_a_state_of_optuna():
    import optuna

    assert MLFLOW_STATUSES.keys() == OPTUNA_STATES.keys() == set(Ending)
    assert set(MLFLOW_STATUSES.values()) == set(get_args(MlflowStatus))
    assert set(OPTUNA_STATES.values()) <= {state.name for state in optuna.trial.TrialState}


@pytest.mark.parametrize("ending", Ending)
def test_the_report_and_the_terminal_say_every_ending(folder, ending):
    first, *others = folder.runs()
    run = replace(first, status=ending, facts={"error": "E", "why": "W"})
    said = " ".join(answer(reading([run, *others], study=folder.read())))
    state = Row(run.trial.label, run.trial.recipe, (run,)).state
    text = "have not finished" if ending is Ending.UNFINISHED else ending.text
    assert (text in said) == (ending is not Ending.FINISHED)
    if ending is Ending.FINISHED:
        assert state == ""
        assert "% val" in ended_line(run, 0, 1, 1)
    elif ending is not Ending.UNFINISHED:  # which is no end, and whose epoch is its state
        assert ending.text in state
        why = "W" if ending is Ending.STOPPED else "E"
        assert ended_line(run, 0, 1, 1).endswith(f"{ending.text}: {why}")


def test_a_run_is_over_or_given_up_after_a_failure_or_unfinished():
    for ending in Ending:
        assert ending.is_over + ending.is_failure + (ending is Ending.UNFINISHED) == 1
    assert set(get_args(Kind)) == {ending for ending in Ending if ending.is_failure}


def test_the_words_of_stored_files_are_read_as_ever(folder, tmp_path):
    first, other, *_ = folder.trials()
    kept = StudyFolder(tmp_path, "kept")
    for trial, word in ((first, "finished"), (other, "diverged")):
        write_outcome(kept.run_directory(trial), word, {})
        assert kept.run(trial).status is Ending(word)
    lines = [{"kind": "broken"}, {"kind": "out_of_memory"}, {"kind": "preempted"}]
    lines.append({"kind": "diverged"})  # of an earlier version
    texts = [json.dumps({"error": "x", "step": 1, "launch": "a"} | line) for line in lines]
    (tmp_path / "failures.jsonl").write_text("\n".join(texts) + "\n")
    assert [failure.kind for failure in read_failures(tmp_path, "a")] == [
        Ending.BROKEN, Ending.OUT_OF_MEMORY, Ending.PREEMPTED, Ending.DIVERGED,
    ]  # fmt: skip


def test_an_ending_is_written_as_its_word(tmp_path):
    add_failure(tmp_path, Failure(kind=Ending.OUT_OF_MEMORY, error="x", step=1, launch="a"))
    assert '"kind": "out_of_memory"' in (tmp_path / "failures.jsonl").read_text()


def test_an_outcome_of_a_word_that_is_not_known_names_its_file(folder, tmp_path):
    (trial, *_) = folder.trials()
    kept = StudyFolder(tmp_path, "kept")
    write_outcome(kept.run_directory(trial), "fine", {})
    with pytest.raises(WrongRequest, match=r"outcome\.json cannot be read: 'fine'"):
        kept.run(trial)
