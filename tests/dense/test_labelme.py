"""Real photographs with real polygons: they are read right, and can be learned by heart."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelme_photographs import needs_labelme, write_labelme_as_coco

from mambaout.__main__ import main
from mambaout.dense.coco import read_coco
from mambaout.train.metrics import read_records

pytestmark = needs_labelme


def test_the_photographs_have_twelve_objects_of_six_classes(tmp_path):
    write_labelme_as_coco(tmp_path)
    data = read_coco(str(tmp_path), "train")
    assert [len(image.objects) for image in data.images] == [3, 6, 3]
    assert data.class_names == ("person", "bottle", "chair", "sofa", "bus", "car")
    assert not data.left_out
    for image in data.images:
        assert data.pixels(image).shape == (image.height, image.width, 3)
        for each in image.objects:
            size = image.height, image.width
            left, top, right, bottom = each.box
            inside = each.mask(size, size)[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
            assert inside.sum() == each.mask(size, size).sum() > 0


OVERFIT = [
    *("--depths", "1,1,2,1", "--dims", "24,48,72,96", "--drop-path", "0"),
    *("--head-channels", "64", "--box-features", "256", "--smallest-anchor", "12"),
    *("--shorter-side", "160", "--longer-side", "256", "--hflip", "0"),
    *("--global-batch", "3", "--micro-batch", "3", "--epochs", "240", "--warmup-steps", "10"),
    *("--first-drop-epoch", "190", "--second-drop-epoch", "225", "--eval-every-epochs", "40"),
    *("--peak-lr", "1e-3", "--weight-decay", "0"),
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_photographs_are_learned_by_heart(tmp_path: Path):
    write_labelme_as_coco(tmp_path / "photographs")
    words = ["--data", str(tmp_path / "photographs"), "--out", str(tmp_path / "run")]
    assert main(["train", "--task", "detect", *words, *OVERFIT]) == 0
    *_, last = read_records(tmp_path / "run" / "records.jsonl")
    assert last.values["val/box_ap"] > 90
    assert last.values["val/mask_ap50"] > 99.9
