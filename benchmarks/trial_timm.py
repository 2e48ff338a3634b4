"""One training with timm's parts: data set, transforms, loader, mixup, optimizer, schedule.

Run:    python benchmarks/trial_timm.py --recipe recipe.json --images FOLDER --seed 0
Reads:  FOLDER/train, minival and val, each with CLASS/*.png; benchmarks/trial.py makes it
Prints: val top-1 in percent, as the last line

The network is timm's, with the initial weights of `mambaout train` for that seed. All settings are
those of timm's train.py for the recipe. There is one process and no worker.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from step import Cell, timms
from timm.data.auto_augment import NAME_TO_OP
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from mambaout.model.network import build
from mambaout.recipe import PIXEL_MEAN, PIXEL_STD, Recipe, recipe_from_json


def loader(recipe: Recipe, folder: Path, is_training: bool) -> Any:
    augment = recipe.augment
    training: dict[str, Any] = dict(
        scale=(augment.crop_scale_min, 1.0),
        ratio=(augment.crop_ratio_min, 1 / augment.crop_ratio_min),
        hflip=augment.hflip,
        color_jitter=augment.color_jitter,
        auto_augment=f"rand-m{augment.randaugment:g}-mstd{augment.randaugment_std:g}-inc1"
        f"-n{augment.randaugment_layers}"
        if augment.randaugment
        else None,
        re_prob=augment.erasing,
        re_mode="pixel",
        interpolation=augment.interpolation,
    )
    evaluation: dict[str, Any] = {"interpolation": "bicubic"}
    return create_loader(
        ImageDataset(str(folder)),
        input_size=(3, recipe.image_size, recipe.image_size),
        batch_size=recipe.global_batch if is_training else 128,
        is_training=is_training,
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=True,  # it takes uint8 batches and normalises a whole batch
        device=torch.device("cpu"),
        mean=PIXEL_MEAN,
        std=PIXEL_STD,
        crop_pct=recipe.eval_crop,
        **(training if is_training else evaluation),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    recipe = recipe_from_json(options.recipe.read_text())
    augment, schedule = recipe.augment, recipe.schedule
    num_classes = len(list((options.images / "train").iterdir()))

    posterize = NAME_TO_OP["PosterizeIncreasing"]
    # timm sometimes asks for 0 bits, which Pillow refuses.
    operations: dict[str, Any] = NAME_TO_OP
    operations["PosterizeIncreasing"] = lambda image, bits, **how: posterize(
        image, max(bits, 1), **how
    )
    Image.init()
    torch.manual_seed(options.seed)
    ours = build(recipe.model, num_classes)
    model = timms(Cell(recipe.model, recipe.image_size, recipe.global_batch, num_classes), ours)
    make_optimizer: Any = create_optimizer_v2
    optimizer = make_optimizer(
        model,
        opt="adamw",
        lr=recipe.optim.peak_lr,
        weight_decay=recipe.optim.weight_decay,
        betas=(recipe.optim.beta1, recipe.optim.beta2),
        eps=recipe.optim.adam_eps,
    )
    batches = loader(recipe, options.images / "train", True)
    steps = len(batches)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=schedule.epochs * steps,
        lr_min=schedule.final_lr,
        warmup_t=int(schedule.warmup_epochs * steps),
        warmup_lr_init=schedule.warmup_lr,
        t_in_epochs=False,
    )
    mixup, loss = None, LabelSmoothingCrossEntropy(augment.label_smoothing)
    if augment.mixes:
        mixup = Mixup(
            augment.mixup,
            augment.cutmix,
            prob=augment.mixup_prob,
            switch_prob=augment.cutmix_prob,
            label_smoothing=augment.label_smoothing,
            num_classes=num_classes,
        )
        loss = SoftTargetCrossEntropy()
    step = 0
    for epoch in range(schedule.epochs):
        model.train()
        for images, labels in batches:
            scheduler.step_update(step)
            if mixup is not None:
                images, labels = mixup(images, labels)
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            if recipe.optim.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip_norm)
            optimizer.step()
            step += 1
        print(f"epoch {epoch}: minival {top1(model, recipe, options.images / 'minival'):.2f} %")
    print(top1(model, recipe, options.images / "val"))


def top1(model: nn.Module, recipe: Recipe, folder: Path) -> float:
    model.eval()
    hits = seen = 0
    with torch.no_grad():
        for images, labels in loader(recipe, folder, False):
            hits += int((model(images).argmax(1) == labels).sum())
            seen += len(labels)
    return 100 * hits / seen


if __name__ == "__main__":
    sys.exit(main())
