"""The agenda of a whole study: its recipes, its searches, more seeds, then what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mambaout.endings import Ending
from mambaout.study.branches import has_branched, is_start_of
from mambaout.study.search.ledger import Ledger
from mambaout.study.search.more_seeds import MoreSeeds
from mambaout.study.search.search_agenda import SearchAgenda
from mambaout.study.study import Run, StudyFolder, Trial


class Chain:
    """Recipes first, then the searches in their order, more seeds, the predicted trials; an Agenda.

    A search that follows another search begins when that search is done. Any other search begins as
    soon as the parts before it leave a worker idle. The predicted trials begin when all else is
    over.
    """

    def __init__(
        self,
        folder: StudyFolder,
        fixed: Sequence[Trial],
        searches: Sequence[SearchAgenda],
        predicted: Sequence[Trial],
        ledger: Ledger,
        before_predicted: Callable[[], None] | None = None,
        more_seeds: MoreSeeds | None = None,
    ) -> None:
        self._searches = {part.search.label: part for part in searches}
        self._fixed = [trial for trial in fixed if not folder.run(trial).status.is_over]
        self._predicted = [trial for trial in predicted if not folder.run(trial).status.is_over]
        self._folder = folder
        self._running: dict[str, Trial] = {}
        self._ledger, self._before_predicted = ledger, before_predicted
        self._more_seeds = more_seeds
        self._last_begun = False  # whether the predicted trials may start
        ledger.given |= {trial.key for trial in self._fixed}
        ledger.reserved |= {trial.key for trial in predicted}

    def next(self) -> Trial | None:
        trial = self._next()
        if trial is not None:
            self._running[trial.key] = trial
        return trial

    def _next(self) -> Trial | None:
        for index, trial in enumerate(self._fixed):
            if not self._waits(trial):
                return self._fixed.pop(index)
        for part in self._searches.values():
            if not part.begun:
                self._begin(part)
            trial = part.next()
            if trial is not None:
                return trial
        if self._fixed:  # they wait, and come before further seeds
            return None
        if self._more_seeds is not None and (trial := self._more_seeds.next()) is not None:
            return trial
        if self._predicted and (self._last_begun or self._all_else_is_over()):
            if not self._last_begun and self._before_predicted is not None:
                self._before_predicted()
            self._last_begun = True
            return self._predicted.pop(0)
        return None

    def _waits(self, trial: Trial) -> bool:
        """Whether a running trial is the start of this one and has not come to its branch point.

        If the trial began now, it would train that part a second time.
        """
        return any(
            is_start_of(other, trial) and not has_branched(self._folder, other)
            for other in self._running.values()
        )

    def _begin(self, part: SearchAgenda) -> None:
        if part.search.follows is None:
            part.begin({})
        elif (before := self._searches[part.search.follows]).done:
            part.begin(before.carries)

    def _all_else_is_over(self) -> bool:
        searched = all(part.done for part in self._searches.values())
        return not self._running and searched and self._knows_enough

    @property
    def _knows_enough(self) -> bool:
        return self._more_seeds is None or self._more_seeds.over

    @property
    def over(self) -> bool:
        return (
            not self._fixed
            and not self._predicted
            and all(part.over for part in self._searches.values())
            and self._knows_enough
        )

    @property
    def num_undecided(self) -> int:
        more = 0 if self._more_seeds is None else self._more_seeds.num_undecided
        return more + sum(part.num_undecided for part in self._searches.values())

    @property
    def notices(self) -> list[str]:
        """Why there are fewer trials than asked for, a line a search."""
        parts = [*self._searches.values(), *([self._more_seeds] if self._more_seeds else [])]
        return [part.notice for part in parts if part.notice is not None]

    def observe(self, trial: Trial, epoch: float, value: float) -> str | None:
        whys = [part.observe(trial, epoch, value) for part in self._searches.values()]
        return next((why for why in whys if why is not None), None)

    def ended(self, run: Run) -> None:
        self._running.pop(run.trial.key, None)
        if run.status is not Ending.UNFINISHED:
            self._ledger.ended[run.trial.key] = run
        for part in self._searches.values():
            part.ended(run)
        if self._more_seeds is not None:
            self._more_seeds.ended(run)
