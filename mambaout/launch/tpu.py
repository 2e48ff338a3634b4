"""What a process needs on a TPU host before torch_xla starts: environment and lock."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mambaout.errors import WrongRequest
from mambaout.launch.resources import CHIPS_PER_HOST, CORES_PER_CHIP, WORKER_ID

if TYPE_CHECKING:
    from mambaout.train.backend import Backend

# libtpu lets only one process have a host's chips. When that process dies, the lock ends but the
# file stays. If the file belongs to another user, libtpu cannot open it and says that the TPU is in
# use.
LOCK = Path("/tmp/libtpu_lockfile")
LOCK_VARIABLE = "MAMBAOUT_LIBTPU_LOCK"  # the path of that file, for tests
PREDECESSOR_SECONDS = 30.0  # longest time until a killed worker has freed its chips
NUMBER_VARIABLE = "TPU_WORKER_ID"
VISIBLE = "TPU_VISIBLE_CHIPS"
# libtpu's names for the layout of a process's chips and of the processes. Then the older names,
# which Ray and GKE set.
BOUNDS = (
    "TPU_CHIPS_PER_PROCESS_BOUNDS",
    "TPU_PROCESS_BOUNDS",
    "TPU_CHIPS_PER_HOST_BOUNDS",
    "TPU_HOST_BOUNDS",
)
ONE_CHIP = "1,1,1"
# The first of four ports, one a chip, of each of libtpu's services. With libtpu's defaults every
# process of a host would open 8471 and 8431, and the second one would fail. The address names the
# port under which libtpu looks for its own process.
PROCESS_PORT, CONTROLLER_PORT, METRICS_PORT = 8471, 8476, 8431


def environment(
    num_chips: int, chip_ids: Sequence[str], env: Mapping[str, str], before: Mapping[str, str]
) -> dict[str, str | None]:
    """The variables that a worker with `num_chips` chips must set, or unset (None).

    `env` applies unless the machine sets other values. If the worker has the whole host, no
    variable may restrict the chips. Ray lists all four if it did not count them itself, and libtpu
    would take that list for a part of the host. If it has one chip, it gets ports of its own, so
    that four such workers fit on a host.
    """
    found: dict[str, str | None] = {
        name: value for name, value in env.items() if name not in before
    }
    if num_chips < CHIPS_PER_HOST:
        if len(chip_ids) != 1 or num_chips != 1:
            raise WrongRequest(f"a trial takes one chip or {CHIPS_PER_HOST}, not {list(chip_ids)}")
        chip = chip_ids[0]
        return found | {VISIBLE: chip} | dict.fromkeys(BOUNDS, ONE_CHIP) | ports(int(chip))
    unset = [VISIBLE]
    # The process had one chip before, and the value remained. A machine's own value for a host is
    # larger.
    for chips, processes in (BOUNDS[:2], BOUNDS[2:]):
        if before.get(chips) == ONE_CHIP:
            unset += [chips, processes]
    for chip in range(CHIPS_PER_HOST):
        unset += [name for name, value in ports(chip).items() if before.get(name) == value]
    return found | dict.fromkeys((name for name in unset if name in before), None)


def ports(chip: int) -> dict[str, str]:
    """libtpu's variables for the ports of a process that has only this chip of its host."""
    process, controller = PROCESS_PORT + chip, CONTROLLER_PORT + chip
    return {
        "TPU_PROCESS_PORT": str(process),
        "TPU_PROCESS_ADDRESSES": f"localhost:{process}",
        "TPU_MESH_CONTROLLER_ADDRESS": f"localhost:{controller}",
        "TPU_MESH_CONTROLLER_PORT": str(controller),
        "TPU_RUNTIME_METRICS_PORTS": str(METRICS_PORT + chip),
    }


def prepare(num_chips: int, env: Mapping[str, str]) -> None:
    """Prepare this Ray worker for torch_xla on its chips."""
    import ray

    ids = ray.get_runtime_context().get_accelerator_ids().get("TPU", [])
    for name, value in environment(num_chips, ids, env, os.environ).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    clear_stale_lock(Path(os.environ.get(LOCK_VARIABLE, LOCK)))


def clear_stale_lock(path: Path = LOCK, wait_seconds: float = PREDECESSOR_SECONDS) -> None:
    """Remove libtpu's lock file if no running process holds it.

    If a process still holds it after `wait_seconds`, the file stays and libtpu names the process.
    """
    deadline = time.monotonic() + wait_seconds
    # If this process has locked the file, opening and closing it here would unlock it.
    while path.exists() and not _is_open_here(path):
        try:
            if _removed(path) or time.monotonic() >= deadline:
                return
        except PermissionError as error:
            raise RuntimeError(
                f"{path} belongs to {path.owner()} and keeps the TPU from being opened; on this "
                f"host run: sudo rm {path}"
            ) from error
        time.sleep(0.2)


def _is_open_here(path: Path) -> bool:
    own = path.stat()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found = descriptor.stat()
        except OSError:  # closed by now, like that of this listing
            continue
        if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
            return True
    return False


def _removed(path: Path) -> bool:
    """Remove the file if no process holds it. Returns whether it is gone."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the same lock as libtpu's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def host_number() -> int:
    """The number that this machine has in its slice, from its environment or Ray's label.

    It tells the hosts of a slice apart before torch_xla starts. It is not the rank: the rank is the
    process index that the runtime gives (`Backend.host`), and the two can differ.
    """
    import ray

    labels = ray.get_runtime_context().get_node_labels()
    text = os.environ.get(NUMBER_VARIABLE) or str(labels.get(WORKER_ID, ""))
    if not text.isdecimal():
        raise RuntimeError(
            f"this host does not say which one of its slice it is ({NUMBER_VARIABLE}={text!r}); "
            f"set {NUMBER_VARIABLE}, or the label {WORKER_ID}, before `ray start`"
        )
    return int(text)


def check_devices(num_chips: int, num_hosts: int, where: Backend) -> None:
    """Raise RuntimeError if the runtime has other devices than the trial should have.

    Otherwise four hosts that do not know each other would each train the whole batch into one
    directory. The runtime numbers the processes itself, so with the right number of hosts the ranks
    are 0 to `num_hosts` - 1, each once.
    """
    wanted = [("hosts", num_hosts, where.num_hosts)]
    if where.device_name.startswith("TPU"):  # there are always as many virtual devices as asked for
        wanted.append(("devices", CORES_PER_CHIP * num_chips * num_hosts, where.num_devices))
    for what, own, found in wanted:
        if own != found:
            raise RuntimeError(
                f"{what}: the trial has {own}, the TPU runtime says {found}; look at "
                f"TPU_WORKER_ID, TPU_WORKER_HOSTNAMES, {', '.join((VISIBLE, *BOUNDS))} on this host"
            )
