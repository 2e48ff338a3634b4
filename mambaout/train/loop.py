"""Trains one recipe on the devices of this process, and resumes it where it stopped last.

It writes into the run directory: recipe.json, records.jsonl, last.ckpt and previous.ckpt while it
runs, outcome.json when it is over. A run with a late decay also keeps its state before the decay,
from which a longer run can go on. The same call resumes a run that was stopped or killed. The
steps, the weights and the records then equal those of an uninterrupted run: bit for bit on a CPU
and on the same number of XLA devices, and up to rounding on other devices than before.

On a TPU slice every host makes the same call, with the same run directory on shared storage. Only
the first host writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from mambaout.data.batches.loader import EvaluationBatches, TrainBatches
from mambaout.data.batches.makers import HostShare, warm_workers
from mambaout.data.shards.data_set import DataSet
from mambaout.recipe import Recipe
from mambaout.recompute import Stages, memory_remedy
from mambaout.train.backend import Backend
from mambaout.train.evaluation import evaluation_batch, warm_evaluation
from mambaout.train.metrics import MICRO_BATCH, TRAIN_LR
from mambaout.train.milestones import Interruptions, Milestones
from mambaout.train.optim import learning_rate
from mambaout.train.outcomes import Outcome, OutOfMemory, Preempted
from mambaout.train.reporter import Reporter, Sink
from mambaout.train.run_directory import RunDirectory
from mambaout.train.stepper import DoesNotFit, Stepper

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    data: DataSet,
    *,
    out: Path,
    backend: Backend,
    seed: int = 0,
    init: Path | None = None,
    sinks: Sequence[Sink] = (),
    max_steps: int | None = None,
    log_every_steps: int = 50,
    num_workers: int = 0,
    recompute: Stages = (),
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    began: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train `recipe` on `data` into the run directory `out`; a run that lies there is resumed.

    `init` is the file of the weights whose digest is `recipe.init`. It is read at step 0 only: a
    run that is resumed does not need it.

    Every record is first written to records.jsonl, then every sink is called with it. `max_steps`
    ends this call early, and so does `stop` when it returns true; the run can be resumed after
    both. `recompute` are the stages whose blocks the backward pass computes again; a resume may
    change them. `began` is called when the directory is known to belong to this run. An error after
    that call is not a wrong request.

    Raises ValueError if the directory holds a run of another recipe, seed or data set, if `init`
    does not hold the weights of the recipe, or if the backend cannot recompute.
    """
    if num_workers:
        warm_workers()  # their imports take two seconds; meanwhile the model and its state are made
    num_train = data.num_images("train", recipe)
    milestones = Milestones.of(
        recipe, num_train, max_steps=max_steps, log_every_steps=log_every_steps
    )
    stepper = Stepper(recipe, data.num_classes, seed, backend, recompute)
    directory = RunDirectory(out, recipe, data, seed, backend)
    ended = directory.outcome
    _require_alike(backend, ended is not None, f"whether {out} is over")
    if ended is not None:
        return ended

    state, meter = directory.restore(stepper, init)
    state.model.set_recompute(recompute)
    _require_alike(backend, state.step, f"the step that {out} stands at")
    began()
    share = HostShare(backend.host, backend.num_hosts)
    batches = TrainBatches(data, recipe, seed=seed, num_workers=num_workers, host=share)
    batches.undecodable |= directory.undecodable
    eval_batch = evaluation_batch(recipe, stepper.micro_batch, backend)
    reporter = Reporter(
        directory=directory,
        milestones=milestones,
        batches=batches,
        sinks=sinks,
        eval_batch=eval_batch,
        num_workers=num_workers,
        minival=EvaluationBatches(
            *(data, "minival", recipe), batch_size=eval_batch, num_workers=num_workers, host=share
        ),
    )
    if backend.compiles:  # compile now: later the devices would wait for it
        warm_evaluation(state.model, recipe, backend, eval_batch)
    if reporter.has_lost(state.step):
        log.warning("%s: the record of step %d is lost; evaluating again", out, state.step)
        reporter.report(state, meter, {MICRO_BATCH: stepper.micro_batch})

    interruptions = Interruptions(milestones, backend, checkpoint_seconds, stop)
    first_step = state.step
    left = islice(batches.starting_at(first_step), max(0, milestones.last_step - first_step))
    for batch in stepper.placed_ahead(meter.watch(left), first_step):
        lr = learning_rate(recipe, state.step, milestones.per_epoch)
        try:
            meter.add(stepper.step(state, batch, lr))
        except DoesNotFit as error:
            remedy = memory_remedy(recompute, backend.name)
            return OutOfMemory(stepper.micro_batch, str(error.__cause__), remedy)
        if milestones.has_record(state.step):
            values = {TRAIN_LR: lr, MICRO_BATCH: stepper.micro_batch} | meter.record()
            if meter.diverged_at is not None:
                return directory.end_diverged(meter.diverged_at, stepper)
            with meter.paused():
                reporter.report(state, meter, values)
        stopped, late = interruptions.ask(state.step)
        is_last = state.step == milestones.last_step
        branches = milestones.begins_decay(state.step)
        if late or stopped or is_last or branches or milestones.has_evaluation(state.step):
            directory.note_undecodable(batches.undecodable)
            with meter.paused():
                if meter.is_finite():  # a checkpoint never holds a run that has already diverged
                    directory.save(state, meter, stepper, branches=branches)
                elif meter.diverged_at is not None and is_last:  # the steps count as not done
                    return directory.end_diverged(meter.diverged_at, stepper)
            interruptions.saved()
        if stopped:
            break
    if not milestones.is_over(state.step):
        return Preempted(state.step, first_step)
    return directory.end_finished(meter, stepper)


def _require_alike(backend: Backend, value: int, what: str) -> None:
    if backend.highest(value) != -backend.highest(-value):
        raise HostsDisagree(f"the hosts disagree on {what}; this one reads {int(value)}")


class HostsDisagree(RuntimeError):
    """The hosts of a slice read different states of one run directory; another try may work."""
