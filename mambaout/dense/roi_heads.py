"""The heads that look at each box: its class, its corners, its mask; as mmdetection has them.

torchvision's RoIHeads samples the boxes and selects the detections. The losses are here, and the
regions are cut out of the maps with RoIAlign as it was corrected (`aligned`): half a pixel further
left and up, with as many samples a bin as it has places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_align

from mambaout.dense.fp32 import in_fp32
from mambaout.dense_layers import BOX_SIDE, MASK_CONVS, MASK_SIDE, SAMPLED_BOXES, HeadWidths

MATCH_FROM = 0.5  # IoU of a proposal and an object; less is background
POSITIVE_SHARE = 0.25  # of the sampled boxes, at most
LEAST_SCORE, SUPPRESS_FROM, MOST_DETECTIONS = 0.05, 0.5, 100
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the corners' regression: x, y, width, height
FINEST_STRIDES = 14  # boxes up to twice that many strides of the finest map come from that map
ALL_PLACES = 0  # samples in a bin of RoIAlign: as many as it has places
ON_MASK = 0.5  # of a pixel of a mask that is cut out of a mask of pixels
CLASS_STD, BOX_STD = 0.01, 0.001  # of the first weights of the predictors


def regions(features: Tensor, rois: Tensor, side: int, stride: int) -> Tensor:
    """RoIAlign: (B, C, H, W), boxes (K, 5) of image, x1, y1, x2, y2 in pixels -> (K, C, side, side)
    in fp32."""
    scale = 1 / stride
    # torchvision's @fx.wrap is typed as if it gave a string.
    return roi_align(  # pyright: ignore[reportCallIssue]
        features.float(), rois, side, scale, ALL_PLACES, aligned=True
    )


def as_rois(boxes: Sequence[Tensor]) -> Tensor:
    """The boxes (K, 4) of each image as (sum of K, 5): the number of the image comes first."""
    return torch.cat([F.pad(each, (1, 0), value=float(i)) for i, each in enumerate(boxes)])


class PyramidRegions(nn.Module):
    """Cuts each box out of the map that suits its size."""

    def __init__(self, side: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.side, self.strides = side, tuple(strides)

    def levels(self, rois: Tensor) -> Tensor:
        """The map (K,) of each box: the finest for sides of up to 112 px, at strides 4 to 32."""
        sides = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        levels = torch.log2(sides / (FINEST_STRIDES * self.strides[0]) + 1e-6).floor()
        return levels.clamp(0, len(self.strides) - 1)

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Boxes (K, 4) of each image -> (sum of K, C, side, side)."""
        maps = list(features.values())[: len(self.strides)]
        rois = as_rois(boxes)
        levels = self.levels(rois)
        shape = (len(rois), maps[0].shape[1], self.side, self.side)
        found = torch.zeros(shape, device=rois.device)
        for level, (each, stride) in enumerate(zip(maps, self.strides, strict=True)):
            (places,) = torch.where(levels == level)
            found[places] = regions(each, rois[places], self.side, stride)
        return found


class BoxPredictor(nn.Module):
    """The scores of every class and of the background, and a box for every class."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, num_classes + 1)  # 0: the background
        self.bbox_pred = nn.Linear(features, 4 * num_classes)
        for layer, std in ((self.cls_score, CLASS_STD), (self.bbox_pred, BOX_STD)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(K, features) -> scores (K, 1 + N) and boxes (K, 4 + 4 N), in fp32.

        The background comes first. It has no box, and zeros where torchvision has one.
        """
        boxes = in_fp32(self.bbox_pred, x)
        return in_fp32(self.cls_score, x), F.pad(boxes, (4, 0))


class MaskPredictor(nn.Module):
    """A mask for every class, of twice the side of its input; the background has none."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(channels, num_classes, 1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.mask_fcn_logits(F.relu(self.conv5_mask(x)))  # (K, C, 14, 14) -> (K, N, 28, 28)


class RegionHeads(RoIHeads):
    """torchvision's heads with the parts and the losses of this file.

    Without the three parts for masks (`mask_roi_pool`, `mask_head`, `mask_predictor` are None) it
    finds boxes alone.
    """

    mask_roi_pool: Any
    mask_head: Any
    mask_predictor: Any

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[int],
        widths: HeadWidths,
        sampled_boxes: int = SAMPLED_BOXES,
    ) -> None:
        channels, features = widths
        box_head = TwoMLPHead(channels * BOX_SIDE**2, features)
        for layer in (box_head.fc6, box_head.fc7):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        super().__init__(
            PyramidRegions(BOX_SIDE, strides),
            box_head,
            BoxPredictor(features, num_classes),
            MATCH_FROM,
            MATCH_FROM,
            sampled_boxes,
            POSITIVE_SHARE,
            BOX_WEIGHTS,
            LEAST_SCORE,
            SUPPRESS_FROM,
            MOST_DETECTIONS,
            PyramidRegions(MASK_SIDE, strides),
            MaskRCNNHeads(channels, [channels] * MASK_CONVS, 1),
            MaskPredictor(channels, num_classes),
        )

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """The detections of each image in evaluation, the losses in training; the other is empty.

        `proposals` are boxes (K, 4) of each image in pixels.
        """
        if not self.training:
            return self._detections(features, proposals, image_shapes), {}
        assert targets is not None
        proposals, matched, labels, box_targets = self.select_training_samples(proposals, targets)
        scores, boxes = self._scored(features, proposals, image_shapes)
        losses = box_losses(scores, boxes, torch.cat(labels), torch.cat(box_targets))
        if self.has_mask():
            kept = [each > 0 for each in labels]
            positives = [each[keep] for each, keep in zip(proposals, kept, strict=True)]
            matched = [each[keep] for each, keep in zip(matched, kept, strict=True)]
            logits = self._masks(features, positives, image_shapes)
            masks = [each["masks"] for each in targets]
            of_positives = torch.cat([each[keep] for each, keep in zip(labels, kept, strict=True)])
            truth = mask_targets(masks, positives, matched, logits.shape[-1])
            losses["loss_mask"] = mask_loss(logits, of_positives, truth)
        return [], losses

    def _detections(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        scored = self._scored(features, proposals, image_shapes)
        boxes, scores, labels = self.postprocess_detections(*scored, proposals, image_shapes)
        columns = {"boxes": boxes, "labels": labels, "scores": scores}
        if self.has_mask():
            logits = self._masks(features, boxes, image_shapes)
            own = of_class(logits, torch.cat(labels)).sigmoid()[:, None]
            columns["masks"] = list(own.split([len(each) for each in boxes]))
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _scored(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        return self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, image_shapes)))

    def _masks(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        """The mask logits (sum of K, N, 28, 28) of all images' boxes, in fp32."""
        cut = self.mask_roi_pool(features, boxes, image_shapes)
        return self.mask_predictor(self.mask_head(cut)).float()


def box_losses(scores: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The losses of the sampled boxes (K): cross-entropy of the scores (K, 1 + N), and L1 of the
    corners (K, 4 + 4 N) of the positive ones, each a mean over all K."""
    positive = torch.where(labels > 0)[0]
    own = boxes.unflatten(1, (-1, 4))[positive, labels[positive]]
    of_boxes = F.l1_loss(own, targets[positive], reduction="sum") / labels.numel()
    return {"loss_classifier": F.cross_entropy(scores, labels), "loss_box_reg": of_boxes}


def mask_targets(
    masks: Sequence[Tensor], boxes: Sequence[Tensor], matched: Sequence[Tensor], side: int
) -> Tensor:
    """The part of its object's mask that each box sees, 0 or 1: (sum of K, side, side).

    `masks` (objects, H, W) are those of each image, and `matched` (K,) the object of each box.
    """
    cut = []
    for of_image, own, objects in zip(masks, boxes, matched, strict=True):
        rois = torch.cat([objects[:, None].to(own), own], dim=1)
        cut.append(regions(of_image[:, None], rois, side, stride=1)[:, 0])
    return (torch.cat(cut) >= ON_MASK).float()


def of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """The mask (K, side, side) of each box's own class, 1 to N, from (K, N, side, side)."""
    return logits[torch.arange(len(labels), device=labels.device), labels - 1]


def mask_loss(logits: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """The cross-entropy of the pixels of the positive boxes' masks; 0 if there is no such box."""
    if truth.numel() == 0:
        return logits.sum() * 0  # a gradient for every parameter, as with boxes
    return F.binary_cross_entropy_with_logits(of_class(logits, labels), truth)
