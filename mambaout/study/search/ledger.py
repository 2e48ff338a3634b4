"""What the parts of a study share: its trials, which part has each, and which have ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from mambaout.study.study import Run, StudyFolder, Trial


@dataclass(kw_only=True)
class Ledger:
    """What the parts of a study know of each other's trials."""

    trials: dict[str, Trial] = field(default_factory=dict)  # in the study's folder, by key
    given: set[str] = field(default_factory=set)  # keys that only one part may start
    reserved: set[str] = field(default_factory=set)  # keys that run last, not by a search
    ended: dict[str, Run] = field(default_factory=dict)  # in this launch, by key

    def known(self, trial: Trial) -> Trial:
        """The trial as the study already has it, with the origins of `trial` added."""
        known = self.trials.get(trial.key)
        return trial if known is None else known.asked_for_by(*trial.origins)

    def write(self, trial: Trial, folder: StudyFolder) -> None:
        """Write the trial to the study's folder, and add its origins to those stored there."""
        known, whole = self.trials.get(trial.key), self.known(trial)
        if known is None or known.origins != whole.origins:
            folder.add(whole)
            self.trials[trial.key] = whole
