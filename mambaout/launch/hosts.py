"""A trial on a slice: one process on each host, on all hosts or on none.

Tune's placement group holds the slice as long as Tune's worker has trials for it. That worker, in
bundle 0, is the coordinator. It locks the run directory, starts an actor in the bundle of each host
and reports the records in the run directory to Tune. If one host is lost, it ends all hosts,
because the others would wait for ever.

The bundles come in any order. The rank of a host is the process index that its TPU runtime gives;
the host of rank 0 writes. The coordinator need not know which host that is.

Like Tune's worker, the actors stay for the next trial, so that they need not compile again. They
belong to this worker and always end with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mambaout.endings import Ending
from mambaout.launch.failures import cause_of, classify
from mambaout.launch.resources import SLICE_NAME
from mambaout.launch.task import Task, call_trainer, stop_of, writing
from mambaout.launch.tpu import host_number
from mambaout.study.study import RECORDS_FILE, Trial
from mambaout.study.tracking.tail import Tail
from mambaout.train.metrics import Record

WATCH_SECONDS = 1.0  # between two looks at the records
START_SECONDS = 120.0  # to start an actor on every host
# If a host is lost, the other hosts often fail first, with a broken connection. Ray needs about a
# minute to declare a silent machine lost. This is how long a worker waits for Ray's message.
BLAME_SECONDS = 75.0
END_SECONDS = 300.0  # between the first host's end and the last one's
KILL_SECONDS = 20.0


class HostLost(RuntimeError):
    """A host of the slice does not answer. The worker is lost; the trial has no error."""


class Host:
    """The actor that runs on each host of a slice."""

    def place(self) -> tuple[int, str]:
        """The number of this host, and the name of its slice."""
        import ray

        labels = ray.get_runtime_context().get_node_labels()
        return host_number(), str(labels.get(SLICE_NAME))

    def train(self, task: Task, trial: str, directory: str) -> None:
        """Train this host's part. The coordinator holds the lock on the directory."""
        folder = Path(directory)
        stop = stop_of(task, folder)
        call_trainer(task, Trial.from_json(trial), folder, lambda record: None, stop)


class Crew:
    """One actor on each host of the slice in this worker's placement group."""

    def __init__(self, task: Task) -> None:
        import ray
        from ray.util.placement_group import get_current_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._ray: Any = ray
        group: Any = get_current_placement_group()
        self.group_id = group.id
        host: Any = ray.remote(Host)
        self.hosts = [
            host.options(
                num_cpus=task.cpus,
                resources={"TPU": task.chips},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
            ).remote()
            for bundle in range(1, task.num_hosts + 1)
        ]
        try:
            self._check_places()
        except BaseException:
            self.end()
            raise

    def _check_places(self) -> None:
        try:
            places = self._ray.get(
                [host.place.remote() for host in self.hosts], timeout=START_SECONDS
            )
        except self._ray.exceptions.GetTimeoutError:
            text = f"not every host of the slice answered within {START_SECONDS:g} s"
            raise HostLost(text) from None
        numbers, slices = zip(*places, strict=True)
        if len(set(numbers)) < len(numbers) or len(set(slices)) > 1:
            raise RuntimeError(
                f"the {len(numbers)} hosts of a slice say that they are hosts {list(numbers)} of "
                f"{list(slices)}; TPU_WORKER_ID must be another on each host, and the label "
                f"{SLICE_NAME} the same on all"
            )

    def train(self, task: Task, trial: Trial, directory: Path, watch: Callable[[], None]) -> None:
        """Train the trial on all hosts. `watch` is called every second and once at the end.

        Raises the error that ended a host. The loss of a host comes before the errors that it
        causes on other hosts.
        """
        running = [host.train.remote(task, trial.to_json(), str(directory)) for host in self.hosts]
        deadline = float("inf")
        while running:
            done, running = self._ray.wait(running, timeout=WATCH_SECONDS)
            watch()
            for ended in done:
                error = self._error(ended)
                if error is not None:
                    raise self._blamed(error, running)
                deadline = min(deadline, time.monotonic() + END_SECONDS)
            if running and time.monotonic() > deadline:
                raise HostLost(
                    f"{len(running)} of {len(self.hosts)} hosts train on, {END_SECONDS:g} s after "
                    "the first one ended"
                )

    def _blamed(self, error: Exception, others: Sequence[Any]) -> Exception:
        """The error of the host that failed first."""
        if classify(error) is Ending.PREEMPTED or not others:
            return error
        deadline = time.monotonic() + BLAME_SECONDS
        while others and (left := deadline - time.monotonic()) > 0:
            done, others = self._ray.wait(list(others), timeout=left)
            for other in filter(None, map(self._error, done)):
                if classify(other) is Ending.PREEMPTED:
                    return other
        return error

    def _error(self, ended: Any) -> Exception | None:
        try:
            self._ray.get(ended)
        except Exception as error:
            cause = cause_of(error)
            if isinstance(cause, Exception) and cause is not error:
                cause.__cause__ = error  # with the host's own traceback
                return cause
            return error
        return None

    def end(self) -> None:
        """Kill the actors and wait until they are gone: the next trial needs their chips."""
        for host in self.hosts:
            self._ray.kill(host)
        for host in self.hosts:
            try:
                self._ray.get(host.place.remote(), timeout=KILL_SECONDS)
            except self._ray.exceptions.RayError:
                continue


_crew: Crew | None = None  # this worker's crew, kept for its next trial


def train_on_slice(
    task: Task,
    trial: Trial,
    directory: Path,
    report: Callable[[Record], None],
    stop: Callable[[], bool],
) -> None:
    """Train on the hosts of this worker's slice. `report` gets their records.

    Only these hosts may write to the run directory. If it raises an error, no host is left running.
    """
    global _crew
    with writing(directory):
        news = _News(directory, report)
        news()
        if stop():
            return
        if _crew is not None and _crew.group_id != _group_id():
            _crew.end()
            _crew = None
        if _crew is None:
            _crew = Crew(task)
        try:
            _crew.train(task, trial, directory, news)
        except BaseException:
            _crew.end()
            _crew = None
            raise


def _group_id() -> Any:
    from ray.util.placement_group import get_current_placement_group

    group: Any = get_current_placement_group()
    return group.id


class _News:
    """Reports new records, each step once, because a resume repeats some steps."""

    def __init__(self, directory: Path, report: Callable[[Record], None]) -> None:
        self.path, self.report = directory / RECORDS_FILE, report
        self.tail, self.step = Tail(), -1

    def __call__(self) -> None:
        for record in self.tail.new(self.path):
            if record.step > self.step:
                self.step = record.step
                self.report(record)
        self.tail.accept()
