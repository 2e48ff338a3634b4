"""The rules for a SkyPilot file: one TPU host that runs the doctor and then a study.

SkyPilot itself is not a dependency, so its own schema is not looked at; `sky launch --dryrun` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mambaout.launch.files.launcher_file import (
    LOOPBACK,
    OPEN_HOST,
    RUNTIME_VERSION,
    TPU_CORES_OF,
    ZONES,
    unpinned,
)

KIND = "v3-8"  # SkyPilot runs a command on each host of a slice, but makes no Ray cluster of them
# The fields of a task, from SkyPilot's page; `sky launch --dryrun` has the last word.
FIELDS = (
    "name",
    "workdir",
    "num_nodes",
    "resources",
    "envs",
    "secrets",
    "volumes",
    "file_mounts",
    "setup",
    "run",
    "config",
)


def is_sky(document: Mapping[str, Any]) -> bool:
    return "resources" in document and bool({"run", "setup"} & set(document))


def check_sky(task: Mapping[str, Any], quota_cores: int | None = None) -> list[str]:
    """The findings. `quota_cores` as in `check_launcher`."""
    found = [
        f"{name}: SkyPilot knows no such field of a task; it knows {', '.join(FIELDS)}"
        for name in task
        if name not in FIELDS
    ]
    resources = task.get("resources")
    if not isinstance(resources, Mapping):
        return [*found, f"resources: {resources!r}; say which TPU, see cluster/sky-tpu-v3-8.yaml"]
    found += _resources(resources)
    if task.get("num_nodes", 1) != 1:
        found.append(
            f"num_nodes: {task['num_nodes']}; each host would run the study by itself; leave it "
            "out, or take `ray up` for several hosts"
        )
    if quota_cores is not None and quota_cores < TPU_CORES_OF[KIND]:
        found.append(
            f"resources.accelerators: a {KIND} has {TPU_CORES_OF[KIND]} cores, and the quota is "
            f"{quota_cores}; ask for more quota"
        )
    return found + list(_commands(task))


def _resources(resources: Mapping[str, Any]) -> Iterator[str]:
    accelerators = resources.get("accelerators")
    if accelerators not in (f"tpu-{KIND}", f"tpu-{KIND}:1"):
        yield (
            f"resources.accelerators: {accelerators}; one host is tpu-{KIND}; a slice is made by "
            "cluster/slice.sh"
        )
    arguments = resources.get("accelerator_args")
    version = arguments.get("runtime_version") if isinstance(arguments, Mapping) else None
    if version != RUNTIME_VERSION:
        yield (
            f"resources.accelerator_args.runtime_version: {version}; for PyTorch on TPU v3 it is "
            f"{RUNTIME_VERSION}, and SkyPilot's default is another"
        )
    infra = str(resources.get("infra"))
    cloud, *place = infra.split("/")
    if cloud != "gcp":
        yield f"resources.infra: {infra}; TPUs are Google's; write gcp"
    if len(place) == 2 and place[1] != "*" and place[1] not in ZONES[KIND]:
        yield f"resources.infra: {infra} has no {KIND}; choose one of {', '.join(ZONES[KIND])}"
    if resources.get("ports"):
        yield (
            f"resources.ports: {resources['ports']} opens the host to the network; leave it out "
            "and use a tunnel (ssh -L)"
        )


def _commands(task: Mapping[str, Any]) -> Iterator[str]:
    setup, run = str(task.get("setup") or ""), str(task.get("run") or "")
    if "setup.sh tpu" not in setup:
        yield "setup: no `setup.sh tpu`, so the host gets no torch_xla; add it"
    for name, text in (("setup", setup), ("run", run)):
        for found in unpinned(text):
            yield (
                f"{name}: `{found}` installs what is newest that day; put it into constraints.txt "
                "and install with cluster/setup.sh"
            )
        for option, host in OPEN_HOST.findall(text):
            if host not in LOOPBACK:
                yield (
                    f"{name}: --{option}={host} opens a page without a password to the network; "
                    "use 127.0.0.1 and a tunnel (ssh -L)"
                )
    envs = task.get("envs")
    values = " ".join(map(str, envs.values())) if isinstance(envs, Mapping) else ""
    study = f"{run} {values}"
    if "doctor --backend xla" not in run:
        yield "run: no `mambaout doctor --backend xla` first; a TPU that does not start is paid too"
    asked = re.findall(r"--accelerator[= ](\S+)", study)
    if not asked or any(not each.startswith(f"tpu-{KIND}") for each in asked):
        yield (
            f"run: --accelerator {' '.join(asked) or '(none)'}; the host is a {KIND}; give "
            f"tpu-{KIND} or tpu-{KIND}-chip"
        )
    mounts = task.get("file_mounts")
    for path in mounts if isinstance(mounts, Mapping) else ():
        for storage in re.findall(r"--storage[= ](\S+)", study):
            if storage.rstrip("/") == str(path).rstrip("/") or storage.startswith(f"{path}/"):
                yield (
                    f"run: --storage {storage} is in the mount {path}; a bucket mounted as a "
                    "folder has no locks; give a folder of the host, and copy it to the bucket"
                )
