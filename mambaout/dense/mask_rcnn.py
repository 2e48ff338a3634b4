"""Mask R-CNN on the backbone: torchvision's, made equal to mmdetection's mask-rcnn_swin-t_fpn_1x.

    detector = mask_rcnn(replace(variant("tiny"), drop_path=0.2))
    print(load_backbone(detector.backbone.body, read_weights("mambaout_tiny.safetensors")))
    losses = detector(images, targets)     # in training: a dictionary of five losses
    found = detector.eval()(images)        # boxes, labels, scores and masks of each image

The calls are torchvision's: a list of images (3, H, W) in 0..1, of any sizes, and a list of targets
with `boxes` (K, 4; x1, y1, x2, y2), `labels` (K; 1 to N, int64) and `masks` (K, H, W; uint8).
docs/dense.md lists what is equal to mmdetection and what is not. dense_accounting.py has the cost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mambaout.dense.backbone import Backbone
from mambaout.dense.detect_recipe import NOT_ON_XLA
from mambaout.dense.proposals import ProposalNetwork
from mambaout.dense.pyramid import FeaturePyramid
from mambaout.dense.roi_heads import RegionHeads
from mambaout.dense_layers import (
    COCO_CLASSES,
    SAMPLED_BOXES,
    SIZE_DIVISOR,
    WIDTHS,
    HeadWidths,
)
from mambaout.errors import WrongRequest
from mambaout.recipe import PIXEL_MEAN, PIXEL_STD
from mambaout.variants import ModelConfig

SHORTER_SIDE, LONGER_SIDE = 800, 1333  # px
ANCHOR_SIZES = (32, 64, 128, 256, 512)  # px, one for each map


class BackbonePyramid(nn.Module):
    """The backbone and the feature pyramid: five maps of `channels`, the fifth at half the last."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.body = Backbone(config)
        self.fpn = FeaturePyramid(list(config.dims), channels, LastLevelMaxPool())
        self.out_channels = channels
        for layer in self.fpn.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image to one place of each of the five maps."""
        return (*self.body.strides, 2 * self.body.strides[-1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> "0" to "3" and "pool", each (B, channels, H', W')."""
        return self.fpn(OrderedDict((str(i), each) for i, each in enumerate(self.body(x))))


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's: normalises, resizes, pads. With `_skip_resize` it resizes in evaluation no
    more than in training."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return (image, target) if self._skip_resize else super().resize(image, target)


class MaskRCNN(GeneralizedRCNN):
    """The detector of `mask_rcnn`; it checks its targets and its device first."""

    backbone: BackbonePyramid
    rpn: ProposalNetwork
    roi_heads: RegionHeads
    transform: ImageTransform

    def __init__(
        self,
        backbone: BackbonePyramid,
        rpn: ProposalNetwork,
        heads: RegionHeads,
        transform: ImageTransform,
    ) -> None:
        super().__init__(backbone, rpn, heads, transform)
        self.num_classes = heads.box_predictor.cls_score.out_features - 1

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """The losses of `images` in training, their detections in evaluation.

        Detections are `boxes` (K, 4) in pixels of the image, `labels` (K,), `scores` (K,) and
        `masks` (K, 1, H, W), which are probabilities. Raises WrongRequest for wrong targets.
        """
        if any(each.device.type == "xla" for each in images):
            raise WrongRequest(NOT_ON_XLA)
        if self.training:
            self._check(images, targets)
        return super().forward(images, targets)

    def _check(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None) -> None:
        if targets is None or len(targets) != len(images):
            given = "none" if targets is None else len(targets)
            raise WrongRequest(f"{len(images)} images have {given} targets; give one to each image")
        needed = ("boxes", "labels", *(("masks",) if self.roi_heads.has_mask() else ()))
        for i, (image, target) in enumerate(zip(images, targets, strict=True)):
            if missing := [name for name in needed if name not in target]:
                raise WrongRequest(
                    f"the target of image {i} has no {missing[0]!r}; it needs {needed}"
                )
            boxes, labels = target["boxes"], target["labels"]
            count, size = len(labels), tuple(image.shape[-2:])
            if boxes.shape != (count, 4) or not boxes.is_floating_point():
                raise WrongRequest(
                    f"the boxes of image {i} are {tuple(boxes.shape)} of {boxes.dtype}; give "
                    f"({count}, 4) floats, one row for each of its {count} labels"
                )
            if "masks" in needed and target["masks"].shape != (count, *size):
                raise WrongRequest(
                    f"the masks of image {i} are {tuple(target['masks'].shape)}; give "
                    f"{(count, *size)}, one for each of its {count} labels in the image's size"
                )
            if labels.dtype != torch.int64 or ((labels < 1) | (labels > self.num_classes)).any():
                raise WrongRequest(
                    f"the labels of image {i} are {labels.tolist()} of {labels.dtype}; give int64 "
                    f"from 1 to {self.num_classes} (0 is the background)"
                )
            if (boxes[:, 2:] <= boxes[:, :2]).any():
                empty = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)][0].tolist()
                raise WrongRequest(
                    f"image {i} has the box {empty}, which holds no pixel; leave such objects out"
                )


def mask_rcnn(
    config: ModelConfig,
    num_classes: int = COCO_CLASSES,
    *,
    shorter_side: int = SHORTER_SIDE,
    longer_side: int = LONGER_SIDE,
    anchor_sizes: Sequence[int] = ANCHOR_SIZES,
    widths: HeadWidths = WIDTHS,
    sampled_boxes: int = SAMPLED_BOXES,
) -> MaskRCNN:
    """A new Mask R-CNN with random weights, drawn by torch's global generator.

    `num_classes` is without the background. Every image is resized to `shorter_side`, or less if
    its longer side would be above `longer_side`, both in pixels. `anchor_sizes` are the sides in
    pixels of the square anchors on the five maps. The box head learns from `sampled_boxes` of an
    image. `config.drop_path` acts in training.
    """
    if num_classes < 1:
        raise WrongRequest(f"num_classes={num_classes}: a detector needs at least 1")
    if not 1 <= shorter_side <= longer_side:
        raise WrongRequest(
            f"shorter_side={shorter_side}, longer_side={longer_side}: give the shorter one first, "
            f"like {SHORTER_SIDE} and {LONGER_SIDE}"
        )
    if len(anchor_sizes) != len(ANCHOR_SIZES) or min(anchor_sizes) < 1:
        raise WrongRequest(
            f"anchor_sizes={tuple(anchor_sizes)}: give {len(ANCHOR_SIZES)} sizes of at least 1 px, "
            f"like {ANCHOR_SIZES}"
        )
    backbone = BackbonePyramid(config, widths.channels)
    return MaskRCNN(
        backbone,
        ProposalNetwork(widths.channels, anchor_sizes, backbone.strides),
        RegionHeads(num_classes, backbone.body.strides, widths, sampled_boxes),
        ImageTransform(
            shorter_side,
            longer_side,
            list(PIXEL_MEAN),
            list(PIXEL_STD),
            size_divisible=SIZE_DIVISOR,
        ),
    )
