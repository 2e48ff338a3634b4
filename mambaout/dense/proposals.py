"""The region proposal network, as mmdetection has it: anchors, matching, fp32 regression, L1 loss.

torchvision's RegionProposalNetwork does the rest: it samples anchors, decodes boxes, suppresses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from mambaout.dense.fp32 import in_fp32
from mambaout.dense_layers import ANCHORS_A_PLACE, PROPOSALS

RATIOS = (0.5, 1.0, 2.0)  # of an anchor's height to its width
CANDIDATES_A_MAP = {"training": 2000, "testing": 1000}  # before boxes that overlap are suppressed
MATCH_FROM, BACKGROUND_BELOW = 0.7, 0.3  # IoU of an anchor and an object
SAMPLED_ANCHORS, POSITIVE_SHARE = 256, 0.5
SUPPRESS_FROM = 0.7  # IoU of two proposals
INIT_STD = 0.01


class AnchorGrid(nn.Module):
    """The same anchors at every place of each map: one size a map, three ratios of the sides.

    torchvision rounds its anchors, and takes the steps from the sizes of image and map; its fifth
    map of an 800 px image has steps of 61 px. These are not rounded, and the steps are the strides.
    """

    def __init__(self, sizes: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.sizes, self.strides = tuple(sizes), tuple(strides)

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """The anchors (A, 4) of each image: x1, y1, x2, y2 in pixels, map by map, row by row."""
        pairs = zip(self.sizes, self.strides, maps, strict=True)
        anchors = torch.cat([self._of_map(size, stride, each) for size, stride, each in pairs])
        return [anchors] * len(images.image_sizes)

    def _of_map(self, size: int, stride: int, features: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        place: dict[str, Any] = {"device": features.device, "dtype": torch.float32}
        sides = torch.tensor([[math.sqrt(1 / r), math.sqrt(r)] for r in RATIOS], **place) * size
        shapes = torch.cat([-sides, sides], dim=1) / 2  # (3, 4), round the place (0, 0)
        y, x = torch.meshgrid(
            torch.arange(height, **place) * stride,
            torch.arange(width, **place) * stride,
            indexing="ij",
        )
        centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        return (centres + shapes).reshape(-1, 4)


class AnchorMatcher(Matcher):
    """torchvision's matcher, but an object that no anchor covers by 0.3 has no anchor at all."""

    def __init__(self) -> None:
        super().__init__(MATCH_FROM, BACKGROUND_BELOW, allow_low_quality_matches=True)

    def set_low_quality_matches_(
        self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor
    ) -> None:
        """Give each object the anchors that cover it best; changes `matches` in place."""
        best = match_quality_matrix.max(dim=1).values
        covered = match_quality_matrix[best >= BACKGROUND_BELOW]
        best = best[best >= BACKGROUND_BELOW]
        anchors = torch.where(covered == best[:, None])[1]
        matches[anchors] = all_matches[anchors]


class ProposalHead(nn.Module):
    """One convolution, then scores and boxes of the anchors; the same for every map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(channels, ANCHORS_A_PLACE, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * ANCHORS_A_PLACE, 1)
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else INIT_STD)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each map (B, C, H, W): scores (B, 3, H, W) and boxes (B, 12, H, W), in fp32."""
        hidden = [F.relu(self.conv(each)) for each in maps]
        scores = [in_fp32(self.cls_logits, each) for each in hidden]
        return scores, [in_fp32(self.bbox_pred, each) for each in hidden]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's network with the parts of this file, and an L1 loss of the boxes."""

    def __init__(self, channels: int, sizes: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__(
            AnchorGrid(sizes, strides),  # pyright: ignore[reportArgumentType] - called alone
            ProposalHead(channels),
            MATCH_FROM,
            BACKGROUND_BELOW,
            SAMPLED_ANCHORS,
            POSITIVE_SHARE,
            CANDIDATES_A_MAP,
            {"training": PROPOSALS, "testing": PROPOSALS},
            SUPPRESS_FROM,
        )
        self.proposal_matcher = AnchorMatcher()

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The loss of the scores and that of the boxes, each over the sampled anchors."""
        positive, negative = (torch.cat(each) > 0 for each in self.fg_bg_sampler(labels))
        sampled = positive | negative
        scores, truth = objectness.flatten()[sampled], torch.cat(labels)[sampled]
        targets = torch.cat(regression_targets)[positive]
        of_boxes = F.l1_loss(pred_bbox_deltas[positive], targets, reduction="sum")
        return F.binary_cross_entropy_with_logits(scores, truth), of_boxes / sampled.sum()
