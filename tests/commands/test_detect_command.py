"""`mambaout train --task detect`: what it does, and that bad input is one clear line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mambaout import dense_options
from mambaout.__main__ import main
from mambaout.dense.shapes import ShapesSize, write_shapes
from mambaout.detect_recipe import detect_recipe_from_json
from mambaout.model.network import build
from mambaout.model.weights import save_weights
from mambaout.train import checkpoint
from mambaout.train.metrics import read_records
from mambaout.variants import ModelConfig

SHAPE = ModelConfig(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))
SMALL = [
    *("--depths", "1,1,1,1", "--dims", "8,12,16,20", "--drop-path", "0"),
    *("--head-channels", "16", "--box-features", "32", "--smallest-anchor", "8"),
    *("--shorter-side", "64", "--longer-side", "64", "--global-batch", "4"),
    *("--epochs", "2", "--peak-lr", "1e-3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, ShapesSize(train=12, val=3, side=64))
    return str(root)


def command(folder: str, out: Path, *words: str) -> list[str]:
    return ["train", "--task", "detect", "--data", folder, "--out", str(out), *SMALL, *words]


def test_smoke_detects_on_the_shapes(data_cache, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--task", "detect", "--smoke", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "12 images" in text
    assert "3 classes" in text
    assert "finished: box AP" in text
    files = {"recipe.json", "records.jsonl", "last.ckpt", "outcome.json", "predictions.png"}
    assert files <= {path.name for path in out.iterdir()}
    *_, last = read_records(out / "records.jsonl")
    assert {"val/box_ap", "val/mask_ap", "train/loss_mask"} <= last.values.keys()
    macs = json.loads((out / "outcome.json").read_text())["metrics"]["macs"]
    recipe = detect_recipe_from_json((out / "recipe.json").read_text(), "it")
    assert macs == recipe.cost(3, with_masks=True).macs
    assert recipe.shorter_side == 96


def test_the_backbone_begins_with_the_weights_of_a_classifier(folder, tmp_path, capsys):
    torch.manual_seed(1)
    classifier = build(SHAPE, 10)
    save_weights(classifier, tmp_path / "it.safetensors")
    words = ("--init", str(tmp_path / "it.safetensors"), "--max-steps", "1", "--peak-lr", "1e-12")
    assert main(command(folder, tmp_path / "run", *words)) == 0
    assert "of its head are left out" in capsys.readouterr().out
    saved = checkpoint.load(tmp_path / "run" / "last.ckpt")["model"]
    of_stem = classifier.state_dict()["stem.conv1.weight"]
    torch.testing.assert_close(saved["backbone.body.stem.conv1.weight"], of_stem)
    # Another file is another run; another shape does not fit.
    save_weights(build(SHAPE, 10), tmp_path / "it.safetensors")
    assert main(command(folder, tmp_path / "run", *words)) == 2
    assert "holds another run, of first_weights" in capsys.readouterr().err
    assert main(command(folder, tmp_path / "other", *words, "--dims", "8,12,16,24")) == 2
    error = capsys.readouterr().err
    assert "does not fit the backbone, which is depths (1, 1, 1, 1), dims (8, 12, 16, 24)" in error
    assert "it is depths (1, 1, 1, 1), dims (8, 12, 16, 20). Without VARIANT and shape" in error


def test_a_run_keeps_the_precision_that_it_was_begun_with(folder, tmp_path, capsys):
    words = command(folder, tmp_path / "run")
    assert main([*words, "--max-steps", "1", "--precision", "bf16"]) == 0
    capsys.readouterr()
    assert main([*words, "--max-steps", "2"]) == 0
    assert "--precision bf16: the run in" in capsys.readouterr().out
    assert main([*words, "--max-steps", "2", "--precision", "fp32"]) == 2
    assert "another recipe (precision 'bf16' not 'fp32')" in capsys.readouterr().err


def test_a_set_without_masks_trains_a_detector_of_boxes(folder, tmp_path, capsys):
    root = tmp_path / "boxes"
    write_shapes(root, ShapesSize(train=8, val=2, side=64))
    for file in (root / "annotations").iterdir():
        body = json.loads(file.read_text())
        for each in body["annotations"]:
            del each["segmentation"], each["area"], each["iscrowd"]
        file.write_text(json.dumps(body))
    assert main(command(str(root), tmp_path / "run", "--epochs", "1")) == 0
    shown = capsys.readouterr().out
    assert "box AP" in shown
    assert "mask AP" not in shown
    saved = checkpoint.load(tmp_path / "run" / "last.ckpt")["model"]
    assert not [name for name in saved if "mask" in name]
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())["metrics"]
    assert outcome["params"] == sum(tensor.numel() for tensor in saved.values())
    assert "mask_ap" not in outcome


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--backend", "xla"], "does not run on XLA: its shapes are dynamic"),
        (["--mixup", "0.8"], "--mixup is not for --task detect; leave it out"),
        (["--image-size", "64"], "--image-size is not for --task detect; leave it out"),
        (["--stage", "/dev/shm"], "--stage is not for --task detect; leave it out"),
        (["--recompute", "all"], "--recompute is not for --task detect; leave it out"),
        (["--multi-scale"], "--multi-scale is not for --task detect; leave it out"),
        (["--crop-size", "64"], "--crop-size is not for --task detect; leave it out"),
        (["--no-compile"], "--no-compile is not for --task detect; leave it out"),
        (["--peak-lr", "high"], "--peak-lr 'high' must be a finite number, above 0 and below 10"),
        (["--shorter-side", "9"], "--shorter-side '9' must be a whole number, 32 to 4096"),
        (["--shorter-side", "96"], "shorter_side=96 is more than longer_side=64"),
        (["--global-batch", "13"], "global_batch=13 is more than the 12 training images"),
        (["--warmup-steps", "6"], "warmup_steps=6 is not below the 6 steps"),
        (["--micro-batch", "5"], "--micro-batch 5 is more than --global-batch 4"),
        (["--smoke"], "--smoke with --task detect is for --data shapes"),
        (["--init", "nothing.ckpt"], "--init: nothing.ckpt is not there"),
        (
            ["--init", "{linear}"],
            "linear.pth holds no MambaOut: its 2 tensors are another network's",
        ),
        (["--init", "{text}"], "--init: {text} is no whole file of torch.save"),
        (["--init", "{folder}"], "--init: {folder} holds no last.ckpt"),
        (["--init", "{foreign}"], "foreign.pth: it holds a detector or segmenter of another progr"),
        (["--data", "{folder}/train"], "give the folder above, {folder}"),
        (["--data", "digits"], "digits is a set for classification, without boxes or maps"),
        (["tinny"], "unknown variant 'tinny'"),
    ],
)
def test_a_wrong_request_is_one_line_and_starts_nothing(folder, tmp_path, capsys, words, what):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    torch.save({"rpn.a": torch.ones(1)}, tmp_path / "foreign.pth")
    (tmp_path / "a.txt").write_text("no weights")
    names = {"linear": "linear.pth", "text": "a.txt", "foreign": "foreign.pth"}
    paths = {name: str(tmp_path / file) for name, file in names.items()} | {"folder": folder}
    words = [word.format_map(paths) for word in words]
    assert main(command(folder, tmp_path / "run", *words)) == 2
    error = capsys.readouterr().err
    assert what.format_map(paths) in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_image_that_breaks_on_the_way_is_one_line_and_the_run_can_go_on(
    folder, tmp_path, capsys, workers
):
    root = tmp_path / "set"
    shutil.copytree(folder, root)
    broken = sorted((root / "train").iterdir())[3]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    words = command(str(root), tmp_path / "run", "--epochs", "1", "--workers", workers)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert f"{broken} cannot be decoded" in error
    assert "once that is mended, the same command continues" in error
    assert len(error.splitlines()) == 1
    broken.write_bytes(whole)
    assert main(words) == 0


def test_an_option_of_detection_is_refused_for_another_task(tmp_path, capsys):
    words = ["train", "--data", "digits", "--out", str(tmp_path / "run"), "--shorter-side", "64"]
    assert main(words) == 2
    said = "--shorter-side is for --task detect or --task segment alone; add that or leave it out"
    assert said in capsys.readouterr().err


def test_data_that_are_missing_are_asked_for(tmp_path, capsys):
    assert main(["train", "--task", "detect", "--out", str(tmp_path)]) == 2
    assert "--data is missing: give shapes, or a folder" in capsys.readouterr().err


def test_without_pycocotools_the_extra_is_named(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dense_options, "find_spec", lambda name: None)
    assert main(command(folder, tmp_path / "run")) == 2
    assert "pip install -c constraints.txt -e '.[dense]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_to_the_same_weights(folder, tmp_path):
    """SIGTERM saves and ends; SIGKILL leaves the last checkpoint, that of an epoch's end."""

    def start(name: str) -> subprocess.Popen:
        words = command(folder, tmp_path / name, "--log-every-steps", "1", "--epochs", "4")
        return subprocess.Popen([sys.executable, "-m", "mambaout", *words], text=True)

    assert start("whole").wait() == 0
    for name, number, status in (("term", signal.SIGTERM, 1), ("kill", signal.SIGKILL, -9)):
        process = start(name)
        records = tmp_path / name / "records.jsonl"
        while not records.exists() or records.read_text().count("\n") < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait() == status
        assert start(name).wait() == 0
        one, other = (
            checkpoint.load(tmp_path / each / "last.ckpt")["model"] for each in (name, "whole")
        )
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_the_published_cost_is_that_of_the_default_recipe():
    from mambaout.detect_recipe import DETECT_BASELINE

    assert round(DETECT_BASELINE.cost(80, with_masks=True).macs / 1e9) == 262
    assert (
        DETECT_BASELINE.cost(80, with_masks=False).macs
        < DETECT_BASELINE.cost(80, with_masks=True).macs
    )
