"""The overhead of a study beside its training: time for each trial, memory, relaunch and report.

Run:    python benchmarks/study.py                            (all of it; about 20 min on 2 cores)
        ... study.py --trials 0 --rounds 2 --round-trials 30 --json results/study-peers.json
        ... study.py --trials 2000 --rounds 0 --json results/study-2000.json
Prints: seconds a trial of mambaout (Ray Tune, Optuna, MLflow, run directories, early stopping),
        of bare Ray Tune, and of Ray Tune with its own OptunaSearch and MLflowLoggerCallback, in
        interleaved rounds of one run; then one study grown to --trials, its time and memory by
        hundreds of trials, and what its relaunch and its report take

No trial trains. Each returns a tabulated learning curve, so that all the time is overhead.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambaout.accounting import cost
from mambaout.endings import Ending
from mambaout.launch.cluster import QUIET
from mambaout.launch.progress import Job
from mambaout.launch.request import Request
from mambaout.launch.tune import run_study
from mambaout.recipe import BASELINE, Recipe, canonical_json, tuned
from mambaout.study.axes import LinearRange, LogRange, Search, WholeRange
from mambaout.study.report.study_report import write_report
from mambaout.study.study import OUTCOME_FILE, RECIPE_FILE, RECORDS_FILE, Study, StudyFolder, Trial
from mambaout.train.metrics import MINIVAL_TOP1, Record

EPOCHS = 9
WORKERS = 2
BASE = tuned(
    BASELINE, global_batch=64, epochs=EPOCHS, warmup_epochs=1, image_size=28, stem_stride=2,
    minival_fraction=0.1, hidden_multiple=8, dims=(16, 32, 64, 96), depths=(1, 1, 1, 1),
    peak_lr=2e-3,
)  # fmt: skip
AXES = (
    LogRange("peak_lr", 2e-4, 2e-2),
    LinearRange("weight_decay", 0.0, 0.2),
    LinearRange("drop_path", 0.0, 0.3),
    WholeRange("blocks", 0, 8),
)


# -- trials without training ----------------------------------------------------------------------


def curve(recipe: Recipe, seed: int) -> list[float]:
    """Minival top-1 after each epoch: an invented function of rate, decay and depth, with noise."""
    draw = random.Random(f"{canonical_json(recipe)} {seed}")
    off = math.log10(recipe.optim.peak_lr / 1.5e-3)
    best = 90 + 1.5 * math.log2(recipe.model.num_blocks) - 6 * off**2
    best -= 40 * (recipe.optim.weight_decay - 0.05) ** 2 + 8 * recipe.model.drop_path
    best += draw.gauss(0, 0.3)
    return [best - 35 * math.exp(-epoch / 2.5) for epoch in range(1, EPOCHS + 1)]


def tabulated(
    task: Any,
    trial: Trial,
    directory: Path,
    report: Callable[[Record], None],
    stop: Callable[[], bool],
) -> None:
    """A worker calls this instead of training. It writes the files of a run from the table."""
    if not gc.get_freeze_count():
        gc.freeze()  # in a trial that trains, mambaout.train.imports does this
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RECIPE_FILE).write_text(canonical_json(trial.recipe))
    tops = curve(trial.recipe, trial.seed)
    for epoch, top1 in enumerate(tops, 1):
        values = {MINIVAL_TOP1: top1, "train/loss": 3 - top1 / 40, "images_per_second": 900.0}
        record = Record(
            step=epoch * 70, epoch=epoch, images_seen=epoch * 4480, seconds=epoch * 5.0,
            values=values,
        )  # fmt: skip
        with (directory / RECORDS_FILE).open("a") as file:
            file.write(record.to_json() + "\n")
        report(record)
        if stop():
            return
    price = cost(trial.recipe.model, trial.recipe.image_size, 10)
    metrics = {
        "top1": tops[-1] - 0.3, "top5": 99.0, MINIVAL_TOP1: tops[-1], "macs": price.macs,
        "params": price.params, "activations": price.activations, "images_per_second": 900.0,
        "train_device_hours": 0.0125,
    }  # fmt: skip
    facts = {"seed": trial.seed, "data": trial.data, "device": "none", "num_val": 10_000}
    body = {"status": "finished", "metrics": metrics, "facts": facts}
    aside = directory / f".{OUTCOME_FILE}"
    aside.write_text(json.dumps(body))
    aside.replace(directory / OUTCOME_FILE)


def request(storage: Path, name: str, num_trials: int, seed: int) -> Request:
    search = Search(
        label="sim", base=BASE, axes=AXES, num_trials=num_trials, early_stop=True,
        sampler_seed=seed,
    )  # fmt: skip
    question = "What does the machinery cost where training costs nothing?"
    return Request(
        study=Study(name=name, question=question, recipes={}, searches=(search,)),
        trials=[],
        job=lambda trial: Job(trial=trial, num_steps=EPOCHS * 70, train_macs=1e9),
        num_images=lambda split, recipe: 4480,
        fingerprint="simulated",
        data="none",
        data_name="none",
        storage=storage,
        name=name,
        tracking_uri=f"sqlite:///{storage / 'mlflow.db'}",
        address=os.environ["RAY_ADDRESS"],
        accelerator="cpu",
        max_concurrent=WORKERS,
        trainer="study:tabulated",
        facts={"num_train": 4480, "num_classes": 10},
    )


# -- the peers ------------------------------------------------------------------------------------


def peer_trial(config: dict[str, Any]) -> None:
    from ray import tune

    recipe = tuned(BASE, peak_lr=config["peak_lr"], weight_decay=config["weight_decay"])
    for top1 in curve(recipe, 0):
        tune.report({"top1": top1})


def peer(storage: Path, name: str, num_trials: int, seed: int, with_tools: bool) -> None:
    """Ray Tune as in its documentation, alone or with its Optuna and MLflow integrations."""
    import ray
    from ray import tune

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=40)
    search: Any = None
    callbacks: list[Any] = []
    space = {"peak_lr": tune.loguniform(2e-4, 2e-2), "weight_decay": tune.uniform(0, 0.2)}
    if with_tools:
        from ray.air.integrations.mlflow import MLflowLoggerCallback
        from ray.tune.search.optuna import OptunaSearch

        uri = f"sqlite:///{storage / 'peer.db'}"
        search = OptunaSearch(seed=seed)
        callbacks = [MLflowLoggerCallback(tracking_uri=uri, experiment_name=name)]
    tune.Tuner(
        tune.with_resources(peer_trial, {"CPU": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="top1", mode="max", num_samples=num_trials, max_concurrent_trials=WORKERS,
            reuse_actors=True, search_alg=search,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str(storage), verbose=0, callbacks=callbacks
        ),
    ).fit()  # fmt: skip
    ray.shutdown()


# -- measuring ------------------------------------------------------------------------------------


class MemoryGrowth(threading.Thread):
    """Notes the time and this process's memory each time another hundred trials are over."""

    def __init__(self, folder: StudyFolder, every: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.every, self.done = folder, every, threading.Event()
        self.rows: list[dict[str, float]] = []
        self.started = time.monotonic()

    def run(self) -> None:
        trials = self.folder.path / "trials"
        while not self.done.wait(0.5):
            over = sum(1 for _ in trials.glob("*/*.json") if _.name in ENDINGS)
            if over >= self.every * (len(self.rows) + 1):
                self.note(over)

    def note(self, over: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        seconds = time.monotonic() - self.started
        self.rows.append({"trials": over, "seconds": seconds, "driver_mib": memory})
        print(f"    {over:5} trials  {seconds:7.1f} s  driver {memory:,.0f} MiB", flush=True)


ENDINGS = {"outcome.json", "stopped.json"}


def timed(action: Callable[..., Any], *arguments: Any) -> float:
    started = time.monotonic()
    action(*arguments)
    return time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000, help="of the study that is grown")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of the peers")
    parser.add_argument("--round-trials", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.update(QUIET)
    from ray.cluster_utils import Cluster

    storage = Path(tempfile.mkdtemp(prefix="mambaout-study-"))
    head = {"num_cpus": WORKERS, "include_dashboard": False, "object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = str(cluster.address)
    count = options.round_trials
    ways: dict[str, Callable[[str, int], Any]] = {
        "mambaout": lambda name, seed: run_study(request(storage, name, count, seed)),
        "ray_tune": lambda name, seed: peer(storage, name, count, seed, with_tools=False),
        "ray_tune_optuna_mlflow": lambda name, seed: peer(storage, name, count, seed, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(options.rounds + 1):
        for name, way in ways.items():
            took = timed(way, f"{name}-{index}", index) / count
            if index:  # the first round also imports and makes tables
                seconds[name].append(took)
            print(f"round {index}: {name} {took:.3f} s a trial", flush=True)
    rows = [
        {
            "way": name,
            "seconds_a_trial": statistics.fmean(values),
            "spread": statistics.stdev(values) if len(values) > 1 else None,
            "rounds": len(values),
            "trials_a_round": count,
        }
        for name, values in seconds.items()
        if values
    ]
    grown = grow(storage, options.trials) if options.trials else {}
    cluster.shutdown()
    shutil.rmtree(storage, ignore_errors=True)
    means = {row["way"]: row["seconds_a_trial"] for row in rows}
    ratios = {
        f"{name}_over_mambaout": means[name] / means["mambaout"]
        for name in means
        if name != "mambaout"
    }
    body = {
        "ratios": ratios,
        "rows": rows,
        "grown": grown,
        "machine": {"cores": os.cpu_count(), "workers": WORKERS, "epochs_a_trial": EPOCHS},
        "command": " ".join(["python", *sys.argv]),
    }
    print(json.dumps(body, indent=1))
    if options.json:
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


def grow(storage: Path, num_trials: int) -> dict[str, Any]:
    """Run one study of `num_trials` trials, its relaunch and its report."""
    folder = StudyFolder(storage, "grown")
    growth = MemoryGrowth(folder, every=max(num_trials // 10, 1))
    growth.start()
    launch = timed(lambda: run_study(request(storage, "grown", num_trials, 0)))
    growth.done.set()
    statuses = [folder.run(trial).status for trial in folder.trials()]
    relaunch = timed(lambda: run_study(request(storage, "grown", num_trials, 0)))
    report = timed(lambda: write_report(folder))
    return {
        "trials": len(statuses),
        "finished": statuses.count(Ending.FINISHED),
        "stopped_early": statuses.count(Ending.STOPPED),
        "seconds": launch,
        "seconds_a_trial": launch / len(statuses),
        "growth": growth.rows,
        "relaunch_seconds": relaunch,
        "report_seconds": report,
        "report_bytes": (folder.path / "report.html").stat().st_size,
        "peak_driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    sys.exit(main())
