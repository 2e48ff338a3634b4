"""What a training does before its second step: seconds of the CPU and of the clock by phase.

Run:    python benchmarks/startup.py --json results/startup.json
        ... startup.py --against ../other-checkout     (both in turn, for a before and an after)
Costs:  3 min on 2 cores
Writes: run directories, under --out
Prints: for each phase the median over --rounds processes; the packages by the time of their
        import; and the heavy packages that a training has imported

A process trains one step of trial.py's light recipe with one thread, as `mambaout train` does. Then
it trains a second run, as a reused Ray worker does, which shows what each trial of a study pays.
The data are packed and the C compiled before. CPU seconds are those of the process alone: git is
not in them.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = "fashion-mnist"
ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    *("torch._dynamo", "torch._inductor", "sympy", "torchvision", "timm", "pandas", "scipy"),
    *("sklearn", "matplotlib", "optuna", "mlflow", "sqlalchemy", "ray", "torch_xla"),
)
# The functions whose time is a phase. What they call is in it, unless it is a phase of its own.
PHASES = {
    "mambaout.data.packing.sources:open_data": "open the data",
    "mambaout.train.run_directory:RunDirectory.__init__": "run directory",
    "mambaout.train.run_directory:RunDirectory.save": "checkpoint",
    "mambaout.train.facts:git_commit": "git",
    "mambaout.train.run_directory:build": "network",
    "mambaout.train.run_directory:optimizer": "optimizer",
    "mambaout.native:_library": "C libraries",
    "mambaout.data.images.decode:Images.__init__": "open the pixels",
    "mambaout.data.shards.data_set:DataSet.rows": "splits",
    "mambaout.data.batches.ring:_made": "first batches",
    "mambaout.train.stepper:Stepper.step": "first step",
}


# -- in a process of its own -----------------------------------------------------------------------


class Stopwatch:
    """CPU and clock seconds by phase. A phase inside another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._open = ["start of Python"]
        self._last = (0.0, time.perf_counter())

    def to(self, phase: str | None) -> None:
        """Begin a phase, or with None end the one that began last."""
        now = (time.process_time(), time.perf_counter())
        spent = self.seconds.setdefault(self._open[-1], [0.0, 0.0])
        for clock in (0, 1):
            spent[clock] += now[clock] - self._last[clock]
        self._last = now
        if phase is None:
            self._open.pop()
        else:
            self._open.append(phase)

    def timing(self, function: Callable, phase: str) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            self.to(phase)
            try:
                return function(*args, **named)
            finally:
                self.to(None)

        return call


def in_child(recipe: str, out: str) -> None:
    """Train one step, then one step of a second run, and print the seconds by phase."""
    watch = Stopwatch()
    watch.to("imports")
    from mambaout.__main__ import main as command

    try:
        from mambaout.train.imports import import_training
    except ModuleNotFoundError:  # an earlier checkout
        import_training = functools.partial(importlib.import_module, "mambaout.train.loop")
    import_training()
    importlib.import_module("mambaout.data.packing.stage")  # of `mambaout train`
    watch.to(None)
    for where, phase in PHASES.items():
        module, _, names = where.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, name = names.split(".")
        for each in outer:
            owner = getattr(owner, each)
        if hasattr(owner, name):
            setattr(owner, name, watch.timing(getattr(owner, name), phase))
    found = []
    for number in (1, 2):
        watch.to("all else")
        status = command(
            [
                *("train", "--recipe", recipe, "--data", DATA, "--out", f"{out}/{number}"),
                *("--workers", "0", "--backend", "cpu", "--max-steps", "1"),
            ]
        )
        watch.to(None)
        assert status == 0
        found.append(watch.seconds)
        watch.seconds = {}
    found[1].pop("start of Python", None)
    heavy = [name for name in HEAVY if name in sys.modules]
    print(json.dumps({"runs": found, "heavy": heavy}))


# -- the rounds ------------------------------------------------------------------------------------


def environment_of(checkout: Path, out: Path) -> dict[str, str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    return env | {"PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": str(out / "pycache")}


def measured(checkout: Path, out: Path) -> dict[str, Any]:
    shutil.rmtree(out / "runs", ignore_errors=True)
    command = [sys.executable, __file__, "--child", str(out / "recipe.json"), str(out / "runs")]
    env = environment_of(checkout, out)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def import_seconds(checkout: Path, out: Path) -> dict[str, float]:
    """The time of each package's own modules, by `python -X importtime`; those above 10 ms."""
    code = "from mambaout.__main__ import main; import mambaout.train.loop"
    command = [sys.executable, "-X", "importtime", "-c", code]
    env = environment_of(checkout, out)
    done = subprocess.run(
        command, env=env, cwd=checkout, capture_output=True, text=True, check=True
    )
    found: Counter[str] = Counter()
    for own, name in re.findall(r"import time: +(\d+) \| +\d+ \| +(\S+)", done.stderr):
        found[name.partition(".")[0]] += int(own)
    standard = sys.stdlib_module_names
    found["Python"] = sum(own for name, own in found.items() if name in standard)
    packages = {name: own / 1e6 for name, own in found.items() if name not in standard}
    return {name: own for name, own in Counter(packages).most_common() if own >= 0.01}


def commit_of(checkout: Path, out: Path) -> str:
    code = "from mambaout.train.facts import git_commit; print(git_commit())"
    env = environment_of(checkout, out)
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=env, cwd=checkout, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def rows_of(side: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for number, run in enumerate(("first run", "second run of the process")):
        each = [one["runs"][number] for one in found]
        phases = dict.fromkeys(phase for one in each for phase in one)
        for phase in (*phases, "sum"):
            row: dict[str, Any] = {"side": side, "run": run, "phase": phase, "n": len(each)}
            for clock, name in enumerate(("cpu_seconds", "seconds")):
                values = sorted(
                    sum(spent[clock] for key, spent in one.items() if phase in (key, "sum"))
                    for one in each
                )
                row[name] = statistics.median(values)
                row[f"{name}_lowest"], row[f"{name}_highest"] = values[0], values[-1]
            rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-startup"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        in_child(*options.child)
        return 0
    from trial import LIGHT

    from mambaout.recipe import canonical_json
    from mambaout.train.cpu import cpu_name

    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(canonical_json(LIGHT))
    sides = {"here": ROOT}
    if options.against:
        sides["against"] = options.against.absolute()
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for index in range(options.rounds + 1):
        for side, checkout in list(sides.items())[:: 1 if index % 2 else -1]:
            one = measured(checkout, out)
            if index:  # the first round packs the data and compiles
                found[side].append(one)
    rows = [row for side in sides for row in rows_of(side, found[side])]
    for row in rows:
        print(
            f"{row['side']:8} {row['run']:26} {row['phase']:16} {row['cpu_seconds']:6.3f} CPU s "
            f"({row['cpu_seconds_lowest']:.3f} to {row['cpu_seconds_highest']:.3f})  "
            f"{row['seconds']:6.3f} s"
        )
    packages = {side: import_seconds(checkout, out) for side, checkout in sides.items()}
    heavy = {side: found[side][0]["heavy"] for side in sides}
    print(json.dumps({"import_seconds": packages, "heavy_packages": heavy}, indent=1))
    if options.json:
        body = {
            "rows": rows,
            "import_seconds": packages,
            "heavy_packages": heavy,
            "machine": {"device": cpu_name(1), "cores": os.cpu_count()},
            "command": " ".join(["python benchmarks/startup.py", *sys.argv[1:]]),
            "commits": {side: commit_of(checkout, out) for side, checkout in sides.items()},
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
