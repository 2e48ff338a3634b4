"""`mambaout train --task segment`: what it does, and that bad input is one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mambaout.__main__ import main
from mambaout.dense.shapes import ShapesSize, write_shapes
from mambaout.model.network import build
from mambaout.model.weights import save_weights
from mambaout.segment_recipe import segment_recipe_from_json
from mambaout.train import checkpoint
from mambaout.train.metrics import read_records
from mambaout.variants import ModelConfig

SHAPE = ModelConfig(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))
SMALL = [
    *("--depths", "1,1,1,1", "--dims", "8,12,16,20", "--drop-path", "0", "--head-channels", "8"),
    *("--crop-size", "32", "--shorter-side", "32", "--longer-side", "64", "--global-batch", "4"),
    *("--steps", "4", "--peak-lr", "1e-3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, ShapesSize(train=6, val=2, side=32))
    return str(root / "ade20k")


def command(folder: str, out: Path, *words: str) -> list[str]:
    return ["train", "--task", "segment", "--data", folder, "--out", str(out), *SMALL, *words]


def test_smoke_segments_the_shapes(data_cache, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--task", "segment", "--smoke", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "12 images, 4 classes" in text
    assert "--crop-size 96: for the small shapes" in text
    assert "the batch norms see 4 images at a time (--micro-batch)" in text
    assert "finished: mIoU" in text
    files = {"recipe.json", "records.jsonl", "last.ckpt", "outcome.json", "predictions.png"}
    assert files <= {path.name for path in out.iterdir()}
    *_, last = read_records(out / "records.jsonl")
    assert {"val/miou", "val/pixel_accuracy", "train/loss_auxiliary"} <= last.values.keys()
    macs = json.loads((out / "outcome.json").read_text())["metrics"]["macs"]
    assert macs == segment_recipe_from_json((out / "recipe.json").read_text(), "it").cost(4).macs


def test_a_short_training_has_a_short_warm_up_and_ten_evaluations(folder, tmp_path, capsys):
    words = ("--steps", "40", "--max-steps", "1", "--multi-scale")
    assert main(command(folder, tmp_path / "run", *words)) == 0
    shown = capsys.readouterr().out
    assert (
        "--warmup-steps 2: one step in 20 of the 40, because the usual 1500 would be too many"
        in shown
    )
    assert "--eval-every-steps 4: 10 evaluations in the 40 steps" in shown
    assert "stopped at step 1 of 40, as --max-steps says" in shown


def test_a_variant_has_the_authors_drop_path(folder, tmp_path, capsys):
    words = command(folder, tmp_path / "run", "--peak-lr", "high")
    for name in ("--depths", "--dims", "--drop-path"):
        at = words.index(name)
        del words[at : at + 2]
    words.insert(1, "base")
    assert main(words) == 2  # what else is wrong does not matter here
    assert "--peak-lr 'high'" in capsys.readouterr().err
    from mambaout.commands.segment import SegmentCommand
    from mambaout.segment_rules import fitted_segment

    recipe, lines = fitted_segment(9, SegmentCommand().variant("base"), {})
    assert recipe.model.drop_path == 0.6
    assert lines == ["--drop-path 0.6: the author, in issue 251, for base"]


def test_the_backbone_begins_with_the_weights_of_a_classifier(folder, tmp_path, capsys):
    torch.manual_seed(1)
    classifier = build(SHAPE, 10)
    save_weights(classifier, tmp_path / "it.safetensors")
    words = ("--init", str(tmp_path / "it.safetensors"), "--max-steps", "1", "--peak-lr", "1e-12")
    assert main(command(folder, tmp_path / "run", *words)) == 0
    assert "of its head are left out" in capsys.readouterr().out
    saved = checkpoint.load(tmp_path / "run" / "last.ckpt")["model"]
    of_stem = classifier.state_dict()["stem.conv1.weight"]
    torch.testing.assert_close(saved["backbone.stem.conv1.weight"], of_stem)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--mixup", "0.8"], "--mixup is not for --task segment; leave it out"),
        (["--epochs", "3"], "--epochs is not for --task segment; leave it out"),
        (["--box-features", "8"], "--box-features is not for --task segment; leave it out"),
        (["--no-compile"], "--no-compile is not for --task segment; leave it out"),
        (["--crop-size", "9"], "--crop-size '9' must be a whole number, 32 to 4096"),
        (["--scale-min", "3"], "scale_min=3.0 is more than scale_max=2.0"),
        (["--warmup-steps", "4"], "warmup_steps=4 is not below steps=4"),
        (["--micro-batch", "3"], "--micro-batch 3 does not split --global-batch 4 into equal"),
        (["--micro-batch", "1"], "that batch norms can take; give 4 or 2"),
        (["--data", "digits"], "digits is a set for classification, without boxes or maps"),
        (["--data", __file__], "is a file; give the folder that has images/ and annotations/"),
        (["--mixer", "attention", "--ssm-state", "8"], "--ssm-state: no network here has an SSM"),
        (["--smoke"], "--smoke with --task segment is for --data shapes"),
    ],
)
def test_a_wrong_request_is_one_line_and_starts_nothing(folder, tmp_path, capsys, words, what):
    assert main(command(folder, tmp_path / "run", *words)) == 2
    error = capsys.readouterr().err
    assert what in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_annotation_that_breaks_on_the_way_is_one_line_and_the_run_can_go_on(tmp_path, capsys):
    write_shapes(tmp_path, ShapesSize(train=6, val=2, side=32))
    broken = tmp_path / "ade20k" / "annotations" / "training" / "000003.png"
    whole = broken.read_bytes()
    cv2.imwrite(str(broken), np.zeros((32, 32, 3), np.uint8))
    assert main(command(str(tmp_path), tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert f"{broken}: it is a RGB image" in error
    assert "once that is mended, the same command continues" in error
    assert len(error.splitlines()) == 1
    broken.write_bytes(whole)
    assert main(command(str(tmp_path), tmp_path / "other")) == 0


def test_an_option_of_segmentation_is_refused_for_another_task(tmp_path, capsys):
    words = ["train", "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, "--crop-size", "64"]) == 2
    said = "--crop-size is for --task segment alone; add that or leave it out"
    assert said in capsys.readouterr().err
    assert main([*words, "--multi-scale"]) == 2
    assert "--multi-scale is for --task segment alone" in capsys.readouterr().err
    assert main(["train", "--task", "segment", "--out", str(tmp_path)]) == 2
    assert "--data is missing: give shapes, or a folder or bucket in ADE20K" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch_xla") is None, reason="torch_xla is not installed")
def test_xla_trains_to_the_same_losses_and_compiles_no_step_twice(folder, tmp_path):
    """Evaluated is once, at the end: on padded images it is near."""
    found = {}
    for name in ("cpu", "xla"):
        words = command(folder, tmp_path / name, "--backend", name, "--log-every-steps", "1")
        words += ["--micro-batch", "2", "--eval-every-steps", "4"]
        environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1"}
        run = [sys.executable, "-m", "mambaout", *words]
        subprocess.run(run, check=True, env=environment, timeout=600)
        found[name] = [each.values for each in read_records(tmp_path / name / "records.jsonl")]
    for cpu, xla in zip(found["cpu"], found["xla"], strict=True):
        assert xla["train/loss"] == pytest.approx(cpu["train/loss"], rel=5e-3)
    compiled = [values["compilations"] for values in found["xla"]]
    assert compiled[1] == compiled[2] == compiled[3]
