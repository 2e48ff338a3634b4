"""Do the rules train a network on small data where the paper's recipe fails? Three kinds of data.

Run:    python benchmarks/small_data.py --seeds 3 --json results/small-data.json
Costs:  about 25 min on 2 quiet cores; the same command again goes on
Writes: the images, and a run directory for each training, under --out
Prints: val top-1 of both recipes on each kind of data, mean and 95 % interval over the seeds

| kind | images | source |
|---|---|---|
| digits | 1,797 of 8 px, 10 classes | scikit-learn's load_digits, as PNGs by class |
| garments | 1,000 of 28 px, 10 classes | the first training pictures of Fashion-MNIST, as PNGs |
| photographs | 900 of about 500x375 px, 59 classes | benchmarks/photographs.py, trained at 64 px |

Both recipes train the network that the rules choose, for the epochs that the rules choose. "rules"
is mambaout/rules.py. "paper" is the paper's recipe. Its batch is the largest power of two that fits
the data, its learning rates follow the linear rule, and its warm-up is 20 of 300 epochs. `mambaout
train` advised this before there were rules. The constants of the rules were chosen on 6,000 images
of Fashion-MNIST (LOG.md, 2026-11-22), not on these data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import photographs
from PIL import Image
from scipy import stats

from mambaout.data.images.decode import Images
from mambaout.data.packing.sizes import facts_of
from mambaout.data.packing.sources import open_data
from mambaout.data.shards.data_set import DataSet
from mambaout.recipe import BASELINE, Recipe, power_of_two_in, tuned, with_global_batch
from mambaout.rules import fitted
from mambaout.train.backend import backend
from mambaout.train.loop import train
from mambaout.train.outcomes import Finished

GARMENTS, PHOTOGRAPHS = 1000, 900  # images
PHOTOGRAPH_SIZE = 64  # px


# -- the images -----------------------------------------------------------------------------------


def digits(folder: Path) -> None:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels = (found.images * (255 / found.images.max())).astype(np.uint8)
    as_files(folder, pixels, [str(label) for label in found.target])


def garments(folder: Path) -> None:
    data = open_data("fashion-mnist")
    pictures = Images(data, "train")
    rows = range(GARMENTS)
    pixels = [pictures[row].crop((0, 0, *pictures[row].size)) for row in rows]
    names = [data.class_names[data.labels["train"][row]].replace("/", "-") for row in rows]
    as_files(folder, pixels, names)


def photographs_of_scenes(folder: Path) -> None:
    print(photographs.make(folder, PHOTOGRAPHS, val_share=0.5))


def as_files(folder: Path, pixels: Sequence[np.ndarray], labels: Sequence[str]) -> None:
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / label / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


KINDS: dict[str, Callable[[Path], None]] = {
    "digits": digits,
    "garments": garments,
    "photographs": photographs_of_scenes,
}


# -- the recipes ----------------------------------------------------------------------------------


def recipes(data: DataSet, kind: str) -> dict[str, Recipe]:
    given = {"image_size": PHOTOGRAPH_SIZE} if kind == "photographs" else {}
    rules = fitted(facts_of(data, Images(data, "train")), given=given).recipe
    rules = tuned(rules, eval_every_epochs=rules.schedule.epochs)
    batch = power_of_two_in(data.num_images("train", rules))
    schedule, epochs = BASELINE.schedule, rules.schedule.epochs
    paper = tuned(
        with_global_batch(replace(BASELINE, model=rules.model), batch),
        image_size=rules.image_size,
        minival_fraction=rules.minival_fraction,
        epochs=epochs,
        warmup_epochs=schedule.warmup_epochs / schedule.epochs * epochs,
        eval_every_epochs=epochs,
    )
    return {"rules": rules, "paper": paper}


def trained(data: DataSet, recipe: Recipe, seed: int, out: Path) -> float:
    """Val top-1 in percent. A training that has begun is continued."""
    outcome = train(recipe, data, out=out, backend=backend("cpu"), seed=seed)
    if not isinstance(outcome, Finished):
        raise RuntimeError(f"{out} did not finish: {outcome}")
    return outcome.metrics["top1"]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half its 95 % interval by Student's t; NaN for one value."""
    if len(values) < 2:
        return values[0], float("nan")
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/small-data"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for kind in options.kinds:
        folder = options.out / kind / "images"
        if not folder.exists():
            aside = folder.with_name("images-begun")
            KINDS[kind](aside)
            aside.rename(folder)
        data = open_data(str(folder), options.out / "cache")
        chance = 100 * float(np.bincount(data.labels["val"]).max()) / len(data.labels["val"])
        for name, recipe in recipes(data, kind).items():
            found = []
            for seed in range(options.seeds):
                found.append(trained(data, recipe, seed, options.out / kind / f"{name}-{seed}"))
                print(f"{kind} {name} seed {seed}: {found[-1]:.2f} %", flush=True)
            mean, half = interval(found)
            rows.append(
                {"kind": kind, "recipe": name, "top1": mean, "half_width": half, "values": found}
                | {"chance": chance, "global_batch": recipe.global_batch}
                | {"peak_lr": recipe.optim.peak_lr, "epochs": recipe.schedule.epochs}
                | {"val_images": len(data.labels["val"])}
            )
    print()
    for row in rows:
        top1 = f"{row['top1']:.2f} ± {row['half_width']:.2f} %"
        chance = f"the most frequent class {row['chance']:.1f} %"
        print(f"{row['kind']:12} {row['recipe']:6} top-1 {top1} (n={options.seeds}; {chance})")
    if options.json:
        body = {"rows": rows, "machine": {"device": backend("cpu").device_name}}
        body["command"] = " ".join(["python", *sys.argv])
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
