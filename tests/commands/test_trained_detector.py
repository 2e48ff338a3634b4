"""What users do with a trained detector: evaluate it, look at its finds, export its backbone, begin
another training from it. Bad input is one line that names it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mambaout.__main__ import main
from mambaout.dense.backbone import Backbone, load_backbone
from mambaout.dense.coco import read_coco
from mambaout.dense.evaluate import FIGURES, figures
from mambaout.dense.shapes import ShapesSize, write_shapes
from mambaout.dense.trained_detector import figures_text, trained_detector
from mambaout.detect_recipe import detect_recipe_from_json
from mambaout.model.network import build
from mambaout.model.weights import read_weights, save_weights
from mambaout.train import checkpoint
from mambaout.train.backend import backend
from mambaout.variants import ModelConfig

SHAPE = ModelConfig(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))
SMALL = [
    *("--shorter-side", "96", "--longer-side", "96", "--global-batch", "4"),
    *("--epochs", "1", "--peak-lr", "1e-3"),
]
NETWORK = [
    *("--depths", "1,1,1,1", "--dims", "8,12,16,20", "--drop-path", "0"),
    *("--head-channels", "16", "--box-features", "32", "--smallest-anchor", "8"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shapes, and a validation with so many objects that nearly every box is near one of them.

    So a detector that has learnt nothing yet has figures other than zero.
    """
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, ShapesSize(train=12, val=2))
    file = root / "annotations" / "instances_val.json"
    body = json.loads(file.read_text())
    places = [
        (image["id"], category["id"], left, top, side)
        for image in body["images"]
        for category in body["categories"]
        for side in (12, 24, 48, 96)
        for left in range(0, 97 - side, side // 2)
        for top in range(0, 97 - side, side // 2)
    ]
    body["annotations"] = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [left, top, side, side],
            "segmentation": [rectangle(left, top, side)],
        }
        for number, (image, category, left, top, side) in enumerate(places, 1)
    ]
    file.write_text(json.dumps(body))
    return root


def rectangle(left: int, top: int, side: int) -> list[int]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "boxes"
    assert main(detection(folder, out, *NETWORK)) == 0
    return out


@pytest.fixture(scope="module")
def other(folder, tmp_path_factory) -> Path:
    """The same set with stars for triangles."""
    return renamed(folder, tmp_path_factory.mktemp("other") / "stars", {"triangle": "star"})


def renamed(folder: Path, to: Path, names: Mapping[str, str]) -> Path:
    shutil.copytree(folder, to)
    for file in (to / "annotations").iterdir():
        body = json.loads(file.read_text())
        for each in body["categories"]:
            each["name"] = names.get(each["name"], each["name"])
        file.write_text(json.dumps(body))
    return to


def detection(folder: Path, out: Path, *words: str) -> list[str]:
    at = ["--data", str(folder), "--out", str(out)]
    return ["train", "--task", "detect", *at, *SMALL, *words]


def saved_in(run: Path) -> dict[str, Any]:
    return checkpoint.load(run / "last.ckpt")


# -- evaluate -------------------------------------------------------------------------------------


def test_the_figures_are_those_that_the_run_itself_ended_with(run, folder, capsys):
    outcome = json.loads((run / "outcome.json").read_text())["metrics"]
    data = read_coco(str(folder), "val")
    detector = trained_detector(read_weights(run / "last.ckpt"))
    again = figures(data, detector.found(data, backend("cpu")))
    assert again == {name: outcome[name] for name in again}
    assert again["box_ar100"] > 0
    for named in (run, run / "last.ckpt"):
        assert main(["evaluate", str(named), "--data", str(folder)]) == 0
        shown = capsys.readouterr().out
        assert figures_text(again) in shown
        assert "2 images within 96 x 96 px" in shown


def test_the_table_has_every_figure_and_a_line_for_what_the_data_lack():
    values = {f"{kind}_{name}": 10.0 + i for i, name in enumerate(FIGURES) for kind in ("box",)}
    del values["box_ap_large"]
    header, *lines = figures_text(values).splitlines()
    assert header.split() == ["box"]
    assert len(lines) == len(FIGURES)
    assert lines[0].split() == ["AP", "10.0"]
    assert lines[5].split() == ["AP", "large", "-"]


def test_photographs_without_annotations_are_listed_and_drawn(run, folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(folder / "val", photos / "inside")
    Image.fromarray(np.zeros((40, 90, 3), np.uint8)).save(photos / "black.JPG")
    (photos / "notes.txt").write_text("no image")
    sheet = tmp_path / "found.png"
    words = ["evaluate", str(run), "--images", str(photos), "--sheet", str(sheet)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "black.JPG: " in shown
    assert "inside/000001.png: " in shown
    assert "notes" not in shown
    assert f"{sheet}: 3 of 3 images" in shown
    assert Image.open(io.BytesIO(sheet.read_bytes())).format == "PNG"


def test_a_set_of_other_classes_is_refused_and_both_are_named(run, folder, other, tmp_path, capsys):
    assert main(["evaluate", str(run), "--data", str(other)]) == 2
    error = capsys.readouterr().err
    assert "was trained on 3 classes ('circle', 'rectangle', 'triangle')" in error
    assert f"{other}/annotations/instances_val.json has 3 classes ('circle', 'rectangle', " in error
    assert "class 3 is 'triangle' there and 'star' here" in error
    more = tmp_path / "more"
    shutil.copytree(folder, more)
    file = more / "annotations" / "instances_val.json"
    body = json.loads(file.read_text())
    body["categories"] += [{"id": 10 + i, "name": f"c{i}"} for i in range(4)]
    file.write_text(json.dumps(body))
    assert main(["evaluate", str(run), "--data", str(more)]) == 2
    error = capsys.readouterr().err
    assert "7 classes ('circle', 'rectangle', 'triangle', 'c0', 'c1' and 2 more)" in error


def test_what_is_no_detector_is_refused_for_what_it_is(run, folder, tmp_path, capsys):
    save_weights(build(SHAPE, 10), tmp_path / "classifier.safetensors")
    torch.save(
        {"state_dict": {"backbone.a": torch.ones(1), "rpn_head.b": torch.ones(1)}},
        tmp_path / "mmdetection.pth",
    )
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    torch.save(saved_in(run) | {"identity": {"task": "pose"}}, tmp_path / "poses.ckpt")
    torch.save(saved_in(run) | {"model": {"backbone.body.x": torch.ones(1)}}, tmp_path / "cut.ckpt")
    said = {
        "classifier.safetensors": f"is a classifier, and {folder} is a set for detection; train a",
        "mmdetection.pth": "a detector or segmenter of another program (backbone.a); give the",
        "linear.pth": "holds no MambaOut: its 2 tensors are another network's, like weight",
        "poses.ckpt": "is of a run with --task pose; evaluate takes classifiers, detectors and",
        "cut.ckpt": "cut.ckpt does not fit the detector of its recipe",
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
        ([], "--data and --images are both missing"),
        (["--data", "shapes", "--images", "x"], "--data and --images are two requests"),
        (["--data", "shapes", "--no-ema"], "--no-ema is for classifiers"),
        (["--data", "shapes", "--image-size", "64"], "--image-size is for classifiers"),
        (["--data", "shapes", "--split", "train"], "--split train is for classifiers"),
        (["--data", "shapes", "--batch-size", "4"], "--batch-size is for classifiers"),
        (["--data", "shapes", "--backend", "xla"], "does not run on XLA"),
        (["--data", "shapes", "--multi-scale"], "--multi-scale is for a segmentation run, and"),
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


def test_an_option_of_detectors_is_refused_for_a_classifier(tmp_path, capsys):
    save_weights(build(SHAPE, 10), tmp_path / "it.safetensors")
    assert main(["evaluate", str(tmp_path / "it.safetensors"), "--images", "x"]) == 2
    assert "--images is for a detection or segmentation run, and" in capsys.readouterr().err


# -- export ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*unexpected keys:UserWarning")
def test_timm_computes_the_maps_of_a_detectors_backbone(run, tmp_path, capsys):
    file = tmp_path / "backbone.safetensors"
    assert main(["export", str(run), str(file), "--features"]) == 0
    shown = capsys.readouterr().out
    assert "checked: timm" in shown
    assert "the norms on the outputs are in the file" in shown
    found: dict[str, Any] = {}
    exec(shown, found)
    images = torch.randn(1, 3, 64, 96)
    ours = trained_detector(read_weights(run / "last.ckpt")).network.backbone.body.eval()
    with torch.no_grad():
        for one, each in zip(found["model"](images), ours.forward_pyramid(images), strict=True):
            torch.testing.assert_close(one, each, rtol=1e-4, atol=1e-5)
    # With its norms the file is the whole backbone of another detector.
    state = saved_in(run)["model"]
    assert load_file(file).keys() == ours.state_dict().keys()
    fresh = Backbone(SHAPE)
    assert "the norms" not in load_backbone(fresh, read_weights(file))
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[f"backbone.body.{name}"])


def test_onnxruntime_computes_the_maps_of_a_detectors_backbone(run, tmp_path, capsys):
    file = tmp_path / "backbone.onnx"
    assert main(["export", str(run / "last.ckpt"), str(file), "--features"]) == 0
    assert "the maps are without the norms" in capsys.readouterr().out
    images = torch.randn(2, 3, 64, 80)
    session = onnxruntime.InferenceSession(str(file))
    maps: Any = session.run(None, {"images": images.numpy()})
    ours = trained_detector(read_weights(run / "last.ckpt")).network.backbone.body.eval()
    with torch.no_grad():
        expected = [each.permute(0, 3, 1, 2) for each in ours.forward_pyramid(images)]
    for one, each in zip(maps, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), each, rtol=1e-4, atol=1e-4)


def test_a_detector_is_exported_as_its_backbone_alone(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "it.onnx")]) == 2
    error = capsys.readouterr().err
    assert "only its backbone can be exported; add --features" in error
    assert not (tmp_path / "it.onnx").exists()


# -- begin from it --------------------------------------------------------------------------------


def test_a_detector_of_other_classes_begins_with_all_layers_but_those_of_the_classes(
    run, other, tmp_path, capsys
):
    out = tmp_path / "run"
    words = ("--init", str(run), "--max-steps", "1", "--peak-lr", "1e-12")
    assert main(detection(other, out, *words)) == 0
    shown = capsys.readouterr().out
    new = "its scores and boxes of the classes and the masks of the classes, which are new"
    assert f"last.ckpt: all of the detector but {new}" in shown
    assert "--dims 8,12,16,20: as in --init" in shown
    assert "--head-channels 16: as in --init" in shown
    before, after = saved_in(run), saved_in(out)
    assert after["classes"] == ["circle", "rectangle", "star"]
    fresh = set()
    for name, value in before["model"].items():
        if not torch.allclose(value, after["model"][name], atol=1e-6):
            fresh.add(name.rpartition(".")[0])
    assert fresh == {
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    }


def test_a_detector_of_the_same_classes_begins_with_all_layers(run, folder, tmp_path, capsys):
    out = tmp_path / "run"
    words = ("--init", str(run), "--max-steps", "1", "--peak-lr", "1e-12")
    assert main(detection(folder, out, *words)) == 0
    assert "last.ckpt: all of the detector\n" in capsys.readouterr().out
    before, after = saved_in(run)["model"], saved_in(out)["model"]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_heads_of_other_widths_are_new_and_named(run, folder, tmp_path, capsys):
    words = ("--init", str(run), "--max-steps", "1", "--box-features", "24")
    assert main(detection(folder, tmp_path / "run", *words)) == 0
    new = "the box head and its scores and boxes of the classes, which are new"
    assert f"all of the detector but {new}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def classification(digits, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("classification") / "run"
    words = [*NETWORK[:6], "--epochs", "1", "--max-steps", "1", "--global-batch", "64"]
    assert main(["train", "--data", "digits", "--smoke", "--out", str(out), *words]) == 0
    return out


def test_a_detector_takes_the_network_of_the_classification_that_it_begins_from(
    classification, folder, tmp_path, capsys
):
    out = tmp_path / "run"
    words = ("--init", str(classification), "--max-steps", "1", *NETWORK[6:])
    assert main(detection(folder, out, *words)) == 0
    assert "of its head are left out" in capsys.readouterr().out
    recipe = detect_recipe_from_json((out / "recipe.json").read_text(), "it")
    assert (recipe.model.depths, recipe.model.dims) == (SHAPE.depths, SHAPE.dims)


def test_a_classifier_begins_with_the_backbone_of_a_detector(run, digits, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--init", str(run), "--max-steps", "1", "--smoke", "--peak-lr", "1e-12"]
    assert main(["train", "--data", "digits", *words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "new: head.norm" in shown
    state = checkpoint.load(out / "last.ckpt")["model"]
    body = saved_in(run)["model"]["backbone.body.stem.conv1.weight"]
    torch.testing.assert_close(state["stem.conv1.weight"], body, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def segmentation(run, folder, tmp_path_factory) -> Path:
    """A segmentation that began with the backbone of the detector."""
    out = tmp_path_factory.mktemp("segmentation") / "run"
    words = ["--task", "segment", "--data", str(folder / "ade20k"), "--init", str(run)]
    sizes = ["--crop-size", "96", "--shorter-side", "96", "--longer-side", "96"]
    short = ["--global-batch", "4", "--steps", "2", "--head-channels", "8", "--peak-lr", "1e-12"]
    assert main(["train", *words, *sizes, *short, "--out", str(out)]) == 0
    return out


def test_a_segmenter_begins_with_the_backbone_of_a_detector_and_its_norms(run, segmentation):
    before, after = saved_in(run)["model"], saved_in(segmentation)["model"]
    body = [name for name in before if name.startswith("backbone.body.")]
    assert len(body) > 50
    for name in body:
        other = after[name.replace("backbone.body.", "backbone.")]
        torch.testing.assert_close(other, before[name], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*unexpected keys:UserWarning")
def test_a_segmenters_backbone_begins_a_detector_and_is_exported(
    segmentation, folder, tmp_path, capsys
):
    out = tmp_path / "run"
    words = ("--init", str(segmentation), "--max-steps", "1", "--peak-lr", "1e-12", *NETWORK[6:])
    assert main(detection(folder, out, *words)) == 0
    shown = capsys.readouterr().out
    assert "the backbone of a run with --task segment; it has no head" in shown
    assert "the norms on the four outputs" not in shown
    before, after = saved_in(segmentation)["model"], saved_in(out)["model"]
    name = "backbone.norms.3.weight"
    torch.testing.assert_close(after[f"backbone.body{name[8:]}"], before[name], atol=1e-5, rtol=0)
    file = tmp_path / "backbone.safetensors"
    assert main(["export", str(segmentation), str(file), "--features"]) == 0
    assert "checked: timm" in capsys.readouterr().out


# -- a folder of another task ---------------------------------------------------------------------


def test_a_run_of_another_task_in_the_folder_is_told_by_its_task(
    run, segmentation, classification, digits, data_cache, capsys
):
    tasks = {"detect": run, "segment": segmentation, "classify": classification}
    for task in tasks:
        for found, out in tasks.items():
            if found == task:
                continue
            before = (out / "recipe.json").read_bytes()
            smoke = [
                "--smoke",
                "--task",
                task,
                *(["--data", "digits"] if task == "classify" else []),
            ]
            assert main(["train", *smoke, "--out", str(out)]) == 2
            said = f"{out}/recipe.json is of a run with --task {found}, not {task}; give another"
            assert said in capsys.readouterr().err
            assert (out / "recipe.json").read_bytes() == before
