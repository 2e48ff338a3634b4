"""What is done to an image between its decoding and the network.

On the host, one image at a time (`TrainAugment`, `eval_crop`): random resized crop, flip and
RandAugment for training, resize and centre crop for evaluation; uint8 in, uint8 out.
On the device, a micro-batch at a time (`prepare_train`, `prepare_eval`): normalisation, random
erasing, mixup, cutmix and label smoothing.

The crop's draw, RandAugment's operations, erasing, mixup and cutmix are timm's. Every draw is a
function of (seed, epoch, sample id) on the host and of (seed, step, place in the global batch) on
the device. timm draws from the global generators of random, numpy and torch; they are seeded
around its calls and left as they were found.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, rand_augment_choices, rand_augment_ops
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import ColorJitter

from mambaout.data.decode import Picture
from mambaout.data.draws import draw, uniforms
from mambaout.recipe import Augment, Recipe

_BILINEAR, _BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
_INTERPOLATION = {
    "bicubic": (_BICUBIC,),
    "bilinear": (_BILINEAR,),
    "random": (_BILINEAR, _BICUBIC),
}

# Operations of RandAugment that fill with ImageNet's mean, a colour. The others make grey of grey,
# and a third of the time: Pillow builds a table of 256 entries a channel in Python for six of them.
FILLING = frozenset(("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"))


# -- on the host, one image -----------------------------------------------------------------------


@contextlib.contextmanager
def host_generators_kept() -> Iterator[None]:
    """The global generators of random, numpy and torch (CPU) are afterwards as they were."""
    python, legacy, ours = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(ours)


class TrainAugment:
    """The training augmentation of a recipe: a picture and its draw to (size, size) RGB.

    Calls must stand inside `host_generators_kept()`, once for as many images as are at hand:
    keeping the generators costs more than a small image's augmentation.
    """

    def __init__(self, recipe: Recipe) -> None:
        augment = recipe.augment
        self.size = (recipe.image_size, recipe.image_size)
        self.scale = (augment.crop_scale_min, 1.0)
        self.ratio = (augment.crop_ratio_min, 1 / augment.crop_ratio_min)
        self.filters = _INTERPOLATION[augment.interpolation]
        self.hflip = augment.hflip
        self.jitter = (
            ColorJitter(*(augment.color_jitter,) * 3) if augment.color_jitter > 0 else None
        )
        self.layers = augment.randaugment_layers if augment.randaugment > 0 else 0
        self.operations = randaugment_operations(augment, recipe.image_size)

    def __call__(self, picture: Picture, seed: int) -> Image.Image:
        random.seed(seed)
        sheet, first, frame = picture
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(
            frame, self.scale, self.ratio
        )
        top += first
        # Cropped, then resized: resize(box=...) lets the filter see pixels outside the crop.
        image = sheet.crop((left, top, left + width, top + height))
        image = image.resize(self.size, random.choice(self.filters))
        if random.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if image.mode != "L":
            image = _rgb(image)
        # timm's RandAugment draws the same way with numpy, at ten times the cost.
        for operation in random.choices(self.operations, k=self.layers):
            if operation.name in FILLING:
                image = _rgb(image)
            image = operation(image)
        image = _rgb(image)
        if self.jitter is not None:
            torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed is slow
            image = self.jitter(image)
        return image


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def randaugment_operations(augment: Augment, image_size: int) -> list[AugmentOp]:
    """timm's operations of "rand-m{magnitude}-mstd{std}-inc1", with a magnitude of any fraction.

    Posterize is kept at one bit or more: magnitude 10, which noise on 9 reaches in one draw of 43,
    asks for 0 bits, and Pillow 13 raises ValueError there (older ones gave a black image).
    """
    operations = rand_augment_ops(
        magnitude=augment.randaugment,
        hparams={
            "translate_const": int(image_size * 0.45),
            "img_mean": tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN),
            "magnitude_std": augment.randaugment_std,
        }
        | ({} if augment.interpolation == "random" else _fixed_interpolation(augment)),
        transforms=list(rand_augment_choices("", increasing=True)),
    )
    for operation in operations:
        if operation.name.startswith("Posterize"):
            operation.level_fn = functools.partial(_at_least_one_bit, operation.level_fn)
    return operations


def _fixed_interpolation(augment: Augment) -> dict[str, Image.Resampling]:
    return {"interpolation": _INTERPOLATION[augment.interpolation][0]}


def _at_least_one_bit(level_to_bits, level, hparams):
    (bits,) = level_to_bits(level, hparams)
    return (max(1, bits),)


def eval_crop(picture: Picture, recipe: Recipe) -> Image.Image:
    """The middle (size, size) of the picture resized, bicubic, to a short side of size / eval_crop.

    Sides are rounded as torchvision's Resize and CenterCrop round them, which timm uses.
    """
    sheet, top, frame = picture
    width, height = frame.size
    image = sheet if frame is sheet else sheet.crop((0, top, width, top + height))
    size, short = recipe.image_size, int(recipe.image_size / recipe.eval_crop)
    if min(width, height) != short:
        if width <= height:
            width, height = short, int(short * height / width)
        else:
            width, height = int(short * width / height), short
        image = image.resize((width, height), _BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if image.size != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return _rgb(image)


# -- on the device, a micro-batch -----------------------------------------------------------------


def prepare_eval(images: Tensor) -> Tensor:
    """uint8 (b, H, W, 3) to float32 (b, 3, H, W), normalised by ImageNet's mean and deviation."""
    mean, deviation = _normalisation(images.device)
    # Contiguous: sums over channels laid last take inner loops of three, which doubled the time.
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    # Two roundings: a fused multiply-add might round otherwise at the end of another batch size.
    return x.sub_(mean).div_(deviation)


@functools.lru_cache
def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of pixel values 0 to 255, each (3, 1, 1)."""
    return (
        torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).mul_(255).view(3, 1, 1),
        torch.tensor(IMAGENET_DEFAULT_STD, device=device).mul_(255).view(3, 1, 1),
    )


def prepare_train(
    images: Tensor,
    labels: Tensor,
    *,
    recipe: Recipe,
    num_classes: int,
    seed: int,
    step: int,
    first: int,
) -> tuple[Tensor, Tensor]:
    """A micro-batch as the network takes it: x (b, 3, H, W) float32, targets (b, num_classes).

    images: uint8 (b, H, W, 3), labels: int64 (b,), on one device; `first` is the place of the
    first image in the step's global batch. Places 2k and 2k+1 are mixed with each other, with one
    lambda and one box a step (timm's mode "batch"), so any even micro-batch gives the same result.
    Raises ValueError for a micro-batch that splits a pair.
    """
    augment = recipe.augment
    x = prepare_eval(images)
    if augment.erasing > 0:
        _erase(x, augment.erasing, seed=seed, step=step, first=first)
    mixup = _mixup(augment, num_classes)
    if mixup is None:
        return x, mixup_target(labels, num_classes, smoothing=augment.label_smoothing)
    if len(x) % 2 or first % 2:
        raise ValueError(
            f"a micro-batch of {len(x)} images from place {first} splits a pair that mixup or "
            "cutmix mixes; micro-batches must be even"
        )
    state = np.random.get_state()
    try:
        np.random.seed(draw("mixup", seed, step) & 0xFFFFFFFF)
        x, targets = mixup(_pairs_apart(x), _pairs_apart(labels))
    finally:
        np.random.set_state(state)
    return _pairs_together(x), _pairs_together(targets)


def _pairs_apart(rows: Tensor) -> Tensor:
    """Neighbours 2k, 2k+1 put where a flip of the batch exchanges them: 0 2 4 ... 5 3 1."""
    return torch.cat([rows[0::2], rows[1::2].flip(0)])


def _pairs_together(rows: Tensor) -> Tensor:
    """The inverse of `_pairs_apart`."""
    half = len(rows) // 2
    return torch.stack([rows[:half], rows[half:].flip(0)], dim=1).flatten(0, 1)


@functools.lru_cache
def _mixup(augment: Augment, num_classes: int) -> Mixup | None:
    """timm's Mixup of the recipe; None where it would never mix."""
    if augment.mixup_prob == 0 or (augment.mixup == 0 and augment.cutmix == 0):
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mixup_prob,
        switch_prob=augment.cutmix_prob,
        mode="batch",
        label_smoothing=augment.label_smoothing,
        num_classes=num_classes,
    )


# Erasing fills with normal noise by pixel, as DeiT and MambaOut do (`--remode pixel`). The noise
# is drawn on the CPU, so that every backend erases with the same.
_ERASER = RandomErasing(probability=1.0, mode="pixel", device="cpu")


def _erase(x: Tensor, probability: float, *, seed: int, step: int, first: int) -> None:
    """Erase a rectangle of some images of `x` in place."""
    places = np.arange(first, first + len(x))
    chosen = np.flatnonzero(uniforms("erased", seed, step, each=places) < probability)
    python, ours = random.getstate(), torch.default_generator.get_state()
    try:
        for index in chosen.tolist():
            key = draw("erasing", seed, step, first + index)
            random.seed(key)
            torch.default_generator.manual_seed(key)
            _ERASER(x[index])
    finally:
        random.setstate(python)
        torch.default_generator.set_state(ours)
