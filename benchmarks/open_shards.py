"""How long does it take to open a data set of 1,000 shards, the first time and later?

Run:    python benchmarks/open_shards.py --json results/open-shards.json
Costs:  a few minutes on 2 cores, 60 MB of disk
Writes: the shards and the descriptions, into a folder that is removed at the end
Prints: seconds, median and range over --times, each time in a process of its own

A process opens the set like a trial. Then it reads every row group in random order, like a process
of a loader. "first" finds no description of the set. "later" finds one that another process wrote.
"without" neither reads nor writes one, like versions without descriptions. The shards are tiny, and
the local disk caches them in memory, so only the opening is measured. In a bucket, opening a file
and reading its footer are round trips. "opens" counts them: the number of shards opened and the
bytes read from them until the set was open.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mambaout.data.shards import data_set as shards
from mambaout.data.shards import description, files
from mambaout.data.shards.encoded import EncodedImages

ROWS, GROUP_ROWS = 64, 16  # rows of a shard, rows of a row group
IMAGE_BYTES = 400
CASES = ("without", "first", "later")


def make(folder: Path, count: int) -> None:
    """Write shards with the columns of `mambaout pack`. The image bytes are no real images."""
    folder.mkdir()
    draw = random.Random(0)
    num_val = max(1, count // 20)
    for split, number in (("train", count - num_val), ("validation", num_val)):
        for index in range(number):
            images = [{"bytes": draw.randbytes(IMAGE_BYTES), "path": f"{index}/{row}"}
                      for row in range(ROWS)]  # fmt: skip
            table = pa.table({"image": images, "label": [row % 10 for row in range(ROWS)]})
            path = folder / f"{split}-{index:05d}-of-{number:05d}.parquet"
            pq.write_table(
                table, path, compression="none", use_dictionary=False, write_statistics=False,
                row_group_size=GROUP_ROWS,
            )  # fmt: skip
            an_hour_ago = time.time() - 3600
            os.utime(path, (an_hour_ago, an_hour_ago))  # like shards that existed before


def opened(location: str, cache: Path, *, is_described: bool) -> dict[str, Any]:
    """The time that this new process takes to open the set and to read all of it."""
    if not is_described:
        description.Place.read = lambda self: None
        description.Place.write = lambda self, found: None
    num_opened, num_bytes = 0, 0
    real_open, real_read = files._Open._opened, files._Open.read

    def counted_open(self: Any) -> Any:
        nonlocal num_opened
        num_opened += self.file is None
        return real_open(self)

    def counted_read(self: Any, start: int, length: int, what: str) -> Any:
        nonlocal num_bytes
        num_bytes += length
        return real_read(self, start, length, what)

    files._Open._opened, files._Open.read = counted_open, counted_read
    begun = time.perf_counter()
    data = shards.read_data_set("set", location, cache)
    open_seconds = time.perf_counter() - begun
    opens, of_bytes = num_opened, num_bytes
    images = EncodedImages(data.shards["train"], keep_bytes=0)
    order = list(range(len(images.group_of)))
    random.Random(1).shuffle(order)
    begun = time.perf_counter()
    for group in order:
        _ = images[int(images.starts[group])]
    return {
        "open_seconds": open_seconds,
        "opens": opens,
        "bytes": of_bytes,
        "read_seconds": time.perf_counter() - begun,
        "read_opens": num_opened - opens,
        "row_groups": len(order),
    }


def measured(case: str, location: Path, cache: Path) -> dict[str, Any]:
    """The figures of one case, measured in a new process."""
    if case == "first":
        for path in (cache / "described").glob("*"):
            path.unlink()
    command = [sys.executable, __file__, "--open", case, str(location), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--open", nargs=3, help=argparse.SUPPRESS)  # a process of its own
    options = parser.parse_args(argv)
    if options.open:
        case, location, cache = options.open
        found = opened(location, Path(cache), is_described=case != "without")
        print(json.dumps(found), flush=True)
        # Exit at once. pyarrow's threads may still read the last row group, and a normal exit does
        # not wait for them ("terminate called without an active exception").
        os._exit(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mambaout-open-") as folder:
        location, cache = Path(folder) / "set", Path(folder) / "cache"
        make(location, options.shards)
        found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
        for _ in range(options.times):
            for case in CASES:  # in turn, so that other work on the machine affects all
                found[case].append(measured(case, location, cache))
    for case, of_case in found.items():
        last = of_case[-1]
        row: dict[str, Any] = {"case": case, "shards": options.shards, "n": len(of_case)}
        row |= {name: last[name] for name in ("opens", "bytes", "read_opens", "row_groups")}
        for name in ("open_seconds", "read_seconds"):
            values = [each[name] for each in of_case]
            row |= {name: statistics.median(values), f"{name}_of_each": values}
        rows.append(row)
        texts = [
            f"{row[name]:.3f} s ({min(row[f'{name}_of_each']):.3f} to "
            f"{max(row[f'{name}_of_each']):.3f})"
            for name in ("open_seconds", "read_seconds")
        ]
        print(
            f"{case:8} open {texts[0]}, {row['opens']:,} files opened, {row['bytes']:,} bytes; "
            f"{row['row_groups']:,} row groups {texts[1]}, {row['read_opens']:,} files opened "
            f"(n={row['n']})",
            flush=True,
        )
    ratio = rows[0]["open_seconds"] / rows[2]["open_seconds"]
    print(f"a later open takes 1/{ratio:.1f} of one without a description")
    if options.json:
        from mambaout.train.backend import backend  # imports torch; no time above must include that

        body = {"ratio_without_to_later": ratio, "rows": rows}
        body["machine"] = {"device": backend("cpu").device_name, "cores": os.cpu_count()}
        body["command"] = " ".join(["python", *sys.argv])
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
