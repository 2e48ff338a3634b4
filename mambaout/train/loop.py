"""Train one recipe on the devices of this process, from wherever it stopped last.

Writes into the run directory: recipe.json, records.jsonl, last.ckpt and previous.ckpt while it
runs, outcome.json when it is over. The same call continues a run that was stopped or killed; the
steps, the weights and the records are those of a run that never was, bit for bit on a CPU and on
as many XLA devices. On other devices than before it goes on as well, equal to rounding.

On a TPU slice every host makes the same call, with the same run directory on shared storage; the
first one writes.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mambaout.data.batches.loader import Batch, TrainBatches, evaluation_batches
from mambaout.data.batches.makers import HostShare, warm_workers
from mambaout.data.shards.data_set import DataSet, Split
from mambaout.errors import WrongRequest
from mambaout.model.network import MambaOut
from mambaout.recipe import Recipe, steps_per_epoch
from mambaout.train import metrics
from mambaout.train.backend import Backend
from mambaout.train.metrics import Record
from mambaout.train.optim import learning_rate
from mambaout.train.run import DoesNotFit, Outcome, OutOfMemory, Preempted, Run
from mambaout.train.step import eval_step

log = logging.getLogger(__name__)

Sink = Callable[[Record], None]
ASK_EVERY_STEPS = 10  # that hosts of a slice ask each other whether to save or stop


def train(
    recipe: Recipe,
    data: DataSet,
    *,
    out: Path,
    backend: Backend,
    seed: int = 0,
    sinks: Sequence[Sink] = (),
    max_steps: int | None = None,
    log_every_steps: int = 50,
    num_workers: int = 0,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    began: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train `recipe` on `data` into the run directory `out`, continuing what lies there.

    Every sink is called with every record, records.jsonl first. `max_steps` ends this call early,
    as `stop` does once it returns true; both leave a run that can be continued. `began` is called
    once the directory is known to be this run's: what fails after it is no wrong request any more.

    Raises ValueError where the directory holds a run of another recipe, seed or data set.
    """
    if num_workers:
        warm_workers()  # what they import takes two seconds, as the model and its state do
    num_train = data.num_images("train", recipe)
    per_epoch = steps_per_epoch(recipe, num_train)
    num_steps = per_epoch * recipe.schedule.total_epochs
    last_step = num_steps if max_steps is None else min(num_steps, max_steps)
    run = Run(out, recipe, data, seed, backend)
    finished = run.finished
    _require_alike(backend, finished is not None, f"whether {out} is over")
    if finished is not None:
        return finished

    state, meter = run.restore()
    _require_alike(backend, state.step, f"the step that {out} stands at")
    began()
    host = HostShare(backend.host, backend.num_hosts)
    batches = TrainBatches(data, recipe, seed=seed, num_workers=num_workers, host=host)
    batches.undecodable |= run.undecodable
    eval_size = evaluation_batch(recipe, run.micro_batch, backend)

    def is_over() -> bool:
        return state.step == num_steps

    def is_at_eval() -> bool:
        return is_over() or state.step % (per_epoch * recipe.eval_every_epochs) == 0

    def measured() -> dict[str, float]:
        splits: list[Split] = ["minival", "val"] if is_over() else ["minival"]
        values: dict[str, float] = {}
        for split in splits:
            values |= evaluate(
                state.model,
                data,
                split,
                recipe,
                backend=backend,
                batch_size=eval_size,
                num_workers=num_workers,
            )
        return values

    def report(values: dict[str, float]) -> None:
        run.note_undecodable(batches.undecodable)
        if num_undecodable := len(run.undecodable):
            values = values | {metrics.UNDECODABLE: num_undecodable}
        record = Record(
            step=state.step,
            epoch=state.step * recipe.global_batch / num_train,
            images_seen=state.step * recipe.global_batch,
            seconds=meter.seconds,
            values=values,
        )
        run.last_record = record
        for sink in (run.write_record, *sinks) if backend.host == 0 else ():
            sink(record)

    if backend.compiles:  # now, not when the devices would stand still for it
        _warm_evaluation(state.model, recipe, backend, eval_size)
    wanted = metrics.VAL_TOP1 if is_over() else metrics.MINIVAL_TOP1
    if state.step and is_at_eval() and backend.highest(run.lacks(wanted, state.step)):
        log.warning("%s: the record of step %d is lost; evaluating again", out, state.step)
        report({metrics.MICRO_BATCH: run.micro_batch} | measured())
    saved_at, stopped, first_step = time.monotonic(), False, state.step
    left = itertools.islice(batches.starting_at(state.step), max(0, last_step - state.step))
    for sent in run.sent_ahead(meter.watch(left), state.step):
        lr = learning_rate(recipe, state.step, per_epoch)
        try:
            meter.add(run.step(state, sent, lr))
        except DoesNotFit as error:
            return OutOfMemory(run.micro_batch, str(error.__cause__))
        over, at_eval = is_over(), is_at_eval()
        if at_eval or state.step % log_every_steps == 0:
            values = {metrics.TRAIN_LR: lr, metrics.MICRO_BATCH: run.micro_batch} | meter.record()
            if meter.diverged_at is not None:
                return run.end_diverged(meter.diverged_at)
            with meter.paused():
                if at_eval:
                    values |= measured()
                report(values)
        stopped = late = False
        # Several hosts ask each other, which waits for the devices: not at every step.
        if backend.num_hosts == 1 or at_eval or state.step % ASK_EVERY_STEPS == 0:
            stopped = not over and bool(backend.highest(stop()))
            late = bool(backend.highest(time.monotonic() - saved_at > checkpoint_seconds))
        if at_eval or late or stopped or state.step == last_step:
            run.note_undecodable(batches.undecodable)
            with meter.paused():
                if meter.is_finite():  # a checkpoint never holds a run that has already diverged
                    run.save(state, meter)
                elif meter.diverged_at is not None and state.step == last_step:
                    return run.end_diverged(meter.diverged_at)  # so many steps are not done
            saved_at = time.monotonic()
        if stopped:
            break
    if state.step < num_steps:
        return Preempted(state.step, first_step)
    return run.end_finished(meter)


def evaluate(
    model: MambaOut,
    data: DataSet,
    split: Split,
    recipe: Recipe,
    *,
    backend: Backend,
    batch_size: int = 256,
    num_workers: int = 0,
) -> dict[str, float]:
    """Top-1 and top-5 in percent and mean loss over every image of `split`, under split/ names.

    `batch_size` must split over the backend's devices. Raises ValueError for an empty split.
    """
    batches = evaluation_batches(
        data,
        split,
        recipe,
        batch_size=batch_size,
        num_workers=num_workers,
        host=HostShare(backend.host, backend.num_hosts),
    )
    num_images = data.num_images(split, recipe)
    if num_images == 0:
        raise WrongRequest(f"split {split!r} of {data.name} has no images to evaluate on")
    totals = no_totals(backend)
    for batch in batches:
        totals = eval_step(model, batch, recipe, totals, backend=backend)
    loss, top1, top5 = totals.tolist()
    return {
        f"{split}/top1": 100 * top1 / num_images,
        f"{split}/top5": 100 * top5 / num_images,
        f"{split}/loss": loss / num_images,
    }


def no_totals(backend: Backend) -> torch.Tensor:
    """What `eval_step` adds to."""
    return backend.place_whole(torch.zeros(3, dtype=torch.float64))


def evaluation_batch(recipe: Recipe, micro_batch: int, backend: Backend) -> int:
    """As many images as fit in training, or 256 where the micro-batch is small."""
    size = max(min(256, recipe.global_batch), micro_batch)
    return -(-size // backend.num_devices) * backend.num_devices


def _warm_evaluation(model: MambaOut, recipe: Recipe, backend: Backend, batch_size: int) -> None:
    """Have evaluation compiled, on a batch of padding."""
    count = batch_size // backend.num_hosts
    images = torch.zeros((count, recipe.image_size, recipe.image_size, 3), dtype=torch.uint8)
    batch = Batch(images, torch.zeros(count, dtype=torch.int64), num_valid=0)
    eval_step(model, batch, recipe, no_totals(backend), backend=backend)


def _require_alike(backend: Backend, value: int, what: str) -> None:
    if backend.highest(value) != -backend.highest(-value):
        raise HostsDisagree(f"the hosts disagree on {what}; this one reads {int(value)}")


class HostsDisagree(RuntimeError):
    """The hosts of a slice have read different things of one run directory; another try may do."""
