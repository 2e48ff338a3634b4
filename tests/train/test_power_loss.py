"""Promises after a power loss: what the disk did not get is made again, or its file is named.

A version that syncs nothing leaves renamed files empty and appended ones short, or ending in NULs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from study_files import DATA, finish, finished_study, mixed_study, start, write_study

from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.launch.failures import FAILURES_FILE, Failure, add_failure, read_failures
from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.study.law.prediction import PREDICTION_FILE
from mambaout.study.price.rates import RATES_FILE, Rate, add_calibrated, calibrated, measured
from mambaout.study.report.study_report import write_report
from mambaout.study.study import StudyFolder
from mambaout.train import metrics
from mambaout.train.backend import Cpu
from mambaout.train.loop import train
from mambaout.train.metrics import Record, read_records
from mambaout.train.outcomes import Finished, Preempted
from mambaout.train.run_directory import RunDirectory
from mambaout.variants import ModelConfig

MEASURED = {
    metrics.TOP1, metrics.TOP5, metrics.MINIVAL_TOP1, metrics.MINIVAL_LOSS, metrics.VAL_TOP1,
    metrics.VAL_LOSS, metrics.MACS, metrics.PARAMS, metrics.MICRO_BATCH,
}  # fmt: skip
NULS = b"\0" * 4096


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory) -> Path:
    """A finished run of eight steps, a record each."""
    out = tmp_path_factory.mktemp("power") / "whole"
    assert isinstance(run(recipe_of_two_epochs(), digits, out), Finished)
    return out


def recipe_of_two_epochs() -> Recipe:
    model = ModelConfig(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), stem_stride=2, kernel_size=3)
    recipe = replace(with_global_batch(BASELINE, 64), model=model)
    return tuned(
        recipe, epochs=2, warmup_epochs=0.5, image_size=16, train_images=256, minival_fraction=0.1
    )


def run(recipe: Recipe, data, out: Path, **options):
    return train(recipe, data, out=out, **({"log_every_steps": 1, "backend": Cpu()} | options))


def copied(whole: Path, out: Path) -> Path:
    """The run at its last checkpoint, before outcome.json was there."""
    shutil.copytree(whole, out)
    (out / "outcome.json").unlink()
    return out


def results(out: Path) -> dict[str, float]:
    found = json.loads((out / "outcome.json").read_text())["metrics"]
    return {name: value for name, value in found.items() if name in MEASURED}


def last_lines(body: bytes, count: int) -> list[int]:
    """Where each of the last lines begins, and the end of the file."""
    lines = body.splitlines(keepends=True)
    return [len(b"".join(lines[:index])) for index in range(len(lines) - count, len(lines) + 1)]


def cuts(body: bytes) -> list[int]:
    """Places in the last three lines: before, at and after each end, and inside."""
    places = last_lines(body, 3)
    near = {place + by for place in places for by in (-1, 0, 1)}
    inside = {(one + other) // 2 for one, other in pairwise(places)}
    return sorted(place for place in near | inside if place <= len(body))


# -- a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b"", NULS], ids=["cut", "NULs"])
def test_a_run_whose_last_records_are_lost_ends_with_the_same_metrics(
    whole, digits, tmp_path, tail
):
    body = (whole / "records.jsonl").read_bytes()
    for cut in cuts(body):
        out = copied(whole, tmp_path / str(cut))
        (out / "records.jsonl").write_bytes(body[:cut] + tail)
        assert isinstance(run(recipe_of_two_epochs(), digits, out), Finished)
        assert results(out) == results(whole), cut
        steps = [record.step for record in read_records(out / "records.jsonl")]
        assert steps == sorted({*range(1, body[:cut].count(b"\n") + 1), 8})


@pytest.mark.parametrize("kind", ["no file", "empty", "without the final evaluation", "damaged"])
def test_a_run_at_its_end_without_its_evaluation_is_evaluated_again(whole, digits, tmp_path, kind):
    out = copied(whole, tmp_path / "run")
    path = out / "records.jsonl"
    *first, last = read_records(path)
    bare = {name: value for name, value in last.values.items() if "/top" not in name}
    last = Record(step=8, epoch=2.0, images_seen=512, seconds=last.seconds, values=bare)
    if kind == "no file":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "damaged":
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:2], lines[2][:20], *lines[2:]]))
    else:
        path.write_text("".join(record.to_json() + "\n" for record in [*first, last]))
    assert isinstance(run(recipe_of_two_epochs(), digits, out), Finished)
    assert results(out) == results(whole)
    again = run(recipe_of_two_epochs(), digits, out)
    assert isinstance(again, Finished)
    assert {name: again.metrics[name] for name in results(whole)} == results(whole)


def test_an_evaluation_that_was_lost_on_the_way_is_made_again_and_the_run_goes_on(
    whole, digits, tmp_path
):
    out = tmp_path / "run"
    assert run(recipe_of_two_epochs(), digits, out, max_steps=4) == Preempted(4)
    path = out / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]) + NULS)
    assert isinstance(run(recipe_of_two_epochs(), digits, out), Finished)
    assert results(out) == results(whole)
    curves = [
        [(r.step, r.values[metrics.MINIVAL_TOP1]) for r in read_records(folder / "records.jsonl")
         if metrics.MINIVAL_TOP1 in r.values]
        for folder in (out, whole)
    ]  # fmt: skip
    assert curves[0] == curves[1]


@pytest.mark.parametrize("spoilt", [b"", NULS, b'{"status": "finis' + NULS])
def test_an_outcome_that_a_power_loss_emptied_is_written_again(whole, digits, tmp_path, spoilt):
    out = copied(whole, tmp_path / "run")
    (out / "outcome.json").write_bytes(spoilt)
    assert isinstance(run(recipe_of_two_epochs(), digits, out), Finished)
    assert results(out) == results(whole)


@pytest.mark.parametrize("spoilt", [b"", NULS])
def test_a_recipe_that_a_power_loss_emptied_is_written_again_and_no_other_taken(
    whole, digits, tmp_path, spoilt
):
    out = copied(whole, tmp_path / "run")
    (out / "recipe.json").write_bytes(spoilt)
    other = tuned(recipe_of_two_epochs(), peak_lr=9e-3)
    with pytest.raises(WrongRequest, match="another recipe"):
        run(other, digits, out)
    assert isinstance(run(recipe_of_two_epochs(), digits, out), Finished)
    assert (out / "recipe.json").read_text() == (whole / "recipe.json").read_text()
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "recipe.json").write_bytes(spoilt)
    assert run(other, digits, tmp_path / "fresh", max_steps=1) == Preempted(1)


def test_an_undecodable_image_noted_by_half_is_noted_again(whole, digits, tmp_path):
    out = copied(whole, tmp_path / "run")
    found = RunDirectory(out, recipe_of_two_epochs(), digits, 0, Cpu())
    found.note_undecodable({3: "row 3\nis cut off", 11: "row 11 is empty"})
    path = out / "undecodable.txt"
    path.write_bytes(path.read_bytes()[:-4] + NULS)
    assert found.undecodable == {3: "row 3 is cut off"}
    found.note_undecodable({11: "row 11 is empty"})
    assert found.undecodable == {3: "row 3 is cut off", 11: "row 11 is empty"}


def test_records_are_on_the_disk_before_what_stands_for_them_has_its_name(
    digits, tmp_path, monkeypatch
):
    done: list[tuple[str, str, int]] = []  # what, of which file, bytes of records.jsonl by then
    records = tmp_path / "run" / "records.jsonl"
    fsync, rename = os.fsync, os.replace

    def note(what: str, name: str) -> None:
        size = records.stat().st_size if records.exists() else 0
        done.append((what, name, size))

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        note("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def recorded_replace(source: Path, target: Path) -> None:
        note("rename", target.name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    run(recipe_of_two_epochs(), digits, tmp_path / "run", checkpoint_seconds=0)
    for name in ("last.ckpt", "outcome.json"):
        renames = [index for index, (*each, _) in enumerate(done) if each == ["rename", name]]
        assert renames
        for index in renames:
            synced = [(of, size) for what, of, size in done[:index] if what == "sync"]
            assert [size for of, size in synced if of == records.name][-1] == done[index][2] > 0
            assert any(of.startswith(f".{name}.") for of, _ in synced)


def test_a_checkpoint_that_a_killed_process_began_is_removed_by_the_next_one(
    whole, digits, tmp_path
):
    out = tmp_path / "run"
    run(recipe_of_two_epochs(), digits, out, max_steps=2)
    (out / ".last.ckpt.4242-0badcafe.part").write_bytes(b"half of it")
    run(recipe_of_two_epochs(), digits, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "last.ckpt", "outcome.json", "previous.ckpt", "recipe.json", "records.jsonl",
    ]  # fmt: skip


# -- a study --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b"", NULS], ids=["cut", "NULs"])
def test_trials_cut_off_at_any_byte_are_those_before_and_take_further_ones(tmp_path, tail):
    folder = write_study(tmp_path)
    path, trials = folder.path / "trials.jsonl", folder.trials()
    further = replace(trials[0], seed=99)
    body = path.read_bytes()
    for cut in range(last_lines(body, 3)[0], len(body) + 1):
        path.write_bytes(body[:cut] + tail)
        kept = trials[: body[:cut].count(b"\n")]
        assert folder.trials() == kept
        folder.add(further)
        assert folder.trials() == [*kept, further]


def test_failures_cut_off_at_any_byte_are_those_before_and_take_further_ones(tmp_path):
    failures = [
        Failure(kind=Ending.BROKEN, error=f"error {step}", step=step, launch="a", trace="one\ntwo")
        for step in range(4)
    ]
    for failure in failures:
        add_failure(tmp_path, failure)
    path = tmp_path / FAILURES_FILE
    body = path.read_bytes()
    for cut in range(last_lines(body, 3)[0], len(body) + 1):
        path.write_bytes(body[:cut] + NULS * (cut % 2))
        kept = [failure.step for failure in failures[: body[:cut].count(b"\n")]]
        assert [failure.step for failure in read_failures(tmp_path, "a")] == kept
        add_failure(tmp_path, failures[0])
        assert [failure.step for failure in read_failures(tmp_path, "a")] == [*kept, 0]


def test_rates_cut_off_are_those_before_and_take_further_ones(tmp_path):
    recipe = recipe_of_two_epochs()
    rates = [
        Rate(kind="calibrated", recipe=tuned(recipe, peak_lr=lr), num_classes=10, device="cpu",
             train_image_seconds=lr, made="2026")
        for lr in (1e-3, 2e-3)
    ]  # fmt: skip
    add_calibrated(tmp_path, rates)
    path = tmp_path / RATES_FILE
    path.write_bytes(path.read_bytes()[:-9] + NULS)
    assert calibrated(tmp_path, "cpu") == rates[:1]
    add_calibrated(tmp_path, rates[1:])
    assert calibrated(tmp_path, "cpu") == rates


@pytest.mark.parametrize("spoilt", [b"", NULS])
def test_a_trial_whose_outcome_was_emptied_is_unfinished_everywhere(tmp_path, spoilt):
    folder = finished_study(tmp_path)
    trial, other, *_ = folder.trials()
    (folder.run_directory(trial) / "outcome.json").write_bytes(spoilt)
    assert folder.run(trial).status == "unfinished"
    assert folder.run(other).status == "finished"
    later = StudyFolder(tmp_path, "later")
    assert later.adopt(trial) is None
    assert later.finished_elsewhere([trial, other]) == {other.key}
    assert len(measured(tmp_path, "cpu")) == len(folder.trials()) - 1
    assert (folder.path / "report.html") in write_report(folder)


@pytest.mark.parametrize("spoilt", [b"", NULS])
def test_small_files_of_a_run_that_were_emptied_stop_nobody(tmp_path, spoilt):
    folder = mixed_study(tmp_path)
    fresh = folder.trials()[-1]
    start(folder, fresh)
    folder.stop(fresh, "behind at epoch 3")
    (folder.run_directory(fresh) / "stopped.json").write_bytes(spoilt)
    assert folder.run(fresh).status == "stopped"
    finish(folder, fresh)
    (folder.run_directory(fresh) / "reused.json").write_bytes(spoilt)
    (folder.path / PREDICTION_FILE).write_bytes(spoilt)
    assert folder.run(fresh).status == "finished"
    assert (folder.path / "report.html") in write_report(folder)


@pytest.mark.parametrize("spoilt", [b"", NULS])
def test_an_emptied_study_is_named_with_the_remedy_and_writing_it_again_mends_it(tmp_path, spoilt):
    folder = write_study(tmp_path)
    (folder.path / "study.json").write_bytes(spoilt)
    with pytest.raises(WrongRequest, match=rf"{folder.path}/study.json .*run the study's command"):
        folder.read()
    assert write_study(tmp_path).read()["name"] == "scale"


def test_a_run_taken_over_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    other = finished_study(tmp_path)
    trial = other.trials()[0]
    left = other.path.parent / "later" / "trials" / f".{trial.key}.77-0badcafe.part"
    left.mkdir(parents=True)
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def recorded(act: Callable, name: Callable) -> Callable:
        def acted(*args) -> None:
            done.append(name(args))
            act(*args)

        return acted

    names = lambda args: Path(os.readlink(f"/proc/self/fd/{args[0]}")).name  # noqa: E731
    monkeypatch.setattr(os, "fsync", recorded(fsync, names))
    monkeypatch.setattr(os, "replace", recorded(rename, lambda args: args[1].name))
    folder = StudyFolder(tmp_path, "later")
    assert folder.adopt(trial) == "scale"
    before = done[: done.index(trial.key)]
    assert {"last.ckpt", "recipe.json", "records.jsonl", "outcome.json", "reused.json"} <= {*before}
    assert [path.name for path in (folder.path / "trials").iterdir()] == [trial.key]
    assert folder.run(trial).facts["reused_from"] == "scale"
    assert trial.data == DATA
