"""Which device a speed belongs to. images/s and training time hold only for one device.

A study can hold trials of several devices. It may have been continued on another machine, or it may
have reused finished trials of another study. The accuracies of such trials can be compared. Their
speeds cannot. This module holds the rule. The study's device is the one on which most of its own
finished trials were trained. A trial of another device has no speed in this study. Charts, fronts,
tables and goals read the runs that `own_speeds` returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mambaout.endings import Ending
from mambaout.study.axes import Search
from mambaout.study.study import REUSED_FROM, Run
from mambaout.train.metrics import DEVICE, EARLIER_DEVICES, NUM_DEVICES, SPEEDS, device_text


def device_of(run: Run) -> str | None:
    """What the run was trained on, like "8 x TPU v3"; None if the run does not say."""
    if not run.facts.get(DEVICE):
        return None
    last = device_text(str(run.facts[DEVICE]), float(run.facts.get(NUM_DEVICES, 1)))
    return ", then ".join([*run.facts.get(EARLIER_DEVICES, ()), last])


def study_device(runs: Iterable[Run]) -> str | None:
    """The device on which most of the study's own finished trials were trained.

    In a tie, it is the device of the trial that ended last. Trials reused from other studies count
    only if there are no others. None if no finished trial names its device.
    """
    known = [run for run in runs if run.status is Ending.FINISHED and device_of(run)]
    own = [run for run in known if REUSED_FROM not in run.facts] or known
    counts = Counter(map(device_of, own))
    latest: dict[str | None, str] = {}
    for run in own:
        device = device_of(run)
        latest[device] = max(latest.get(device, ""), str(run.facts.get("ended", "")))
    return max(counts, key=lambda device: (counts[device], latest[device]), default=None)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """A study's runs, which hold the speeds of only one device."""

    device: str | None = None
    runs: tuple[Run, ...] = ()  # runs of other devices have no speed here
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # trial key -> the other device
    studies: tuple[str, ...] = ()  # from which such trials were reused

    @property
    def note(self) -> str:
        """What was left out and what to do about it; "" if nothing was left out."""
        if not self.elsewhere:
            return ""
        finished = sum(run.status is Ending.FINISHED for run in self.runs)
        counts = Counter(self.elsewhere.values())
        devices = ", ".join(f"{count} on {device}" for device, count in counts.items())
        taken = f" (taken over from {', '.join(self.studies)})" if self.studies else ""
        return (
            f"Images/s and time are those of {self.device}. {len(self.elsewhere)} of {finished} "
            f"finished trials have none here, since they were trained on another device: "
            f"{devices}{taken}. Their accuracy counts. To have all on one device, run the study "
            "again with --rerun."
        )


def own_speeds(runs: Sequence[Run]) -> Speeds:
    """The runs, without the speeds of any device other than the study's."""
    device = study_device(runs)
    found = {run.trial.key: device_of(run) for run in runs if run.status is Ending.FINISHED}
    elsewhere = {key: other for key, other in found.items() if other not in (None, device)}
    studies = [run.facts.get(REUSED_FROM) for run in runs if run.trial.key in elsewhere]
    return Speeds(
        device=device,
        runs=tuple(_without_speed(run) if run.trial.key in elsewhere else run for run in runs),
        elsewhere={key: other for key, other in elsewhere.items() if other is not None},
        studies=tuple(dict.fromkeys(str(name) for name in studies if name)),
    )


def _without_speed(run: Run) -> Run:
    return replace(run, metrics={n: v for n, v in run.metrics.items() if n not in SPEEDS})


def speed_goals(searches: Iterable[Search]) -> dict[str, str]:
    """For each search that optimises speed: its label and the first such goal."""
    return {
        search.label: metric
        for search in searches
        for metric, _ in reversed(search.goals)
        if metric in SPEEDS
    }
