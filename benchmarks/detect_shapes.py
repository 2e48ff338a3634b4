"""Does a backbone that we pretrained find shapes better than a random one, after equal steps?

Run:    python benchmarks/detect_shapes.py --seeds 3 --json results/detect-shapes.json
Costs:  about 10 CPU minutes (one thread); the same command again goes on
Writes: the garments, a run directory for the pretraining and for each training, under --out
Prints: box AP and mask AP of both on 60 images after the last step; mean, and what each seed gains

Pretraining: 8,000 pictures of Fashion-MNIST, 64 px, 8 epochs, by `mambaout train`'s own loop. The
garments lie on pieces of the same two photographs that the shapes lie on, in the same kind of
tints. So the pretraining knows the grounds, and no shape.

Detection: `--data shapes` (300 images of 96 px), Mask R-CNN with narrow heads, 2 epochs (or
--epochs) of 50 steps of 6 images. Both kinds of training of one seed see the same images in the
same order, and differ only in the backbone's first weights. The rate never falls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from mambaout.commands.dense import SHAPES
from mambaout.commands.detect import DetectRequest
from mambaout.data.images.decode import Images
from mambaout.data.packing.sources import open_data
from mambaout.dense.coco import read_coco
from mambaout.dense.detect import train_detector
from mambaout.dense.detector_plan import detector_plan
from mambaout.dense.shapes import LEAST_TINT, photograph_piece, shapes_folder, tinted
from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.train.backend import backend
from mambaout.train.checkpoint import LAST
from mambaout.train.facts import git_commit
from mambaout.train.loop import train
from mambaout.train.metrics import read_records
from mambaout.train.outcomes import Finished
from mambaout.variants import ModelConfig

GARMENTS = 8000  # pictures to pretrain on
SIDE = 64  # px of a picture
DARKEST = 12  # grey value of a garment; less is the ground
MICRO_BATCH = 6
BACKBONES, FIGURES = ("random", "pretrained"), ("box_ap", "mask_ap")


def garments_on_photographs(folder: Path) -> None:
    """Write garments as PNGs by class, each tinted and laid on a photograph as the shapes are.

    (In a tint on a dim ground of one colour they were learned sooner, and were of no use to the
    detector: after 100 steps box AP 8.4, and 12.8 from random weights, n=1; LOG.md.)
    """
    data = open_data("fashion-mnist")
    pictures = Images(data, "train")
    for row in range(GARMENTS):
        random = np.random.default_rng(row)
        grey = pictures[row].crop((0, 0, *pictures[row].size))
        side = int(random.integers(SIDE // 2, SIDE))
        grey = cv2.resize(grey, (side, side), interpolation=cv2.INTER_LINEAR)
        left, top = random.integers(SIDE - side + 1, size=2)
        pixels = photograph_piece(random, SIDE)
        part = pixels[top : top + side, left : left + side]
        worn = grey > DARKEST
        part[worn] = tinted(grey, random.uniform(LEAST_TINT, 1, 3))[worn].astype(np.uint8)
        name = data.class_names[data.labels["train"][row]].replace("/", "-")
        path = folder / name / f"{row:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def pretraining(model: ModelConfig) -> Recipe:
    """Enough for a backbone of edges and parts: no augmentation but a mild crop."""
    recipe = with_global_batch(BASELINE, 32)
    return tuned(
        recipe,
        depths=model.depths,
        dims=model.dims,
        drop_path=0.0,
        image_size=SIDE,
        epochs=8,
        warmup_epochs=0.5,
        peak_lr=2e-3,
        crop_scale_min=0.7,
        randaugment=0.0,
        mixup=0.0,
        cutmix=0.0,
        erasing=0.0,
        eval_every_epochs=8,
    )


def pretrained_backbone(model: ModelConfig, out: Path) -> tuple[Path, float]:
    """The weights of `model`, pretrained in `out` (or now), and their top-1 in percent."""
    folder = out / "garments"
    if not folder.exists():
        aside = folder.with_name("garments-begun")
        garments_on_photographs(aside)
        aside.rename(folder)
    garments, place = open_data(str(folder), out / "cache"), out / "pretrained"
    ended = train(pretraining(model), garments, out=place, backend=backend("cpu"), num_workers=0)
    if not isinstance(ended, Finished):
        raise RuntimeError(f"the pretraining did not finish: {ended}")
    return place / LAST, ended.metrics["top1"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="of 50 steps each")
    parser.add_argument("--out", type=Path, default=Path("runs/detect-shapes"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    root = str(shapes_folder())
    data, val = read_coco(root, "train"), read_coco(root, "val")
    epochs = options.epochs
    given = {"epochs": epochs, "first_drop_epoch": epochs, "second_drop_epoch": epochs}
    given["eval_every_epochs"] = epochs
    recipe, _ = DetectRequest(SHAPES, None, given, False).recipe(len(data.images))

    weights, top1 = pretrained_backbone(recipe.model, options.out)
    print(f"pretrained: top-1 {top1:.1f} %", flush=True)

    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name, init in zip(BACKBONES, (None, weights), strict=True):
            plan, _ = detector_plan(recipe, data, init)
            out = options.out / f"{name}-{seed}-{epochs}-epochs"
            outcome = train_detector(
                recipe,
                plan,
                data,
                val,
                out=out,
                backend=backend("cpu"),
                seed=seed,
                micro_batch=MICRO_BATCH,
            )
            if not isinstance(outcome, Finished):
                raise RuntimeError(f"{out} did not finish: {outcome}")
            for record in read_records(out / "records.jsonl"):
                if "val/box_ap" in record.values:
                    found = {k: record.values[f"val/{k}"] for k in FIGURES}
                    rows.append({"backbone": name, "seed": seed, "step": record.step, **found})
                    print(" ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)

    print()
    means: dict[str, dict[str, float]] = {}
    for name in BACKBONES:
        own = [row for row in rows if row["backbone"] == name]
        means[name] = {k: statistics.fmean(row[k] for row in own) for k in FIGURES}
        said = ", ".join(f"{k} {value:.1f}" for k, value in means[name].items())
        print(f"{name:10} step {rows[-1]['step']}: {said} (n={options.seeds})")
    gains: dict[str, list[float]] = {}
    for k in FIGURES:
        random, pretrained = (
            [row[k] for row in rows if row["backbone"] == name] for name in BACKBONES
        )
        gains[k] = [one - other for one, other in zip(pretrained, random, strict=True)]
        print(f"pretrained less random, {k}, each seed: {', '.join(f'{v:+.1f}' for v in gains[k])}")
    if options.json:
        body = {"rows": rows, "means": means, "gains": gains, "pretrained_top1": top1}
        body |= {"machine": {"device": backend("cpu").device_name}, "commit": git_commit()}
        body["command"] = " ".join(["python", *sys.argv])
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
