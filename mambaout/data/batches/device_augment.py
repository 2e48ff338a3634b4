"""Augmentation of a micro-batch on the device: normalisation, random erasing, mixup, cutmix.

    drawn = draw_step(recipe, seed=0, step=7, places=np.arange(64))  # small tensors, on the host
    x, targets = prepare_train(images, labels, drawn, recipe=recipe, num_classes=1000)

Every draw is a function of (seed, step, place in the global batch). Small draws are made on the
host and passed in. The noise for erased pixels is as large as the images, so the device computes it
from a counter. No backend's own random generator is used, so every backend, any micro-batch and any
number of devices gets the same numbers.

All shapes are fixed: boxes are masks, not slices, and the draws are tensors. A lazy backend
therefore compiles this once. With slices it would compile again for each drawn box.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mambaout.data.draws import draw, draws, uniforms
from mambaout.recipe import PIXEL_MEAN, PIXEL_STD, Augment, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

# Random erasing like timm's in DeiT and MambaOut: one rectangle, `--remode pixel`.
ERASED_AREA = (0.02, 1 / 3)  # shares of the image
ERASED_ASPECT = (0.3, 1 / 0.3)
ATTEMPTS = 10  # to find a rectangle that is smaller than the image


# -- drawn on the host -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepDraws:
    """The draws of a step for some images of its global batch; None for those not in the recipe."""

    # A row for each image; or, with `erased`, a row for each image that `erased` names.
    erase: Tensor | None = None  # int32 (b, 5): top, bottom, left, right, key; empty box: no erase
    erased: Tensor | None = None  # int64
    # A row for each image: the drop path factor of each block's branch; 0 skips the block.
    drop: Tensor | None = None  # float32 (b, num_blocks)
    # One row for the whole step: the image's own share outside the box; top, bottom, left, right of
    # the box that comes from its partner image; the share of its own label.
    mix: Tensor | None = None  # float32 (6,)

    def placed(
        self, rows: Callable[[Tensor], Tensor], whole: Callable[[Tensor], Tensor]
    ) -> StepDraws:
        """The draws on the device: `rows` places tensors with a row for each image, `whole` places
        tensors that all images share."""
        put = {"erase": rows, "erased": rows, "drop": rows, "mix": whole}
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return StepDraws(**{n: None if t is None else put[n](t) for n, t in found.items()})


def draw_step(
    recipe: Recipe, *, seed: int, step: int, places: np.ndarray, fixed_shapes: bool = False
) -> StepDraws:
    """The draws of optimizer step `step` for the images at `places` of its global batch.

    With `fixed_shapes` the tensors' shapes do not depend on the draws, for a backend that compiles.
    """
    augment, size = recipe.augment, recipe.image_size
    erase = erased = drop = mix = None
    if augment.erasing > 0:
        boxes = _erased_boxes(augment.erasing, size, seed=seed, step=step, places=places)
        keys = draws("erasing noise", seed, step, each=places).astype(np.uint32).view(np.int32)
        erase = torch.from_numpy(np.column_stack([boxes, keys]))
        if not fixed_shapes:  # only for erased images: noise for every image is four times the work
            erased = torch.from_numpy(np.flatnonzero(boxes[:, 1]))
            erase = erase[erased]
    if recipe.model.drop_path > 0:
        rates = np.array(recipe.model.drop_path_rates)
        each = places[:, None] * len(rates) + np.arange(len(rates))
        kept = uniforms("drop path", seed, step, each=each) >= rates
        drop = torch.from_numpy((kept / (1 - rates)).astype(np.float32))
    if augment.mixes:
        mix = torch.from_numpy(_mixing(augment, size, seed=seed, step=step))
    return StepDraws(erase=erase, erased=erased, drop=drop, mix=mix)


def _erased_boxes(
    probability: float, size: int, *, seed: int, step: int, places: np.ndarray
) -> np.ndarray:
    """int32 (b, 4): top, bottom, left, right of the erased box, with timm's distribution."""
    drawn = [
        uniforms(f"erasing {name}", seed, step, each=places[:, None] * ATTEMPTS + np.arange(count))
        for name, count in (("area", ATTEMPTS), ("aspect", ATTEMPTS), ("top", 1), ("left", 1))
    ]
    area = (ERASED_AREA[0] + drawn[0] * (ERASED_AREA[1] - ERASED_AREA[0])) * size**2
    low, high = map(math.log, ERASED_ASPECT)
    aspect = np.exp(low + drawn[1] * (high - low))
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < size) & (widths < size)
    chosen = uniforms("erased", seed, step, each=places) < probability
    first = fits.argmax(axis=1)[:, None]
    fits = np.take_along_axis(fits, first, axis=1)[:, 0] & chosen
    height = np.where(fits, np.take_along_axis(heights, first, axis=1)[:, 0], 0)
    width = np.where(fits, np.take_along_axis(widths, first, axis=1)[:, 0], 0)
    top = np.floor(drawn[2][:, 0] * (size - height + 1))
    left = np.floor(drawn[3][:, 0] * (size - width + 1))
    boxes = np.column_stack([top, top + height, left, left + width])
    return np.where(fits[:, None], boxes, 0).astype(np.int32)


def _mixing(augment: Augment, size: int, *, seed: int, step: int) -> np.ndarray:
    """`StepDraws.mix` of a step, with the distribution of timm's Mixup in its mode "batch"."""
    # RandomState, because its streams are frozen. Those of numpy's Generator may change.
    generator = np.random.RandomState(draw("mixup", seed, step) & 0xFFFFFFFF)
    own, box = 1.0, (0, 0, 0, 0)
    if generator.rand() < augment.mixup_prob:
        both = augment.mixup > 0 and augment.cutmix > 0
        cut = generator.rand() < augment.cutmix_prob if both else augment.cutmix > 0
        alpha = augment.cutmix if cut else augment.mixup
        share = generator.beta(alpha, alpha)
        if not cut:
            return np.array([share, *box, share], np.float32)
        side = int(size * np.sqrt(1 - share))
        middle = generator.randint(0, size, size=2)
        (top, left), (bottom, right) = (
            np.clip(middle - side // 2, 0, size),
            np.clip(middle + (side + 1) // 2, 0, size),
        )
        box = top, bottom, left, right
    kept = 1 - (box[1] - box[0]) * (box[3] - box[2]) / size**2
    return np.array([own, *box, kept], np.float32)


# -- on the device ---------------------------------------------------------------------------------


def prepare_eval(images: Tensor) -> Tensor:
    """uint8 (b, H, W, 3) to float32 (b, 3, H, W), normalised by ImageNet's mean and deviation."""
    mean, deviation = _normalisation(images.device)
    # Contiguous, because sums with channels last have inner loops of three, which doubled the time.
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    # Two operations with two roundings: a fused multiply-add may round the last elements of a batch
    # differently, depending on its size.
    return x.sub_(mean).div_(deviation)


def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of pixel values 0 to 255, each (3, 1, 1)."""
    # torch.compile makes numbers of them. It would copy tensors from the host in each step.
    return _scales(device) if torch.compiler.is_compiling() else _kept_scales(device)


def _scales(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, deviation = (
        torch.stack([torch.full((1, 1), value, device=device) for value in values])
        for values in (_MEAN, _DEVIATION)
    )
    return mean, deviation


_MEAN, _DEVIATION = ((255 * torch.tensor(values)).tolist() for values in (PIXEL_MEAN, PIXEL_STD))


@functools.lru_cache
def _kept_scales(device: torch.device) -> tuple[Tensor, Tensor]:
    # Sent from the host: if XLA computed them, its first step would be another graph.
    mean, deviation = (scale.to(device) for scale in _scales(torch.device("cpu")))
    return mean, deviation


def prepare_train(
    images: Tensor, labels: Tensor, drawn: StepDraws, *, recipe: Recipe, num_classes: int
) -> tuple[Tensor, Tensor]:
    """The network's input for a micro-batch: x (b, 3, H, W) float32, targets (b, num_classes).

    images is uint8 (b, H, W, 3), labels is int64 (b,), `drawn` is for the same images; all are on
    one device. Places 2k and 2k+1 of the global batch are mixed with each other, with one lambda
    and one box for the step. So any even micro-batch gives the same result. Raises ValueError for
    an odd one.
    """
    x = prepare_eval(images)
    if drawn.erase is not None:
        _erase(x, drawn.erase, drawn.erased)
    targets = _smoothed(labels, num_classes, recipe.augment.label_smoothing)
    if drawn.mix is None:
        return x, targets
    if len(x) % 2:
        raise ValueError(
            f"a micro-batch of {len(x)} images splits a pair that mixup or cutmix mixes; "
            "micro-batches must be even"
        )
    own, kept = drawn.mix[0], drawn.mix[5]
    share = torch.where(_inside(drawn.mix[1:5], *x.shape[2:]), 0, own)  # (H, W)
    return _mixed(x, share), _mixed(targets, kept)


def _smoothed(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """float32 (b, num_classes): 1 - smoothing on the label, plus smoothing spread over all."""
    classes = torch.arange(num_classes, device=labels.device)
    off = smoothing / num_classes
    return (labels[:, None] == classes).float() * (1 - smoothing) + off


def _mixed(rows: Tensor, share: Tensor) -> Tensor:
    """The weighted mean of each row and its neighbour: 2k with 2k+1."""
    partner = rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.lerp(partner, rows, share)


def _inside(box: Tensor, height: int, width: int) -> Tensor:
    """bool (..., H, W): whether a place is in the box (..., 4): top, bottom, left, right."""
    rows = torch.arange(height, device=box.device)[:, None]
    columns = torch.arange(width, device=box.device)
    top, bottom, left, right = (box[..., i, None, None] for i in range(4))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def _erase(x: Tensor, erase: Tensor, erased: Tensor | None) -> None:
    """Write normal noise into the boxes of `erase` (`StepDraws.erase`), in place."""
    rows = slice(None) if erased is None else erased
    inside = _inside(erase[:, :4], *x.shape[2:])[:, None]
    x[rows] = torch.where(inside, normal_noise(erase[:, 4], x.shape[1:]), x[rows])


def normal_noise(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, float32 (b, *shape): a function of the int32 keys (b,) and the place.

    A counter is hashed with the key (Wellons' 32-bit `lowbias32`). Each hash gives two uniforms of
    16 bits. The Box-Muller transform turns them into two normals of at most 4.9.
    """
    count = math.prod(shape)
    counter = torch.arange((count + 1) // 2, dtype=torch.int32, device=keys.device)
    bits = _hashed(keys[:, None] + counter * -1640531527)  # 2**32 over the golden ratio
    radius = ((_high(bits, 16).float() + 1) * 2.0**-16).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFF).float() * (2 * math.pi * 2.0**-16)
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return noise[:, :count].unflatten(1, shape)


def _hashed(x: Tensor) -> Tensor:
    """32 well mixed bits of each int32; products wrap around."""
    x = (x ^ _high(x, 16)) * 0x7FEB352D
    x = (x ^ _high(x, 17)) * (0x846CA68B - 2**32)
    return x ^ _high(x, 16)


def _high(x: Tensor, count: int) -> Tensor:
    """The upper `count` bits of each int32, as a number of at least 0."""
    # On XLA `>>` of a negative number is a division that rounds to 0, and a plain number as the
    # distance makes the result int64.
    distance = torch.full((1,), 32 - count, dtype=torch.int32, device=x.device)
    return torch.bitwise_right_shift(x, distance) & ((1 << count) - 1)
