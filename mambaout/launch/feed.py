"""Connects Tune to an agenda: Tune asks for trials and reports their results.

Ray's classes are defined inside functions, so that a plan does not import Ray.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mambaout.study.study import Trial

KEY, TRIAL, TASK = "key", "trial", "task"  # of a Tune config


class Launch(Protocol):
    """The calls that Tune's event loop makes."""

    def next_trial(self) -> Trial | None: ...
    def no_more_trials(self) -> bool: ...
    def on_start(self, tune_trial: Any) -> None: ...
    def on_result(self, tune_trial: Any, result: dict[str, Any]) -> None: ...
    def on_failure(self, tune_trial: Any) -> None: ...
    def on_end(self, tune_trial: Any) -> None: ...
    def on_step(self) -> None: ...


def searcher(launch: Launch) -> Any:
    """Tune's source of trials: the study's agenda, one trial at a time."""
    from ray.tune.search import Searcher

    class Feed(Searcher):
        def __reduce__(self) -> tuple[Callable, tuple]:
            return Searcher, ()  # Tune pickles it for a restore, which never happens

        def set_search_properties(self, metric: Any, mode: Any, config: dict, **spec: Any) -> bool:
            return True

        def suggest(self, trial_id: str) -> Any:
            trial = launch.next_trial()
            if trial is not None:
                return {KEY: trial.key, TRIAL: trial.to_json()}
            return Searcher.FINISHED if launch.no_more_trials() else None

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass  # the callback below was called before

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    return Feed()


def callback(launch: Launch) -> Any:
    """Tune's callback for `launch`."""
    from ray.tune.progress_reporter import TrialProgressCallback

    class Callback(TrialProgressCallback):  # else Tune adds its own, which prints
        def __reduce__(self) -> tuple[type, tuple]:
            return TrialProgressCallback, ()

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_start(trial)

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
        ) -> None:
            launch.on_result(trial, result)

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_failure(trial)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_end(trial)

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            launch.on_end(trial)

        def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
            launch.on_step()

    return Callback()


def error_of(tune_trial: Any) -> Exception:
    """The trial's last failure, from Tune's file, because Tune passes callbacks no exception."""
    path = Path(tune_trial.pickled_error_file or "")
    if path.is_file():
        return pickle.loads(path.read_bytes())  # written by this process a moment ago
    text = Path(tune_trial.error_file).read_text() if tune_trial.error_file else "no reason given"
    return RuntimeError(text.strip().splitlines()[-1])
