"""Does the detector find real trees from above, on photographs that it was not trained on?

Run:    python benchmarks/deepforest.py --seeds 2 --json results/deepforest.json
Costs:  about 5 CPU minutes (one thread), and a pretraining of one; the same command again goes on
Writes: the tiles and a run directory for each training, under --out
Prints: box AP and AP50 on the 32 tiles of the photographs in val, at each evaluation

The environment variable DEEPFOREST_DATA names the folder of the photographs, which lie in the wheel
of deepforest (tests/dense/deepforest_tiles.py). Two photographs are trained on, 81 tiles; the two
others are evaluated, 32 tiles. The backbone is the one that detect_shapes.py pretrains.
There are boxes and no masks, so the mask branch is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detect_shapes import pretrained_backbone

from mambaout.commands.detect import SHAPES_FIELDS
from mambaout.dense.coco import read_coco
from mambaout.dense.detect import train_detector
from mambaout.dense.detect_recipe import DETECT_BASELINE, tuned_detect
from mambaout.dense.detector_plan import detector_plan
from mambaout.train.backend import backend
from mambaout.train.facts import git_commit
from mambaout.train.metrics import read_records
from mambaout.train.outcomes import Finished

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "dense"))
from deepforest_tiles import (  # pyright: ignore[reportMissingImports] - no package
    FOLDER_VARIABLE,
    deepforest_data,
    write_deepforest_tiles,
)

MICRO_BATCH = 6
EPOCHS = 10  # of 13 steps
PRETRAINED_AT = Path("runs/detect-shapes")  # made there if it is not there
FIGURES = ("box_ap", "box_ap50")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/deepforest"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    source = deepforest_data()
    if source is None:
        parser.error(f"the photographs are not here; {FOLDER_VARIABLE} names their folder")
    root = options.out / "tiles"
    if not root.exists():
        aside = root.with_name("tiles-begun")
        write_deepforest_tiles(aside, source)
        aside.rename(root)
    data, val = read_coco(str(root), "train"), read_coco(str(root), "val")
    fields: dict[str, Any] = {**SHAPES_FIELDS, "shorter_side": 192, "longer_side": 192}
    fields |= {"epochs": EPOCHS, "first_drop_epoch": 8, "second_drop_epoch": 10}
    fields |= {"warmup_steps": 10, "eval_every_epochs": 5, "smallest_anchor": 16}
    recipe = tuned_detect(DETECT_BASELINE, fields)
    weights, _ = pretrained_backbone(recipe.model, PRETRAINED_AT)
    plan, said = detector_plan(recipe, data, weights)
    print(said)

    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        out = options.out / f"seed-{seed}"
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
                found = {name: record.values[f"val/{name}"] for name in FIGURES}
                rows.append({"seed": seed, "step": record.step, **found})
                print(" ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    last = max(row["step"] for row in rows)
    means = {
        name: statistics.fmean(row[name] for row in rows if row["step"] == last) for name in FIGURES
    }
    each = ", ".join(f"{name} {value:.1f}" for name, value in means.items())
    print(f"\nstep {last}, unseen photographs: {each} (n={options.seeds})")
    if options.json:
        body = {"rows": rows, "means": means, "step": last}
        body["tiles"] = {split.split: len(split.images) for split in (data, val)}
        body["trees"] = {
            split.split: sum(len(image.objects) for image in split.images) for split in (data, val)
        }
        body |= {"machine": {"device": backend("cpu").device_name}, "commit": git_commit()}
        body["command"] = " ".join(["python", *sys.argv])
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
