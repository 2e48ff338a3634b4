"""TPU shares on Ray's own nodes with made-up chips: who runs where, and what a loss leaves behind.

One cluster for the whole file: a head with a GPU, a v3-8 host, and two v3-32 slices of four hosts
each. The nodes are processes of this machine; the trials train nothing, but for the last
test's, whose XLA backend has four virtual devices.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import stub_trainer
from places import TESTS
from stub_trainer import read_places
from tiny_sweep import recipe

from mambaout.launch import tune
from mambaout.launch.failures import FAILURES_FILE
from mambaout.launch.lock import LOCK_FILE
from mambaout.launch.progress import Job
from mambaout.launch.request import TRAINER, Request
from mambaout.launch.resources import POD_TYPE, SLICE_NAME, WORKER_ID
from mambaout.launch.tpu import LOCK_VARIABLE, ports
from mambaout.launch.tune import DONE, run_study
from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.study.study import CHECKPOINT_FILE, Run, Study, StudyFolder
from mambaout.study.tracking.store import default_tracking_uri
from mambaout.train.metrics import COMPILATIONS

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    # MLflow 3.17 calls what SQLAlchemy 2.1 is about to drop.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    # Ray's nodes are processes that its own objects close when they are collected.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

NOTHING: Mapping[str, str] = {}
VIRTUAL = {  # of the XLA backend
    "PJRT_DEVICE": "CPU",
    "CPU_NUM_DEVICES": "4",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}


class Machines:
    """The cluster."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.cluster = folder, Cluster()
        self.nodes: dict[tuple[str, int], Any] = {}
        self._add("head", num_cpus=2, num_gpus=1, include_dashboard=False)
        self._add("host", kind="v3-8", env=VIRTUAL)
        for name in ("a", "b"):
            for rank in (2, 0, 3, 1):
                self._add(name, rank, kind="v3-32", env={"TPU_WORKER_ID": str(rank)})
        self.cluster.wait_for_nodes()

    @property
    def state(self) -> Any:
        return self.cluster.global_state

    def _add(
        self,
        name: str,
        rank: int = 0,
        kind: str = "",
        env: Mapping[str, str] = NOTHING,
        **more: Any,
    ) -> None:
        labels = {POD_TYPE: kind, SLICE_NAME: name, WORKER_ID: str(rank)}
        tpu = {"num_cpus": 4, "resources": {"TPU": 4}, "labels": labels} if kind else {}
        self.nodes[name, rank] = self.cluster.add_node(
            wait=not kind,
            env_vars={
                "PYTHONPATH": str(TESTS),
                # Workers are started when they are needed: ten nodes would start forty.
                "RAY_prestart_worker_first_driver": "0",
                LOCK_VARIABLE: str(self.lock(name, rank)),
                **env,
            },
            **tpu,
            **more,
        )

    def lock(self, name: str, rank: int = 0) -> Path:
        return self.folder / f"lock-{name}{rank}"

    def lose(self, name: str, rank: int) -> None:
        self.cluster.remove_node(self.nodes.pop((name, rank)), allow_graceful=False)

    def occupied(self) -> dict[str, Any]:
        """What is not free, and the actors and groups that there are."""
        total, left = self.state.cluster_resources(), self.state.available_resources()
        used = {
            name: total[name] - left.get(name, 0)
            for name in ("CPU", "GPU", "TPU")
            if total[name] != left.get(name, 0)
        }
        actors = [
            a for a in self.state.actor_table(None, None, None).values() if a["State"] != "DEAD"
        ]
        groups = [g for g in self.state.placement_group_table().values() if g["state"] != "REMOVED"]
        return {"used": used, "actors": actors, "groups": groups}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    Path("/tmp/ray").mkdir(exist_ok=True)  # Ray's own test cluster takes it for granted
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        found = Machines(tmp_path_factory.mktemp("locks"))
        yield found
        found.cluster.shutdown()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: MLflow takes seconds to make its tables."""
    return tmp_path_factory.mktemp("runs")


def stub(epochs: int, index: int = 0) -> Recipe:
    """A recipe that trains nothing for so many quarters of a second."""
    return tuned(recipe("thin"), epochs=epochs, peak_lr=1e-3 + index * 1e-5, global_batch=64)


XLA_RECIPES = {
    label: tuned(
        with_global_batch(BASELINE, 32),
        dims=(8, 8, 16, 16),
        depths=(1, 1, 1, 1),
        kernel_size=3,
        stem_stride=2,
        drop_path=0.2,
        image_size=16,
        train_images=128,
        minival_fraction=0.05,
        epochs=2,
        warmup_epochs=1,
        peak_lr=peak_lr,
    )
    for label, peak_lr in (("first", 1e-3), ("second", 4e-3))
}


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Launch:
    """A study that has been run on the cluster, and what was seen of it."""

    def __init__(self, machines: Machines, storage: Path, name: str, **options: Any) -> None:
        self.machines, self.folder = machines, StudyFolder(storage, name)
        self.name, self.storage, self.options = name, storage, options
        self.left: dict[str, Any] = {}  # once all trials were over
        self.busy: dict[str, float] = {}  # while they ran
        self.stale = False
        self.holder = self.coordinator = 0  # processes: of the run directory's lock, of the slice
        self.status: int | None = None

    def run(
        self,
        recipes: Mapping[str, Recipe],
        accelerator: str | None,
        meanwhile: Callable[[], None] = lambda: None,
        trainer: str = f"{stub_trainer.__name__}:{stub_trainer.run.__name__}",
        data: Any = None,
    ) -> None:
        """Run the study, and `meanwhile` on a thread of its own."""
        study = Study(name=self.name, question="Who runs where?", recipes=recipes)
        fingerprint = data.fingerprint if data else "none"
        self.trials = {trial.label: trial for trial in study.trials(fingerprint)}
        request = Request(
            study=study,
            trials=list(self.trials.values()),
            job=lambda trial: Job(trial=trial, num_steps=4, train_macs=1e9),
            num_images=lambda split, recipe: 512,
            fingerprint=fingerprint,
            data=data.name if data else "none",
            data_name="none",
            storage=self.storage,
            name=self.name,
            tracking_uri=default_tracking_uri(self.storage),
            address=self.machines.cluster.address,
            accelerator=accelerator,
            trainer=trainer,
            facts={"num_train": 512, "num_classes": 10},
            **self.options,
        )
        problems: list[BaseException] = []

        def watched() -> None:
            try:
                meanwhile()
            except BaseException as error:
                problems.append(error)

        def leave_once_free(leave: Callable[[], None] = tune.leave) -> None:
            self.left = until_free(self.machines)  # before the end of the job frees it all
            leave()

        thread = threading.Thread(target=watched, daemon=True)
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tune, "leave", leave_once_free)
            self.status = run_study(request)
        thread.join()
        if problems:
            raise problems[0]

    def directory(self, label: str) -> Path:
        return self.folder.run_directory(self.trials[label])

    def places(self, label: str, rank: int = 0) -> list[dict[str, Any]]:
        return read_places(self.directory(label), rank)

    def failures(self, label: str) -> list[dict[str, Any]]:
        path = self.directory(label) / FAILURES_FILE
        return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []

    def worker(self, label: str) -> int:
        """The process that held the run directory last."""
        return json.loads((self.directory(label) / LOCK_FILE).read_text())["pid"]

    def hangs(self, label: str) -> bool:
        """Whether the trial does no more until it is started again."""
        path = self.directory(label) / CHECKPOINT_FILE
        return path.exists() and path.read_text() == str(stub_trainer.HANGS_AFTER)

    def wait_for(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 100
        while not (found := what()):
            assert time.monotonic() < deadline, "not within 100 s"
            time.sleep(0.02)
        return found


def until_free(machines: Machines) -> dict[str, Any]:
    """What is still taken, after a moment for Ray to notice what is not."""
    deadline = time.monotonic() + 20
    while any((taken := machines.occupied()).values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return taken


# -- slices ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slices(machines: Machines, storage: Path) -> Launch:
    """Four trials on two slices: one is stopped early, one loses a host, and on the slice that is
    left then one loses the worker that coordinates it."""
    launch = Launch(machines, storage, "slices")

    def meanwhile() -> None:
        stopped = launch.trials["stopped"]
        launch.wait_for(lambda: launch.folder.run(stopped).records[1:])
        launch.wait_for(lambda: launch.hangs("hangs"))
        launch.busy = machines.occupied()["used"]
        launch.folder.stop(stopped, "by hand")
        machines.lose(launch.places("hangs")[0]["slice"], 2)
        launch.wait_for(lambda: launch.failures("hangs"))
        launch.wait_for(lambda: launch.hangs("hangs-too"))
        hosts = [launch.places("hangs-too", rank)[0] for rank in range(4)]
        launch.holder = launch.worker("hangs-too")
        pids, nodes = ({place[what] for place in hosts} for what in ("pid", "node"))
        there = [a for a in machines.occupied()["actors"] if a["Address"]["NodeID"] in nodes]
        (worker,) = [a["Pid"] for a in there if a["Pid"] not in pids]
        launch.coordinator = worker
        os.kill(worker, signal.SIGKILL)
        launch.wait_for(lambda: not any(map(is_alive, pids)))

    recipes = {"hangs": stub(8), "stopped": stub(200), "hangs-too": stub(7), "last": stub(4)}
    launch.run(recipes, "tpu-v3-32", meanwhile)
    return launch


def test_each_trial_of_a_slice_is_on_one_whole_slice_a_process_on_each_host(slices):
    assert slices.status == DONE
    assert slices.busy["TPU"] == 32, "two trials at a time"
    for label in slices.trials:
        by_rank = [slices.places(label, rank) for rank in range(4)]
        for places in zip(*by_rank, strict=True):  # of one start of the trial
            assert len({place["slice"] for place in places}) == 1
            assert {place["pod_type"] for place in places} == {"v3-32"}
            assert len({place["node"] for place in places}) == 4
            assert {place["env"]["PJRT_DEVICE"] for place in places} == {"TPU"}


def test_a_trial_that_loses_a_host_goes_on_elsewhere_from_its_checkpoint(slices):
    first, second = slices.places("hangs")
    assert first["slice"] != second["slice"]
    assert_resumed(slices, "hangs", 8)


def test_a_trial_that_loses_its_coordinator_goes_on_from_its_checkpoint(slices):
    assert_resumed(slices, "hangs-too", 7)


def test_the_coordinator_of_a_slice_holds_the_lock_on_the_run_directory(slices):
    """Whichever host writes: the stub's ranks are others than the machines' numbers."""
    assert slices.holder == slices.coordinator > 0


def assert_resumed(launch: Launch, label: str, epochs: int) -> None:
    first, second = launch.places(label)
    assert first["begun"] == 0
    assert second["begun"] == stub_trainer.HANGS_AFTER
    assert [failure["kind"] for failure in launch.failures(label)] == ["preempted"]
    run = launch.folder.run(launch.trials[label])
    assert run.status == "finished"
    assert [record.step for record in run.records] == list(range(1, epochs + 1))


def test_a_stopped_slice_and_what_is_left_of_a_broken_one_are_free_again(slices):
    assert slices.folder.run(slices.trials["stopped"]).status == "stopped"
    assert slices.folder.run(slices.trials["last"]).status == "finished"
    assert slices.left == {"used": {}, "actors": [], "groups": []}
    pids = [p["pid"] for label in slices.trials for r in range(4) for p in slices.places(label, r)]
    assert not [pid for pid in pids if is_alive(pid)], "orphans"


def test_the_processes_of_a_slice_are_used_again(slices):
    """An early stop leaves them for the next trial."""
    for rank in range(4):
        stopped, following = (slices.places(label, rank)[0] for label in ("stopped", "hangs-too"))
        assert stopped["pid"] == following["pid"]


# -- hosts, chips, halves of a GPU -----------------------------------------------------------------


@pytest.fixture(scope="module")
def host(machines: Machines, storage: Path) -> Launch:
    """Two trials on the host, on what is found; the first one's worker is killed."""
    launch = Launch(machines, storage, "host")

    def meanwhile() -> None:
        launch.wait_for(lambda: launch.hangs("hangs"))
        (place,) = launch.places("hangs")
        os.kill(place["pid"], signal.SIGKILL)
        launch.stale = machines.lock("host").exists()

    launch.run({"hangs": stub(6), "other": stub(3)}, None, meanwhile)
    return launch


def test_a_trial_of_one_host_is_never_on_a_host_of_a_slice(host, slices):
    assert host.status == DONE
    places = [place for label in host.trials for place in host.places(label)]
    assert {(place["pod_type"], place["slice"]) for place in places} == {("v3-8", "host")}
    # Nothing hides a chip of the host, and what the machine says of the device holds.
    assert [place["env"] for place in places] == [{"PJRT_DEVICE": "CPU"}] * len(places)


def test_the_lock_of_a_killed_worker_is_not_in_the_way_of_the_next_trial(host):
    """The stub gets no chips where the file is there, and each worker leaves one behind."""
    assert host.stale
    first, second = host.places("hangs")
    assert first["pid"] != second["pid"]
    assert_resumed(host, "hangs", 6)
    assert host.left == {"used": {}, "actors": [], "groups": []}


def test_four_trials_of_a_chip_are_on_one_host_each_with_a_chip_of_its_own(machines, storage):
    launch = Launch(machines, storage, "chips")
    launch.run({f"4-at-once-{i}": stub(10 + i) for i in range(4)}, "tpu-v3-8-chip")
    assert launch.status == DONE
    places = [launch.places(label)[0] for label in launch.trials]
    assert {place["slice"] for place in places} == {"host"}
    assert sorted(place["env"]["TPU_VISIBLE_CHIPS"] for place in places) == list("0123")
    assert {place["env"]["TPU_PROCESS_BOUNDS"] for place in places} == {"1,1,1"}
    for name in ports(0):  # each opens ports of its own
        assert len({place["env"][name] for place in places}) == 4, name
    assert launch.left == {"used": {}, "actors": [], "groups": []}


def test_two_trials_share_a_gpu(machines, storage):
    launch = Launch(machines, storage, "halves")
    launch.run({f"2-at-once-{i}": stub(20 + i) for i in range(2)}, "gpu:0.5")
    assert launch.status == DONE
    places = [launch.places(label)[0] for label in launch.trials]
    assert [place["env"]["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "0"]
    assert len({place["pid"] for place in places}) == 2


def test_a_share_that_the_cluster_can_never_give_starts_and_writes_nothing(machines, storage):
    launch = Launch(machines, storage, "never")
    with pytest.raises(ValueError, match=r"tpu-v3-16.*\(v3-32, slice b\).*choose tpu-v3-8"):
        launch.run({"none": stub(30)}, "tpu-v3-16")
    assert not launch.folder.path.exists()


# -- XLA -------------------------------------------------------------------------------------------


def test_the_second_trial_of_an_xla_worker_comes_to_what_a_fresh_worker_comes_to(
    machines, storage, digits
):
    """Four virtual devices. In the process of the first trial it finds all its graphs compiled."""
    both = Launch(machines, storage, "both", rerun=True)
    alone = Launch(machines, storage, "alone", rerun=True)
    both.run(XLA_RECIPES, "tpu-v3-8", trainer=TRAINER, data=digits)
    alone.run({"second": XLA_RECIPES["second"]}, "tpu-v3-8", trainer=TRAINER, data=digits)
    assert both.status == alone.status == DONE
    assert both.worker("first") == both.worker("second") != alone.worker("second")
    first, second = (both.folder.run(both.trials[label]) for label in XLA_RECIPES)
    fresh = alone.folder.run(alone.trials["second"])
    assert (second.facts["backend"], second.facts["num_devices"]) == ("xla", 4)
    assert learned(second) == learned(fresh) != learned(first)
    assert second.metrics["top1"] == fresh.metrics["top1"]
    compiled = [run.records[-1].values[COMPILATIONS] for run in (first, second, fresh)]
    assert compiled[0] == compiled[2] > compiled[1] == 0


def learned(run: Run) -> list[tuple[int, dict[str, float]]]:
    """The part of a run's records that does not depend on how fast the machine was."""
    names = ("train/", "minival/", "val/")
    kept = [{n: v for n, v in r.values.items() if n.startswith(names)} for r in run.records]
    return [(record.step, values) for record, values in zip(run.records, kept, strict=True)]
