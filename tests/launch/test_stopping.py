"""How a launch stops before its trials are over."""

from __future__ import annotations

import io

import pytest

from mambaout.launch import stopping
from mambaout.launch.ending import Problems
from mambaout.launch.progress import Screen
from mambaout.launch.stopping import EarlyEnd, EarlyStop, kept


def early_stop(tmp_path, budget_hours: float | None = None) -> EarlyStop:
    return EarlyStop(tmp_path / "stop", Problems(), budget_hours, leave=lambda: None)


def looked(stop: EarlyStop, num_running: int) -> str:
    """What a look at it says on the screen."""
    out = io.StringIO()
    stop.look(num_running, Screen(out))
    return out.getvalue()


def signalled(stop: EarlyStop) -> None:
    stop.signals.seen = True


def failing(stop: EarlyStop) -> None:
    stop.problems.found.append(KeyError("peak_lr"))


def spent(stop: EarlyStop) -> None:
    stop.started -= 7200


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        (signalled, "interrupted"),
        (failing, "the study cannot go on (KeyError: 'peak_lr')"),
        (spent, "the budget of 1.5 h is spent"),
    ],
)
def test_running_trials_are_told_to_save_and_the_loop_ends_after_the_last(tmp_path, cause, why):
    stop = early_stop(tmp_path, budget_hours=1.5)
    assert looked(stop, 2) == ""
    assert not stop.is_due
    assert not stop.stop_file.exists()
    cause(stop)
    assert looked(stop, 2).startswith(f"{why}: saving and stopping 2 running trials")
    assert stop.is_due
    assert stop.stop_file.exists()
    assert looked(stop, 1) == ""
    with pytest.raises(EarlyEnd):
        looked(stop, 0)


def test_trials_that_do_not_end_are_left_behind_after_the_grace(tmp_path, monkeypatch):
    stop = early_stop(tmp_path)
    signalled(stop)
    looked(stop, 1)
    monkeypatch.setattr(stopping, "GRACE_SECONDS", -1.0)
    with pytest.raises(EarlyEnd):
        looked(stop, 1)


def test_an_error_inside_the_event_loop_is_kept_and_the_first_one_is_raised_at_the_end():
    class Loop:
        def __init__(self) -> None:
            self.problems = Problems()

        @kept
        def turn(self, error: Exception) -> None:
            raise error

    loop, first = Loop(), KeyError("one")
    loop.turn(first)
    loop.turn(KeyError("two"))
    assert loop.problems.found == [first]
    with pytest.raises(EarlyEnd):
        loop.turn(EarlyEnd())
