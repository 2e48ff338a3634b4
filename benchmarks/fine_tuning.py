"""What does fine-tuning gain over training from scratch on few images? Garments of other classes.

Run:    python benchmarks/fine_tuning.py --seeds 3 --json results/fine-tuning.json
Costs:  about 10 min on 2 quiet cores; the same command again goes on
Writes: the images, and a run directory for each training, under --out
Prints: val top-1 of each recipe, mean and 95 % interval over the seeds, and the gain

The first five classes of Fashion-MNIST are the trained weights' data: 6,000 images. The next four
are the new data: 300 images, and their 4,000 test images as val. So no class of the new data was
seen before, and nothing is downloaded. All trainings have the network and the recipe that the rules
choose for their data (mambaout/rules.py):

| recipe | starts from | steps |
|---|---|---|
| fine-tuned | the trained weights, with a new last layer | as the rules say with --init |
| scratch | random weights | the same number |
| scratch, long | random weights | as the rules say without --init |
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from small_data import as_files, interval

from mambaout.data.images.decode import Images
from mambaout.data.packing.sizes import facts_of
from mambaout.data.packing.sources import open_data
from mambaout.data.shards.data_set import DataSet
from mambaout.model.initial import read_initial
from mambaout.recipe import Recipe, steps_per_epoch, tuned
from mambaout.rules import WeightsFacts, fitted
from mambaout.train.backend import backend
from mambaout.train.facts import git_commit
from mambaout.train.loop import train
from mambaout.train.outcomes import Finished

KNOWN_CLASSES, NEW_CLASSES = range(5), range(5, 9)  # another number, so the last layer is new
KNOWN_IMAGES, NEW_IMAGES = 6000, 300
TUNED, SCRATCH, LONG = "fine-tuned", "scratch", "scratch, long"


def images(folder: Path, *, known: bool) -> None:
    """Write images of the known or the new classes, as PNGs by split and class."""
    data = open_data("fashion-mnist")
    for split, most in (("train", KNOWN_IMAGES if known else NEW_IMAGES), ("val", None)):
        wanted = KNOWN_CLASSES if known else NEW_CLASSES
        rows = np.flatnonzero(np.isin(data.labels[split], list(wanted)))[:most]
        pictures = Images(data, split if split == "train" else data.source("val"))
        pixels = [pictures[int(row)].crop((0, 0, *pictures[int(row)].size)) for row in rows]
        names = [data.class_names[data.labels[split][row]].replace("/", "-") for row in rows]
        as_files(folder / split, pixels, names)


def opened(folder: Path, *, known: bool) -> DataSet:
    if not folder.exists():
        aside = folder.with_name(f"{folder.name}-begun")
        images(aside, known=known)
        aside.rename(folder)
    return open_data(str(folder), folder.parent / "cache")


def rules(data: DataSet, weights: WeightsFacts | None = None, **given: Any) -> Recipe:
    recipe = fitted(facts_of(data, Images(data, "train")), given=given, weights=weights).recipe
    return tuned(recipe, eval_every_epochs=recipe.schedule.epochs)


def trained(data: DataSet, recipe: Recipe, seed: int, out: Path, init: Path | None = None) -> float:
    """Val top-1 in percent. A training that has begun is continued."""
    outcome = train(recipe, data, out=out, backend=backend("cpu"), seed=seed, init=init)
    if not isinstance(outcome, Finished):
        raise RuntimeError(f"{out} did not finish: {outcome}")
    return outcome.metrics["top1"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/fine-tuning"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    known = opened(options.out / "known", known=True)
    new = opened(options.out / "new", known=False)
    first = options.out / "weights"
    top1 = trained(known, rules(known), 0, first)
    print(f"weights: {top1:.2f} % on the classes that they were trained on", flush=True)
    initial = read_initial(first / "last.ckpt")
    facts = WeightsFacts(digest=initial.digest, model=initial.model)
    tuned_recipe = rules(new, facts)
    recipes = {
        TUNED: tuned_recipe,
        SCRATCH: rules(new, epochs=tuned_recipe.schedule.epochs),
        LONG: rules(new),
    }
    print(initial.about(initial.plan(tuned_recipe.model, new.num_classes)))
    found: dict[str, list[float]] = {name: [] for name in recipes}
    for seed in range(options.seeds):
        for name, recipe in recipes.items():
            init = first / "last.ckpt" if name == TUNED else None
            folder = options.out / f"{name.replace(', ', '-')}-{seed}"
            found[name].append(trained(new, recipe, seed, folder, init))
            print(f"{name} seed {seed}: {found[name][-1]:.2f} %", flush=True)
    rows: list[dict[str, Any]] = []
    for name, recipe in recipes.items():
        mean, half = interval(found[name])
        steps = steps_per_epoch(recipe, new.num_images("train", recipe)) * recipe.schedule.epochs
        rows.append(
            {"recipe": name, "top1": mean, "half_width": half, "values": found[name]}
            | {"steps": steps, "global_batch": recipe.global_batch}
            | {"peak_lr": recipe.optim.peak_lr, "epochs": recipe.schedule.epochs}
        )
    gains = {}
    for name in (SCRATCH, LONG):  # of the same seed, which draws the same minival
        pairs = zip(found[TUNED], found[name], strict=True)
        mean, half = interval([with_weights - without for with_weights, without in pairs])
        gains[name] = {"points": mean, "half_width": half}
    print()
    for row in rows:
        about = f"n={options.seeds}; {row['steps']} steps of {row['global_batch']}"
        print(f"{row['recipe']:14} top-1 {row['top1']:.2f} ± {row['half_width']:.2f} % ({about})")
    for name, gain in gains.items():
        print(f"fine-tuned less {name}: {gain['points']:+.2f} ± {gain['half_width']:.2f} points")
    if options.json:
        body = {"rows": rows, "gain_over": gains, "weights_top1": top1}
        body["images"] = {"train": new.num_images("train", tuned_recipe)}
        body["images"] |= {
            split: new.num_images(split, tuned_recipe) for split in ("minival", "val")
        }
        body["machine"] = {"device": backend("cpu").device_name}
        body |= {"command": " ".join(["python", *sys.argv]), "commit": git_commit()}
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
