"""A whole training compared with timm's parts: same recipe, images, initial weights and epochs.

Run:    python benchmarks/trial.py --recipes light full --seeds 8 --json results/trial.json
Costs:  about 25 min on 2 quiet cores; finished trainings are not repeated
Writes: PNG files for timm, run directories and the times of each training, under --out
Prints: for each recipe, timm's CPU and wall seconds divided by ours, and val top-1 of both with
        the difference and its 95 % interval over the seeds

Ours is `mambaout train` with `exact` pixels. timm's parts are in trial_timm.py. Each training is a
new process with one thread and no workers. Trainings of the two sides alternate. The data are
packed and exported before. "light" has only crops and flips; "full" is the paper's augmentation.
Both sides evaluate after each epoch and at the end. CPU seconds are those of the whole process,
including its start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import stats

from mambaout.data.images.decode import Images
from mambaout.data.packing.sources import open_data
from mambaout.recipe import BASELINE, Recipe, canonical_json, tuned, with_global_batch
from mambaout.train.cpu import cpu_name
from mambaout.train.facts import git_commit

DATA = "fashion-mnist"
FULL = tuned(
    with_global_batch(BASELINE, 64),
    dims=(16, 32, 64, 96),
    depths=(1, 1, 1, 1),
    stem_stride=2,
    image_size=28,
    train_images=6000,
    minival_fraction=0.1,
    epochs=2,
    warmup_epochs=0.5,
    peak_lr=2e-3,
)
LIGHT = tuned(FULL, randaugment=0.0, mixup=0.0, cutmix=0.0, erasing=0.0)
RECIPES = {"light": LIGHT, "full": FULL}
SPLITS = ("train", "minival", "val")


def export(recipe: Recipe, folder: Path) -> None:
    """Write the recipe's images as PNG files by class, unless that is done."""
    if (folder / "done").exists():
        return
    data = open_data(DATA)
    for split in SPLITS:
        pictures = Images(data, data.source(split))
        labels = data.labels[data.source(split)]
        for row in data.rows(split, recipe):
            place = folder / split / f"{labels[row]:03d}"
            place.mkdir(parents=True, exist_ok=True)
            width, height = pictures[row].size
            pixels = np.asarray(pictures[row].crop((0, 0, width, height)))
            Image.fromarray(pixels).save(place / f"{row}.png")
    (folder / "done").write_text("")


def took(command: list[str], log: Path) -> dict[str, float]:
    """CPU and wall seconds of a process of one thread."""
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(variables, "1")
    began = time.perf_counter()
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: see {log}")
    return {
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "seconds": time.perf_counter() - began,
    }


def ours(recipe: Path, seed: int, out: Path) -> dict[str, float]:
    command = [
        *(sys.executable, "-m", "mambaout", "train", "--recipe", str(recipe), "--data", DATA),
        *("--seed", str(seed), "--out", str(out / "run"), "--workers", "0", "--backend", "cpu"),
    ]
    found = took(command, out / "log.txt")
    outcome = json.loads((out / "run" / "outcome.json").read_text())
    return found | {"top1": outcome["metrics"]["top1"]}


def timms(recipe: Path, seed: int, out: Path, images: Path) -> dict[str, float]:
    script = Path(__file__).with_name("trial_timm.py")
    command = [
        *(sys.executable, str(script), "--recipe", str(recipe)),
        *("--images", str(images), "--seed", str(seed)),
    ]
    found = took(command, out / "log.txt")
    return found | {"top1": float((out / "log.txt").read_text().splitlines()[-1])}


def measured(name: str, seed: int, side: str, out: Path) -> dict[str, float]:
    """The times and results of one training. They are read from its file if it has ended."""
    folder = out / f"{name}-{seed}-{side}"
    done = folder / "took.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "recipe.json"
        recipe.write_text(canonical_json(RECIPES[name]))
        images = out / "images"
        found = (
            ours(recipe, seed, folder) if side == "ours" else timms(recipe, seed, folder, images)
        )
        done.write_text(json.dumps(found))
    return json.loads(done.read_text())


def row(name: str, sides: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    pairs = list(zip(sides["ours"], sides["timm"], strict=True))
    found: dict[str, Any] = {"recipe": name, "n": len(pairs)}
    for clock in ("cpu_seconds", "seconds"):
        ratios = sorted(theirs[clock] / one[clock] for one, theirs in pairs)
        found[f"{clock}_ratio"] = statistics.median(ratios)
        found[f"{clock}_lowest"], found[f"{clock}_highest"] = ratios[0], ratios[-1]
        found[f"our_{clock}"] = statistics.median(one[clock] for one, _ in pairs)
    found["our_top1"] = statistics.fmean(one["top1"] for one, _ in pairs)
    found["timms_top1"] = statistics.fmean(theirs["top1"] for _, theirs in pairs)
    gaps = [one["top1"] - theirs["top1"] for one, theirs in pairs]
    found["top1_difference"] = statistics.fmean(gaps)
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        found["top1_difference_95"] = float(stats.t.ppf(0.975, len(gaps) - 1)) * error
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-trial"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    export(FULL, options.out / "images")
    warm = options.out / "warm-up"  # packs and decodes the data, compiles the C
    if not (warm / "took.json").exists():
        warm.mkdir(parents=True, exist_ok=True)
        (warm / "recipe.json").write_text(canonical_json(tuned(LIGHT, epochs=1, warmup_epochs=0)))
        (warm / "took.json").write_text(json.dumps(ours(warm / "recipe.json", 0, warm)))
    rows = []
    for name in options.recipes:
        sides: dict[str, list[dict[str, float]]] = {"ours": [], "timm": []}
        for seed in range(options.seeds):
            for side in ("ours", "timm") if seed % 2 else ("timm", "ours"):
                sides[side].append(measured(name, seed, side, options.out))
            print(
                f"{name} seed {seed}: ours {sides['ours'][-1]}, timm {sides['timm'][-1]}",
                flush=True,
            )
        rows.append(row(name, sides))
        last = rows[-1]
        print(
            f"{name}: timm takes {last['cpu_seconds_ratio']:.2f} times our CPU seconds "
            f"({last['cpu_seconds_lowest']:.2f} to {last['cpu_seconds_highest']:.2f}) and "
            f"{last['seconds_ratio']:.2f} times our time; val top-1 {last['our_top1']:.2f} and "
            f"{last['timms_top1']:.2f} %, {last['top1_difference']:+.2f} "
            f"± {last.get('top1_difference_95', float('nan')):.2f} (n={last['n']})"
        )
    if options.json:
        body = {
            "ratio_to_timm": {each["recipe"]: each["cpu_seconds_ratio"] for each in rows},
            "rows": rows,
            "machine": {"device": cpu_name(1), "cores": os.cpu_count()},
            "command": " ".join(["python benchmarks/trial.py", *sys.argv[1:]]),
            "commit": git_commit(),
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
