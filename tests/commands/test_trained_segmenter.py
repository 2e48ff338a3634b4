"""What users do with a trained segmenter: evaluate it, and look at its maps of their photographs.
Bad input is one line that names it."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mambaout.__main__ import main
from mambaout.dense.confusion import Confusion
from mambaout.dense.dense_sets import segment_sets
from mambaout.dense.shapes import ShapesSize, write_shapes
from mambaout.dense.trained_segmenter import shares_text, table_text, trained_segmenter
from mambaout.model.network import build
from mambaout.model.weights import read_weights, save_weights
from mambaout.train import checkpoint
from mambaout.train.backend import backend
from mambaout.variants import ModelConfig

SHAPE = ModelConfig(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))
SMALL = [
    *("--depths", "1,1,1,1", "--dims", "8,12,16,20", "--drop-path", "0", "--head-channels", "8"),
    *("--crop-size", "32", "--shorter-side", "32", "--longer-side", "64", "--global-batch", "4"),
    *("--steps", "6", "--peak-lr", "1e-3", "--multi-scale"),
]
NAMES = ("ground", "circle", "rectangle", "triangle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, ShapesSize(train=8, val=3, side=48))
    return root / "ade20k"


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("segmentation") / "run"
    words = ["train", "--task", "segment", "--data", str(folder), "--out", str(out), *SMALL]
    assert main(words) == 0
    return out


def saved_in(run: Path) -> dict[str, Any]:
    return checkpoint.load(run / "last.ckpt")


def with_names(folder: Path, to: Path, *names: str) -> Path:
    """A copy of the set whose classes have these names."""
    shutil.copytree(folder, to)
    (to / "objectInfo150.txt").write_text("\n".join(names))
    return to


def test_the_figures_are_those_that_the_run_itself_ended_with(run, folder, capsys):
    outcome = json.loads((run / "outcome.json").read_text())
    data = segment_sets(str(folder)).val
    segmenter = trained_segmenter(read_weights(run / "last.ckpt"))
    once, _ = segmenter.evaluated(data, backend("cpu"))
    several, _ = segmenter.evaluated(data, backend("cpu"), multi_scale=True)
    again = once.figures() | {"miou_multi_scale": several.figures()["miou"]}
    assert again == {name: outcome["metrics"][name] for name in again}
    assert len(again) == 5
    iou = {n: None if math.isnan(v) else v for n, v in zip(NAMES, once.class_iou(), strict=True)}
    assert iou == outcome["facts"]["class_iou"]
    for named in (run, run / "last.ckpt"):
        assert main(["evaluate", str(named), "--data", str(folder), "--multi-scale"]) == 0
        shown = capsys.readouterr().out
        assert table_text(again, once.class_iou(), NAMES) in shown
        assert "3 images within 32 x 64 px" in shown
    assert main(["evaluate", str(run), "--data", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert table_text(once.figures(), once.class_iou(), NAMES) in shown
    assert "six scales" not in shown


def test_the_table_has_a_line_for_each_class_and_a_dash_for_one_that_is_absent():
    confusion = Confusion(3)
    confusion.add(np.array([0, 0, 0, 0], np.uint8), np.array([0, 0, 0, 1], np.uint8))
    figures = table_text(confusion.figures(), confusion.class_iou(), ("a wall", "sky", "sea"))
    lines = [line.split(maxsplit=1) for line in figures.splitlines()]
    assert lines == [
        ["37.5", "mIoU"],
        ["75.0", "mean accuracy"],
        ["75.0", "pixel accuracy"],
        [],
        ["IoU", "class"],
        ["75.0", "a wall"],
        ["0.0", "sky"],
        ["-", "sea"],
        ["-:", "neither annotated nor predicted, and left out of the mean"],
    ]


def test_the_sheet_of_a_set_has_annotations_and_that_of_photographs_has_none(
    run, folder, tmp_path, capsys
):
    sheet = tmp_path / "found.png"
    assert main(["evaluate", str(run), "--data", str(folder), "--sheet", str(sheet)]) == 0
    assert f"{sheet}: 3 of 3 images" in capsys.readouterr().out
    with Image.open(io.BytesIO(sheet.read_bytes())) as found:
        columns = found.width // 320
        assert (found.format, columns) == ("PNG", 3)
    # The run's own sheet has the same images.
    assert sheet.read_bytes() == (run / "predictions.png").read_bytes()


def test_photographs_without_annotations_are_listed_and_drawn(run, folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(folder / "images" / "validation", photos / "inside")
    Image.fromarray(np.zeros((40, 90), np.uint8)).save(photos / "grey.JPG")
    (photos / "notes.txt").write_text("no image")
    sheet = tmp_path / "found.png"
    assert main(["evaluate", str(run), "--images", f"{photos}/", "--sheet", str(sheet)]) == 0
    shown = capsys.readouterr().out
    segmenter = trained_segmenter(read_weights(run / "last.ckpt"))
    _, maps = segmenter.evaluated(segment_sets(str(folder)).val, backend("cpu"), keep=[1])
    assert f"inside/000001.png: {shares_text(maps[1], NAMES)}\n" in shown
    assert "grey.JPG: " in shown
    assert "notes" not in shown
    assert f"{sheet}: 4 of 4 images" in shown
    with Image.open(io.BytesIO(sheet.read_bytes())) as found:
        assert (found.format, found.width // 320) == ("PNG", 4)  # two pairs in a row
    assert main(["evaluate", str(run), "--images", str(photos)]) == 0
    assert "found.png" not in capsys.readouterr().out


def test_the_line_of_a_photograph_has_its_three_largest_classes_and_no_empty_one():
    classes = np.repeat(np.array([3, 0, 1, 2], np.uint8), [5, 3, 2, 1]).reshape(1, -1)
    assert shares_text(classes, NAMES) == "triangle 45.5 %, ground 27.3 %, circle 18.2 %"
    assert shares_text(np.zeros((2, 2), np.uint8), NAMES) == "ground 100.0 %"


def test_a_set_of_other_classes_is_refused_and_both_are_named(run, folder, tmp_path, capsys):
    assert saved_in(run)["classes"] == list(NAMES)
    other = with_names(folder, tmp_path / "other", "ground", "circle", "rectangle", "star")
    assert main(["evaluate", str(run), "--data", str(other)]) == 2
    error = capsys.readouterr().err
    assert "was trained on 4 classes ('ground', 'circle', 'rectangle', 'triangle')" in error
    assert f"{other} has 4 classes ('ground', 'circle', 'rectangle', 'star')" in error
    assert "class 4 is 'triangle' there and 'star' here" in error
    assert len(error.splitlines()) == 1
    more = with_names(folder, tmp_path / "more", *NAMES, "c4", "c5")
    assert main(["evaluate", str(run), "--data", str(more)]) == 2
    assert "6 classes ('ground', 'circle', 'rectangle', 'triangle', 'c4' and 1 more)" in (
        capsys.readouterr().err
    )


def test_a_checkpoint_without_the_names_of_its_classes_is_still_read(run, folder, tmp_path, capsys):
    saved = saved_in(run)
    del saved["classes"]
    earlier = tmp_path / "last.ckpt"
    torch.save(saved, earlier)
    assert main(["evaluate", str(earlier), "--data", str(folder)]) == 0
    assert "  rectangle\n" in capsys.readouterr().out
    assert main(["evaluate", str(earlier), "--images", str(folder / "images/validation")]) == 0
    assert "000000.png: class " in capsys.readouterr().out
    more = with_names(folder, tmp_path / "more", *NAMES, "star")
    assert main(["evaluate", str(earlier), "--data", str(more)]) == 2
    assert "was trained on 4 classes ('class 1', 'class 2', 'class 3', 'class 4')" in (
        capsys.readouterr().err
    )


def test_what_is_no_segmenter_is_refused_for_what_it_is(run, folder, tmp_path, capsys):
    save_weights(build(SHAPE, 10), tmp_path / "classifier.safetensors")
    torch.save(saved_in(run) | {"identity": {"task": "detect"}}, tmp_path / "boxes.ckpt")
    torch.save(saved_in(run) | {"model": {"backbone.x": torch.ones(1)}}, tmp_path / "cut.ckpt")
    said = {
        "classifier.safetensors": f"is a classifier, and {folder} is a set for segmentation; train",
        "boxes.ckpt": "with --task segment, not detect",
        "cut.ckpt": "cut.ckpt does not fit the segmenter of its recipe",
    }
    for name, text in said.items():
        assert main(["evaluate", str(tmp_path / name), "--data", str(folder)]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert name in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "--data and --images are both missing: give --data with a set in ADE20K's format"),
        (["--data", "shapes", "--images", "x"], "--data and --images are two requests"),
        (["--images", "x", "--multi-scale"], "--multi-scale is for the figures on --data"),
        (["--data", "shapes", "--no-ema"], "--no-ema is for classifiers, and"),
        (["--data", "shapes", "--image-size", "64"], "last.ckpt is a segmenter; leave it out"),
        (["--data", "shapes", "--split", "train"], "--split train is for classifiers"),
        (["--data", "shapes", "--batch-size", "4"], "--batch-size is for classifiers"),
        (["--data", "shapes", "--variant", "femto"], "--variant is for classifiers"),
        (["--data", "shapes", "--sheet", "a.jpg"], "--sheet a.jpg must end in .png"),
        (["--data", "shapes", "--sheet", "no/a.png"], "no is no folder"),
        (["--images", "nowhere"], "nowhere is not there"),
        (["--images", "."], "has no image; give a folder with files that end in .jpg"),
        (["--data", "nowhere"], "nowhere is not there"),
    ],
)
def test_a_wrong_request_is_one_line_that_names_it(run, tmp_path, monkeypatch, capsys, words, what):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(run), *words]) == 2
    shown = capsys.readouterr()
    assert what in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_multi_scale_is_refused_for_a_classifier(tmp_path, capsys):
    save_weights(build(SHAPE, 10), tmp_path / "it.safetensors")
    assert main(["evaluate", str(tmp_path / "it.safetensors"), "--multi-scale"]) == 2
    assert "--multi-scale is for a segmentation run, and" in capsys.readouterr().err
