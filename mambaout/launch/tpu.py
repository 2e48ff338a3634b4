"""What a process must find on a TPU host before torch_xla starts: environment, lock, rank."""

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

# libtpu lets one process have a host's chips. The file stays when that process dies, its lock does
# not; but where the file is another user's, libtpu cannot open it and says that the TPU is in use.
LOCK = Path("/tmp/libtpu_lockfile")
LOCK_VARIABLE = "MAMBAOUT_LIBTPU_LOCK"  # for tests: where that file is
PREDECESSOR_SECONDS = 30.0  # that a killed worker may take to let go of its chips
RANK_VARIABLE = "TPU_WORKER_ID"
VISIBLE = "TPU_VISIBLE_CHIPS"
# libtpu's names for the layout of a process's chips, and of the processes; then the older names,
# which Ray and GKE set.
BOUNDS = (
    "TPU_CHIPS_PER_PROCESS_BOUNDS",
    "TPU_PROCESS_BOUNDS",
    "TPU_CHIPS_PER_HOST_BOUNDS",
    "TPU_HOST_BOUNDS",
)
ONE_CHIP = "1,1,1"


def environment(
    num_chips: int, chip_ids: Sequence[str], env: Mapping[str, str], before: Mapping[str, str]
) -> dict[str, str | None]:
    """What a worker with so many chips of its host sets, and (None) unsets, given what is set.

    `env` holds unless the machine says otherwise. With the whole host nothing hides a chip: Ray
    names all four where it did not count them itself, which libtpu takes for a part.
    """
    found: dict[str, str | None] = {
        name: value for name, value in env.items() if name not in before
    }
    if num_chips < CHIPS_PER_HOST:
        if len(chip_ids) != 1 or num_chips != 1:
            raise WrongRequest(f"a trial takes one chip or {CHIPS_PER_HOST}, not {list(chip_ids)}")
        return found | {VISIBLE: chip_ids[0]} | dict.fromkeys(BOUNDS, ONE_CHIP)
    unset = [VISIBLE]
    # Left in a process that had one chip before; a machine's own bounds of a host are larger.
    for chips, processes in (BOUNDS[:2], BOUNDS[2:]):
        if before.get(chips) == ONE_CHIP:
            unset += [chips, processes]
    return found | dict.fromkeys((name for name in unset if name in before), None)


def prepare(num_chips: int, env: Mapping[str, str]) -> None:
    """Make this Ray worker ready for torch_xla on its chips."""
    import ray

    ids = ray.get_runtime_context().get_accelerator_ids().get("TPU", [])
    for name, value in environment(num_chips, ids, env, os.environ).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    clear_stale_lock(Path(os.environ.get(LOCK_VARIABLE, LOCK)))


def clear_stale_lock(path: Path = LOCK, wait_seconds: float = PREDECESSOR_SECONDS) -> None:
    """Remove libtpu's lock file where no living process holds it.

    Where one still does after so long, the file stays and libtpu says who it is.
    """
    deadline = time.monotonic() + wait_seconds
    # Looking at a file that this process has locked would unlock it: closing it once is enough.
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
        except OSError:  # closed by now: that of this very listing, for one
            continue
        if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
            return True
    return False


def _removed(path: Path) -> bool:
    """Whether the file was nobody's, and is gone."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # what libtpu takes
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def host_rank() -> int:
    """This host's place in its slice, put into the environment for torch_xla to find.

    It is the machine's own: the bundles of a placement group come in any order.
    """
    import ray

    labels = ray.get_runtime_context().get_node_labels()
    text = os.environ.get(RANK_VARIABLE) or str(labels.get(WORKER_ID, ""))
    if not text.isdecimal():
        raise RuntimeError(
            f"this host does not say which one of its slice it is ({RANK_VARIABLE}={text!r}); "
            f"set {RANK_VARIABLE}, or the label {WORKER_ID}, before `ray start`"
        )
    os.environ[RANK_VARIABLE] = text
    return int(text)


def check_devices(num_chips: int, num_hosts: int, where: Backend) -> None:
    """RuntimeError where the runtime has come up with other devices than the trial holds.

    Four hosts that do not know of each other would each train the whole batch into one directory.
    """
    wanted = [("hosts", num_hosts, where.num_hosts)]
    if where.device_name.startswith("TPU"):  # virtual devices are as many as were asked for
        wanted.append(("devices", CORES_PER_CHIP * num_chips * num_hosts, where.num_devices))
        if num_hosts > 1:
            wanted.append(("this host's rank", host_rank(), where.host))
    for what, own, found in wanted:
        if own != found:
            raise RuntimeError(
                f"{what}: the trial has {own}, the TPU runtime says {found}; look at "
                f"TPU_WORKER_ID, TPU_WORKER_HOSTNAMES, {', '.join((VISIBLE, *BOUNDS))} on this host"
            )
