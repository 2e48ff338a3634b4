"""The rules of KubeRay's resources, RayCluster and RayJob, on GKE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import yaml

from mambaout.launch.files.job_file import check_runtime_env
from mambaout.launch.files.launcher_file import LOOPBACK
from mambaout.launch.resources import CHIPS_PER_HOST, POD_TYPE, SLICE_NAME

KINDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
ACCELERATOR, TOPOLOGY, SPOT = (
    f"cloud.google.com/gke-{name}" for name in ("tpu-accelerator", "tpu-topology", "spot")
)
TPU = "google.com/tpu"
# GKE's names for the two TPUs of `--accelerator`: a single host, and a slice of four hosts.
TPUS = {("tpu-v3-device", "2x2"): "v3-8", ("tpu-v3-slice", "4x4"): "v3-32"}


def check_resource(resource: Mapping[str, Any], schemas: Path | None) -> list[str]:
    """The findings of KubeRay's definition, if available, and of the rules."""
    found = list(_schema(resource, schemas))
    if found:
        return found  # the rest would fail on the same fields
    spec = resource.get("spec")
    if not isinstance(spec, Mapping):
        return [f"spec: {spec!r}; a {resource['kind']} is described there; see cluster/"]
    if resource["kind"] == "RayCluster":
        return list(_cluster(spec, "spec"))
    return list(_job(spec))


# -- KubeRay's view --------------------------------------------------------------------------------


def definition(kind: str, schemas: Path | None) -> Path | None:
    """KubeRay's own description of the kind, if the folder has it."""
    path = schemas / KINDS[kind] if schemas else None
    return path if path and path.exists() else None


def _schema(resource: Mapping[str, Any], schemas: Path | None) -> Iterator[str]:
    path = definition(resource["kind"], schemas)
    if path is None:
        for error in _shape(resource["kind"]).iter_errors(dict(resource)):
            yield f"{'.'.join(map(str, error.absolute_path))}: {_said(error)}; see cluster/"
        return
    wanted, versions = str(resource.get("apiVersion")), _validators(path)
    if wanted not in versions:
        known = ", ".join(sorted(versions))
        yield f"apiVersion: {wanted}; KubeRay has {known} of {resource['kind']}"
        return
    for error in versions[wanted].iter_errors(dict(resource)):
        field = ".".join(map(str, error.absolute_path)) or "the file"
        yield f"{field}: {_said(error)}; KubeRay's definition refuses it"


def _said(error: Any) -> str:
    return str(error.message) if len(str(error.message)) < 200 else f"fails {error.validator}"


@lru_cache(maxsize=4)
def _validators(path: Path) -> dict[str, Any]:
    from jsonschema import Draft7Validator

    # The C loader reads a megabyte of definitions ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = yaml.load(path.read_text(), loader)
    group = found["spec"]["group"]
    return {
        f"{group}/{each['name']}": Draft7Validator(_closed(each["schema"]["openAPIV3Schema"]))
        for each in found["spec"]["versions"]
    }


def _closed(schema: Any) -> Any:
    """The schema, changed so that it refuses unknown fields.

    Kubernetes' own notation for "a number or a text" is translated to JSON schema.
    """
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _closed(item) for name, item in schema.items()}
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if found.get("nullable") and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    keeps = found.get("x-kubernetes-preserve-unknown-fields")
    named = isinstance(found.get("properties"), dict)
    if named and found.get("type") == "object" and not keeps:
        properties = found["properties"]
        # Kubernetes describes `metadata`; this schema does not.
        if "metadata" in properties and not properties["metadata"].get("properties"):
            properties["metadata"] = {"type": "object"}
        found.setdefault("additionalProperties", False)
    return found


def _shape(kind: str) -> Any:
    """The least structure that the rules need, used if KubeRay's definition is missing."""
    from jsonschema import Draft7Validator

    text, number = {"type": "string"}, {"type": "integer"}
    texts = {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number"]}}
    names = {"type": ["object", "null"], "additionalProperties": text}
    claim = _fields(claimName=text, required=["claimName"])
    volume = _fields(name=text, persistentVolumeClaim=claim, required=["name"])
    mount = _fields(name=text, mountPath=text, required=["name", "mountPath"])
    container = _fields(
        image=text,
        resources=_fields(limits=texts, requests=texts),
        volumeMounts={"type": ["array", "null"], "items": _there(mount)},
    )
    pod = _fields(
        containers={"type": "array", "items": _there(container), "minItems": 1},
        volumes={"type": ["array", "null"], "items": _there(volume)},
        nodeSelector=names,
        restartPolicy=text,
    )
    group = _fields(
        template=_fields(spec=pod),
        labels=names,
        resources=texts,
        rayStartParams=names,
        serviceType=text,
        **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts"), number),
    )
    cluster = _fields(
        headGroupSpec=_there(group),
        workerGroupSpecs={"type": ["array", "null"], "items": _there(group)},
        authOptions=_fields(mode=text),
    )
    job = _fields(
        entrypoint={"type": ["string", "null"]},
        runtimeEnvYAML={"type": ["string", "null"]},
        rayClusterSpec=_there(cluster),
    )
    return Draft7Validator(_fields(spec=cluster if kind == "RayCluster" else job))


def _fields(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": ["object", "null"], "properties": properties, "required": required or []}


def _there(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema, but not empty."""
    return schema | {"type": "object"}


# -- the rules of a cluster ------------------------------------------------------------------------


def _cluster(spec: Mapping[str, Any], where: str) -> Iterator[str]:
    wanted, given = version("ray"), spec.get("rayVersion")
    if given != wanted:
        yield f"{where}.rayVersion: {given}; the image has {wanted}, as constraints.txt says"
    head = spec.get("headGroupSpec") or {}
    yield from _head(head, f"{where}.headGroupSpec", _has_token(spec))
    groups = spec.get("workerGroupSpecs") or []
    if not groups:
        yield f"{where}.workerGroupSpecs: none, and the head trains nothing; give a group"
    shared = _claims(head)
    if not shared:
        yield (
            f"{where}.headGroupSpec.template: no persistentVolumeClaim is mounted, and what "
            "studies write goes with the pod; mount the claim mambaout-runs as in cluster/"
        )
    for index, group in enumerate(groups):
        at = f"{where}.workerGroupSpecs.{index}"
        yield from _replicas(group, at, bool(spec.get("enableInTreeAutoscaling")))
        if shared and not shared <= _claims(group):
            mounts = ", ".join(f"{claim} at {path}" for claim, path in sorted(shared))
            yield f"{at}.template: does not mount what the head has, {mounts}; mount it there too"
        selector = _pod(group).get("nodeSelector") or {}
        if selector.get(SPOT) == "true" and _pod(group).get("restartPolicy") == "Never":
            yield (
                f"{at}.template.spec.restartPolicy: Never, on spot hosts; a pod would not come "
                "back after its host is taken away; set Always"
            )
        if TPU in _limits(group) or ACCELERATOR in selector:
            yield from _tpu(group, at)
    for index, group in enumerate([head, *groups]):
        at = f"{where}.workerGroupSpecs.{index - 1}" if index else f"{where}.headGroupSpec"
        for number, container in enumerate(_pod(group).get("containers") or []):
            image = str(container.get("image", ""))
            if ":" not in image.rpartition("/")[2] or image.endswith(":latest"):
                yield (
                    f"{at}.template.spec.containers.{number}.image: {image}; without a tag of its "
                    "own it is another image tomorrow; give one"
                )


def _head(head: Mapping[str, Any], where: str, has_token: bool) -> Iterator[str]:
    params = head.get("rayStartParams") or {}
    cpus = (head.get("resources") or {}).get("CPU", params.get("num-cpus"))
    if str(cpus) != "0":
        yield (
            f"{where}.rayStartParams.num-cpus: {cpus}; trials would run on the head, and one that "
            'fills its memory takes the driver and MLflow with it; set "0"'
        )
    host = params.get("dashboard-host", "0.0.0.0")  # KubeRay's default
    if host not in LOOPBACK and not has_token:
        yield (
            f"{where}.rayStartParams.dashboard-host: {host} lets every pod of the cluster run "
            "code; set 127.0.0.1 and use kubectl port-forward, or authOptions.mode: token"
        )
    kind = head.get("serviceType")
    if kind in ("LoadBalancer", "NodePort") or head.get("enableIngress"):
        field = "enableIngress" if head.get("enableIngress") else "serviceType"
        yield (
            f"{where}.{field}: {head.get(field)} puts the dashboard outside the cluster; leave it "
            "out and use kubectl port-forward"
        )
    if (_pod(head).get("nodeSelector") or {}).get(SPOT) == "true":
        yield (
            f"{where}.template.spec.nodeSelector.{SPOT}: the head on a spot host; with it go the "
            "driver and MLflow; take an on-demand node pool"
        )


def _replicas(group: Mapping[str, Any], where: str, scales: bool) -> Iterator[str]:
    number = group.get("replicas", group.get("minReplicas", 0))
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", number)
    if not least <= number <= most:
        yield f"{where}.replicas: {number} is not from {least} to {most}; make the three agree"
    if scales and least != most and TPU in _limits(group):
        yield (
            f"{where}.maxReplicas: {most}, minReplicas: {least}; Ray's autoscaler on Kubernetes "
            "does not know TPU v3 and would never start one; give both the number of hosts"
        )


def _tpu(group: Mapping[str, Any], where: str) -> Iterator[str]:
    at = f"{where}.template.spec"
    selector = _pod(group).get("nodeSelector") or {}
    accelerator, topology = selector.get(ACCELERATOR), selector.get(TOPOLOGY)
    kind = TPUS.get((str(accelerator), str(topology)))
    if kind is None:
        known = " or ".join(f"{name} with {shape}" for name, shape in TPUS)
        yield f"{at}.nodeSelector: {accelerator} with {topology}; choose {known}"
        return
    chips, hosts = _limits(group).get(TPU), group.get("numOfHosts", 1)
    wanted = prod(map(int, str(topology).split("x"))) // CHIPS_PER_HOST
    if str(chips) != str(CHIPS_PER_HOST):
        yield (
            f"{at}.containers.0.resources.limits.{TPU}: {chips}; a host of TPU v3 has "
            f"{CHIPS_PER_HOST} chips and gives all or none; set {CHIPS_PER_HOST}"
        )
    if hosts != wanted:
        yield (
            f"{where}.numOfHosts: {hosts}; topology {topology} is {wanted * CHIPS_PER_HOST} chips "
            f"on {wanted} hosts; set {wanted}"
        )
    labels, resources = group.get("labels") or {}, group.get("resources") or {}
    if labels.get(POD_TYPE) != kind:
        yield (
            f"{where}.labels: {POD_TYPE} is {labels.get(POD_TYPE)}; trials ask for hosts by it; "
            f"set {POD_TYPE}: {kind}"
        )
    if str(resources.get("TPU")) != str(CHIPS_PER_HOST):
        yield (
            f"{where}.resources.TPU: {resources.get('TPU')}; Ray does not count v3's chips on "
            f'Kubernetes; set "{CHIPS_PER_HOST}"'
        )
    if SLICE_NAME in labels and max(group.get("replicas", 0), group.get("maxReplicas", 0)) > 1:
        yield (
            f"{where}.labels: {SLICE_NAME}: {labels[SLICE_NAME]} for more than one replica, and "
            "trials would straddle slices; one group, with a name of its own, for each slice"
        )
    if kind == "v3-32" and SLICE_NAME not in labels:
        yield f"{where}.labels: {SLICE_NAME} is missing; trials find a slice's hosts by it; name it"


# -- the rules of a job ----------------------------------------------------------------------------


def _job(spec: Mapping[str, Any]) -> Iterator[str]:
    entry = str(spec.get("entrypoint") or "")
    if not entry.strip():
        yield "spec.entrypoint: none; write the study's command, python sweeps/scale.py ..."
    mode = spec.get("submissionMode", SUBMISSION_MODES[0])
    if mode not in SUBMISSION_MODES:
        yield f"spec.submissionMode: {mode}; KubeRay has {', '.join(SUBMISSION_MODES)}"
    try:
        env = yaml.safe_load(spec.get("runtimeEnvYAML") or "") or {}
    except yaml.YAMLError as error:
        env = {}
        yield f"spec.runtimeEnvYAML: {' '.join(str(error).split())}; it is YAML inside a text"
    if isinstance(env, Mapping):
        yield from check_runtime_env(env, "spec.runtimeEnvYAML: ")
    if spec.get("clusterSelector"):
        return
    if not spec.get("shutdownAfterJobFinishes"):
        yield (
            "spec.shutdownAfterJobFinishes: false; the hosts would be paid for after the last "
            "trial; set true"
        )
    cluster = spec.get("rayClusterSpec") or {}
    groups = cluster.get("workerGroupSpecs") or []
    spot = any((_pod(group).get("nodeSelector") or {}).get(SPOT) == "true" for group in groups)
    if spot and not spec.get("backoffLimit"):
        yield (
            f"spec.backoffLimit: {spec.get('backoffLimit')}; on spot hosts a study may end with "
            "trials unfinished, and nothing would go on with them; set 3"
        )
    yield from _entry(entry, cluster)
    yield from _cluster(cluster, "spec.rayClusterSpec")


def _entry(entry: str, cluster: Mapping[str, Any]) -> Iterator[str]:
    words = entry.split()
    given = dict(pairwise(words))
    kinds = {
        (group.get("labels") or {}).get(POD_TYPE) for group in cluster.get("workerGroupSpecs") or []
    }
    asked = given.get("--accelerator", "")
    wanted = asked.removeprefix("tpu-").removesuffix("-chip") if asked.startswith("tpu-") else None
    if wanted and wanted not in kinds:
        yield (
            f"spec.entrypoint: --accelerator {asked}, and no worker group is a {wanted}; make "
            "them agree"
        )
    paths = [path for _, path in _claims(cluster.get("headGroupSpec") or {})]
    storage = given.get("--storage", "")
    if paths and not any(storage == path or storage.startswith(f"{path}/") for path in paths):
        yield (
            f"spec.entrypoint: --storage {storage or '(none)'} is in no claim, and what the study "
            f"writes would go with the cluster; give {paths[0]}"
        )


# -- pods ------------------------------------------------------------------------------------------


def _has_token(spec: Mapping[str, Any]) -> bool:
    return (spec.get("authOptions") or {}).get("mode") == "token"


def _pod(group: Mapping[str, Any]) -> Mapping[str, Any]:
    return (group.get("template") or {}).get("spec") or {}


def _limits(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """The limits of the first container, which is Ray's."""
    containers = _pod(group).get("containers") or [{}]
    return (containers[0].get("resources") or {}).get("limits") or {}


def _claims(group: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The volume claims and their paths in Ray's container."""
    pod = _pod(group)
    named = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod.get("volumes") or []
        if volume.get("persistentVolumeClaim")
    }
    mounts = (pod.get("containers") or [{}])[0].get("volumeMounts") or []
    return {(named[m["name"]], m["mountPath"]) for m in mounts if m["name"] in named}
