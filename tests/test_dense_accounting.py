"""The costs of Mask R-CNN and UperNet are the published ones, and the command prints them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mambaout.__main__ import main
from mambaout.accounting import cost
from mambaout.dense_accounting import DETECTOR, SEGMENTER, DenseTask
from mambaout.variants import VARIANTS

# Giga MACs and millions of parameters; the paper (Tables 2 and 3) rounds them to whole numbers.
EXACT = {
    ("detect", "tiny"): (262.08, 43.1),
    ("detect", "small"): (353.24, 65.1),
    ("detect", "base"): (494.13, 99.7),
    ("segment", "tiny"): (937.8, 54.1),
    ("segment", "small"): (1031.2, 76.0),
    ("segment", "base"): (1177.2, 112.2),
}
TASKS = {"detect": DETECTOR, "segment": SEGMENTER}


@pytest.mark.parametrize(("task", "name"), EXACT)
def test_the_closed_form_is_the_published_number(task, name):
    giga_macs, mega_params = EXACT[task, name]
    network = TASKS[task]
    found = network.cost(VARIANTS[name])
    assert found.macs / 1e9 == pytest.approx(giga_macs, abs=0.051)
    assert found.params / 1e6 == pytest.approx(mega_params, abs=0.051)
    published_macs, published_params = network.published[name]
    assert published_macs * 1e9 / found.macs == pytest.approx(1, abs=0.0025)
    assert round(found.params / 1e6) == published_params


@pytest.mark.parametrize("task", [DETECTOR, SEGMENTER])
def test_every_part_is_in_one_column_and_training_alone_costs_no_macs(task: DenseTask):
    parts = task.parts(VARIANTS["tiny"], task.image_size, task.num_classes)
    for name, part in parts:
        columns = [begin for begin in task.groups.values() if name.startswith(begin)]
        assert len(columns) == (name != "auxiliary"), name
        assert (part.macs == 0) == (name in ("auxiliary",) or name.endswith("norms")), name


def test_the_backbone_of_a_detector_is_the_classifier_without_its_head():
    config = VARIANTS["femto"]
    parts = DETECTOR.parts(config, 224, 80)
    backbone = sum(part.macs for name, part in parts if name.startswith("backbone.body."))
    head = 4 * 288 * (288 + 1000)
    assert backbone == cost(config, 224).macs - head


def test_a_detector_pads_its_images_and_a_segmenter_does_not():
    config = VARIANTS["femto"]
    assert DETECTOR.cost(config, (799, 1270)) == DETECTOR.cost(config, (800, 1280))
    assert DETECTOR.cost(config, (640, 1280)) != DETECTOR.cost(config, (800, 1280))
    assert SEGMENTER.cost(config, (500, 512)) != SEGMENTER.cost(config, (512, 512))


@pytest.mark.parametrize("task", [DETECTOR, SEGMENTER])
def test_wrong_sizes_are_an_error(task: DenseTask):
    with pytest.raises(ValueError, match=r"image_size=\(0, 32\)"):
        task.cost(VARIANTS["femto"], (0, 32))
    with pytest.raises(ValueError, match="num_classes=0"):
        task.cost(VARIANTS["femto"], 32, 0)


# -- the command ----------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], words: str) -> str:
    assert main(words.split()) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("task", "name"), EXACT)
def test_the_command_prints_it_beside_the_published_number_and_what_is_counted(task, name, capsys):
    text = shown(capsys, f"account --{task} tiny small base")
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    found = TASKS[task].cost(VARIANTS[name])
    assert f"  {found.macs / 1e9:.2f} G  " in line
    assert f"  {found.params / 1e6:.2f} M  " in line
    published_macs, published_params = TASKS[task].published[name]
    assert line.endswith(f"{published_macs} G, {published_params} M")
    assert "\ncounted: multiply-adds of convolutions and linear layers" in text
    assert "\nnot counted: " in text
    head, *_ = text.splitlines()
    assert ("800x1280 px, 80 classes" if task == "detect" else "512x2048 px, 150 classes") in head


def test_a_number_that_nobody_published_has_no_published_one_beside_it(capsys):
    for words in (
        "--detect femto",
        "--detect tiny --image-size 640x640",
        "--segment tiny --num-classes 19",
    ):
        lines = shown(capsys, f"account {words}").splitlines()
        assert lines[2].endswith(" -"), words
    lines = shown(capsys, "account --detect tiny --kernel-size 5").splitlines()
    assert lines[2].endswith("43 M")
    assert lines[3].startswith("tiny, changed")
    assert lines[3].endswith(" -")


@pytest.mark.parametrize("task", TASKS)
def test_json_has_exact_numbers_by_shape_and_by_part(task, capsys):
    rows = json.loads(shown(capsys, f"account --{task} --json tiny base"))
    assert [row["variant"] for row in rows] == ["tiny", "base"]
    for row in rows:
        found = TASKS[task].cost(VARIANTS[row["variant"]])
        assert (row["macs"], row["params"]) == (found.macs, found.params)
        assert sum(row["macs_by_part"].values()) == row["macs"]
        assert tuple(row["image_size"]) == TASKS[task].image_size
        assert row["counted"] == TASKS[task].counted


def test_json_of_classifiers(capsys):
    (row,) = json.loads(shown(capsys, "account --json femto --image-size 224x224"))
    assert (row["variant"], row["macs"], row["params"]) == ("femto", 1_147_984_992, 7_304_536)
    assert row["image_size"] == [224, 224]


def test_images_need_not_be_square(capsys):
    assert "64x32 px" in shown(capsys, "account femto --image-size 64x32")
    half = cost(VARIANTS["femto"], (64, 32))
    assert f"{half.macs:,}" in shown(capsys, "account femto --image-size 64x32")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--detect --segment", "--segment: not allowed with argument --detect"),
        ("--image-size 800x", "'800x' must be a whole number from 1 to 999999, or HEIGHTxWIDTH"),
        ("--image-size 0x8", "'0x8' must be a whole"),
        ("--image-size 1x2x3", "'1x2x3' must be"),
        ("--detect colossal", "unknown variant 'colossal'"),
    ],
)
def test_a_wrong_request_is_one_clear_line(words, said, capsys):
    try:
        status = main(["account", *words.split()])
    except SystemExit as ended:
        status = ended.code  # argparse refuses what is no number
    assert status == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.strip().count("\n") == 0


def test_pricing_a_detector_does_not_import_torch():
    code = "import sys, mambaout.dense_accounting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
