"""Trainings on a CPU, and whether two of them are the same to the bit."""

from __future__ import annotations

from pathlib import Path

import torch

from mambaout.data.shards.data_set import DataSet
from mambaout.recipe import Recipe
from mambaout.train import checkpoint, metrics
from mambaout.train.backend import Cpu
from mambaout.train.loop import train
from mambaout.train.metrics import read_records
from mambaout.train.outcomes import Outcome

TIMING = {metrics.IMAGES_PER_SECOND, metrics.INPUT_WAIT, metrics.PEAK_MEMORY, metrics.MFU}


def run(recipe: Recipe, data: DataSet, out: Path, **options) -> Outcome:
    options = {"log_every_steps": 1, "backend": Cpu()} | options
    return train(recipe, data, out=out, **options)


def measured(out: Path) -> list[tuple[int, dict[str, float]]]:
    """The records less what a clock says."""
    return [
        (record.step, {k: v for k, v in record.values.items() if k not in TIMING})
        for record in read_records(out / "records.jsonl")
    ]


def assert_same_checkpoint(one: Path, other: Path) -> None:
    first, second = checkpoint.load(one / "last.ckpt"), checkpoint.load(other / "last.ckpt")
    assert first["step"] == second["step"]
    for name, weight in first["model"].items():
        assert torch.equal(weight, second["model"][name]), name
    for index, moments in first["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, second["optimizer"]["state"][index][name]), (index, name)
    assert torch.equal(first["meter"]["loss"], second["meter"]["loss"])
