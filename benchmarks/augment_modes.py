"""Is training on `fast` pixels no worse than on `exact` ones? Top-1 of both, seed by seed.

Run:    python benchmarks/augment_modes.py --json results/augment-modes.json
        ... augment_modes.py --data photographs --images 6000 --epochs 12 --seeds 5
Costs:  about 2 min for each seed and mode on 2 cores; the same command again goes on
Writes: the images, and a run directory for each training, under --out
Prints: each seed's difference fast - exact on the validation split, their mean and its 95 %
        interval (Student's t over the seeds)

Both modes share everything but `pixels`. A seed has the same network, order and draws of crops,
flips and operations in both. Random resized crops and rand-m9-mstd0.5-inc1 are on. Mixup, cutmix
and erasing are off, because they would hide the difference; the device does them in both modes. The
network is w16-d4 of sweeps/scale.py.

fashion-mnist: images of 28 px are too small to crop. So they are enlarged to 112 px by Pillow's
bicubic filter and stored as RGB JPEGs of quality 90. Training is at 28 px on crops of at least a
quarter of the area. 5,000 images of the test split are for validation. 6,000 training images are
too many to be kept decoded (data/images/decode.py), so every crop is decoded from its JPEG, like a
photograph's.

photographs: the class of an image is the photograph from which it was cut
(benchmarks/photographs.py). Training is at 64 px on crops of at least 0.08 of the area. Validation
is on other cuts: one for every two training images.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import photographs
import pyarrow.parquet as pq
from PIL import Image
from scipy import stats

from mambaout.data.packing.sources import open_data, pack
from mambaout.data.shards.data_set import DataSet
from mambaout.recipe import BASELINE, Recipe, tuned
from mambaout.train.backend import backend
from mambaout.train.loop import train
from mambaout.train.outcomes import Finished

MODES = ("exact", "fast")
ENLARGED = 112  # px
NUM_VAL = 5000
BASE = tuned(
    BASELINE, global_batch=64, peak_lr=1e-3, warmup_epochs=1, minival_fraction=0.05,
    depths=(1, 1, 1, 1), dims=(16, 32, 64, 96), stem_stride=2, hidden_multiple=8,
    mixup=0.0, cutmix=0.0, erasing=0.0,
)  # fmt: skip
POINTS = {
    "fashion-mnist": dict(image_size=28, crop_scale_min=0.25),
    "photographs": dict(image_size=64),
}


def recipe(data: str, pixels: str, epochs: int) -> Recipe:
    point = POINTS[data] | {"epochs": epochs, "eval_every_epochs": epochs}
    return tuned(BASE, **point, pixels=pixels)


# -- the images -----------------------------------------------------------------------------------


def images(data: str, count: int, out: Path, num_val: int = NUM_VAL) -> DataSet:
    """The packed images under `out`. They are made if missing."""
    folder = out / f"{data}-{count}"
    if not (folder / "packed").exists():
        tree = folder / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        if data == "photographs":
            print(photographs.make(tree, count, val_share=0.5))
        else:
            enlarge(open_data(data), tree, {"train": count, "val": num_val})
        pack(str(tree), folder / "packed")
    return open_data(str(folder / "packed"), folder / "cache")


def enlarge(small: DataSet, tree: Path, counts: dict[str, int]) -> None:
    """Write the first images of each split as JPEGs into tree/SPLIT/CLASS/.

    They are a fair sample, because `pack` hashes the order. Raises ValueError if there are too few
    images.
    """
    for split, count in counts.items():
        taken = 0
        for shard in small.shards[split]:
            rows = pq.read_table(shard.location, columns=["image", "label"]).to_pylist()
            for row in rows[: count - taken]:
                image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
                image = image.resize((ENLARGED, ENLARGED), Image.Resampling.BICUBIC)
                name = small.class_names[row["label"]].replace("/", "-")
                path = tree / split / name / f"{taken:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, "JPEG", quality=90)
                taken += 1
        if taken < count:
            raise ValueError(f"{small.name} has {taken} {split} images, not {count}")


# -- training and comparing -----------------------------------------------------------------------


def trained(data: DataSet, recipe: Recipe, seed: int, out: Path, workers: int) -> dict[str, float]:
    """Top-1 in percent and loss on the validation split. A training that has begun is continued."""
    outcome = train(
        recipe, data, out=out, backend=backend("cpu"), seed=seed, num_workers=workers,
        log_every_steps=1_000_000,
    )  # fmt: skip
    if not isinstance(outcome, Finished):
        raise RuntimeError(f"{out.name} did not finish: {outcome}")
    last = json.loads((out / "records.jsonl").read_text().splitlines()[-1])
    return {"top1": outcome.metrics["top1"], "loss": last["values"]["val/loss"]}


def difference(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, float]:
    """The mean of fast - exact over the seeds, and the ends of its 95 % interval."""
    by_mode = {mode: {r["seed"]: r[metric] for r in rows if r["pixels"] == mode} for mode in MODES}
    seeds = sorted(by_mode["exact"].keys() & by_mode["fast"].keys())
    values = [by_mode["fast"][seed] - by_mode["exact"][seed] for seed in seeds]
    found = {"mean": statistics.fmean(values), "n": len(values)}
    if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
        found |= {"low": found["mean"] - half, "high": found["mean"] + half}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=list(POINTS), default="fashion-mnist")
    parser.add_argument("--images", type=int, default=6000, help="to train on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes that load images")
    parser.add_argument("--out", type=Path, default=Path("runs/augment-modes"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    data = images(options.data, options.images, options.out)
    where, rows = backend("cpu"), []
    for seed in range(options.seeds):
        for pixels in MODES:
            name = f"{options.data}-{options.images}-e{options.epochs}-{pixels}-{seed}"
            values = trained(
                data, recipe(options.data, pixels, options.epochs), seed,
                options.out / name, options.workers,
            )  # fmt: skip
            rows.append({"data": options.data, "pixels": pixels, "seed": seed} | values)
            print(
                f"seed {seed} {pixels}: top-1 {values['top1']:.2f} %, loss {values['loss']:.4f}",
                flush=True,
            )
    found = {metric: difference(rows, metric) for metric in ("top1", "loss")}
    for metric, digits, unit in (("top1", 2, " points of top-1"), ("loss", 4, " of loss")):
        own = found[metric]
        words = f"{own['mean']:+.{digits}f}{unit}"
        if "low" in own:
            words += f", 95 % {own['low']:+.{digits}f} to {own['high']:+.{digits}f}"
        print(f"fast - exact on {options.data}: {words} (n={own['n']})")
    if options.json:
        body = {
            "difference": found, "rows": rows,
            "images": options.images, "epochs": options.epochs, "classes": data.num_classes,
            "val_images": len(data.labels["val"]), "machine": {"device": where.device_name},
            "command": " ".join(["python", *sys.argv]),
        }  # fmt: skip
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
