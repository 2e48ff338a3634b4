"""A trainer for the tests of `launch` that trains nothing: it says where it runs, and takes time.

It behaves like a training run on a TPU where that matters to the launch: the process takes its
chips and keeps them until it dies, the first host of a slice alone writes, the others stay as long
as it does, and a run goes on from its checkpoint. Labels tell it to do more: "hangs" stops after
four epochs until it is started again, as a run does that waits for a lost host; "2-at-once-a"
begins when two such trials run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from mambaout.launch.resources import POD_TYPE, SLICE_NAME
from mambaout.launch.tpu import LOCK_VARIABLE, ports
from mambaout.recipe import canonical_json
from mambaout.study.study import CHECKPOINT_FILE, OUTCOME_FILE, RECIPE_FILE, RECORDS_FILE, Trial
from mambaout.train.metrics import IMAGES_PER_SECOND, MINIVAL_TOP1, Record

EPOCH_SECONDS = 0.25
HANGS_AFTER = 4  # epochs
WAIT_SECONDS = 100.0
SHOWN = (
    "TPU_VISIBLE_CHIPS",
    "TPU_PROCESS_BOUNDS",
    "CUDA_VISIBLE_DEVICES",
    "PJRT_DEVICE",
    *ports(0),
)

_chips: TextIO | None = None


def take_chips() -> None:
    """As libtpu at its worst: a file that is there, whoever left it, keeps the chips away."""
    global _chips
    if _chips is None:
        import fcntl

        _chips = Path(os.environ[LOCK_VARIABLE]).open("x")  # noqa: SIM115 - until the process dies
        fcntl.lockf(_chips, fcntl.LOCK_EX | fcntl.LOCK_NB)


def run(
    task: Any,
    trial: Trial,
    directory: Path,
    report: Callable[[Record], None],
    stop: Callable[[], bool],
) -> None:
    import ray

    if task.chips == 4:
        take_chips()
    context = ray.get_runtime_context()
    labels = context.get_node_labels()
    # As the process index of a TPU runtime, which need not be the machine's number.
    number = int(os.environ["TPU_WORKER_ID"]) if task.num_hosts > 1 else 0
    rank = (number + 1) % task.num_hosts
    checkpoint = directory / CHECKPOINT_FILE
    begun = int(checkpoint.read_text()) if checkpoint.exists() else 0
    directory.mkdir(parents=True, exist_ok=True)
    where = {
        "slice": labels.get(SLICE_NAME),
        "pod_type": labels.get(POD_TYPE),
        "node": context.get_node_id(),
        "pid": os.getpid(),
        "begun": begun,
        "from": time.time(),
        "env": {name: os.environ[name] for name in SHOWN if name in os.environ},
    }
    with (directory / f"where-{rank}.jsonl").open("a") as file:
        file.write(json.dumps(where) + "\n")
    if rank:
        wait_until(lambda: (directory / OUTCOME_FILE).exists() or stop())
        return
    (directory / RECIPE_FILE).write_text(canonical_json(trial.recipe))
    epochs = trial.recipe.schedule.epochs
    if "at-once" in trial.label:
        wait_until(
            lambda: len(list(directory.parent.glob("*/where-0.jsonl"))) >= int(trial.label[0])
        )
    for epoch in range(begun + 1, epochs + 1):
        if trial.label.startswith("hangs") and begun == 0 and epoch > HANGS_AFTER:
            time.sleep(WAIT_SECONDS)
        time.sleep(EPOCH_SECONDS)
        top1 = 50.0 + epoch
        record = Record(
            step=epoch, epoch=epoch, images_seen=epoch, seconds=epoch, values={MINIVAL_TOP1: top1}
        )
        with (directory / RECORDS_FILE).open("a") as file:
            file.write(record.to_json() + "\n")
        replace_text(checkpoint, str(epoch))
        report(record)
        if stop() and epoch < epochs:
            return
    metrics = dict.fromkeys(("top5", "macs", "params", "activations", IMAGES_PER_SECOND), 1.0)
    metrics |= {"top1": 50.0 + epochs, MINIVAL_TOP1: 50.0 + epochs, "train_device_hours": 0.1}
    facts = {"seed": trial.seed, "data": trial.data, "device": "none", "num_val": 1}
    body = {"status": "finished", "metrics": metrics, "facts": facts}
    replace_text(directory / OUTCOME_FILE, json.dumps(body))


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)


def replace_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text)
    aside.replace(path)


def read_places(directory: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Where the run's host of that rank has run, one after another."""
    path = directory / f"where-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
