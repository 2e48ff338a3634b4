"""A detector of torchvision's kind that takes a step in a tenth of a second."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign


class TinyMaps(nn.Module):
    """Two maps, at 1/8 and 1/16."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 8, stride=8)
        self.norm = nn.GroupNorm(4, 16)
        self.second = nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.norm(self.first(images)).relu()
        return OrderedDict([("0", first), ("1", self.second(first).relu())])


def tiny_detector(num_classes: int = 3) -> MaskRCNN:
    """`num_classes` without the background."""
    names = ["0", "1"]
    return MaskRCNN(
        TinyMaps(),
        rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
        box_roi_pool=MultiScaleRoIAlign(names, 3, 2),
        box_head=TwoMLPHead(16 * 9, 32),
        box_predictor=FastRCNNPredictor(32, num_classes + 1),
        mask_roi_pool=MultiScaleRoIAlign(names, 6, 2),
        mask_head=MaskRCNNHeads(16, (16,), 1),
        mask_predictor=MaskRCNNPredictor(16, 16, num_classes + 1),
    )
