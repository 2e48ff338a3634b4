"""The generated shapes can be learned in the minutes that a benchmark has."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from mambaout.commands.dense import SHAPES
from mambaout.commands.detect import DetectRequest
from mambaout.dense.coco import CocoData, read_coco
from mambaout.dense.proposals import AnchorGrid, AnchorMatcher
from mambaout.dense.shapes import ShapesSize, write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> CocoData:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, ShapesSize(train=100, val=1))
    return read_coco(str(root), "train")


def test_a_shape_differs_from_its_surroundings_by_more_than_its_own_colours_spread(shapes):
    clear = []
    for image in shapes.images:
        pixels, size = shapes.pixels(image).astype(float), (image.height, image.width)
        for each in image.objects:
            mask = each.mask(size, size)
            inside, outside = pixels[mask > 0], pixels[cv2.dilate(mask, np.ones((7, 7))) > mask]
            spread = np.sqrt(inside.var(0).sum())
            clear.append(np.linalg.norm(inside.mean(0) - outside.mean(0)) > spread)
    assert np.mean(clear) > 0.95  # 0.76 where the filling has the photographs' colours


def test_a_shape_has_more_than_one_anchor(shapes):
    """An object that one anchor of 2,307 stands for gives the proposals little to learn from."""
    recipe, _ = DetectRequest(SHAPES, None, {}, smoke=False).recipe(len(shapes.images))
    images = ImageList(torch.empty(1, 3, 96, 96), [(96, 96)])
    maps = [torch.empty(1, 1, side, side) for side in (24, 12, 6, 3, 2)]
    anchors = AnchorGrid(recipe.anchor_sizes, (4, 8, 16, 32, 64))(images, maps)[0]
    num_anchors, without = [], 0
    for image in shapes.images:
        boxes = torch.tensor([each.box for each in image.objects])
        matched = AnchorMatcher()(box_iou(boxes, anchors))
        of_each = torch.bincount(matched[matched >= 0], minlength=len(boxes))
        num_anchors += of_each.tolist()
        without += int((of_each == 0).sum())
    assert np.mean(num_anchors) > 2  # 1.1 with anchors from 12 px on
    assert without < 0.02 * len(num_anchors)
