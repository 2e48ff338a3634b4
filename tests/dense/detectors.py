"""A small Mask R-CNN and images for it, and what a dense network costs, counted by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mambaout.dense.mask_rcnn import MaskRCNN, mask_rcnn
from mambaout.dense_layers import HeadWidths
from mambaout.layers import NetworkPart
from mambaout.variants import ModelConfig

SMALL = ModelConfig(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))
WIDTHS = HeadWidths(channels=16, box_features=32)


def small_detector(num_classes: int = 3, seed: int = 0) -> MaskRCNN:
    torch.manual_seed(seed)
    return mask_rcnn(
        SMALL,
        num_classes,
        shorter_side=64,
        longer_side=96,
        anchor_sizes=(8, 16, 32, 64, 128),
        widths=WIDTHS,
    )


def scene(boxes: Sequence[Sequence[float]], size: tuple[int, int], seed: int = 0) -> Any:
    """An image, and a target whose masks fill their boxes; the labels are 1, 2, 3, 1, ..."""
    torch.manual_seed(seed)
    image = torch.rand(3, *size) * 0.2
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        masks[i, int(y1) : int(y2), int(x1) : int(x2)] = 1
        image[i % 3, int(y1) : int(y2), int(x1) : int(x2)] = 1.0
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(len(boxes)) % 3 + 1,
        "masks": masks,
    }
    return image, target


def counted(forward: Callable[[], object]) -> int:
    """The multiply-adds of convolutions and linear layers that `forward` computes.

    Products of two maps or matrices without a bias are left out: no layer here is one.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    by_kind = counter.get_flop_counts()["Global"]
    layers = ("convolution", "addmm")
    return sum(n for kind, n in by_kind.items() if kind.__name__.split(".")[0] in layers) // 2


def check_parameters(model: nn.Module, parts: Sequence[NetworkPart]) -> None:
    """Every layer of the list is a module of that name with as many parameters, and none is left
    out."""
    for part in parts:
        for block in range(part.times):
            for name, layer in part.layers.items():
                path = [part.name, *([str(block)] if part.num_blocks is not None else []), name]
                module = model.get_submodule(".".join(word for word in path if word))
                own = sum(parameter.numel() for parameter in module.parameters())
                assert own == layer.params, path
    listed = sum(part.times * sum(x.params for x in part.layers.values()) for part in parts)
    assert listed == sum(parameter.numel() for parameter in model.parameters())


def as_published(detector: MaskRCNN, size: tuple[int, int]) -> Callable[[], Tensor]:
    """One pass over an image of `size` with the published rule's numbers of boxes and masks, which
    an evaluation does not have: its numbers depend on the weights."""
    heads, channels = detector.roi_heads, detector.backbone.out_channels

    def forward() -> Tensor:
        maps = detector.backbone(torch.empty(1, 3, *size, device="meta"))
        detector.rpn.head(list(maps.values()))
        boxes = torch.empty(1000, channels, 7, 7, device="meta")
        heads.box_predictor(heads.box_head(boxes))
        masks = torch.empty(100, channels, 14, 14, device="meta")
        return heads.mask_predictor(heads.mask_head(masks))

    return forward
