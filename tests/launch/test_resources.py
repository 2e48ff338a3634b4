"""Shares: what a trial holds of a cluster, where it may lie, and what its worker finds there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_sweep import recipe, tiny

from mambaout.data.cores import cgroup_cores, usable_cores
from mambaout.errors import WrongRequest
from mambaout.launch import cli, precision, resources
from mambaout.launch import planned_machine as planned
from mambaout.launch.calibrate import device_of
from mambaout.launch.cluster import still_to_come
from mambaout.launch.failures import classify
from mambaout.launch.request import check_share
from mambaout.launch.resources import (
    ACCELERATORS,
    GPU_TYPE,
    POD_TYPE,
    SLICE_NAME,
    Node,
    check_accelerator,
    plan_nodes,
    share,
    tpu_chips,
)
from mambaout.launch.tpu import BOUNDS, clear_stale_lock, environment, ports
from mambaout.recipe import tuned
from mambaout.study.axes import Search
from mambaout.study.start import Start
from mambaout.study.study import Study

TWO_CORES = Node({"CPU": 2.0})
GPU_HOST = Node({"CPU": 16.0, "GPU": 4.0, "memory": 1e11})
HEAD = Node({"CPU": 8.0})


def tpu_host(kind: str, name: str = "alone", cpus: float = 96, chips: float = 4) -> Node:
    return Node({"CPU": cpus, "TPU": chips}, {POD_TYPE: kind, SLICE_NAME: name})


V3_8 = tpu_host("v3-8")
SLICE = [tpu_host("v3-32", "a")] * 4


# -- what a trial gets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accelerator", "nodes", "amounts", "slots"),
    [
        (None, [TWO_CORES], {"CPU": 1}, 2),
        ("cpu", [GPU_HOST], {"CPU": 1}, 16),
        (None, [GPU_HOST], {"CPU": 4, "GPU": 1}, 4),
        ("gpu", [GPU_HOST, Node({"CPU": 64.0})], {"CPU": 4, "GPU": 1}, 4),
        ("gpu", [Node({"CPU": 2.0, "GPU": 2.0}), GPU_HOST], {"CPU": 1, "GPU": 1}, 6),
        ("gpu", [Node({"CPU": 96.0, "GPU": 2.0})], {"CPU": 8, "GPU": 1}, 2),
        ("gpu:0.5", [GPU_HOST], {"CPU": 2, "GPU": 0.5}, 8),
        ("gpu:0.25", [GPU_HOST], {"CPU": 1, "GPU": 0.25}, 16),
        ("gpu:0.3", [Node({"CPU": 64.0, "GPU": 1.0})], {"CPU": 8, "GPU": 0.3}, 3),
        ("gpu:0.5", [Node({"CPU": 3.0, "GPU": 2.0})], {"CPU": 1, "GPU": 0.5}, 3),
        (None, [HEAD, V3_8, V3_8], {"CPU": 48, "TPU": 4}, 2),
        (None, [GPU_HOST, V3_8, *SLICE], {"CPU": 48, "TPU": 4}, 1),
        ("tpu-v3-8", [tpu_host("v3-8", cpus=8), V3_8], {"CPU": 8, "TPU": 4}, 2),
        ("tpu-v3-8-chip", [V3_8, *SLICE], {"CPU": 12, "TPU": 1}, 4),
        ("tpu-v3-8-chip", [tpu_host("v3-8", cpus=4)], {"CPU": 1, "TPU": 1}, 4),
        (None, [HEAD, *SLICE], {"CPU": 48, "TPU": 4}, 1),
        ("tpu-v3-32", [V3_8, *SLICE, *[tpu_host("v3-32", "b")] * 4], {"CPU": 48, "TPU": 4}, 2),
        ("tpu-v3-32", [*SLICE, *[tpu_host("v3-32", "b")] * 3], {"CPU": 48, "TPU": 4}, 1),
        ("tpu-v3-32", [tpu_host("v3-32", "a", cpus=8)] * 4, {"CPU": 7, "TPU": 4}, 1),
    ],
)
def test_a_share_fits_on_every_node_that_has_what_it_needs(accelerator, nodes, amounts, slots):
    part = share(accelerator, nodes)
    assert part.resources() == amounts
    assert part.slots(nodes) == slots


@pytest.mark.parametrize(
    ("accelerator", "backend", "num_devices", "num_hosts"),
    [
        ("cpu", "cpu", 1, 1),
        ("gpu:0.5", "cuda", 1, 1),
        ("tpu-v3-8", "xla", 8, 1),
        ("tpu-v3-8-chip", "xla", 2, 1),
        ("tpu-v3-32", "xla", 32, 4),
    ],
)
def test_a_share_knows_its_devices(accelerator, backend, num_devices, num_hosts):
    part = share(accelerator, [GPU_HOST, V3_8, *SLICE])
    assert (part.backend, part.num_devices, part.num_hosts) == (backend, num_devices, num_hosts)
    assert part.env == ({"PJRT_DEVICE": "TPU"} if backend == "xla" else {})
    # A core trains, the others load; on a lone core one process does both.
    assert part.num_workers == part.cpus - 1


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_a_share_that_no_machine_can_give_is_refused(accelerator):
    nodes = [] if accelerator == "cpu" else [TWO_CORES]
    with pytest.raises(ValueError, match=accelerator):
        share(accelerator, nodes)


@pytest.mark.parametrize(
    ("accelerator", "nodes", "says"),
    [
        ("gpu", [Node({"CPU": 0.0, "GPU": 1.0}), Node({"CPU": 8.0})], ["1 CPU and 1 GPU"]),
        ("tpu-v3-16", [V3_8], ["tpu-v3-16", "96 CPU and 4 TPU chips (v3-8)", "choose tpu-v3-8"]),
        (None, [tpu_host("v3-16", "b")] * 2, ["2 x ", "(v3-16, slice b)", "v3-8 hosts"]),
        ("tpu-v3-8", [HEAD, *SLICE], ["4 TPU chips of a v3-8 host", "4 x ", "(v3-32, slice a)"]),
        ("tpu-v3-8-chip", SLICE, ["1 TPU chip of a v3-8 host", "--address"]),
        ("tpu-v3-32", SLICE[:3], ["each of 4 hosts", "3 x ", "wait for a whole v3-32 slice"]),
        ("tpu-v3-32", [*SLICE[:2], *[tpu_host("v3-32", "b")] * 2], ["slice a", "slice b"]),
        ("tpu-v3-32", [V3_8] * 4, ["4 x 96 CPU and 4 TPU chips (v3-8)"]),
        ("tpu-v3-8", [Node({"CPU": 96.0, "TPU": 4.0})], ["unknown type", f"label {POD_TYPE}"]),
        (None, [Node({"CPU": 96.0, "TPU": 4.0})], ["unknown type", f"label {POD_TYPE}"]),
    ],
)
def test_a_refusal_says_what_was_asked_what_there_is_and_what_helps(accelerator, nodes, says):
    with pytest.raises(ValueError, match="choose") as refused:
        share(accelerator, nodes)
    for text in says:
        assert text in str(refused.value)


@pytest.mark.parametrize("accelerator", ["gpu:2", "gpu:0", "gpu:half", "gpu:0.01", "tpu-v4-8"])
def test_a_share_that_no_cluster_knows_is_refused_by_its_name(accelerator):
    with pytest.raises(ValueError, match=accelerator):
        check_accelerator(accelerator)


@pytest.mark.parametrize(
    "accelerator", ["cpu", "gpu:0.5", "tpu-v3-8", "tpu-v3-8-chip", "tpu-v3-32"]
)
def test_tune_gets_one_group_a_trial_and_a_tpu_share_names_its_hosts(accelerator):
    part = share(accelerator, [GPU_HOST, V3_8, *SLICE])
    group = part.placement()
    asked = group._bound.kwargs
    if accelerator == "tpu-v3-32":
        assert group.bundles == [{"CPU": 1}, *[{"CPU": 48, "TPU": 4}] * 4]
        assert asked["topology_strategy"] == {SLICE_NAME: "STRICT_PACK"}
        assert asked["bundle_label_selector"] == [{POD_TYPE: "v3-32"}] * 5
    else:
        assert group.bundles == [part.resources()]
        labels = [{POD_TYPE: "v3-8"}] if part.chips else None
        assert asked.get("bundle_label_selector") == labels


def test_a_batch_that_a_share_s_devices_cannot_split_is_refused():
    wide = tuned(recipe("wide"), global_batch=100)
    study = Study(name="odd", question="?", recipes={"wide": wide})
    trials = study.trials("d")
    request: Any = SimpleNamespace(
        study=study, trials=trials, recompute=(), compiles=None, not_on_xla=""
    )
    check_share(request, share("cpu", [TWO_CORES]))
    says = r"trial wide on tpu-v3-8: .*=100 .* 8 devices .* 96 or 112"
    with pytest.raises(WrongRequest, match=says):
        check_share(request, share("tpu-v3-8", [V3_8]))
    # A search of the same name does not hide the recipe.
    even = Search(label="wide", base=recipe("wide"), axes=(), num_trials=1)
    request.study = replace(study, searches=(even,))
    with pytest.raises(WrongRequest, match=says):
        check_share(request, share("tpu-v3-8", [V3_8]))


@pytest.mark.parametrize("compiles", [True, False])
def test_compile_is_refused_for_a_tpu_alone(compiles):
    study = Study(name="even", question="?", recipes={"wide": recipe("wide")})
    trials = study.trials("d")
    request: Any = SimpleNamespace(
        study=study, trials=trials, recompute=(), compiles=compiles, not_on_xla=""
    )
    check_share(request, share("cpu", [TWO_CORES]))
    with pytest.raises(WrongRequest, match=r"--compile and --no-compile .* on tpu-v3-8$"):
        check_share(request, share("tpu-v3-8", [V3_8]))


# -- machines --------------------------------------------------------------------------------------


def test_machines_that_the_launcher_may_still_start_count_beside_those_alive():
    config = {
        "max_workers": 6,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 8}},
            "host": {
                "resources": {"CPU": 96, "TPU": 4},
                "labels": {POD_TYPE: "v3-8"},
                "max_workers": 3,
            },
            "loader": {"resources": {"CPU": 4}},
        },
    }
    alive = [HEAD, tpu_host("v3-8", "x")]
    nodes = alive + still_to_come(config, alive)
    assert [node.resources["CPU"] for node in nodes] == [8, 96, 96, 96, *[4] * 6]
    assert share(None, nodes).slots(nodes) == 3
    from_zero = [HEAD, *still_to_come(config, [HEAD])]
    assert share(None, from_zero).slots(from_zero) == 3


def test_a_containers_quota_bounds_the_cores(tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cgroup_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cgroup_cores(tmp_path) == os.cpu_count()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_chips_are_counted_by_their_devices(tmp_path):
    for name in ("accel0", "accel1", "accel2", "accel3", "accelerometer", "null"):
        (tmp_path / name).touch()
    assert tpu_chips(tmp_path) == 4


def test_a_tpu_host_without_a_cluster_is_one_of_its_own(monkeypatch):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v3-8")
    monkeypatch.setattr(resources, "tpu_chips", lambda: 4)
    node = resources.this_machine(None)
    assert share(None, [node]).accelerator == "tpu-v3-8"
    assert resources.this_machine("cpu").has("TPU") == 0
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v3-32")
    with pytest.raises(ValueError, match="each of 4 hosts"):
        share(None, [resources.this_machine(None)])


def test_a_tpu_is_priced_as_its_chips_without_a_cluster(tmp_path, capsys, digits):
    """On a laptop: 8 devices a host, 2 a chip, 32 a slice; four trials of a chip at once."""
    assert device_of(share("tpu-v3-8", plan_nodes("tpu-v3-8"))) == "TPU v3"

    def wide_batches(start: Start) -> Study:
        return replace(tiny(start), recipes={"x": tuned(recipe("thin"), global_batch=64)})

    for accelerator, devices, at_once in (
        ("tpu-v3-8", 8, 1),
        ("tpu-v3-8-chip", 2, 4),
        ("tpu-v3-32", 32, 1),
    ):
        options = ["--data", "digits", "--plan", "--accelerator", accelerator]
        assert cli.main(wide_batches, [*options, "--storage", str(tmp_path / "runs")]) == 0
        shown = capsys.readouterr().out
        assert f"{devices} devices a trial" in shown
        assert f"with {at_once} at a time" in shown
        assert "25% of the peak of TPU v3" in shown
    assert cli.main(tiny, ["--data", "digits", "--plan", "--accelerator", "tpu-v3-32"]) == 2
    assert "global_batch=32 does not split over 32 devices" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def plan_of(capsys, tmp_path, *words: str) -> str:
    assert cli.main(tiny, ["--data", "digits", "--storage", str(tmp_path / "runs"), *words]) == 0
    return capsys.readouterr().out


def test_a_plan_names_a_gpu_that_is_not_here(tmp_path, capsys, digits):
    shown = plan_of(capsys, tmp_path, "--plan", "L4", "--max-concurrent", "8")
    assert "25% of the peak of L4 in" in shown
    assert "with 8 at a time" in shown
    shown = plan_of(capsys, tmp_path, "--plan", "NVIDIA L4", "--accelerator", "gpu:0.5")
    assert "with 2 at a time" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--plan", "L5"], "'L5' is none of the GPUs H200"),
        (["--plan", "TPU v3"], "'TPU v3' is none of the GPUs"),
        (["--plan", "L4", "--accelerator", "cpu"], "--plan 'L4' is for a GPU"),
    ],
)
def test_a_plan_for_a_device_that_cannot_be_planned_is_refused(words, says, capsys, digits):
    try:
        status = cli.main(tiny, ["--data", "digits", *words])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert says in capsys.readouterr().err


def test_a_plan_without_an_accelerator_is_for_the_gpus_of_this_machine(
    tmp_path, capsys, digits, monkeypatch
):
    """The driver's answers are replaced: there is no GPU here."""
    here = Node({"CPU": 64.0, "GPU": 8.0})
    monkeypatch.setattr(resources, "this_machine", lambda accelerator: here)
    monkeypatch.setattr(precision, "this_machine", lambda accelerator: here)
    monkeypatch.setattr(precision, "gpus", lambda: {"NVIDIA L4": True})
    monkeypatch.setattr(planned, "device_of", lambda part: {"cuda": "NVIDIA L4"}[part.backend])
    shown = plan_of(capsys, tmp_path, "--plan")
    assert "25% of the peak of L4 in" in shown
    assert "with 8 at a time" in shown


@pytest.mark.parametrize("timed", [None, "NVIDIA L4"])
def test_a_plan_is_for_the_machines_of_the_cluster_that_the_launch_would_join(
    timed, tmp_path, monkeypatch
):
    hosts = [Node({"CPU": 64.0}), Node({"CPU": 64.0, "GPU": 8.0}, {GPU_TYPE: "L4"})] * 2
    monkeypatch.setattr(planned, "cluster_address", lambda address: "head:6379")
    monkeypatch.setattr(planned, "join", lambda address: hosts)
    monkeypatch.setattr(planned, "leave", lambda: None)
    options = Namespace(accelerator=None, address=None, max_concurrent=None, plan=True)
    found = planned.planned_machine(options, tmp_path, timed)
    assert (found.part.accelerator, found.at_a_time) == ("gpu", 16)
    assert found.device == (timed or "L4")
    hosts.append(Node({"CPU": 8.0, "GPU": 1.0}, {GPU_TYPE: "T4"}))
    if timed is None:  # else the plan is for what was timed
        with pytest.raises(WrongRequest, match=r"2 kinds of GPU \(L4, T4\).* --plan 'L4'"):
            planned.planned_machine(options, tmp_path, timed)


# -- what a worker finds ---------------------------------------------------------------------------

PJRT = {"PJRT_DEVICE": "TPU"}
RAYS_ONE_CHIP = {"TPU_CHIPS_PER_HOST_BOUNDS": "1,1,1", "TPU_HOST_BOUNDS": "1,1,1"}
ONE_CHIP = dict.fromkeys(BOUNDS, "1,1,1")
GOOGLES_PORTS = {"TPU_RUNTIME_METRICS_PORTS": "8431,8432,8433,8434"}
GKES_HOST = {"TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1", "TPU_HOST_BOUNDS": "2,2,1"}


@pytest.mark.parametrize(
    ("num_chips", "ids", "before", "changes"),
    [
        (4, "0123", {}, PJRT),
        (4, "0123", {"PJRT_DEVICE": "CPU"}, {}),
        (4, "0123", {"TPU_VISIBLE_CHIPS": "0,1,2,3"}, {**PJRT, "TPU_VISIBLE_CHIPS": None}),
        (4, "0123", GKES_HOST, PJRT),
        (4, "0123", RAYS_ONE_CHIP, {**PJRT, **dict.fromkeys(RAYS_ONE_CHIP)}),
        (4, "0123", GOOGLES_PORTS, PJRT),
        (1, "2", {}, PJRT | {"TPU_VISIBLE_CHIPS": "2"} | ONE_CHIP | ports(2)),
        (1, "3", GKES_HOST, PJRT | {"TPU_VISIBLE_CHIPS": "3"} | ONE_CHIP | ports(3)),
    ],
)
def test_a_worker_sees_the_chips_of_its_share_and_no_others(num_chips, ids, before, changes):
    assert environment(num_chips, list(ids), PJRT, before) == changes


def test_a_worker_that_changes_shares_keeps_nothing_of_the_last_one():
    def after(changes: dict[str, str | None], before: dict[str, str]) -> dict[str, str]:
        return {k: v for k, v in (before | changes).items() if v is not None}

    chip = after(environment(1, ["1"], PJRT, {}), {})
    assert after(environment(4, list("0123"), PJRT, chip), chip) == PJRT


def test_four_workers_of_one_chip_share_no_port_of_their_host():
    """A port of one is none of another, also where it serves something else."""
    workers = [environment(1, [chip], PJRT, {}) for chip in "0123"]
    opened = [{found[name] for name in found if "PORT" in name} for found in workers]
    assert all(len(each) == 3 for each in opened)
    assert len(set().union(*opened)) == 12
    for found in workers:
        assert found["TPU_PROCESS_ADDRESSES"] == f"localhost:{found['TPU_PROCESS_PORT']}"
        controller = found["TPU_MESH_CONTROLLER_PORT"]
        assert found["TPU_MESH_CONTROLLER_ADDRESS"] == f"localhost:{controller}"


def test_two_chips_are_no_share():
    with pytest.raises(ValueError, match="one chip or 4"):
        environment(2, ["0", "1"], PJRT, {})


# libtpu opens the file for writing and locks it, for as long as the process lives.
HOLD = (
    "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.{call}(f, fcntl.LOCK_EX)\n"
    "print('held', flush=True); time.sleep(600)"
)


@pytest.mark.parametrize("call", ["lockf", "flock"])
def test_a_stale_tpu_lock_is_removed_and_a_living_one_is_not(tmp_path, call):
    lock = tmp_path / "libtpu_lockfile"
    clear_stale_lock(lock)  # where there is none
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(call=call), str(lock)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    clear_stale_lock(lock, wait_seconds=0.3)
    assert lock.exists(), "a living process lost its TPU"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert lock.exists()
    clear_stale_lock(lock)
    assert not lock.exists()


def test_the_lock_that_this_process_has_stays_and_stays_locked(tmp_path):
    """A worker that is reused holds the TPU; to open and close the file would give it up."""
    import fcntl

    lock = tmp_path / "libtpu_lockfile"
    code = (
        "import fcntl, sys\nwith open(sys.argv[1], 'a+') as file:\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    with lock.open("a+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        clear_stale_lock(lock, wait_seconds=0)
        other = subprocess.run([sys.executable, "-c", code, str(lock)], capture_output=True)
        assert lock.exists()
        assert b"BlockingIOError" in other.stderr


def test_a_lock_of_another_user_is_said_with_what_to_do(tmp_path, monkeypatch):
    lock = tmp_path / "libtpu_lockfile"
    lock.touch()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(RuntimeError, match=f"sudo rm {lock}"):
        clear_stale_lock(lock)


# -- a host that is lost ---------------------------------------------------------------------------


def test_the_loss_of_a_child_host_is_a_preemption():
    import ray.exceptions as errors

    from mambaout.launch.hosts import HostLost

    lost = errors.ActorUnavailableError("gone", b"x" * 16)
    through = errors.RayTaskError("train", "Traceback ...", lost)
    assert classify(through) == classify(through.as_instanceof_cause()) == "preempted"
    assert classify(errors.ActorDiedError()) == "preempted"
    assert classify(errors.RayTaskError("train", "...", errors.NodeDiedError("x"))) == "preempted"
    assert classify(HostLost("no answer")) == "preempted"
    broken = errors.RayTaskError("train", "Traceback ...", ValueError("a corrupt image"))
    assert classify(broken.as_instanceof_cause()) == "broken"
