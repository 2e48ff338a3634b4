"""The coordinator of a slice, with hosts that are scripted: whom it blames, how long it waits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from mambaout.launch import hosts
from mambaout.launch.failures import classify
from mambaout.launch.hosts import Crew, HostLost, _News
from mambaout.launch.resources import SLICE_NAME
from mambaout.launch.tpu import check_devices
from mambaout.train.metrics import Record

RUNS_ON = "runs on"


class Script:
    """Ray, as far as a crew asks it: what each host answers, in the order in which they do."""

    exceptions = ray.exceptions

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.ended = 0

    def wait(self, refs: list[int], timeout: float) -> tuple[list[int], list[int]]:
        due = [ref for ref in refs if self.answers[ref] != RUNS_ON][:1]
        return due, [ref for ref in refs if ref not in due]

    def get(self, refs: Any, timeout: float = 0) -> Any:
        if isinstance(refs, list):
            return [self.get(ref) for ref in refs]
        if isinstance(self.answers[refs], BaseException):
            raise self.answers[refs]
        return self.answers[refs]


def crew_of(*answers: Any) -> Crew:
    crew = Crew.__new__(Crew)
    crew._ray = Script(*answers)
    call = [SimpleNamespace(remote=lambda *_, i=i: i) for i in range(len(answers))]
    crew.hosts = [SimpleNamespace(train=one, place=one) for one in call]
    return crew


def train(crew: Crew, watch: Any = lambda: None) -> None:
    trial: Any = SimpleNamespace(to_json=lambda: "")
    task: Any = None
    crew.train(task, trial, Path("run"), watch)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "BLAME_SECONDS", 0.05)
    monkeypatch.setattr(hosts, "END_SECONDS", 0.05)


def test_the_news_is_told_until_the_last_host_has_ended():
    told: list[int] = []
    train(crew_of(None, None, None), lambda: told.append(1))
    assert len(told) == 3


def test_a_lost_host_is_blamed_before_those_that_lost_their_connection_to_it():
    broken = ray.exceptions.RayTaskError("train", "Traceback", RuntimeError("Socket closed"))
    with pytest.raises(ray.exceptions.ActorDiedError) as raised:
        train(crew_of(broken.as_instanceof_cause(), RUNS_ON, ray.exceptions.ActorDiedError()))
    assert classify(raised.value) == "preempted"


def test_an_error_of_one_host_is_raised_as_it_was_with_the_host_s_traceback():
    reported = ray.exceptions.RayTaskError("train", "on host 1", ValueError("a corrupt image"))
    with pytest.raises(ValueError, match=r"^a corrupt image$") as raised:
        train(crew_of(RUNS_ON, reported.as_instanceof_cause(), RUNS_ON))
    assert classify(raised.value) == "broken"
    assert "on host 1" in str(raised.value.__cause__)


def test_hosts_that_never_end_are_lost():
    with pytest.raises(HostLost, match="2 of 3 hosts train on") as raised:
        train(crew_of(None, RUNS_ON, RUNS_ON))
    assert classify(raised.value) == "preempted"


@pytest.mark.parametrize(
    "places", [[(0, "a"), (1, "b")], [(0, "a"), (0, "a")], [(0, "a"), (0, "b")]]
)
def test_hosts_that_are_no_slice_are_refused(places):
    with pytest.raises(RuntimeError, match=SLICE_NAME):
        crew_of(*places)._check_places()


@pytest.mark.parametrize("numbers", [(2, 0, 3, 1), (5, 4, 7, 6)])
def test_hosts_of_a_slice_may_come_in_any_order_and_count_from_any_number(numbers):
    crew_of(*[(number, "a") for number in numbers])._check_places()


@pytest.mark.parametrize("process_index", range(4))
def test_the_rank_that_the_runtime_gives_need_not_be_the_number_of_the_machine(
    process_index, monkeypatch
):
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    check_devices(4, 4, slice_of_four(host=process_index))


def test_hosts_that_do_not_know_each_other_are_refused():
    with pytest.raises(RuntimeError, match="hosts: the trial has 4, the TPU runtime says 1"):
        check_devices(4, 4, slice_of_four(num_hosts=1, num_devices=8))
    with pytest.raises(RuntimeError, match="devices: the trial has 32, the TPU runtime says 8"):
        check_devices(4, 4, slice_of_four(num_devices=8))


def slice_of_four(**changed: int) -> Any:
    """A host's devices, as far as the check asks for them."""
    values = {"num_hosts": 4, "num_devices": 32, "host": 0} | changed
    return SimpleNamespace(device_name="TPU v3", **values)


def test_each_step_is_news_once(tmp_path):
    """A resume drops the records after its checkpoint and makes them again."""
    told: list[int] = []
    news = _News(tmp_path, lambda record: told.append(record.step))
    news()
    for steps, expected in (((1, 2), [1, 2]), ((1, 2, 3), [1, 2, 3]), ((1, 4), [1, 2, 3, 4])):
        records = [
            Record(step=step, epoch=step, images_seen=step, seconds=step, values={})
            for step in steps
        ]
        text = "".join(record.to_json() + "\n" for record in records)
        (tmp_path / "records.jsonl").write_text(text)
        news()
        assert told == expected
