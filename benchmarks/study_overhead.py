"""What Ray, the driver, MLflow and the report cost beside the training of a study.

Run:    python benchmarks/study_overhead.py --json results/study-overhead.json
        ... study_overhead.py --trials 2 --epochs 1 --rounds 1                (2 min: does it run?)
Costs:  about 30 min on 2 cores; rounds that are done are not repeated
Writes: studies, run directories and the times of each way, under --out
Prints: CPU and wall seconds of a study of --trials trials; of the same trainings by `mambaout
        train`, one after another; and of the same trainings in one process without Ray

All ways come to the same numbers. The trainings are those of trial.py's light recipe, w16-d4 on
6,000 images of Fashion-MNIST, with other learning rates and --epochs. Each has one thread, and the
study runs one trial at a time. CPU seconds are those of every process that a way starts. They are
read five times a second, so up to 0.2 s of each process is missed. The ways take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from trial import DATA, LIGHT

from mambaout.data.packing.sources import open_data
from mambaout.launch.cli import main as run_study
from mambaout.recipe import Recipe, canonical_json, recipe_from_json, tuned
from mambaout.study.start import Start
from mambaout.study.study import OUTCOME_FILE, Study, StudyFolder
from mambaout.train.cpu import cpu_name
from mambaout.train.facts import git_commit

WAYS = ("study", "commands", "one_process")
SAME = ("top1", "train/loss", "minival/loss")  # metrics that are equal in all ways
SAMPLE_SECONDS = 0.2
SET_CHILD_SUBREAPER = 36  # of Linux's prctl.h: orphans become children of this process
TICKS = os.sysconf("SC_CLK_TCK")


def recipes(count: int, epochs: int, index: int) -> dict[str, Recipe]:
    """The recipes of a round by label. No two rounds share one: a study would reuse its result."""
    rates = [1e-3 * (1 + place / 10 + index / 1000) for place in range(count)]
    warmup = min(0.5, epochs / 2)
    return {
        f"lr{rate:.4g}": tuned(LIGHT, epochs=epochs, warmup_epochs=warmup, peak_lr=rate)
        for rate in rates
    }


# -- the ways; each is a process, or several one after another -------------------------------------


def commands_of(way: str, folder: Path, todo: dict[str, Recipe]) -> list[list[str]]:
    if way == "study":
        return [[sys.executable, __file__, "--as-study", str(folder)]]
    if way == "one_process":
        return [[sys.executable, __file__, "--as-one-process", str(folder)]]
    return [
        [
            *(sys.executable, "-m", "mambaout", "train", "--recipe", str(folder / f"{label}.json")),
            *("--data", DATA, "--out", str(folder / "runs" / label)),
            *("--workers", "0", "--backend", "cpu"),
        ]
        for label in todo
    ]


def recipes_in(folder: Path) -> dict[str, Recipe]:
    return {path.stem: recipe_from_json(path.read_text()) for path in sorted(folder.glob("*.json"))}


def as_study(folder: Path) -> int:
    def overhead(start: Start) -> Study:
        """What does the machinery cost beside this training?"""
        return Study(name="overhead", question=str(overhead.__doc__), recipes=recipes_in(folder))

    words = ["--data", DATA, "--storage", str(storage_of(folder)), "--name", folder.parent.name]
    return run_study(overhead, [*words, "--accelerator", "cpu", "--max-concurrent", "1"])


def storage_of(folder: Path) -> Path:
    """One for all rounds, because MLflow's tables are made once in a storage."""
    return folder.parents[1] / "storage"


def as_one_process(folder: Path) -> int:
    from mambaout.train.backend import backend
    from mambaout.train.loop import train

    data = open_data(DATA)
    for label, recipe in recipes_in(folder).items():
        train(recipe, data, out=folder / "runs" / label, backend=backend("cpu"))
    return 0


def results(way: str, folder: Path, todo: dict[str, Recipe]) -> dict[str, list[float]]:
    """The metrics of each trial that must not depend on the way."""
    if way == "study":
        study = StudyFolder(storage_of(folder), folder.parent.name)
        found = {trial.label: study.run(trial).metrics for trial in study.trials()}
    else:
        files = {label: folder / "runs" / label / OUTCOME_FILE for label in todo}
        found = {label: json.loads(file.read_text())["metrics"] for label, file in files.items()}
    return {label: [found[label][name] for name in SAME] for label in todo}


# -- the time of all processes ---------------------------------------------------------------------


class ProcessTimes(threading.Thread):
    """Reads the CPU seconds of all descendants of this process until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._seen: dict[tuple[int, str], tuple[str, float]] = {}  # by pid and start time

    def run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self._read()

    def _read(self) -> None:
        stats: dict[int, list[str]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = path.read_text().partition(") ")
            except OSError:  # it has ended
                continue
            stats[int(path.parent.name)] = [name.partition("(")[2], *rest.split()]
        ours = {os.getpid()}
        while more := {pid for pid, row in stats.items() if int(row[2]) in ours} - ours:
            ours |= more
        for pid in ours - {os.getpid()}:
            row = stats[pid]
            seconds = (int(row[12]) + int(row[13])) / TICKS
            self._seen[pid, row[20]] = (_kind(pid, row[0]), seconds)

    def stop(self) -> dict[str, float]:
        """CPU seconds by kind of process."""
        self._over.set()
        self.join()
        found: dict[str, float] = {}
        for kind, seconds in self._seen.values():
            found[kind] = found.get(kind, 0.0) + seconds
        return found


def _kind(pid: int, name: str) -> str:
    if name.startswith("ray::"):
        return "trial" if name.startswith("ray::ImplicitF") else "ray"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        command = b""
    return "ray" if b"/ray/" in command or name in ("raylet", "gcs_server") else "driver"


def took(way: str, folder: Path, todo: dict[str, Recipe]) -> dict[str, Any]:
    """Seconds of a way, and the results of its trials. They are read from a file if it is done."""
    done = folder / "took"
    if done.exists():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for label, recipe in todo.items():
        (folder / f"{label}.json").write_text(canonical_json(recipe))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    times = ProcessTimes()
    times.start()
    began = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        for command in commands_of(way, folder, todo):
            ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            if ended.returncode != 0:
                raise SystemExit(f"{' '.join(command)} failed: see {folder / 'log.txt'}")
    seconds = time.perf_counter() - began
    by_kind = times.stop()
    found = {
        "cpu_seconds": sum(by_kind.values()),
        "seconds": seconds,
        "cpu_seconds_by_process": by_kind,
        "results": results(way, folder, todo),
    }
    done.write_text(json.dumps(found))
    return found


# -- the rows --------------------------------------------------------------------------------------


def rows_of(rounds: list[dict[str, dict[str, Any]]], num_trials: int) -> list[dict[str, Any]]:
    rows = []
    for way in rounds[0]:
        row: dict[str, Any] = {"way": way, "n": len(rounds), "trials": num_trials}
        for clock in ("cpu_seconds", "seconds"):
            values = sorted(each[way][clock] for each in rounds)
            row[clock] = statistics.median(values)
            row[f"{clock}_lowest"], row[f"{clock}_highest"] = values[0], values[-1]
        kinds = [each[way]["cpu_seconds_by_process"] for each in rounds]
        row["cpu_seconds_by_process"] = {
            kind: statistics.median(each.get(kind, 0.0) for each in kinds)
            for kind in sorted({kind for each in kinds for kind in each})
        }
        rows.append(row)
    return rows


def overhead(rounds: list[dict[str, dict[str, Any]]], over: str) -> dict[str, Any]:
    """How much more than `over` the study takes, in percent: the median, lowest and highest."""
    found = {}
    for clock in ("cpu_seconds", "seconds"):
        values = sorted(100 * (each["study"][clock] / each[over][clock] - 1) for each in rounds)
        found[clock] = [statistics.median(values), values[0], values[-1]]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=WAYS)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8, help="5 s each, and 3 s at the end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-study-overhead"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as-study", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--as-one-process", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_study:
        return as_study(options.as_study)
    if options.as_one_process:
        return as_one_process(options.as_one_process)
    if ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SystemExit("this needs Linux: orphans of Ray would not be counted")
    out = options.out.absolute()
    ways = ["study", *(way for way in WAYS[1:] if way in options.ways)]
    for way in ways:  # packs the data, makes MLflow's tables, compiles the C and Python's files
        took(way, out / "warm-up" / way, recipes(1, 1, 999))
    rounds = []
    for index in range(options.rounds):
        todo = recipes(options.trials, options.epochs, index)
        order = ways[index % len(ways) :] + ways[: index % len(ways)]
        found = {way: took(way, out / f"round-{index}" / way, todo) for way in order}
        if any(found[way]["results"] != found["study"]["results"] for way in ways):
            raise SystemExit(f"the ways come to other results: see {out / f'round-{index}'}")
        rounds.append(found)
        for way in ways:
            one = found[way]
            kinds = one["cpu_seconds_by_process"].items()
            parts = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in kinds)
            print(
                f"round {index}: {way} {one['cpu_seconds']:.1f} CPU s ({parts}), "
                f"{one['seconds']:.1f} s",
                flush=True,
            )
    body = {
        "overhead_percent": {over: overhead(rounds, over) for over in ways[1:]},
        "rows": rows_of(rounds, options.trials),
        "machine": {"device": cpu_name(1), "cores": os.cpu_count()},
        "command": " ".join(["python benchmarks/study_overhead.py", *sys.argv[1:]]),
        "commit": git_commit(),
    }
    print(json.dumps(body, indent=1))
    if options.json:
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
