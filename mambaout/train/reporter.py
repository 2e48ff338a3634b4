"""The report of a run at a step: a record, with an evaluation if one is due."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mambaout.data.batches.loader import EvaluationBatches, TrainBatches
from mambaout.data.shards.data_set import Split
from mambaout.model.network import MambaOut
from mambaout.train import metrics
from mambaout.train.evaluation import evaluate
from mambaout.train.meter import Meter
from mambaout.train.metrics import Record
from mambaout.train.milestones import Milestones
from mambaout.train.run_directory import RunDirectory
from mambaout.train.step import TrainState

Sink = Callable[[Record], None]


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """Makes a run's records, and gives them to the run directory and then to every sink."""

    directory: RunDirectory
    milestones: Milestones
    batches: TrainBatches
    sinks: Sequence[Sink]
    eval_batch: int  # images in an evaluation batch
    num_workers: int
    minival: EvaluationBatches

    def report(self, state: TrainState, meter: Meter, values: dict[str, float]) -> None:
        """Report `values`, and the result of an evaluation if one is due at this step."""
        directory, step = self.directory, state.step
        if self.milestones.has_evaluation(step):
            values = values | self._evaluated(state.model, step)
        directory.note_undecodable(self.batches.undecodable)
        if num_undecodable := len(directory.undecodable):
            values = values | {metrics.UNDECODABLE: num_undecodable}
        record = Record(
            step=step,
            epoch=self.milestones.epoch(step),
            images_seen=self.milestones.images_seen(step),
            seconds=meter.seconds,
            values=values,
        )
        directory.keep(record)
        if directory.backend.host == 0:
            for sink in self.sinks:
                sink(record)

    def has_lost(self, step: int) -> bool:
        """Whether the checkpoint of `step` exists but the evaluation before it has been lost.

        All hosts of a slice get the same answer.
        """
        if not step or not self.milestones.has_evaluation(step):
            return False
        is_over = self.milestones.is_over(step)
        wanted = metrics.VAL_TOP1 if is_over else metrics.MINIVAL_TOP1
        return bool(self.directory.backend.highest(self.directory.lacks(wanted, step)))

    def _evaluated(self, model: MambaOut, step: int) -> dict[str, float]:
        """The results on minival, and at the run's end on val too."""
        is_over = self.milestones.is_over(step)
        splits: list[Split] = ["minival", "val"] if is_over else ["minival"]
        values: dict[str, float] = {}
        for split in splits:
            values |= evaluate(
                model,
                self.directory.data,
                split,
                self.directory.recipe,
                backend=self.directory.backend,
                batch_size=self.eval_batch,
                num_workers=self.num_workers,
                batches=self.minival if split == "minival" else None,
            )
        return values
