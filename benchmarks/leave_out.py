"""Which sizes cause a study's lead of width over depth? The same contrast without some sizes.

Run:    python benchmarks/leave_out.py results/scale-fashion-mnist/trials.csv --width 8
Costs:  seconds; nothing is trained
Writes: a line for each length of training: with all sizes, and without those of the given width
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from mambaout.study.law.fit import Size
from mambaout.study.law.noise import noise_of
from mambaout.study.law.shape import growth


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a lead of width over depth rests on.")
    parser.add_argument("trials", type=Path, help="trials.csv of a study that varies both")
    parser.add_argument("--width", type=int, required=True, help="first width to leave out")
    options = parser.parse_args(argv)
    with options.trials.open() as file:
        rows = [row for row in csv.DictReader(file) if row["label"] != "baseline"]
    num_images = int(rows[0]["num_val"])
    lengths = sorted({row["epochs"] for row in rows}, key=int)
    for left_out in (None, options.width):
        kept = [row for row in rows if first_width(row) != left_out]
        noise = noise_of((size.seeds for size in sizes_of(kept)), num_images)
        for epochs in lengths:
            sizes = sizes_of(row for row in kept if row["epochs"] == epochs)
            found = growth(sizes, noise).difference
            which = "all sizes" if left_out is None else f"without w{left_out}"
            told = "no contrast" if found is None else found.text()
            print(f"{which}, {epochs} epochs: width over depth {told}, {len(sizes)} sizes")


def first_width(row: dict[str, str]) -> int:
    return int(row["dims"].split(",")[0])


def sizes_of(rows: Iterable[dict[str, str]]) -> list[Size]:
    """The sizes with their seeds: error in percent over MACs of one image."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(row)
    return [
        Size(
            label=label,
            cost=float(seeds[0]["macs"]),
            errors=tuple(100 - float(row["top1"]) for row in seeds),
            depth=sum(map(int, seeds[0]["depths"].split(","))),
            width=first_width(seeds[0]),
            epochs=int(seeds[0]["epochs"]),
        )
        for label, seeds in found.items()
    ]


if __name__ == "__main__":
    main()
