"""What is done to an image on the host, after its decoding: one image at a time, uint8 to uint8.

For training a random resized crop, a flip and RandAugment (`TrainAugment`), for evaluation a resize
and a centre crop (`eval_crop`). What is done to a batch of them on the device: device_augment.py.

The crop's draw and RandAugment's operations are timm's, and every draw is a function of (seed,
epoch, sample id). timm draws from the global generators of random, numpy and torch; they are seeded
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
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from mambaout.data.decode import Picture
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
