"""Which fields make a network slow at first and good at the end, so that early stopping is wrong?

Run:    python benchmarks/slow_starts.py --seeds 3 --json results/slow-starts.json
Costs:  about 10 min on one core; the same command again goes on
Writes: a run directory for each training, under --out
Prints: for each field, how much top-1 on minival it adds at the epochs at which a search's early
        stopping compares recipes, and at the end: mean and standard deviation over the seeds

Each training differs in one field from the recipe that the rules choose for 3,000 images of
Fashion-MNIST. A field whose effect rises from comparison to comparison starts slowly.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mambaout.data.packing.sources import open_data
from mambaout.recipe import BASELINE, tuned
from mambaout.study.search.memory import NUM_RUNGS, REDUCTION
from mambaout.train.backend import Cpu
from mambaout.train.loop import train
from mambaout.train.metrics import MINIVAL_TOP1, read_records

EPOCHS = 18
BASE = tuned(
    BASELINE, global_batch=64, epochs=EPOCHS, warmup_epochs=1, image_size=28, stem_stride=2,
    minival_fraction=0.1, hidden_multiple=8, dims=(8, 16, 24, 32), depths=(1, 1, 1, 1),
    peak_lr=1e-3, eval_every_epochs=2, train_images=3_000, crop_scale_min=0.6, hflip=0.0,
    randaugment=0.0, mixup=0.0, cutmix=0.0, erasing=0.0, drop_path=0.0,
)  # fmt: skip
MOVED: dict[str, Any] = {
    "drop_path": 0.3,
    "mixup": 0.8,
    "cutmix": 1.0,
    "randaugment": 9.0,
    "erasing": 0.25,
    "weight_decay": 0.2,
    "peak_lr": 2.5e-4,
}
COMPARED = (*(max(1, EPOCHS // REDUCTION**rung) for rung in range(NUM_RUNGS, 0, -1)), EPOCHS)


def curve(field: str | None, seed: int, out: Path) -> list[float]:
    """Top-1 on minival, in percent, after each of the epochs in COMPARED."""
    recipe = BASE if field is None else tuned(BASE, **{field: MOVED[field]})
    train(recipe, open_data("fashion-mnist"), out=out, backend=Cpu(), seed=seed)
    values = {
        round(record.epoch): record.values[MINIVAL_TOP1]
        for record in read_records(out / "records.jsonl")
        if MINIVAL_TOP1 in record.values
    }
    return [values[epoch] for epoch in COMPARED]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fields that start slowly.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/slow-starts"))
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args(argv)
    rows: dict[str, list[list[float]]] = {}
    for field in (None, *MOVED):
        name = field or "base"
        rows[name] = [
            curve(field, seed, options.out / f"{name}-s{seed}") for seed in range(options.seeds)
        ]
        added = [
            [own - base for own, base in zip(*pair, strict=True)]
            for pair in zip(rows[name], rows["base"], strict=True)
        ]
        told = []
        for epoch, values in zip(COMPARED, zip(*added, strict=True), strict=True):
            told.append(f"{statistics.fmean(values):+.2f} ± {statistics.stdev(values):.2f}")
            told[-1] += f" at epoch {epoch}"
        print(f"{name}: {', '.join(told)}", flush=True)
    if options.json:
        body = {"epochs": COMPARED, "moved": MOVED, "minival_top1": rows}
        options.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
