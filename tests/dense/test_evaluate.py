"""COCO's 24 figures: right at the ends, the same by both engines, and drawn on a sheet."""

from __future__ import annotations

import io

import numpy as np
import pytest

from mambaout.dense.coco import CocoData, read_coco
from mambaout.dense.contact_sheet import COLOURS, GAP, TILE, contact_sheet
from mambaout.dense.evaluate import FIGURES, Detections, encoded_masks, figures
from mambaout.dense.shapes import ShapesSize, write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> CocoData:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, ShapesSize(train=1, val=40, side=128))
    return read_coco(str(root), "val")


def guesses(data: CocoData, noise: float, seed: int = 0) -> list[Detections]:
    """The objects themselves, moved by `noise` pixels; some missing, some of another class."""
    random = np.random.default_rng(seed)
    found = []
    for image in data.images:
        size = image.height, image.width
        kept = [each for each in image.objects if random.random() >= noise / 40]
        moved = [np.round(random.normal(0, noise, 2)).astype(int) for _ in kept]
        boxes = [np.array(e.box) + np.tile(m, 2) for e, m in zip(kept, moved, strict=True)]
        masks = [
            np.roll(e.mask(size, size), m[::-1], (0, 1)) for e, m in zip(kept, moved, strict=True)
        ]
        labels = [
            e.label if random.random() >= noise / 20 else int(random.integers(1, 4)) for e in kept
        ]
        found.append(
            Detections(
                image.id,
                np.array(boxes, np.float32).reshape(-1, 4),
                np.array(labels, np.int64),
                random.random(len(kept)).astype(np.float32),
                encoded_masks(np.array(masks).reshape(-1, *size)),
            )
        )
    return found


def test_the_truth_itself_has_every_figure_that_can_be_full(shapes):
    found = figures(shapes, guesses(shapes, 0))
    full = [f"{kind}_{name}" for kind in ("box", "mask") for name in FIGURES]
    assert list(found) == [name for name in full if not name.endswith("large")]  # none is large
    for name, value in found.items():
        if not name.endswith(("ar1", "ar10")):  # one detection an image cannot find all
            assert value == pytest.approx(100)


def test_nothing_found_is_zero_and_a_detector_of_boxes_has_no_figures_of_masks(shapes):
    none = [
        Detections(i.id, np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0), None)
        for i in shapes.images
    ]
    found = figures(shapes, none)
    assert set(found.values()) == {0.0}
    assert all(name.startswith("box_") for name in found)


@pytest.mark.parametrize("noise", [1, 3, 8])
def test_faster_coco_eval_gives_the_same_24_figures_to_six_digits(shapes, noise):
    found = guesses(shapes, noise)
    reference = figures(shapes, found)
    fast = figures(shapes, found, "faster-coco-eval")
    assert fast.keys() == reference.keys()
    assert 5 < reference["box_ap"] < 95
    for name, value in reference.items():
        assert fast[name] == pytest.approx(value, abs=1e-6), name


def test_an_evaluation_leaves_the_data_as_it_was(shapes):
    before = [dict(each) for each in shapes.body["annotations"]]
    figures(shapes, guesses(shapes, 3))
    assert shapes.body["annotations"] == before


def test_the_sheet_shows_what_is_sure_in_the_colour_of_its_class(shapes):
    from PIL import Image

    image = np.full((50, 100, 3), 128, np.uint8)
    mask = np.zeros((2, 50, 100), bool)
    mask[0, 10:40, 10:40] = mask[1, 10:40, 60:90] = True
    boxes = np.array([[10, 10, 40, 40], [60, 10, 90, 40]], np.float32)
    scores = np.array([0.9, 0.3], np.float32)
    one = Detections(1, boxes, np.array([1, 2]), scores, encoded_masks(mask))
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([image] * 5, [one] * 5, "abc"))))
    assert sheet.shape == (2 * (TILE // 2 + GAP) + GAP, 4 * (TILE + GAP) + GAP, 3)
    first = sheet[GAP : GAP + TILE // 2, GAP : GAP + TILE]
    assert (first[90, 80] == [int(0.55 * 128 + 0.45 * c) for c in COLOURS[0]]).all()
    assert (first[80, 240] == 128).all()  # the unsure one


def test_a_tile_says_what_is_found_inside_of_it_or_that_nothing_is():
    from PIL import Image

    image = np.full((TILE, TILE, 3), 128, np.uint8)
    corner = np.array([[TILE - 20, 0, TILE, 20]], np.float32)

    def tile(score: float) -> np.ndarray:
        one = Detections(1, corner, np.array([1]), np.array([score], np.float32), None)
        sheet = Image.open(io.BytesIO(contact_sheet([image], [one], ["a long name of a class"])))
        return np.asarray(sheet)[GAP : GAP + TILE, GAP : GAP + TILE]

    sure, unsure = tile(0.9), tile(0.2)
    label = (sure[1:14] == COLOURS[0]).all(-1)
    assert label[:, : TILE - 60].any()  # moved to the left, so that the whole text is seen
    assert not (unsure == COLOURS[0]).all(-1).any()
    assert (unsure[:14, :100] == 255).all(-1).any()  # "nothing over 50; best: ..."
    assert (unsure[30:] == 128).all()
