"""Does a backbone that we pretrained find shapes better than a random one, after equal steps?

Run:    python benchmarks/detect_shapes.py --seeds 2 --json results/detect-shapes.json
Costs:  about 15 CPU minutes (one thread); the same command again goes on
Writes: the garments, a run directory for the pretraining and for each training, under --out
Prints: box AP and mask AP of both on 60 images, at each evaluation; mean and each seed

Pretraining: 8,000 pictures of Fashion-MNIST in random colours, 64 px, 2 epochs, by `mambaout
train`'s own loop. Detection: `--data shapes` (300 images of 96 px), Mask R-CNN with narrow heads, 3
epochs (or --epochs) of 50 steps of 6 images. Both kinds of training of one seed see the same images
in the same order, and differ only in the backbone's first weights.

At 3 epochs the answer is open: neither finds shapes yet (box AP 0.6 to 2.0 random, 0.7 to 1.3
pretrained; results/detect-shapes.json). --epochs 12 asks after 600 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from mambaout.dense.shapes import shapes_folder
from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.train.backend import backend
from mambaout.train.checkpoint import LAST
from mambaout.train.facts import git_commit
from mambaout.train.loop import train
from mambaout.train.metrics import read_records
from mambaout.train.outcomes import Finished

GARMENTS = 8000  # pictures to pretrain on
MICRO_BATCH = 6


def colored_garments(folder: Path) -> None:
    """Write garments as PNGs by class, each in a random tint on a dim ground of a random colour.

    (With any colour on any ground the network learned nothing in two epochs: top-1 10 %.)
    """
    data = open_data("fashion-mnist")
    pictures = Images(data, "train")
    for row in range(GARMENTS):
        random = np.random.default_rng(row)
        grey = pictures[row].crop((0, 0, *pictures[row].size))[..., None]
        tint = random.uniform(0.35, 1, 3)
        pixels = np.where(grey > 0, grey * (tint / tint.max()), 80 * random.random(3))
        pixels = pixels.astype(np.uint8)
        name = data.class_names[data.labels["train"][row]].replace("/", "-")
        path = folder / name / f"{row:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def pretraining(recipe_model: Any) -> Recipe:
    """Enough for a backbone of edges and parts: no augmentation but a mild crop."""
    recipe = with_global_batch(BASELINE, 32)
    return tuned(
        recipe,
        depths=recipe_model.depths,
        dims=recipe_model.dims,
        drop_path=0.0,
        image_size=64,
        epochs=2,
        warmup_epochs=0.2,
        peak_lr=2e-3,
        crop_scale_min=0.5,
        randaugment=0.0,
        mixup=0.0,
        cutmix=0.0,
        erasing=0.0,
        eval_every_epochs=2,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="of 50 steps each")
    parser.add_argument("--out", type=Path, default=Path("runs/detect-shapes"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    root = str(shapes_folder())
    data, val = read_coco(root, "train"), read_coco(root, "val")
    # The rate never falls: after a drop both kinds of training would stand still.
    epochs = options.epochs
    given = {"epochs": epochs, "first_drop_epoch": epochs, "second_drop_epoch": epochs}
    recipe, _ = DetectRequest(SHAPES, None, given, False).recipe(len(data.images))

    folder = options.out / "garments"
    if not folder.exists():
        aside = folder.with_name("garments-begun")
        colored_garments(aside)
        aside.rename(folder)
    garments, place = open_data(str(folder), options.out / "cache"), options.out / "pretrained"
    pretrained = train(
        pretraining(recipe.model), garments, out=place, backend=backend("cpu"), num_workers=0
    )
    if not isinstance(pretrained, Finished):
        raise RuntimeError(f"the pretraining did not finish: {pretrained}")
    print(f"pretrained: top-1 {pretrained.metrics['top1']:.1f} %", flush=True)

    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name, init in (("random", None), ("pretrained", place / LAST)):
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
                    found = {k: record.values[f"val/{k}"] for k in ("box_ap", "mask_ap")}
                    rows.append({"backbone": name, "seed": seed, "step": record.step, **found})
                    print(" ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)

    print()
    means: dict[str, Any] = {}
    for name in ("random", "pretrained"):
        for step in sorted({row["step"] for row in rows}):
            own = [row for row in rows if (row["backbone"], row["step"]) == (name, step)]
            mean = {k: statistics.fmean(row[k] for row in own) for k in ("box_ap", "mask_ap")}
            means.setdefault(name, {})[str(step)] = mean
            print(
                f"{name:10} step {step:4}: box AP {mean['box_ap']:5.1f}, "
                f"mask AP {mean['mask_ap']:5.1f} (n={len(own)})"
            )
    if options.json:
        body = {"rows": rows, "means": means, "pretrained_top1": pretrained.metrics["top1"]}
        body |= {"machine": {"device": backend("cpu").device_name}, "commit": git_commit()}
        body["command"] = " ".join(["python", *sys.argv])
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
