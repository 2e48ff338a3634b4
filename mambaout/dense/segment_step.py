"""One optimizer step of a segmenter over micro-batches, and its map of classes for an image.

The loss is mmsegmentation's: cross entropy, summed over the evaluated pixels and divided by all
pixels of the batch, those that are not evaluated included (avg_non_ignore=False in its
CrossEntropyLoss). The divisor is the same for every batch, so the gradients of micro-batches add up
to those of the whole batch. The batch norms are the exception: they see one micro-batch at a time.

Drop path and dropout are drawn for an image by its place in the step's batch. So neither the
micro-batch nor the device decides what is dropped.

A backend that compiles makes a graph for each shape. Crops have one shape. Whole images are padded
with the mean colour to multiples of the crop, so that a few graphs do; at their right and bottom
edge the padding changes the maps a little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaout.data.batches.device_augment import prepare_eval
from mambaout.data.draws import uniforms
from mambaout.dense.ade20k import IGNORED
from mambaout.dense.resizing import product, resize_matrix
from mambaout.dense.segment_images import SegmentSample
from mambaout.dense.upernet import UperNet
from mambaout.dense_layers import AUXILIARY_CHANNELS
from mambaout.segment_recipe import SegmentRecipe
from mambaout.train.backend import Backend
from mambaout.train.optim import adamw_over

LOSSES = ("loss_decoder", "loss_auxiliary")  # the second with its weight


@dataclass(frozen=True)
class CropBatch:
    """A micro-batch of crops on the device, with what is dropped of each image."""

    images: Tensor  # uint8 (b, side, side, 3)
    labels: Tensor  # uint8 (b, side, side)
    inside: Tensor  # int64 (b, 2): height and width of the part that is no padding
    drop_scales: Tensor | None  # float32 (b, blocks)
    channel_scales: tuple[Tensor, Tensor] | None  # float32 (b, channels) of the two heads


class SegmenterSteps:
    """Takes the steps of one segmenter, which is on its device."""

    def __init__(
        self, segmenter: UperNet, backend: Backend, recipe: SegmentRecipe, seed: int
    ) -> None:
        self.segmenter, self.backend = segmenter, backend
        self.recipe, self.seed = recipe, seed

    def add_gradients(self, batch: Sequence[SegmentSample], micro_batch: int, step: int) -> Tensor:
        """Add the gradients of the batch's loss. Returns the parts of the loss, (2,)."""
        backend = self.backend
        self.segmenter.train()
        sums = backend.place_whole(torch.zeros(len(LOSSES)))
        for first in range(0, len(batch), micro_batch):
            part = self._placed(batch[first : first + micro_batch], first, step)
            losses = self._losses(part) / (len(batch) * self.recipe.crop_size**2)
            losses.sum().backward()
            sums += losses.detach()
            backend.cut_graph()
        return sums

    def _placed(self, part: Sequence[SegmentSample], first: int, step: int) -> CropBatch:
        """`part` on the device; its first image has place `first` in the batch of the step."""
        place, config = self.backend.place, self.recipe.model
        places = range(first, first + len(part))
        drop_scales = channel_scales = None
        if config.drop_path > 0:
            rates = np.array(config.drop_path_rates)
            drop_scales = place(self._scales("segment-path", step, places, rates))
        if self.recipe.dropout > 0:
            main, auxiliary = (
                place(self._scales(name, step, places, np.full(width, self.recipe.dropout)))
                for name, width in (
                    ("segment-decoder", self.recipe.head_channels),
                    ("segment-auxiliary", AUXILIARY_CHANNELS),
                )
            )
            channel_scales = main, auxiliary
        return CropBatch(
            images=place(torch.stack([each.pixels for each in part])),
            labels=place(torch.stack([each.labels for each in part])),
            inside=place(torch.tensor([each.inside for each in part])),
            drop_scales=drop_scales,
            channel_scales=channel_scales,
        )

    def _scales(self, name: str, step: int, places: range, rates: np.ndarray) -> Tensor:
        """(images, rates): 0 by the chance of the rate, else 1 / (1 - rate)."""
        each = np.arange(len(rates))
        rows = [uniforms(name, self.seed, step, place, each=each) >= rates for place in places]
        return torch.from_numpy((np.stack(rows) / (1 - rates)).astype(np.float32))

    def _losses(self, part: CropBatch) -> Tensor:
        """The sums over the pixels, (2,)."""
        x = _without_padding(prepare_eval(part.images), part.inside)
        with self.backend.autocast(self.recipe.precision):
            logits, auxiliary = self.segmenter(x, part.drop_scales, part.channel_scales)
        labels = part.labels.long()
        found = [
            F.cross_entropy(each.float(), labels, ignore_index=IGNORED, reduction="sum")
            for each in (logits, auxiliary)
        ]
        return torch.stack([found[0], self.recipe.auxiliary_weight * found[1]])

    # -- whole images -----------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self, scaled: Sequence[Tensor], size: tuple[int, int], *, with_mirrors: bool = False
    ) -> np.ndarray:
        """The classes, uint8 of `size`, of an image of that size, which is given at some scales.

        Logits are resized to `size`. If there are several views of the image, because of scales or
        mirrors, their probabilities are averaged.
        """
        self.segmenter.eval()
        views = [(pixels, False) for pixels in scaled]
        views += [(pixels, True) for pixels in scaled] if with_mirrors else []
        if len(views) == 1:
            classes = [band.argmax(1) for band in self._bands(*views[0], size)]
        else:
            sums = [band.softmax(1) for band in self._bands(*views[0], size)]
            for view in views[1:]:
                for band, more in zip(sums, self._bands(*view, size), strict=True):
                    band += more.softmax(1)
                self.backend.cut_graph()
            classes = [band.argmax(1) for band in sums]
        self.backend.cut_graph()
        found = torch.cat([each[0].to(torch.uint8).cpu() for each in classes])
        return found[: size[0], : size[1]].numpy()

    def _bands(self, pixels: Tensor, mirrored: bool, size: tuple[int, int]) -> Iterator[Tensor]:
        """The logits of an image at `size`, (1, N, rows, width), a band of rows after another:
        those of all rows may not fit into memory. Those of the mirror are mirrored back."""
        height, width = pixels.shape[:2]
        given, wanted = self._canvas((height, width)), self._canvas(size)
        canvas = torch.zeros((1, *given, 3), dtype=torch.uint8)
        canvas[0, :height, :width] = pixels.flip(1) if mirrored else pixels
        place = self.backend.place_whole
        x = _without_padding(prepare_eval(place(canvas)), place(torch.tensor([[height, width]])))
        with self.backend.autocast(self.recipe.precision):
            logits: Any = self.segmenter(x)
        # Weights of 0 leave out the padding of both.
        cpu = torch.device("cpu")
        rows, columns = torch.zeros(wanted[0], given[0]), torch.zeros(wanted[1], given[1])
        rows[: size[0], :height] = resize_matrix(height, size[0], cpu)
        across = resize_matrix(width, size[1], cpu)
        columns[: size[1], :width] = across.flip(0) if mirrored else across
        columns = place(columns)
        for band in rows.split(self.recipe.crop_size):
            yield product(logits, place(band), columns)

    def _canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size that an image of `size` is padded to."""
        if not self.backend.compiles:
            return size
        side = self.recipe.crop_size
        return -(-size[0] // side) * side, -(-size[1] // side) * side


def _without_padding(x: Tensor, inside: Tensor) -> Tensor:
    """Images (B, 3, H, W), with 0, the mean colour, outside of each image's (height, width)."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device) < inside[:, :1]  # (B, H)
    columns = torch.arange(width, device=x.device) < inside[:, 1:]  # (B, W)
    return x * (rows[:, None, :, None] & columns[:, None, None, :])


# -- the optimizer --------------------------------------------------------------------------------


def segment_optimizer(
    segmenter: nn.Module,
    recipe: SegmentRecipe,
    backend: Backend,
    saved: dict[str, Any] | None = None,
) -> torch.optim.AdamW:
    """AdamW with mmsegmentation's rule: no decay for parameters with `norm` in their name, decay
    for all others, biases too. `saved` is the state to resume from."""
    decayed, kept = [], []
    for name, parameter in segmenter.named_parameters():
        (kept if "norm" in name else decayed).append(parameter)
    return adamw_over(
        [
            {"params": decayed, "decays": True, "share": 1.0},
            {"params": kept, "decays": False, "share": 1.0},
        ],
        lr=recipe.peak_lr,
        betas=(recipe.beta1, recipe.beta2),
        eps=1e-8,
        backend=backend,
        saved=saved,
    )
