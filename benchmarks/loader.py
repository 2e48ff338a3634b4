"""Loaders on the same photographs: images per CPU-second of the process tree, compared with timm.

Run:    python benchmarks/loader.py                              (about 13 min on 2 quiet cores)
        ... loader.py --rounds 3 --json results/loader.json
        ... loader.py --cells 'timm-randaugment-2,fast-*-2'      (patterns; see --list)
        ... loader.py --profile fast                             (the bottlenecks; half a minute)
Prints: a table of all cells, each one's ratio to timm at the same augmentation and workers, and an
        estimate for a TPU v3-8 host's cores

A cell is LOADER-AUGMENT-WORKERS; benchmarks/loader_peers.py describes each loader. Every round runs
all cells one after the other, each in its own process. In a cell, the time of the first batch
includes the start of the loader and its workers, but not the imports. After a warm-up, CPU time is
counted: user and system time of the process and all its children, including ended ones. For Ray,
whole executions are counted, without the first one. Ratios are computed within each round. The
table gives their median, lowest and highest.

The images are 1,000 JPEGs of about 100 kB (benchmarks/photographs.py) and lie in the page cache.
OpenMP has one thread in every cell, because more threads only wait for each other.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch starts

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from mambaout.cache import default_cache
from mambaout.train.cpu import cpu_name

LOADERS = ("fast", "exact", "timm", "torchvision", "webdataset", "datasets")  # in every setting
AUGMENTS = ("randaugment", "crop")
WARM_UP_CPU_SECONDS, CPU_SECONDS = 1.0, 4.0
POLL_SECONDS = 0.4  # looking at every process costs 2 ms
IMPORTS = {
    "fast": ("mambaout.data.batches.loader",),
    "exact": ("mambaout.data.batches.loader",),
    "timm": ("timm.data",),
    "torchvision": ("torchvision.datasets", "torchvision.transforms.v2"),
    "webdataset": ("webdataset", "torchvision.transforms.v2"),
    "datasets": ("datasets", "torchvision.transforms.v2"),
    "ray": ("ray.data", "torchvision.transforms.v2"),
}
VERSIONS = (
    "torch", "torchvision", "timm", "Pillow", "simplejpeg", "opencv-python-headless", "pyarrow",
    "webdataset", "datasets", "ray",
)  # fmt: skip

# A v3-8 host has 96 virtual CPUs of Skylake's class at 2.0 GHz, two on each core. It is assumed,
# not measured, that one of them has a quarter of the speed of a Zen 5 core. For an Emerald Rapids
# core, the share would be 0.29: it decodes 735 images/s and a Zen 5 core 857 (arXiv 2605.08731,
# simplejpeg).
HOST_VCPUS, VCPU_SHARE = 96, 0.25


class Cell(NamedTuple):
    loader: str
    augment: str
    workers: int

    def __str__(self) -> str:
        return f"{self.loader}-{self.augment}-{self.workers}"


def cells() -> list[Cell]:
    """The cells of a run without --cells, in the order of a round."""
    both = [Cell(loader, augment, workers)
            for augment in AUGMENTS for workers in (2, 1) for loader in LOADERS]  # fmt: skip
    two = [Cell(loader, augment, 2) for augment in AUGMENTS for loader in ("timm-uint8", "ray")]
    plain = [Cell(f"{pixels}-plain", "randaugment", 2) for pixels in ("fast", "exact")]
    return both + two + plain


def others() -> list[Cell]:
    """Other cells that --cells can name."""
    alone = [Cell(pixels, augment, 0) for pixels in ("fast", "exact") for augment in AUGMENTS]
    return alone + [Cell("ray", augment, 1) for augment in AUGMENTS]


def chosen(patterns: str | None) -> list[Cell]:
    if patterns is None:
        return cells()
    wanted = patterns.split(",")
    every = cells() + others()
    for pattern in wanted:
        if not any(fnmatch(str(cell), pattern) for cell in every):
            raise ValueError(f"--cells {pattern} names no cell; see --list")
    return [cell for cell in every if any(fnmatch(str(cell), pattern) for pattern in wanted)]


# -- measuring one cell, in its own process -------------------------------------------------------


def tree_cpu_seconds(root: int) -> float:
    """User and system time so far of a process and its children, including ended ones."""
    found: dict[int, tuple[int, float]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:  # the process has ended
                continue
            parts = stat[stat.rindex(")") + 2 :].split()  # the name before may hold anything
            ticks = sum(int(part) for part in parts[11:15])  # utime stime cutime cstime
            found[int(entry.name)] = (int(parts[1]), ticks / os.sysconf("SC_CLK_TCK"))
    below: dict[int, list[int]] = {}
    for process, (parent, _) in found.items():
        below.setdefault(parent, []).append(process)
    total, left = 0.0, [root]
    while left:
        process = left.pop()
        total += found[process][1] if process in found else 0.0
        left += below.get(process, [])
    return total


def measure(cell: Cell, folder: Path, num_images: int, cpu_seconds: float) -> dict[str, Any]:
    """The cell's figures. `num_images` is the number of images in an epoch."""
    import loader_peers as peers
    import torch

    os.environ.update(peers.ENVIRONMENT)
    for name in IMPORTS[cell.loader.split("-")[0]]:  # so that no import is timed
        import_module(name)
    torch.set_num_threads(1)
    started = time.monotonic()
    batches = peers.LOADERS[cell.loader](folder, cell.augment, cell.workers)
    seen = len(next(batches))
    first_batch_seconds = time.monotonic() - started
    # Ray Data prepares most of an epoch ahead, so only whole epochs can be measured.
    step = num_images if cell.loader == "ray" else 1
    warm_up = WARM_UP_CPU_SECONDS if cpu_seconds else 0.0
    root, begun = os.getpid(), tree_cpu_seconds(os.getpid())
    mark: tuple[float, float, int] | None = None
    polled = time.monotonic()
    for batch in batches:
        seen += len(batch)
        now = time.monotonic()
        if seen % step or (cpu_seconds and now - polled < POLL_SECONDS):
            continue
        polled, cpu = now, tree_cpu_seconds(root)
        if mark is None:
            if cpu - begun >= warm_up:
                mark = (cpu, now, seen)
        elif cpu - mark[0] >= cpu_seconds:
            batches.close()
            spent, wall, images = cpu - mark[0], now - mark[1], seen - mark[2]
            return {
                "cell": str(cell), **cell._asdict(), "images": images, "cpu_seconds": spent,
                "wall_seconds": wall, "images_per_cpu_second": images / max(spent, 0.01),
                "images_per_second": images / wall, "first_batch_seconds": first_batch_seconds,
            }  # fmt: skip
    raise AssertionError(f"{cell} ended")


def in_own_process(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """The output of `--cell`. Raises CalledProcessError; the cell's own error is on stderr."""
    command = [
        sys.executable, __file__, "--cell", str(cell), "--folder", str(options.folder),
        "--count", str(options.count), "--cpu-seconds", str(options.cpu_seconds),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# -- the output of a run --------------------------------------------------------------------------


class Spread(NamedTuple):
    median: float
    least: float
    largest: float

    def text(self, style: str) -> str:
        return f"{self.median:{style}} ({self.least:{style}}-{self.largest:{style}})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratios(rows: list[dict[str, Any]], peer: str) -> dict[str, Spread]:
    """Each cell's images per CPU-second, divided by `peer`'s in the same round.

    The peer has the same augmentation and workers. Cells without such a peer are left out.
    """
    figure = {(row["round"], row["cell"]): row["images_per_cpu_second"] for row in rows}
    found: dict[str, list[float]] = {}
    for row in rows:
        against = str(Cell(peer, row["augment"], row["workers"]))
        if (base := figure.get((row["round"], against))) is not None:
            found.setdefault(row["cell"], []).append(row["images_per_cpu_second"] / base)
    return {cell: spread(values) for cell, values in found.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown with one line for each cell: the median, lowest and highest of the rounds."""
    to_timm = ratios(rows, "timm")
    lines = [
        "| loader | augmentation | workers | images per CPU-second | over timm | images/s, wall "
        "| first batch, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == name]
        rate = spread([row["images_per_cpu_second"] for row in own]).text(".0f")
        wall = statistics.median(row["images_per_second"] for row in own)
        first = statistics.median(row["first_batch_seconds"] for row in own)
        ratio = to_timm[name].text(".2f") if name in to_timm else "-"
        cell = own[0]
        lines.append(
            f"| {cell['loader']} | {cell['augment']} | {cell['workers']} | {rate} | {ratio} "
            f"| {wall:.0f} | {first:.1f} |"
        )
    return "\n".join(lines)


def ratio_to_timm(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of `fast` and `exact` with full augmentation and most workers, and of all cells."""
    to_timm = ratios(rows, "timm")
    body: dict[str, Any] = {}
    for pixels in ("fast", "exact"):
        found = [to_timm[name] for workers in (2, 1)
                 if (name := f"{pixels}-randaugment-{workers}") in to_timm]  # fmt: skip
        if found:
            body[pixels] = found[0].median
    return body | {
        "cells": {name: found._asdict() for name, found in to_timm.items()},
        "cells_to_timm_uint8": {
            name: found._asdict() for name, found in ratios(rows, "timm-uint8").items()
        },
    }


def estimate(rows: list[dict[str, Any]], share: float) -> str:
    """The estimate in words, from the cells with two workers; empty if none was measured."""
    lines = []
    for loader in ("fast", "exact", "timm"):
        name = str(Cell(loader, "randaugment", 2))
        own = [row["images_per_cpu_second"] for row in rows if row["cell"] == name]
        if own:
            rate = statistics.median(own) * share
            lines.append(f"{loader} {rate * HOST_VCPUS:,.0f} images/s ({rate:.0f} a vCPU)")
    if not lines:
        return ""
    return (
        f"Estimate, not measured: {HOST_VCPUS} vCPUs of a v3-8 host, each {share:g} of a core here "
        f"(an assumption: --vcpu-share), would deliver {'; '.join(lines)} with all augmentation."
    )


def machine() -> dict[str, Any]:
    cores = os.cpu_count() or 1
    return {
        "cpu": cpu_name(cores), "cores": cores, "load_before": os.getloadavg()[0],
        "python": sys.version.split()[0], "versions": {name: version(name) for name in VERSIONS},
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", help="patterns joined by commas; default: those that --list has")
    parser.add_argument("--list", action="store_true", help="the cells' names, and nothing else")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="photographs to read")
    parser.add_argument("--folder", type=Path, help="where they lie; default: in the cache")
    parser.add_argument("--cpu-seconds", type=float, default=CPU_SECONDS, help="at least, a cell")
    parser.add_argument("--vcpu-share", type=float, default=VCPU_SHARE, help="of a core here")
    parser.add_argument("--profile", choices=["exact", "fast"], help="where one's time goes")
    parser.add_argument("--cell", help="measure this one alone, in this process, and print JSON")
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(str(cell) for cell in cells()), "\nand, by name:")
        print("\n".join(str(cell) for cell in others()))
        return 0
    options.folder = options.folder or default_cache() / f"photographs-{options.count}"
    if options.cell:
        (cell,) = chosen(options.cell)
        print(json.dumps(measure(cell, options.folder, options.count, options.cpu_seconds)))
        return 0
    try:
        picked, at = chosen(options.cells), machine()
    except ValueError as error:
        print(f"loader: {error}", file=sys.stderr)
        return 2
    except PackageNotFoundError as error:
        print(f"loader: {error.name} is missing: pip install -e '.[bench]'", file=sys.stderr)
        return 2
    from loader_peers import prepare

    about = prepare(options.folder, options.count)
    print(about)
    if options.profile:
        from loader_profile import profile

        print(profile(options.folder, options.profile))
        return 0
    rows: list[dict[str, Any]] = []
    for index in range(options.rounds):
        for cell in picked:
            row = in_own_process(cell, options) | {"round": index}
            rows.append(row)
            print(
                f"round {index}: {cell} {row['images_per_cpu_second']:.0f} images per CPU-second, "
                f"{row['images_per_second']:.0f} images/s, first batch after "
                f"{row['first_batch_seconds']:.1f} s",
                flush=True,
            )
    print(f"\n{table(rows)}\n\n{estimate(rows, options.vcpu_share)}".rstrip())
    if options.json:
        body = {
            "ratio_to_timm": ratio_to_timm(rows), "rows": rows, "machine": at,
            "photographs": about, "vcpu_share_assumed": options.vcpu_share,
            "command": " ".join(["python", *sys.argv]),
        }  # fmt: skip
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
