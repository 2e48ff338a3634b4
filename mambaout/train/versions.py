"""Checks that torch, torch_xla and libtpu fit together, before any of them is started.

torch_xla is built against one torch. Another torch fails late and with unclear errors (undefined
symbols), or runs on the CPU instead, so it is refused. Another libtpu may work, and on a TPU v3 the
one that torch_xla asks for may not (jax-ml/jax#30834), so it is only warned of.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from mambaout.errors import WrongRequest

# The same as in the tpu extra of pyproject.toml; tests/train/test_doctor.py checks that they agree.
# libtpu: torch_xla 2.9.0's own metadata (Requires-Dist of its tpu extra).
TOGETHER = {"torch": "2.9.0", "torch_xla": "2.9.0", "libtpu": "0.0.21"}
LIBTPU_PYTHON = (3, 12)  # the newest Python that this libtpu has a package for
INSTALL = "pip install -c constraints.txt '.[tpu]'"
LIBTPU_VARIABLE = "MAMBAOUT_LIBTPU"  # the version of another libtpu that is meant; also of setup.sh

log = logging.getLogger(__name__)


def installed() -> dict[str, str | None]:
    """The installed versions; None for a package that is not installed."""
    found: dict[str, str | None] = {}
    for name in TOGETHER:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def misfits(found: Mapping[str, str | None], runtime: str | None) -> list[str]:
    """The faults of the versions `found` with which XLA cannot run on `runtime`, with the remedy.

    `runtime` is the value of PJRT_DEVICE. CPU needs no libtpu. Another libtpu is no fault here, see
    `doubts`.
    """
    wanted = dict(TOGETHER)
    if runtime == "CPU":
        del wanted["libtpu"]
    said = []
    for name, version_ in wanted.items():
        there = found.get(name)
        if there is None:
            without = " (without it torch_xla takes the CPU)" if name == "libtpu" else ""
            said.append(f"{name} {version_} is missing{without}: {INSTALL}")
        elif name != "libtpu" and _release(there) != version_:
            others = " and ".join(f"{n} {v}" for n, v in wanted.items() if n != name)
            said.append(f"{name} {there} does not go with {others}, {version_} does: {INSTALL}")
    if said and runtime != "CPU" and sys.version_info[:2] > LIBTPU_PYTHON:
        said[-1] += "; libtpu {} needs Python {}.{} or older".format(
            wanted["libtpu"], *LIBTPU_PYTHON
        )
    if said and runtime != "CPU" and set(wanted) - {"libtpu"} <= {n for n in found if found[n]}:
        said[-1] += "; to try XLA without a TPU set PJRT_DEVICE=CPU"
    return said


def doubts(found: Mapping[str, str | None], runtime: str | None) -> list[str]:
    """What is not the tested set but may run: another libtpu, unless MAMBAOUT_LIBTPU names it."""
    wanted, there = TOGETHER["libtpu"], found.get("libtpu")
    if runtime == "CPU" or there is None or _release(there) == wanted:
        return []
    if os.environ.get(LIBTPU_VARIABLE) == there:
        return []
    return [
        f"libtpu {there} is not the {wanted} that torch_xla {TOGETHER['torch_xla']} asks for; set "
        f"{LIBTPU_VARIABLE}={there} if it is meant, or: {INSTALL}"
    ]


def require(runtime: str | None) -> None:
    """Raise WrongRequest if XLA cannot run on `runtime` with the installed versions.

    Warns if they are not the tested set.
    """
    found = installed()
    if said := misfits(found, runtime):
        raise WrongRequest("; ".join(said))
    for text in doubts(found, runtime):
        log.warning("%s", text)


def _release(version_: str) -> str:
    return version_.split("+")[0]  # 2.9.0+cpu is one of the builds of 2.9.0
