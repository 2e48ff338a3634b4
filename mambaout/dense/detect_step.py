"""One optimizer step of a detector over micro-batches, and its predictions on an image.

The detector is torchvision's kind: `losses = detector(images, targets)` in training.

A micro-batch's losses are means over its own samples. The mean over micro-batches is then not the
loss of the whole batch: one with few positive boxes would count as much as one with many. So the
samples of all micro-batches are counted first, and each loss is weighted by its share of them. The
mask loss has the positive boxes of the whole batch as its normaliser, the box head's losses have
all sampled boxes, and the proposal network's losses have all sampled anchors. To count takes a
second forward pass without gradients, of the backbone and the proposal network alone. A batch that
is one micro-batch does without.

torchvision samples anchors and boxes with torch's global generator. Before each pass the generator
is seeded with (seed, step, micro-batch). So both passes sample the same, and a resumed run goes on
to the bit without the generator's state in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from mambaout.data.draws import draw
from mambaout.dense.detect_images import DetectSample
from mambaout.dense.evaluate import Detections, encoded_masks
from mambaout.train.backend import Backend

# The losses, in the order of `LossSums`, and what each is a mean over.
LOSSES = {
    "loss_objectness": "anchors",
    "loss_rpn_box_reg": "anchors",
    "loss_classifier": "boxes",
    "loss_box_reg": "boxes",
    "loss_mask": "positives",
}


@dataclass
class SampleCount:
    """How many samples the losses of one pass are means over."""

    anchors: int
    boxes: int
    positives: int


class CountingSampler:
    """torchvision's sampler of positives and negatives. It keeps the numbers of its last call."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.num_positive = self.num_sampled = 0

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = self.sampler(labels)
        self.num_positive = sum(int(each.sum()) for each in positive)
        self.num_sampled = self.num_positive + sum(int(each.sum()) for each in negative)
        return positive, negative


class DetectorSteps:
    """Takes the steps of one detector; changes its weights' gradients in place."""

    def __init__(
        self, detector: GeneralizedRCNN, backend: Backend, precision: str, seed: int
    ) -> None:
        """Prepares `detector`, which is on its device: images come resized, and samplers count.

        With bf16 the products of matrices are in bf16. The detector itself keeps anchors, scores
        and the regression of boxes in fp32.
        """
        self.detector, self.backend, self.seed = detector, backend, seed
        self.precision = precision
        transform: Any = detector.transform
        transform._skip_resize = True
        heads: Any = detector.roi_heads
        network: Any = detector.rpn
        self.of_anchors = CountingSampler(network.fg_bg_sampler)
        self.of_boxes = CountingSampler(heads.fg_bg_sampler)
        network.fg_bg_sampler, heads.fg_bg_sampler = self.of_anchors, self.of_boxes

    def add_gradients(self, batch: Sequence[DetectSample], micro_batch: int, step: int) -> Tensor:
        """Add the gradients of the whole batch's loss. Returns the losses, (5,), as in LOSSES."""
        self.detector.train()
        parts = [batch[at : at + micro_batch] for at in range(0, len(batch), micro_batch)]
        device = self.backend.device
        devices = [device] if device.type == "cuda" else []
        sums = torch.zeros(len(LOSSES), device=device)
        with torch.random.fork_rng(devices):
            counts = None
            if len(parts) > 1:
                counts = [self._counted(part, step, place) for place, part in enumerate(parts)]
            for place, part in enumerate(parts):
                self._seed(step, place)
                images, targets = self._placed(part)
                with self.backend.autocast(self.precision):
                    losses = self.detector(images, targets)
                weights = [
                    _share(counts, place, what) if name in losses else 0.0
                    for name, what in LOSSES.items()
                ]
                found = torch.stack([losses.get(name, sums.new_zeros(())) for name in LOSSES])
                weighted = found * torch.tensor(weights, device=device)
                weighted.sum().backward()
                sums += weighted.detach()
        return sums

    def _seed(self, step: int, place: int) -> None:
        torch.manual_seed(draw("detect-samples", self.seed, step, place))

    def _placed(self, part: Sequence[DetectSample]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        place = self.backend.place
        images = [place(each.pixels).float() / 255 for each in part]
        targets = [{name: place(v) for name, v in each.targets.items()} for each in part]
        return images, targets

    @torch.no_grad()
    def _counted(self, part: Sequence[DetectSample], step: int, place: int) -> SampleCount:
        """What the pass with gradients will sample: the same draws in the same order."""
        self._seed(step, place)
        detector: Any = self.detector
        images, targets = detector.transform(*self._placed(part))
        with self.backend.autocast(self.precision):
            features = detector.backbone(images.tensors)
            proposals, _ = detector.rpn(images, features, targets)
        detector.roi_heads.select_training_samples(proposals, targets)
        return SampleCount(
            anchors=self.of_anchors.num_sampled,
            boxes=self.of_boxes.num_sampled,
            positives=self.of_boxes.num_positive,
        )

    @torch.no_grad()
    def predict(self, sample: DetectSample) -> Detections:
        """What the detector finds on an image; boxes and masks are those of the image file."""
        detector: Any = self.detector
        detector.eval()
        images, _ = detector.transform([self.backend.place(sample.pixels).float() / 255])
        with self.backend.autocast(self.precision):
            features = detector.backbone(images.tensors)
            proposals, _ = detector.rpn(images, features)
            found, _ = detector.roi_heads(features, proposals, images.image_sizes)
        # Masks are pasted into the image at its own size, not at the size that it was resized to.
        one = detector.transform.postprocess(found, images.image_sizes, [sample.file_size])[0]
        boxes, labels, scores = (one[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
        rles = None
        if "masks" in one:
            rles = encoded_masks((one["masks"][:, 0] > MASK_THRESHOLD).cpu().numpy())
        return Detections(sample.image_id, boxes.astype(np.float32), labels, scores, rles)


MASK_THRESHOLD = 0.5  # of a pixel's probability; as in mmdetection and torchvision


def _share(counts: Sequence[SampleCount] | None, place: int, what: str) -> float:
    """The share of a micro-batch in the samples of the whole batch."""
    if counts is None:
        return 1.0
    numbers = [getattr(each, what) for each in counts]
    return numbers[place] / max(1, sum(numbers))


# -- the optimizer --------------------------------------------------------------------------------


def detect_optimizer(
    detector: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with mmdetection's rule: no decay for parameters with `norm` in their name, decay for
    all others, biases too."""
    decayed, kept = [], []
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            (kept if "norm" in name else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
