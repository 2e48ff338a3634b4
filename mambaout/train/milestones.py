"""The steps at which a run does more than train: it records, evaluates, saves or stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mambaout.recipe import Recipe, steps_per_epoch
from mambaout.train.backend import Backend

ASK_EVERY_STEPS = 10  # steps after which the hosts of a slice agree whether to save or stop


@dataclass(frozen=True, kw_only=True)
class Milestones:
    """The steps of a run, counted from 1."""

    global_batch: int
    num_train: int  # images in an epoch
    per_epoch: int  # steps in an epoch
    num_steps: int  # of the whole run
    last_step: int  # of this call
    eval_every_steps: int
    log_every_steps: int
    decay_step: int | None = None  # after it the late decay begins; None: there is none

    @classmethod
    def of(
        cls, recipe: Recipe, num_train: int, *, max_steps: int | None, log_every_steps: int
    ) -> Milestones:
        """The milestones of `recipe` on `num_train` images, in a call of at most `max_steps`."""
        per_epoch = steps_per_epoch(recipe, num_train)
        num_steps = per_epoch * recipe.schedule.total_epochs
        return cls(
            global_batch=recipe.global_batch,
            num_train=num_train,
            per_epoch=per_epoch,
            num_steps=num_steps,
            last_step=num_steps if max_steps is None else min(num_steps, max_steps),
            eval_every_steps=per_epoch * recipe.eval_every_epochs,
            log_every_steps=log_every_steps,
            decay_step=recipe.schedule.decay_step(per_epoch),
        )

    def images_seen(self, step: int) -> int:
        return step * self.global_batch

    def epoch(self, step: int) -> float:
        return self.images_seen(step) / self.num_train

    def is_over(self, step: int) -> bool:
        return step == self.num_steps

    def has_evaluation(self, step: int) -> bool:
        return self.is_over(step) or step % self.eval_every_steps == 0

    def begins_decay(self, step: int) -> bool:
        """Whether the late decay begins after this step: a longer training can go on from here."""
        return step == self.decay_step

    def has_record(self, step: int) -> bool:
        return self.has_evaluation(step) or step % self.log_every_steps == 0


class Interruptions:
    """Decides after a step whether to stop before the end, and whether a checkpoint is due by time.

    All hosts of a slice get the same answer.
    """

    def __init__(
        self,
        milestones: Milestones,
        backend: Backend,
        checkpoint_seconds: float,
        stop: Callable[[], bool],
    ) -> None:
        self.milestones, self.backend = milestones, backend
        self.checkpoint_seconds, self._stop = checkpoint_seconds, stop
        self._saved_at = time.monotonic()

    def ask(self, step: int) -> tuple[bool, bool]:
        """Whether to stop, and whether a checkpoint is late."""
        # To agree, several hosts wait for the devices. So they do not do it at every step.
        is_asked = self.milestones.has_evaluation(step) or step % ASK_EVERY_STEPS == 0
        if self.backend.num_hosts > 1 and not is_asked:
            return False, False
        stopped = not self.milestones.is_over(step) and bool(self.backend.highest(self._stop()))
        waited = time.monotonic() - self._saved_at
        return stopped, bool(self.backend.highest(waited > self.checkpoint_seconds))

    def saved(self) -> None:
        """Start the time to the next checkpoint."""
        self._saved_at = time.monotonic()
