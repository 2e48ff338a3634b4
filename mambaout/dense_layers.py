"""The layers of the detector and of the segmenter on a MambaOut backbone, in forward order.

    for part in detector_layers(variant("tiny"), (800, 1280)):
        print(part.name, *part.layers)  # ... rpn.head conv cls_logits bbox_pred ...

The lists describe dense/mask_rcnn.py and dense/upernet.py as layers.py describes the classifier,
and under the names of their modules. Pure values: no torch, no I/O.

A head that many maps or many regions pass through has its weights once. Its layers therefore have
one map, in which all those maps stand one below the other. The MACs depend on the number of places
alone, so they are right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mambaout.errors import WrongRequest
from mambaout.layer_kinds import (
    BatchNormLayer,
    ConvLayer,
    Layer,
    LinearLayer,
    NormLayer,
    Size,
    TransposedConvLayer,
)
from mambaout.layers import ImageSize, NetworkPart, both_sides, layers
from mambaout.variants import ModelConfig

SIZE_DIVISOR = 32  # a detector's images are padded to a multiple of it, in pixels

# Mask R-CNN, all as in mmdetection's mask-rcnn_swin-t_fpn_1x_coco.
COCO_CLASSES = 80
ANCHORS_A_PLACE = 3  # one for each ratio of the sides
PROPOSALS = 1000  # boxes that the region proposal network hands on
SAMPLED_BOXES = 512  # of these, what the box head learns from; no evaluation samples
COUNTED_MASKS = 100  # detections of an image, and the masks that mmdetection counts
BOX_SIDE, MASK_SIDE = 7, 14  # of the map that is cut out for each box, for its mask
MASK_CONVS = 4

# UperNet, all as in mmsegmentation's swin-tiny-...-upernet_8xb2-160k_ade20k-512x512.
ADE20K_CLASSES = 150
POOL_SIDES = (1, 2, 3, 6)
AUXILIARY_STAGE = 2  # the third of four
AUXILIARY = "auxiliary"  # the name of the head that only training computes


class HeadWidths(NamedTuple):
    """The widths of the heads of Mask R-CNN. The defaults are the published detector's."""

    channels: int = 256  # of the feature pyramid, the region proposals and the mask head
    box_features: int = 1024  # of the two linear layers of the box head


WIDTHS = HeadWidths()
SEGMENTER_CHANNELS = 512
AUXILIARY_CHANNELS = 256


def detector_layers(
    config: ModelConfig,
    image_size: ImageSize,
    num_classes: int = COCO_CLASSES,
    widths: HeadWidths = WIDTHS,
) -> list[NetworkPart]:
    """The layers of Mask R-CNN for one image, with PROPOSALS boxes and COUNTED_MASKS masks.

    `image_size` is one side or (height, width), in pixels; the detector pads both to a multiple of
    32. `num_classes` is without the background.
    """
    height, width = (_padded(side) for side in both_sides(image_size))
    _check_classes(num_classes)
    channels, features = widths
    backbone, maps = _backbone(config, (height, width), "backbone.body")
    pyramid: dict[str, Layer] = {}
    for i, (dim, size) in enumerate(maps):
        pyramid[f"inner_blocks.{i}.0"] = ConvLayer(dim, size, channels, kernel=1)
    for i, (_, size) in enumerate(maps):
        pyramid[f"layer_blocks.{i}.0"] = ConvLayer(channels, size, channels, kernel=3)
    coarsest = tuple(-(-side // 2) for side in maps[-1][1])  # every second place of the last map
    places = _stacked([*(size for _, size in maps), coarsest])
    boxes, masks = (PROPOSALS, 1), _stacked([(MASK_SIDE, MASK_SIDE)] * COUNTED_MASKS)
    mask_convs = {
        f"{i}.0": ConvLayer(channels, masks, channels, kernel=3) for i in range(MASK_CONVS)
    }
    upsampled = TransposedConvLayer(channels, masks, channels, factor=2)
    return [
        *backbone,
        NetworkPart("backbone.fpn", pyramid),
        NetworkPart(
            "rpn.head",
            {
                "conv": ConvLayer(channels, places, channels, kernel=3),
                "cls_logits": ConvLayer(channels, places, ANCHORS_A_PLACE, kernel=1),
                "bbox_pred": ConvLayer(channels, places, 4 * ANCHORS_A_PLACE, kernel=1),
            },
        ),
        NetworkPart(
            "roi_heads.box_head",
            {
                "fc6": LinearLayer(channels * BOX_SIDE**2, boxes, features),
                "fc7": LinearLayer(features, boxes, features),
            },
        ),
        NetworkPart(
            "roi_heads.box_predictor",
            {
                "cls_score": LinearLayer(features, boxes, num_classes + 1),
                "bbox_pred": LinearLayer(features, boxes, 4 * num_classes),
            },
        ),
        NetworkPart("roi_heads.mask_head", {**mask_convs}),
        NetworkPart(
            "roi_heads.mask_predictor",
            {
                "conv5_mask": upsampled,
                "mask_fcn_logits": ConvLayer(channels, upsampled.size_out, num_classes, kernel=1),
            },
        ),
    ]


def segmenter_layers(
    config: ModelConfig,
    image_size: ImageSize,
    num_classes: int = ADE20K_CLASSES,
    channels: int = SEGMENTER_CHANNELS,
) -> list[NetworkPart]:
    """The layers of UperNet for one image; the last part, AUXILIARY, is for training alone.

    `image_size` is one side or (height, width), in pixels.
    """
    _check_classes(num_classes)
    backbone, maps = _backbone(config, both_sides(image_size), "backbone")
    last_dim, last = maps[-1]
    finest = maps[0][1]
    pools: dict[str, Layer] = {}
    for i, side in enumerate(POOL_SIDES):
        pools |= _conv_norm(f"pools.{i}", last_dim, (side, side), channels, kernel=1)
    pooled = last_dim + len(POOL_SIDES) * channels
    pools |= _conv_norm("bottleneck", pooled, last, channels, kernel=3)
    laterals: dict[str, Layer] = {}
    smooths: dict[str, Layer] = {}
    for i, (dim, size) in enumerate(maps[:-1]):
        laterals |= _conv_norm(f"laterals.{i}", dim, size, channels, kernel=1)
        smooths |= _conv_norm(f"smooths.{i}", channels, size, channels, kernel=3)
    fuse = _conv_norm("fuse", len(maps) * channels, finest, channels, kernel=3)
    aux_dim, aux_size = maps[AUXILIARY_STAGE]
    auxiliary = _conv_norm("0", aux_dim, aux_size, AUXILIARY_CHANNELS, kernel=3)
    auxiliary["2"] = ConvLayer(AUXILIARY_CHANNELS, aux_size, num_classes, kernel=1)
    return [
        *backbone,
        NetworkPart("decoder", pools | laterals | smooths | fuse),
        NetworkPart("classifier", {"": ConvLayer(channels, finest, num_classes, kernel=1)}),
        NetworkPart(AUXILIARY, auxiliary),
    ]


def _check_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise WrongRequest(f"num_classes={num_classes}: give 1 or more")


def _padded(side: int) -> int:
    return math.ceil(side / SIZE_DIVISOR) * SIZE_DIVISOR


def _backbone(
    config: ModelConfig, size: Size, name: str
) -> tuple[list[NetworkPart], list[tuple[int, Size]]]:
    """The parts of the backbone, and channels and size of its four maps."""
    parts = [part for part in layers(config, size) if part.name != "head"]
    maps: list[tuple[int, Size]] = []
    for part in parts:
        if part.num_blocks is not None:
            height, width, dim = list(part.layers.values())[-1].shape_out
            maps.append((dim, (height, width)))
    norms = NetworkPart("norms", {str(i): NormLayer(*each) for i, each in enumerate(maps)})
    return [part._replace(name=f"{name}.{part.name}") for part in (*parts, norms)], maps


def _stacked(sizes: Iterable[Sequence[int]]) -> Size:
    """One column with the places of all these maps."""
    return sum(math.prod(size) for size in sizes), 1


def _conv_norm(
    name: str, channels: int, size: Size, filters: int, *, kernel: int
) -> dict[str, Layer]:
    """A convolution without bias and its batch norm; the ReLU behind them costs nothing."""
    return {
        f"{name}.conv": ConvLayer(channels, size, filters, kernel=kernel, has_bias=False),
        f"{name}.norm": BatchNormLayer(filters, size),
    }
