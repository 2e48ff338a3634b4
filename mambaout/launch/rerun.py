"""`--rerun`: train a study anew, over as many launches as needed.

A rerun begins once: the earlier results of the trials are set aside, in MLflow and on disk. It then
lasts until the study is over, and RERUN_FILE in the study's folder marks it. Until then, each
launch, with --rerun or without, goes on with the trials of the rerun. It reuses no finished trial
of another study. So if the same command is submitted again, it does not set aside its own results.

Writes: STORAGE/NAME/rerun.json, and STORAGE/NAME/aside/TIME/ with what was there before
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

from mambaout.durable import write_whole
from mambaout.errors import WrongRequest
from mambaout.launch.request import Request
from mambaout.study.law.prediction import PREDICTION_FILE
from mambaout.study.search.memory import OPTUNA_FILE
from mambaout.study.study import StudyFolder, Trial

RERUN_FILE = "rerun.json"


class Rerun:
    """The state of a rerun, stored in the study's folder."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder, self.path = folder, folder.path / RERUN_FILE

    @property
    def is_under_way(self) -> bool:
        return self.path.exists()

    def begins_with(self, request: Request) -> bool:
        """Whether this launch must set aside the earlier results."""
        return not self._is_set_aside() if self.is_under_way else request.rerun

    def begin(self, request: Request) -> bool:
        """Set aside the earlier results, unless the current rerun has done so.

        Returns whether this launch begins with nothing.

        A kill here is safe. RERUN_FILE is written before anything is moved. Until `confirm` is
        called, the next launch sets aside what is still there.
        """
        if self.begins_with(request):
            self._set_aside(request)
            return True
        if self.is_under_way:
            begun = f"the rerun of {self._read()['begun']}"
            if request.rerun:
                print(
                    f"--rerun: {begun} is not over, and this launch goes on with it; to begin "
                    f"another one instead, remove {self.path} first"
                )
            else:
                print(f"this launch goes on with {begun}")
        return False

    def confirm(self) -> None:
        """Record that all is set aside and that the study's files are those of the rerun."""
        if self.is_under_way and not self._is_set_aside():
            self._write(self._read()["begun"], is_set_aside=True)

    def end(self) -> None:
        """End the rerun, because the study is over."""
        self.path.unlink(missing_ok=True)

    def _set_aside(self, request: Request) -> None:
        folder = self.folder
        known: dict[str, Trial] = {t.key: t for t in [*request.trials, *folder.trials()]}
        found = [trial for trial in known.values() if folder.run_directory(trial).exists()]
        tracker = None
        if found:
            from mambaout.study.tracking.tracker import Tracker

            # MLflow may refuse. Then the rerun has not begun.
            study = request.study
            tracker = Tracker(request.tracking_uri, request.name, study.question, kind=study.kind)
        begun = time.gmtime()
        self._write(time.strftime("%Y-%m-%dT%H:%M:%SZ", begun), is_set_aside=False)
        if tracker is not None:
            # MLflow comes first. After a kill in between, the next launch logs some runs again. In
            # the other order, the steps of a new run would be added to the series of the old one.
            tracker.set_aside(trial.key for trial in found)
        aside = _new_folder(folder.path / "aside" / time.strftime("%Y%m%d-%H%M%S", begun))
        _move(found, folder, aside)
        if aside.exists():
            print(f"{len(found)} earlier run directories are now in {aside}", flush=True)

    def _is_set_aside(self) -> bool:
        return self._read()["is_set_aside"]

    def _read(self) -> dict:
        try:
            found = json.loads(self.path.read_text())
            return {"begun": str(found["begun"]), "is_set_aside": bool(found["is_set_aside"])}
        except (ValueError, KeyError, TypeError) as error:
            raise WrongRequest(
                f"{self.path} cannot be read ({error!r}); remove it to go on with the trials that "
                "are there, and add --rerun to train all anew"
            ) from error

    def _write(self, begun: str, *, is_set_aside: bool) -> None:
        body = {"begun": begun, "is_set_aside": is_set_aside}
        write_whole(self.path, json.dumps(body) + "\n")


def _move(trials: Sequence[Trial], folder: StudyFolder, aside: Path) -> None:
    """Move the trials' run directories and the files of searches and of a prediction."""
    others = [folder.path / name for name in (OPTUNA_FILE, PREDICTION_FILE)]
    for path in [*map(folder.run_directory, trials), *filter(Path.exists, others)]:
        aside.mkdir(parents=True, exist_ok=True)
        path.rename(aside / path.name)


def _new_folder(path: Path) -> Path:
    """`path`, or another name beside it if two reruns begin in one second."""
    names = itertools.chain([path.name], (f"{path.name}-{number}" for number in itertools.count(2)))
    return next(each for each in map(path.with_name, names) if not each.exists())
