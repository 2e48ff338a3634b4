"""Checks that torch, torch_xla and libtpu fit together, before any of them is started.

torch_xla is built against one torch and works with one libtpu. Other versions fail late and with
unclear errors (undefined symbols, a TPU that is "not found"), or run on the CPU instead.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from mambaout.errors import WrongRequest

# The same as in the tpu extra of pyproject.toml; tests/train/test_doctor.py checks that they agree.
# libtpu: torch_xla 2.9.0's own metadata (Requires-Dist of its tpu extra).
TOGETHER = {"torch": "2.9.0", "torch_xla": "2.9.0", "libtpu": "0.0.21"}
LIBTPU_PYTHON = (3, 12)  # the newest Python that this libtpu has a package for
INSTALL = "pip install -c constraints.txt '.[tpu]'"


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
    """The faults of the versions `found` for XLA on `runtime`, each with the remedy.

    `runtime` is the value of PJRT_DEVICE. CPU needs no libtpu.
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
        elif there.split("+")[0] != version_:  # 2.9.0+cpu is one of the builds of 2.9.0
            others = " and ".join(f"{n} {v}" for n, v in wanted.items() if n != name)
            said.append(f"{name} {there} does not go with {others}, {version_} does: {INSTALL}")
    if said and runtime != "CPU" and sys.version_info[:2] > LIBTPU_PYTHON:
        said[-1] += "; libtpu {} needs Python {}.{} or older".format(
            wanted["libtpu"], *LIBTPU_PYTHON
        )
    if said and runtime != "CPU" and set(wanted) - {"libtpu"} <= {n for n in found if found[n]}:
        said[-1] += "; to try XLA without a TPU set PJRT_DEVICE=CPU"
    return said


def require(runtime: str | None) -> None:
    """Raise ValueError if the installed versions do not fit together for XLA on `runtime`."""
    if said := misfits(installed(), runtime):
        raise WrongRequest("; ".join(said))
