"""Real study folders written by hand: what mambaout.train leaves behind, without training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mambaout.recipe import BASELINE, Recipe, canonical_json, tuned
from mambaout.study.axes import Choice, LogRange, Search
from mambaout.study.origin import ConfirmingSeed, SearchPoint, trial_label
from mambaout.study.study import Study, StudyFolder, Trial
from mambaout.train.metrics import Record

DATA = "0123456789ab"
SMALL = tuned(
    BASELINE, global_batch=128, epochs=10, warmup_epochs=1, image_size=28, stem_stride=2,
    minival_fraction=0.1, peak_lr=1e-3,
)  # fmt: skip


def sized(width: int, depth: int, recipe: Recipe = SMALL) -> Recipe:
    """`recipe` on a network of first width `width` and `depth` blocks in stage 3."""
    dims = (width, 2 * width, 4 * width, 6 * width)
    return tuned(recipe, dims=dims, depths=(1, 1, depth, 1))


def scaling_study(seeds: int = 2) -> Study:
    """Two axes and the baseline, as sweeps/scale.py has them."""
    grid = {f"w{w}-d{d}": sized(w, d) for w in (8, 16, 32) for d in (2, 6)}
    baseline = sized(24, 2, tuned(SMALL, peak_lr=4e-3, weight_decay=0.05, mixup=0.8))
    return Study(
        name="scale",
        question="What do depth and width buy, and does the baseline recipe carry over?",
        recipes=grid | {"baseline": baseline},
        baseline="baseline",
        seeds=tuple(range(seeds)),
    )


def rough_macs(recipe: Recipe) -> int:
    """Right to a factor of two, which is all that a chart's test needs."""
    blocks = zip(recipe.model.depths, recipe.model.dims, (196, 49, 16, 4), strict=True)
    return int(sum(depth * 8 * dim * dim * area for depth, dim, area in blocks))


def final_metrics(recipe: Recipe, seed: int, noise: float = 0.2) -> dict[str, float]:
    """A believable end of a run: accuracy grows with log MACs, throughput falls with MACs."""
    macs = rough_macs(recipe)
    draw = random.Random(f"{canonical_json(recipe)} {seed}")
    top1 = 80 + 2.2 * math.log2(macs / 1e6) + draw.gauss(0, noise)
    return {
        "top1": top1,
        "top5": min(99.9, top1 + 8),
        "minival/top1": top1 + draw.gauss(0, noise) - 0.5,
        "macs": macs,
        "params": macs // 12,
        "activations": macs // 300,
        "images_per_second": 4e9 / (macs + 2e6),
        "train_device_hours": 3 * macs * 5e4 / 6e9 / 3600,
        "input_wait_fraction": 0.03,
    }


def write_records(directory: Path, recipe: Recipe, top1: float, *, num_epochs: int) -> None:
    """records.jsonl of the first `num_epochs` epochs, 40 steps each."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "records.jsonl").open("a") as out:
        for epoch in range(1, num_epochs + 1):
            values = {
                "train/lr": recipe.optim.peak_lr * (1 - epoch / 11),
                "train/loss": 0.6 + 1.7 * math.exp(-epoch / 3),
                "images_per_second": 900.0 + epoch,
                "input_wait_fraction": 0.02,
                "peak_memory_bytes": 3e8,
                "micro_batch": 128,
                "minival/top1": top1 - 40 * math.exp(-epoch / 2),
                "minival/top5": 99.0,
                "minival/loss": 0.3,
            }
            out.write(record(epoch * 40, epoch, values).to_json() + "\n")


def record(step: int, epoch: float, values: dict[str, float]) -> Record:
    return Record(step=step, epoch=epoch, images_seen=step * 128, seconds=step * 0.1, values=values)


def write_outcome(
    directory: Path, status: str, metrics: dict[str, float], facts: dict[str, Any] | None = None
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    body = {
        "status": status,
        "metrics": metrics,
        "facts": {
            "step": 400, "host": "box", "git_commit": "abcdef123456", "device": "cpu",
            "num_devices": 1, "num_train": 5000, "num_classes": 10, "data_name": "digits",
        } | (facts or {}),
    }  # fmt: skip
    (directory / "outcome.json").write_text(json.dumps(body))


def finish(folder: StudyFolder, trial: Trial, noise: float = 0.2) -> None:
    """Leave what a finished run of `trial` leaves."""
    directory = folder.run_directory(trial)
    metrics = final_metrics(trial.recipe, trial.seed, noise)
    write_records(directory, trial.recipe, metrics["minival/top1"], num_epochs=10)
    (directory / "recipe.json").write_text(canonical_json(trial.recipe))
    (directory / "last.ckpt").write_bytes(b"weights of " + trial.key.encode())
    write_outcome(directory, "finished", metrics)


def start(folder: StudyFolder, trial: Trial, num_epochs: int = 3) -> None:
    """Leave what a run of `trial` leaves that was killed after `num_epochs` epochs."""
    directory = folder.run_directory(trial)
    write_records(directory, trial.recipe, 80, num_epochs=num_epochs)
    (directory / "recipe.json").write_text(canonical_json(trial.recipe))


def stop_early(folder: StudyFolder, trial: Trial, num_epochs: int = 3) -> None:
    """Leave what a run of `trial` leaves that its search stopped after `num_epochs` epochs."""
    start(folder, trial, num_epochs)
    folder.stop(trial, f"not in the best third after {num_epochs} epochs")


def diverge(folder: StudyFolder, trial: Trial) -> None:
    """Leave what a run of `trial` leaves whose loss stopped being finite."""
    directory = folder.run_directory(trial)
    write_records(directory, trial.recipe, 60, num_epochs=2)
    (directory / "recipe.json").write_text(canonical_json(trial.recipe))
    facts = {"step": 93, "error": "the loss was not finite at step 93"}
    write_outcome(directory, "diverged", {}, facts)


def write_study(storage: Path, study: Study | None = None, **facts: Any) -> StudyFolder:
    """A study's folder with study.json and no run yet."""
    study = study or scaling_study()
    folder = StudyFolder(storage, study.name)
    facts = {"data_name": "digits", "command": "python sweeps/scale.py --smoke"} | facts
    folder.write(study, study.trials(DATA), **facts)
    return folder


def finished_study(storage: Path, study: Study | None = None, noise: float = 0.2) -> StudyFolder:
    folder = write_study(storage, study)
    for trial in folder.trials():
        finish(folder, trial, noise)
    return folder


def mixed_study(storage: Path) -> StudyFolder:
    """Most trials finished, one diverged, one cut off, one not begun."""
    folder = write_study(storage)
    *most, cut, bad, _ = folder.trials()
    for trial in most:
        finish(folder, trial)
    start(folder, cut)
    diverge(folder, bad)
    return folder


def growing_study(
    storage: Path, name: str, lead: Mapping[int, float], seeds: int = 2
) -> StudyFolder:
    """A grid of depths and widths whose width gains 1.5 points a doubling of MACs and whose depth
    gains that less `lead` points, by epochs of training."""
    grid = {
        f"w{w}-d{d}-e{epochs}": sized(w, d, tuned(SMALL, epochs=epochs))
        for epochs in lead
        for w in (8, 16, 32)
        for d in (2, 8)
    }
    study = Study(name=name, question="Deeper or wider?", recipes=grid, seeds=(0, 1))
    folder = write_study(storage, study)
    for trial in folder.trials():
        epochs = trial.recipe.schedule.epochs
        narrow = tuned(trial.recipe, dims=(8, 16, 32, 48))
        by_width = math.log2(rough_macs(trial.recipe) / rough_macs(narrow))
        by_depth = math.log2(rough_macs(narrow) / rough_macs(sized(8, 2)))
        noise = random.Random(trial.name).gauss(0, 0.1)
        top1 = 75 + epochs / 10 + 1.5 * by_width + (1.5 - lead[epochs]) * by_depth + noise
        metrics = final_metrics(trial.recipe, trial.seed) | {"top1": top1, "minival/top1": top1}
        directory = folder.run_directory(trial)
        write_records(directory, trial.recipe, top1, num_epochs=3)
        write_outcome(directory, "finished", metrics)
    return folder


def searched_study(storage: Path, num_trials: int = 30) -> StudyFolder:
    """Searches of the learning rate and the kernel at some widths; only the rate matters, and a
    higher one is better throughout. Every third is stopped early, the best has three seeds."""
    axes = (LogRange("peak_lr", 5e-4, 8e-3), Choice("kernel_size", (5, 7, 9)))
    searches = [
        Search(
            label=f"w{w}", base=sized(w, 2), axes=axes, num_trials=num_trials, early_stop=True,
            seeds=(0, 1, 2),
        )
        for w in (8, 16)
    ]  # fmt: skip
    study = Study(name="search", question="Which rate?", recipes={}, searches=searches)
    folder = write_study(storage, study)
    for search in searches:
        draw, best, best_number = random.Random(search.label), None, 0
        for number in range(num_trials):
            rate = round(5e-4 * 16 ** draw.random(), 6)
            recipe = tuned(search.base, peak_lr=rate, kernel_size=draw.choice((5, 7, 9)))
            trial = suggested_trial(search, number, recipe)
            folder.add(trial)
            if number % 3 == 2:
                stop_early(folder, trial)
                continue
            _finish_at(folder, trial, 80 + math.log2(rate / 5e-4) + math.log2(recipe.model.dims[0]))
            if best is None or rate > best.recipe.optim.peak_lr:
                best, best_number = trial, number
        for seed in (1, 2):
            assert best is not None
            trial = replace(best, seed=seed, origins=(ConfirmingSeed(search.label, best_number),))
            folder.add(trial)
            rate = trial.recipe.optim.peak_lr
            top1 = 80 + math.log2(rate / 5e-4) + math.log2(trial.recipe.model.dims[0])
            _finish_at(folder, trial, top1 - 0.1 * seed)
    return folder


def suggested_trial(search: Search, number: int, recipe: Recipe) -> Trial:
    """Number `number` of the search."""
    label, origins = trial_label(search.label, number), (SearchPoint(search.label, number),)
    return Trial(label=label, recipe=recipe, seed=0, data=DATA, origins=origins)


def _finish_at(folder: StudyFolder, trial: Trial, top1: float) -> None:
    metrics = final_metrics(trial.recipe, trial.seed) | {"top1": top1, "minival/top1": top1}
    directory = folder.run_directory(trial)
    write_records(directory, trial.recipe, top1, num_epochs=10)
    write_outcome(directory, "finished", metrics)


def relabelled(trial: Trial, label: str) -> Trial:
    return replace(trial, label=label)
