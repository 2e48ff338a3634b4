"""What the parts of a study share: which trials there are, who has them, which have ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from mambaout.study.study import Run, StudyFolder, Trial


@dataclass(kw_only=True)
class Ledger:
    """What the parts of a study know of each other's trials."""

    trials: dict[str, Trial] = field(default_factory=dict)  # in the study's folder, by key
    given: set[str] = field(default_factory=set)  # keys that one part gives out: no other does
    reserved: set[str] = field(default_factory=set)  # keys that come last and are not for searches
    ended: dict[str, Run] = field(default_factory=dict)  # in this launch, by key

    def known(self, trial: Trial) -> Trial:
        """The trial as the study has it already, asked for by whoever asks for `trial`, too."""
        known = self.trials.get(trial.key)
        return trial if known is None else known.asked_for_by(*trial.origins)

    def write(self, trial: Trial, folder: StudyFolder) -> None:
        """Have the trial in the study's folder, with its origins among those it has there."""
        known, whole = self.trials.get(trial.key), self.known(trial)
        if known is None or known.origins != whole.origins:
            folder.add(whole)
            self.trials[trial.key] = whole
