"""The rules for a file of Ray's cluster launcher (`ray up`): GCP and your own machines."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from mambaout.launch.resources import CHIPS_PER_HOST, POD_TYPE, SLICE_NAME, WORKER_ID

TPU_CORES_OF = {"v3-8": 8, "v3-32": 32}  # over all hosts
TPU_TYPES = tuple(TPU_CORES_OF)
RUNTIME_VERSION = "tpu-ubuntu2204-base"  # Google's version for PyTorch on v4 and older
# docs.cloud.google.com/tpu/docs/regions-zones and Google's price list, 2026-11-22.
ZONES = {
    "v3-8": ("us-central1-a", "us-central1-b", "us-central1-f", "europe-west4-a", "us-east1-d"),
    "v3-32": ("europe-west4-a", "us-east1-d"),
}
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
GPU_MACHINES = ("g2-", "a2-", "a3-", "a4-", "g4-")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
START_TIMEOUT = "RAY_JOB_START_TIMEOUT_SECONDS"
LEAST_START_SECONDS = 3600  # a TPU is made in 8 minutes at best, and spot ones are not always there
LAUNCH_BATCH = "AUTOSCALER_MAX_LAUNCH_BATCH"
OPEN_HOST = re.compile(r"--(dashboard-host|host)[= ](\S+)")


def google_packages() -> bool:
    """Whether Ray's GCP provider can be used here. It needs Google's client."""
    return find_spec("googleapiclient") is not None


def check_launcher(config: Mapping[str, Any], quota_cores: int | None = None) -> list[str]:
    """The findings of Ray's own validator and of the rules.

    `quota_cores` are the TPU cores that the project may use at once; None: not checked.
    """
    found = list(_schema(config))
    if found:
        return found  # the rest would fail on the same fields
    provider = config["provider"]["type"]
    if provider not in ("gcp", "local"):
        return [
            f"provider.type: {provider}; the rules here know gcp and local (machines of your own), "
            "so nothing but Ray's own schema has been looked at"
        ]
    found += _commands(config)
    if provider == "gcp":
        found += _gcp(config)
        if quota_cores is not None:
            found += _quota(config, quota_cores)
    return found + _ray(config)


# -- Ray's view ------------------------------------------------------------------------------------


def _schema(config: Mapping[str, Any]) -> Iterator[str]:
    import ray.autoscaler
    from jsonschema import Draft7Validator

    text = Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text()
    schema = json.loads(text)
    # Ray's own schema says only "an object" for a node. The rules check its content.
    kinds = schema["properties"]["available_node_types"]["patternProperties"][".*"]
    kinds["properties"]["node_config"]["properties"] = {
        "disks": {"type": "array", "items": {"type": "object"}},
        "scheduling": {"type": ["object", "array"], "items": {"type": "object"}},
        "schedulingConfig": {"type": "object"},
        "acceleratorType": {"type": "string"},
    }
    for error in Draft7Validator(schema).iter_errors(dict(config)):
        field = ".".join(map(str, error.absolute_path)) or "the file"
        yield f"{field}: {error.message}; Ray's schema of a launcher file refuses it"


def _ray(config: Mapping[str, Any]) -> list[str]:
    """Ray's errors after it has filled in its defaults, which is the first step of `ray up`."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    level, logger = logging.CRITICAL, logging.getLogger("ray.autoscaler")
    before = logger.level
    logger.setLevel(level)  # it warns about every TPU pod; cluster/README.md does too
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            prepared = prepare_config(deepcopy(dict(config)))
            validate_config(prepared)
            if config["provider"]["type"] == "gcp" and google_packages():
                from ray.autoscaler._private.gcp.config import get_node_type

                for node_type in prepared["available_node_types"].values():
                    get_node_type(node_type["node_config"])
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return [f"Ray refuses the file: {text}"]
    finally:
        logger.setLevel(before)
    return []


# -- commands --------------------------------------------------------------------------------------


def _commands(config: Mapping[str, Any]) -> Iterator[str]:
    groups = {name: config[name] for name in config if name.endswith("_commands")}
    for role in ("head", "worker"):
        name = f"{role}_start_ray_commands"
        starts = [line for line in groups.get(name) or () if "ray start" in line]
        if not starts:
            yield (
                f"{name}: no `ray start`; Ray's default opens the dashboard to the network and "
                "asks for no token; write the commands out as in cluster/"
            )
        for line in starts:
            if "RAY_AUTH_MODE=token" not in line:
                yield (
                    f"{name}: `ray start` without RAY_AUTH_MODE=token lets whoever reaches port "
                    "6379 run code; export it in the same command"
                )
    for name, lines in groups.items():
        for line in lines or ():
            for option, host in OPEN_HOST.findall(line):
                if host not in LOOPBACK:
                    yield (
                        f"{name}: --{option}={host} opens a page without a password to the "
                        "network; use 127.0.0.1 and a tunnel (ray dashboard FILE, ssh -L)"
                    )
            for words in unpinned(line):
                yield (
                    f"{name}: `{words}` installs what is newest that day; put it into "
                    "constraints.txt and install with cluster/setup.sh"
                )
    if config["provider"]["type"] == "local":
        for line in groups.get("head_start_ray_commands") or ():
            if "ray start" in line and "--num-cpus=0" not in line:
                yield (
                    "head_start_ray_commands: the head offers its cores to trials, and one that "
                    "fills its memory ends the study; add --num-cpus=0 --num-gpus=0"
                )


def _waiting(config: Mapping[str, Any]) -> Iterator[str]:
    """How long a job waits for a host that is not up yet. The head's Ray counts, not the job."""
    for line in config.get("head_start_ray_commands") or ():
        if "ray start" not in line:
            continue
        found = re.search(rf"{START_TIMEOUT}=(\d+)", line)
        seconds = int(found[1]) if found else None
        if seconds is None or seconds < LEAST_START_SECONDS:
            yield (
                f"head_start_ray_commands: {START_TIMEOUT} is {seconds}, and Ray fails a job that "
                f"waits longer for its host (15 minutes by default); export {START_TIMEOUT}=86400 "
                "in the command of `ray start`"
            )


def _one_by_one(config: Mapping[str, Any]) -> Iterator[str]:
    """Whether spot hosts are asked for one by one. In a batch one refusal fails all."""
    types = config.get("available_node_types") or {}
    most = max((kind.get("max_workers", 0) for kind in types.values()), default=0)
    if most < 2 or not any(_is_spot(kind["node_config"]) for kind in types.values()):
        return
    remedy = "one spot host that Google refuses would fail its whole batch; set"
    if config.get("upscaling_speed", 1) > 1:
        yield f"upscaling_speed: {config['upscaling_speed']}; {remedy} 1"
    for line in config.get("head_start_ray_commands") or ():
        if "ray start" in line and f"{LAUNCH_BATCH}=1" not in line.split():
            yield f"head_start_ray_commands: no {LAUNCH_BATCH}=1 for `ray start`; {remedy} it"


def unpinned(line: str) -> Iterator[str]:
    """The commands of `line` that install a package at no given version."""
    for words in re.findall(r"pip3? install [^&|;]*", line):
        if "--constraint" not in words and " -c " not in words:
            names = [word for word in words.split()[2:] if not word.startswith("-")]
            if not all("==" in name for name in names):
                yield words.strip()


# -- GCP -------------------------------------------------------------------------------------------


def _gcp(config: Mapping[str, Any]) -> Iterator[str]:
    node_types = config.get("available_node_types") or {}
    head_name = config.get("head_node_type")
    yield from _place(config)
    yield from _waiting(config)
    yield from _one_by_one(config)
    for name, node_type in node_types.items():
        where, node = f"available_node_types.{name}", node_type["node_config"]
        if name == head_name:
            yield from _head(where, node_type)
            continue
        if node_type.get("max_workers") == 0 or not config.get("max_workers", 2):
            yield f"{where}.max_workers: 0; no such host can ever start; give at least 1"
        if "acceleratorConfig" in node:
            yield (
                f"{where}.node_config.acceleratorConfig: {node['acceleratorConfig']}; Google takes "
                "it for v4 and newer; write acceleratorType: v3-8"
            )
        elif "acceleratorType" in node:
            yield from _tpu(where, node_type, config)
        else:
            yield from _compute(where, node_type)
        if "acceleratorConfig" not in node:
            yield from _account(where, node, config)


def _place(config: Mapping[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    region, zone = str(provider.get("region")), str(provider.get("availability_zone"))
    project = provider.get("project_id")
    if not project:
        yield f"provider.project_id: {project}; Ray stops there; give your project's id"
    if not zone.startswith(f"{region}-"):
        yield f"provider.availability_zone: {zone} is not in region {region}; make them agree"
    for name, node_type in (config.get("available_node_types") or {}).items():
        for disk in node_type["node_config"].get("disks") or ():
            found = re.match(r"projects/([^/]+)/zones/([^/]+)/", str(disk.get("source", "")))
            if found and found.groups() != (project, zone):
                yield (
                    f"available_node_types.{name}.node_config.disks: {disk['source']} is not of "
                    f"project {project} and zone {zone}; a disk and its host share both"
                )


def _head(where: str, head: Mapping[str, Any]) -> Iterator[str]:
    node, cpus = head["node_config"], head["resources"].get("CPU")
    if cpus != 0:
        yield (
            f"{where}.resources.CPU: {cpus}; trials would run on the head, and one that fills its "
            "memory takes the driver and MLflow with it; set 0"
        )
    if head.get("min_workers") or head.get("max_workers"):
        yield f"{where}.max_workers: the head's type also as a worker; leave it out"
    if _is_spot(node):
        yield (
            f"{where}.node_config: the head is spot, and with it go the driver, the shared folder "
            "and MLflow; make it on demand"
        )
    if "acceleratorType" in node:
        yield (
            f"{where}.node_config.acceleratorType: {node['acceleratorType']}; a head trains "
            "nothing and would hold a TPU for nothing; give it a machineType"
        )


def _tpu(where: str, node_type: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    node, labels = node_type["node_config"], node_type.get("labels") or {}
    kind = node["acceleratorType"]
    if kind not in TPU_TYPES:
        hint = "torch_xla has no layout for its two hosts; " if kind == "v3-16" else ""
        yield f"{where}.node_config.acceleratorType: {kind}; {hint}choose {' or '.join(TPU_TYPES)}"
        return
    version = node.get("runtimeVersion")
    if version != RUNTIME_VERSION:
        yield (
            f"{where}.node_config.runtimeVersion: {version}; for PyTorch on TPU v3 it is "
            f"{RUNTIME_VERSION}"
        )
    chips = node_type["resources"].get("TPU")
    if chips != CHIPS_PER_HOST:
        yield (
            f"{where}.resources.TPU: {chips}; a host of TPU v3 has {CHIPS_PER_HOST} chips, also in "
            f"a slice, and trials ask for as many; set {CHIPS_PER_HOST}"
        )
    if not node_type["resources"].get("CPU"):
        yield f"{where}.resources.CPU: trials also ask for cores to load images with; set 96"
    if labels.get(POD_TYPE) != kind:
        yield (
            f"{where}.labels: {POD_TYPE} is {labels.get(POD_TYPE)}; trials ask for hosts by it, "
            f"and none would start; set {POD_TYPE}: {kind}"
        )
    for label in (SLICE_NAME, WORKER_ID):
        if label in labels:
            yield (
                f"{where}.labels: {label}: {labels[label]} would be the same on every host of "
                "this type; leave it out, Ray reads it on the host"
            )
    zone = config["provider"].get("availability_zone")
    if zone not in ZONES[kind]:
        yield (
            f"provider.availability_zone: {zone} has no {kind}; choose one of "
            f"{', '.join(ZONES[kind])}"
        )
    least, most = node_type.get("min_workers", 0), node_type.get("max_workers")
    if kind == "v3-32" and (least != most or not least):
        yield (
            f"{where}.min_workers: {least}, max_workers: {most}; Ray cannot autoscale slices of "
            "several hosts; give both the number of slices"
        )
    setups = [line for line in config.get("worker_setup_commands") or () if "setup.sh" in line]
    setups = node_type.get("worker_setup_commands", setups)
    if not any("setup.sh tpu" in line for line in setups):
        yield (
            f"{where}: no `setup.sh tpu` among the worker_setup_commands, so the host gets no "
            "torch_xla; add it"
        )


def _quota(config: Mapping[str, Any], quota_cores: int) -> Iterator[str]:
    types = config.get("available_node_types") or {}
    tpus = {name: kind for name, kind in types.items() if _tpu_cores(kind["node_config"])}
    most = config.get("max_workers", 2)
    for name, kind in tpus.items():
        number = min(kind.get("max_workers", most), most)
        cores = _tpu_cores(kind["node_config"])
        if number * cores > quota_cores:
            yield (
                f"available_node_types.{name}.max_workers: {number} of {cores} cores are "
                f"{number * cores}, and the quota is {quota_cores}; set at most "
                f"{quota_cores // cores}, or ask for more quota"
            )


def _tpu_cores(node: Mapping[str, Any]) -> int:
    """The cores of a TPU, over all its hosts; 0 for a machine without one."""
    return TPU_CORES_OF.get(str(node.get("acceleratorType")), 0)


def _compute(where: str, node_type: Mapping[str, Any]) -> Iterator[str]:
    node = node_type["node_config"]
    machine = str(node.get("machineType"))
    gpus = bool(node.get("guestAccelerators")) or machine.startswith(GPU_MACHINES)
    scheduling = _scheduling(node)
    if gpus and not node_type["resources"].get("GPU"):
        yield (
            f"{where}.resources.GPU: {node_type['resources'].get('GPU')}; a {machine} would never "
            "be started for a trial that asks for a GPU; say how many it has"
        )
    if gpus and scheduling.get("onHostMaintenance") != "TERMINATE":
        yield (
            f"{where}.node_config.scheduling.onHostMaintenance: "
            f"{scheduling.get('onHostMaintenance')}; Google refuses a machine with a GPU without "
            "TERMINATE"
        )
    if _is_spot(node) and scheduling.get("automaticRestart") is not False:
        yield (
            f"{where}.node_config.scheduling.automaticRestart: "
            f"{scheduling.get('automaticRestart')}; Google restarts no spot machine and refuses "
            "to promise it; set false, Ray starts a new one"
        )


def _account(where: str, node: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """The account of a worker. Ray gives one to the head alone, and data are read by workers."""
    project = config["provider"].get("project_id")
    is_tpu = "acceleratorType" in node
    field, scopes = ("serviceAccount", "scope") if is_tpu else ("serviceAccounts", "scopes")
    given = node.get(field)
    accounts = [given] if isinstance(given, Mapping) else given if isinstance(given, list) else []
    email = f"ray-autoscaler-sa-v1@{project}.iam.gserviceaccount.com"
    if is_tpu and "serviceAccounts" in node:
        yield (
            f"{where}.node_config.serviceAccounts: Ray rewrites it for the first TPU host of a "
            "batch and fails at the second; write serviceAccount with email and scope"
        )
    elif not accounts or not isinstance(accounts[0], Mapping):
        yield (
            f"{where}.node_config.{field}: {given}; the host could not read gs://; give email: "
            f"{email} and {scopes}: [{CLOUD_PLATFORM}]"
        )
    else:
        account = accounts[0]
        if CLOUD_PLATFORM not in (account.get(scopes) or ()):
            yield (
                f"{where}.node_config.{field}.{scopes}: {account.get(scopes)}; without "
                f"{CLOUD_PLATFORM} the account's rights do not count on the host; set it"
            )
        own = re.fullmatch(r"[^@]+@([^.]+)\.iam\.gserviceaccount\.com", str(account.get("email")))
        if own and own[1] != project:
            yield (
                f"{where}.node_config.{field}.email: {account['email']} is not of project "
                f"{project}; give {email}"
            )


def _scheduling(node: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduling of a machine. Ray's samples write it as a list of one."""
    found = node.get("scheduling") or {}
    parts = found if isinstance(found, list) else [found]
    return {name: value for part in parts for name, value in part.items()}


def _is_spot(node: Mapping[str, Any]) -> bool:
    known = _scheduling(node) | (node.get("schedulingConfig") or {})
    return bool(
        known.get("preemptible") or known.get("spot") or known.get("provisioningModel") == "SPOT"
    )
