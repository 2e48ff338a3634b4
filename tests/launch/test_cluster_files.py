"""The files of cluster/: sound ones pass every check, and each way to spoil one is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import reduce
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

from mambaout.command_line import writable_folder
from mambaout.errors import WrongRequest
from mambaout.launch.cluster import still_to_come
from mambaout.launch.files.cluster_files import check, not_checked
from mambaout.launch.files.job_file import STOP_WAIT, least_wait_seconds
from mambaout.launch.files.launcher_file import START_TIMEOUT
from mambaout.launch.resources import POD_TYPE, SLICE_NAME, Node, share

CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas"  # KubeRay's, beside a checkout for development
README = (CLUSTER / "README.md").read_text()
FILES = sorted(CLUSTER.glob("*.yaml"))
SCRIPTS = sorted(CLUSTER.glob("*.sh"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_each_file_passes_all_checks(path):
    assert check(path, SCHEMAS) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_what_could_not_be_checked_is_said(path, monkeypatch):
    monkeypatch.delenv("MAMBAOUT_SCHEMAS", raising=False)
    assert check(path) == []
    said = not_checked(path)
    if "ray" in path.name:
        assert "KubeRay's definition" in said[0]
        assert "MAMBAOUT_SCHEMAS" in said[0]


# -- spoilt copies ---------------------------------------------------------------------------------

Spoil = Callable[[str], str]


def swap(old: str, new: str) -> Spoil:
    def spoil(text: str) -> str:
        assert old in text, f"{old!r} is not in the file"
        return text.replace(old, new)

    return spoil


V8, V32, GPU, OWN = "gcp-tpu-v3-8", "gcp-tpu-v3-32", "gcp-gpu", "on-premises"
K8, K32 = "gke-tpu-v3-8-raycluster", "gke-tpu-v3-32-raycluster"
SKY = "sky-tpu-v3-8"
J8, J32 = "gke-tpu-v3-8-rayjob", "gke-tpu-v3-32-rayjob"

# A file, what is changed in it, and what the finding must say of it.
SPOILT = {
    "three chips": (V8, swap("TPU: 4}", "TPU: 3}"), "tpu_v3_8.resources.TPU: 3; .* set 4"),
    "half a chip": (V8, swap("TPU: 4}", "TPU: 0.5}"), "resources.TPU: 0.5 is not of type 'int"),
    "chips of a slice": (V32, swap("TPU: 4}", "TPU: 16}"), "resources.TPU: 16; .* set 4"),
    "a mistyped TPU": (
        V8,
        swap("acceleratorType: v3-8", "acceleratorType: v33-8"),
        "acceleratorType: v33-8; choose v3-8 or v3-32",
    ),
    "a v3-16": (
        V8,
        swap("acceleratorType: v3-8", "acceleratorType: v3-16"),
        "acceleratorType: v3-16; torch_xla has no layout",
    ),
    "accelerator config": (
        V8,
        swap("acceleratorType: v3-8", "acceleratorConfig: {type: V3, topology: 2x2}"),
        "acceleratorConfig: .*write acceleratorType: v3-8",
    ),
    "a misspelled runtime": (
        V8,
        swap("tpu-ubuntu2204-base", "tpu-ubuntu2204-bases"),
        "runtimeVersion: tpu-ubuntu2204-bases; .* tpu-ubuntu2204-base",
    ),
    "no pod type": (
        V8,
        swap("    labels: {ray.io/tpu-pod-type: v3-8}\n", ""),
        "labels: ray.io/tpu-pod-type is None; .*set ray.io/tpu-pod-type: v3-8",
    ),
    "a slice's name for all hosts": (
        V32,
        swap("tpu-pod-type: v3-32}", "tpu-pod-type: v3-32, ray.io/tpu-slice-name: a}"),
        "ray.io/tpu-slice-name: a would be the same on every host",
    ),
    "a slice that autoscales": (V32, swap("min_workers: 1", "min_workers: 0"), "cannot autoscale"),
    "a zone without v3": (
        V8,
        swap("us-central1-a", "us-central1-c"),
        "availability_zone: us-central1-c has no v3-8",
    ),
    "another region": (V8, swap("region: us-central1", "region: us-east1"), "not in region us-e"),
    "the disk of another project": (
        V8,
        swap("project_id: my-project", "project_id: other"),
        "disks: .*my-project.* is not of project other",
    ),
    "a TPU host that cannot read a bucket": (
        V8,
        lambda text: re.sub(r"      serviceAccount:\n.*\n.*\n", "", text),
        "tpu_v3_8.node_config.serviceAccount: None; the host could not read gs://",
    ),
    "a GPU host that cannot read a bucket": (
        GPU,
        lambda text: re.sub(r"      serviceAccounts:\n.*\n.*\n", "", text),
        "gpu_l4.node_config.serviceAccounts: None; the host could not read gs://",
    ),
    "an account with few scopes": (
        V32,
        swap("auth/cloud-platform", "auth/devstorage.read_only"),
        "serviceAccount.scope: .*devstorage.*; without",
    ),
    "an account of another project": (
        GPU,
        swap("v1@my-project", "v1@other"),
        "serviceAccounts.email: .* is not of project my-project",
    ),
    "a GPU's accounts for a TPU": (
        V8,
        lambda text: re.sub(
            r"serviceAccount:\n +email: (.*)\n +scope:(.*)",
            r"serviceAccounts: [{email: \1, scopes:\2}]",
            text,
        ),
        "node_config.serviceAccounts: Ray rewrites it .* fails at the second",
    ),
    "a job that does not wait for its host": (
        V8,
        swap("RAY_JOB_START_TIMEOUT_SECONDS=86400", "A=b"),
        "RAY_JOB_START_TIMEOUT_SECONDS is None, and Ray fails a job",
    ),
    "a job that waits too little": (
        GPU,
        swap("TIMEOUT_SECONDS=86400", "TIMEOUT_SECONDS=900"),
        "RAY_JOB_START_TIMEOUT_SECONDS is 900",
    ),
    "spot hosts in a batch": (
        V8,
        swap("upscaling_speed: 1", "upscaling_speed: 4.0"),
        "upscaling_speed: 4.0; one spot host that Google refuses .* set 1",
    ),
    "spot hosts in a batch of the older autoscaler": (
        GPU,
        swap(" AUTOSCALER_MAX_LAUNCH_BATCH=1", ""),
        "no AUTOSCALER_MAX_LAUNCH_BATCH=1 for `ray start`",
    ),
    "no project": (V8, swap("project_id: my-project", "project_id: null"), "project_id: None"),
    "a host that never starts": (
        V8,
        swap("    max_workers: 4\n", "    max_workers: 0\n"),
        "tpu_v3_8.max_workers: 0; no such host can ever start",
    ),
    "a host without torch_xla": (
        V8,
        swap("setup.sh tpu", "setup.sh cpu"),
        "no `setup.sh tpu` among the worker_setup_commands",
    ),
    "a head that trains": (
        V8,
        swap("resources: {CPU: 0}", "resources: {CPU: 4}"),
        "head.resources.CPU: 4; trials would run on the head.*set 0",
    ),
    "a spot head": (
        V8,
        swap(
            "machineType: e2-standard-4",
            "machineType: e2-standard-4\n      scheduling: "
            "{provisioningModel: SPOT, automaticRestart: false}",
        ),
        "the head is spot",
    ),
    "a dashboard for all": (
        V8,
        swap("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        "--dashboard-host=0.0.0.0 opens a page without a password",
    ),
    "MLflow for all": (
        V8,
        swap("cluster/mlflow.sh", "cluster/mlflow.sh; mlflow server --host 0.0.0.0"),
        "--host=0.0.0.0 opens a page",
    ),
    "no token": (V8, swap("RAY_AUTH_MODE=token", "A=b"), "without RAY_AUTH_MODE=token lets who"),
    "Ray's default commands": (
        V8,
        lambda text: re.sub(r"head_start_ray_commands:.*?(?=worker_start)", "", text, flags=re.S),
        "head_start_ray_commands: no `ray start`",
    ),
    "the newest package": (
        V8,
        swap("worker_setup_commands:", "worker_setup_commands:\n  - pip install -U torch_xla"),
        "`pip install -U torch_xla` installs what is newest that day",
    ),
    "an unknown field": (V8, swap("idle_timeout_minutes", "idle_minutes"), "'idle_minutes' was"),
    "an unknown head": (
        V8,
        swap("head_node_type: head", "head_node_type: heat"),
        "Ray refuses the file: `head_node_type` must be one of",
    ),
    "more at least than at most": (
        V8,
        swap("min_workers: 0", "min_workers: 9"),
        "Ray refuses the file: .*max_workers",
    ),
    "a cloud that nobody tried": (V8, swap("type: gcp", "type: aws"), "provider.type: aws; "),
    "a field given twice": (
        V8,
        swap("\nmax_workers: 4\n", "\nmax_workers: 400\nmax_workers: 4\n"),
        "line 1[0-9], column 1: 'max_workers' is given twice",
    ),
    "a spot machine to be restarted": (
        GPU,
        swap("automaticRestart: false", "automaticRestart: true"),
        "automaticRestart: True; Google restarts no spot machine",
    ),
    "a GPU that is moved": (
        GPU,
        swap("onHostMaintenance: TERMINATE", "onHostMaintenance: MIGRATE"),
        "onHostMaintenance: MIGRATE; Google refuses",
    ),
    "a GPU not counted": (GPU, swap(", GPU: 1}", "}"), "resources.GPU: None; .*say how many"),
    "an own head that trains": (OWN, swap("--num-cpus=0 ", ""), "the head offers its cores"),
    "a key in the file": (
        V8,
        swap(
            "project_id: my-project",
            "project_id: my-project\n  gcp_credentials: {type: service_account, credentials: x}",
        ),
        "provider.gcp_credentials",
    ),
    "a password in a command": (
        V8,
        swap("cluster/mlflow.sh", "cluster/mlflow.sh; export DB_PASSWORD=hunter2"),
        "sets DB_PASSWORD to a value in the file; take it out",
    ),
    "a password in an address": (
        V8,
        swap("http://127.0.0.1:5000", "http://me:hunter2@127.0.0.1:5000"),
        "holds a password in an address",
    ),
    "a private key in a comment": (
        V8,
        swap("auth:", "# -----BEGIN OPENSSH PRIVATE KEY-----\nauth:"),
        r"line \d+ holds a private key",
    ),
    # Kubernetes
    "half a host": (K8, swap('google.com/tpu: "4"', 'google.com/tpu: "2"'), "tpu: 2; .*set 4"),
    "hosts against topology": (K32, swap("numOfHosts: 4", "numOfHosts: 2"), "numOfHosts: 2; .*4"),
    "a misspelled topology": (K8, swap("2x2", "2x3"), "tpu-v3-device with 2x3; choose"),
    "a misspelled field": (K8, swap("numOfHosts", "numofHosts"), "numofHosts"),
    "a number as text": (K32, swap("numOfHosts: 4", 'numOfHosts: "4"'), "numOfHosts: '4' is not"),
    "chips that Ray cannot count": (K8, swap(', TPU: "4"}', "}"), 'resources.TPU: None; .*"4"'),
    "no label": (
        K8,
        swap("labels: {ray.io/tpu-pod-type: v3-8}", "labels: {}"),
        "ray.io/tpu-pod-type is None",
    ),
    "no name of the slice": (K32, swap(", ray.io/tpu-slice-name: slice-a", ""), "is missing"),
    "two slices of a name": (
        K32,
        swap("plicas: 1", "plicas: 2"),
        "slice-a for more than one replica",
    ),
    "replicas out of range": (K8, swap(" replicas: 2", " replicas: 3"), "replicas: 3 is not from"),
    "an autoscaler without v3": (
        K8,
        lambda text: text.replace("minReplicas: 2", "minReplicas: 0").replace(
            "  headGroupSpec:", "  enableInTreeAutoscaling: true\n  headGroupSpec:"
        ),
        "maxReplicas: 2, minReplicas: 0; .*does not know TPU v3",
    ),
    "a head pod that trains": (K8, swap('num-cpus: "0"', 'num-cpus: "3"'), "num-cpus: 3; trials"),
    "a head pod on a spot host": (
        K8,
        swap("gke-nodepool: head", 'gke-spot: "true"'),
        "the head on a spot host",
    ),
    "a dashboard for all pods": (
        J8,
        swap("authOptions: {mode: token}", "authOptions: {mode: disabled}"),
        "dashboard-host: 0.0.0.0 lets every pod",
    ),
    "a dashboard for the world": (
        K8,
        swap("  headGroupSpec:", "  headGroupSpec:\n    serviceType: LoadBalancer"),
        "serviceType: LoadBalancer puts the dashboard outside",
    ),
    "a pod that stays away": (
        K8,
        swap("restartPolicy: Always", "restartPolicy: Never"),
        "restartPolicy: Never, on spot hosts",
    ),
    "another Ray": (K8, swap('"2.60.0"', '"2.50.0"'), "rayVersion: 2.50.0; the image has 2.60.0"),
    "an image without a tag": (K8, swap("/mambaout:tpu", "/mambaout"), "image: .*give one"),
    "results in the pod": (
        K8,
        swap("persistentVolumeClaim: {claimName: mambaout-runs}", "emptyDir: {}"),
        "no persistentVolumeClaim is mounted",
    ),
    "a token in a pod": (
        K8,
        swap(
            'name: MLFLOW_TRACKING_URI, value: "http://127.0.0.1:5000"', "name: HF_TOKEN, value: a"
        ),
        "variable HF_TOKEN has its value in the file",
    ),
    "a job that leaves its hosts": (
        J8,
        swap("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"),
        "shutdownAfterJobFinishes: false; the hosts would be paid",
    ),
    "a job that gives up": (J8, swap("backoffLimit: 3", "backoffLimit: 0"), "backoffLimit: 0; on"),
    "a mode that is none": (J8, swap("K8sJobMode", "K8sMode"), "submissionMode: K8sMode; KubeRay"),
    "another accelerator": (
        J32,
        swap("--accelerator tpu-v3-32", "--accelerator tpu-v3-8"),
        "--accelerator tpu-v3-8, and no worker group is a v3-8",
    ),
    "storage that goes with it": (
        J32,
        swap("--storage /home/mambaout/mambaout-runs", "--storage /tmp"),
        "--storage /tmp is in no claim",
    ),
    "a job that is killed": (
        J8,
        swap("RAY_JOB_STOP_SIGNAL: SIGINT", "RAY_JOB_STOP_SIGNAL: SIGKILL"),
        "runtimeEnvYAML: env_vars.RAY_JOB_STOP_SIGNAL: SIGKILL; .*set SIGINT",
    ),
    # SkyPilot
    "SkyPilot's own image": (
        SKY,
        swap("runtime_version: tpu-ubuntu2204-base", "runtime_version: tpu-vm-base"),
        "runtime_version: tpu-vm-base; .* tpu-ubuntu2204-base, and SkyPilot's default",
    ),
    "no image": (
        SKY,
        lambda text: re.sub(r"  accelerator_args:\n.*\n", "", text),
        "runtime_version: None",
    ),
    "a slice by SkyPilot": (
        SKY,
        swap("accelerators: tpu-v3-8", "accelerators: tpu-v3-32"),
        "accelerators: tpu-v3-32; one host is tpu-v3-8; a slice is made by cluster/slice.sh",
    ),
    "another cloud": (SKY, swap("infra: gcp #", "infra: aws #"), "infra: aws; TPUs are Google's"),
    "a zone of SkyPilot without v3": (
        SKY,
        swap("infra: gcp #", "infra: gcp/us-west1/us-west1-c #"),
        "us-west1-c has no v3-8; choose one of",
    ),
    "open ports": (SKY, swap("use_spot: true", "use_spot: true\n  ports: 8265"), "ports: 8265 op"),
    "several hosts": (SKY, swap("workdir: .", "num_nodes: 2\nworkdir: ."), "num_nodes: 2; each"),
    "a misspelled word of SkyPilot": (SKY, swap("setup: |", "set_up: |"), "set_up: SkyPilot knows"),
    "no torch_xla": (SKY, swap("setup.sh tpu", "setup.sh cpu"), "setup: no `setup.sh tpu`"),
    "no doctor": (SKY, swap("doctor --backend xla", "--help"), "run: no `mambaout doctor"),
    "another accelerator than the host": (
        SKY,
        swap("--accelerator tpu-v3-8", "--accelerator gpu"),
        "--accelerator gpu; the host is a v3-8",
    ),
    "results in a mounted bucket": (
        SKY,
        lambda text: text.replace(
            "setup: |", "file_mounts:\n  ~/mambaout-runs: {name: a, mode: MOUNT}\nsetup: |"
        ),
        "is in the mount ~/mambaout-runs; a bucket mounted as a folder has no locks",
    ),
    "the newest package by SkyPilot": (
        SKY,
        swap("setup.sh tpu", "setup.sh tpu && pip install -U jax"),
        "setup: `pip install -U jax` installs what is newest",
    ),
    "a page for all by SkyPilot": (
        SKY,
        swap("mkdir -p", "mlflow server --host 0.0.0.0 & mkdir -p"),
        "run: --host=0.0.0.0 opens a page",
    ),
    # A job's environment
    "no stop signal": ("job", swap("RAY_JOB_STOP_SIGNAL: SIGINT", "A: b"), "STOP_SIGNAL: None"),
    "no time to save": ("job", swap('"60"', '"3"'), "WAIT_TIME_S: 3; a study takes up to 30 s"),
    "a number for a text": ("job", swap('"60"', "60"), '60 is no text, .*write "60"'),
    "an unknown word": ("job", swap("working_dir", "work_dir"), "work_dir: Ray knows no such"),
    "packages of its own": ("job", swap("working_dir: .", "pip: [torch]"), "pip: .*leave it out"),
    "a list": ("job", lambda text: "- a\n- b\n", "the file holds list, not fields"),
    "something else": ("job", lambda text: "a: 1\n", "fields a: neither a launcher's file"),
    "nothing": ("job", lambda text: "# nothing\n", "is empty"),
    "no YAML": ("job", lambda text: text + "\n}", r"line \d+, column 1: .*correct the YAML"),
}
NEED_SCHEMA = {"a misspelled field", "a number as text"}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_gets_its_finding(name, tmp_path):
    if name in NEED_SCHEMA and not SCHEMAS.exists():
        pytest.skip("KubeRay's definitions are not beside this checkout")
    file, spoil, wanted = SPOILT[name]
    path = tmp_path / f"{file}.yaml"
    path.write_text(spoil((CLUSTER / f"{file}.yaml").read_text()))
    found = check(path, SCHEMAS)
    assert any(re.search(wanted, finding) for finding in found), found
    assert all("hunter2" not in finding for finding in found)  # a secret is not repeated


def test_ray_itself_names_every_machine_type_of_gcp():
    """With Google's client at hand Ray's own look at a node is part of the checks."""
    pytest.importorskip("googleapiclient")
    assert not_checked(CLUSTER / f"{V8}.yaml") == []


@pytest.mark.parametrize(
    ("file", "kind", "api"),
    [(V8, "tpu_v3_8", "tpu.v2"), (V32, "tpu_v3_32", "tpu.v2"), (GPU, "gpu_l4", "compute.v1")],
)
def test_ray_asks_google_for_workers_with_the_account_of_the_head(file, kind, api):
    """Ray's own code and Google's own client; only the answers are made up."""
    pytest.importorskip("googleapiclient")
    from googleapiclient import discovery_cache
    from googleapiclient.discovery import build_from_document
    from googleapiclient.http import HttpMockSequence
    from ray.autoscaler._private.gcp.node import GCPTPU, GCPCompute

    asked: list[HttpMockSequence] = []

    def answers(*_: object) -> HttpMockSequence:
        asked.append(HttpMockSequence([({"status": "200"}, '{"name": "operation"}')]))
        return asked[-1]

    described = Path(discovery_cache.__path__[0]) / "documents" / f"{api}.json"
    client = build_from_document(described.read_text(), http=HttpMockSequence([]))
    config = load(file)
    place = [config["provider"][name] for name in ("project_id", "availability_zone")]
    made: Any = GCPTPU if api.startswith("tpu") else GCPCompute
    provider = made(client, *place, "mambaout")
    provider.get_new_authorized_http = answers
    node = config["available_node_types"][kind]["node_config"]
    labels = {"ray-node-type": "worker", "ray-node-name": "mambaout"}
    provider.create_instances(node, labels, 2, wait_for_operation=False)
    bodies = [json.loads(http.request_sequence[0][2]) for http in asked]
    assert len(bodies) == 2
    for body in bodies:
        account = body.get("serviceAccount") or body["serviceAccounts"][0]
        assert account["email"] == "ray-autoscaler-sa-v1@my-project.iam.gserviceaccount.com"
        scopes = account.get("scope") or account["scopes"]
        assert scopes == ["https://www.googleapis.com/auth/cloud-platform"]
        known = json.loads(described.read_text())["schemas"]
        fields = known["Node" if api.startswith("tpu") else "Instance"]["properties"]
        assert set(node) <= set(fields)  # Google knows every field of the file


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Of every value inside a document."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*at, key)
            yield from places(value[key], (*at, key))


@pytest.mark.parametrize("name", [V8, K32, J8, SKY])
def test_whatever_stands_in_a_field_the_answer_is_a_sentence(name, tmp_path):
    """Without KubeRay's definitions too, where nothing else has looked at the types."""
    path, document = tmp_path / "spoilt.yaml", load(name)
    for number, (*parents, last) in enumerate(places(document)):
        spoilt = deepcopy(document)
        reduce(lambda value, key: value[key], parents, spoilt)[last] = (None, "x", 7, [])[
            number % 4
        ]
        path.write_text(yaml.safe_dump(spoilt))
        assert all(isinstance(finding, str) for finding in check(path))


def test_a_file_that_is_not_there_is_a_finding(tmp_path):
    assert "cannot be read" in check(tmp_path / "no.yaml")[0]


# -- what the files promise together ---------------------------------------------------------------


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    ("name", "accelerator", "slots"),
    [(V8, "tpu-v3-8", 4), (V8, "tpu-v3-8-chip", 16), (GPU, "gpu", 4), (GPU, "gpu:0.5", 8)],
)
def test_trials_fit_the_machines_that_a_launchers_file_may_start(name, accelerator, slots):
    nodes = still_to_come(load(name), [])
    assert share(accelerator, nodes).slots(nodes) == slots


@pytest.mark.parametrize("name", [V32, K32, J32])
def test_a_trial_fits_the_slice_of_a_file(name):
    config = load(name)
    if name == V32:
        host = config["available_node_types"]["tpu_v3_32"]
        slice_name = {SLICE_NAME: "as-ray-reads-it"}
    else:
        cluster = config["spec"].get("rayClusterSpec", config["spec"])
        host, slice_name = cluster["workerGroupSpecs"][0], {}
    resources = {kind: float(amount) for kind, amount in host["resources"].items()}
    nodes = [Node(resources, host["labels"] | slice_name)] * 4
    found = share("tpu-v3-32", nodes)
    assert found.slots(nodes) == 1
    assert found.num_workers > 8  # images are loaded by more than a core or two


def test_the_name_of_the_wait_for_a_host_is_ray_s_own():
    from ray.dashboard import consts

    assert consts.RAY_JOB_START_TIMEOUT_SECONDS_ENV_VAR == START_TIMEOUT
    assert consts.DEFAULT_JOB_START_TIMEOUT_SECONDS == 15 * 60
    for path in CLUSTER.glob("gke-*-raycluster.yaml"):
        head = yaml.safe_load(path.read_text())["spec"]["headGroupSpec"]["template"]["spec"]
        assert {"name": START_TIMEOUT, "value": "86400"} in head["containers"][0]["env"], path


def test_the_command_for_a_grant_in_europe_makes_a_sound_file_of_all_its_values(tmp_path):
    (command,) = re.findall(r"^sed -i '(.*europe.*preemptible.*)' cluster/\S+$", README, flags=re.M)
    path = tmp_path / "cluster.yaml"
    shutil.copy(CLUSTER / f"{V8}.yaml", path)
    subprocess.run(["sed", "-i", command, path], check=True)
    assert check(path) == []
    found, comments = yaml.safe_load(path.read_text()), path.read_text()
    values = {
        "region": found["provider"]["region"],
        "availability_zone": found["provider"]["availability_zone"],
        "source": found["available_node_types"]["head"]["node_config"]["disks"][1]["source"],
        "preemptible": found["available_node_types"]["tpu_v3_8"]["node_config"]["schedulingConfig"][
            "preemptible"
        ],
    }
    for name, value in values.items():  # as the file's comment says
        assert f"#     {name}: {str(value).lower() if name == 'preemptible' else value}" in comments
    assert (values["region"], values["preemptible"]) == ("europe-west4", False)


def test_what_skypilot_alone_can_check_is_said():
    (said,) = not_checked(CLUSTER / f"{SKY}.yaml")
    assert "sky launch --dryrun" in said
    assert check(CLUSTER / f"{SKY}.yaml", quota_cores=8) == []
    assert "the quota is 4" in check(CLUSTER / f"{SKY}.yaml", quota_cores=4)[0]


def test_the_commands_of_the_file_for_skypilot_are_sound_bash(tmp_path):
    for name in ("setup", "run"):
        path = tmp_path / name
        path.write_text(load(SKY)[name])
        subprocess.run(["bash", "-n", path], check=True)


def test_the_table_of_ways_names_every_file_and_what_is_not_tested():
    table = README.split("\n\n")[1].splitlines()
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == [
        "way", "you need", "you pay an hour, USD", "first command", "first sign of life",
        "not tested",
    ]  # fmt: skip
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    assert all(len(row) == 6 and all(row) for row in rows)
    for word in ("SkyPilot", "`ray up`", "a slice", "GKE", "machines of your own"):
        assert any(word in row[0] for row in rows), word
    named = " ".join(row[0] + row[3] for row in rows)
    for path in FILES:
        kind = re.sub(r"gke-.*-(rayjob|raycluster)", r"gke-*-\1", path.stem)
        assert kind in named or path.stem in ("job",), path.name
    for row in rows:  # each first command names a file that is there
        for file in re.findall(r"cluster/[\w.-]+", row[3]):
            assert (ROOT / file).exists(), file


def test_the_page_names_the_three_quotas_of_tpu_v3():
    (table,) = re.findall(r"\| quota for v3 in a zone .*?\n\n", README, flags=re.S)
    rows = [line.split("|")[1].split()[0] for line in table.strip().splitlines()[2:]]
    assert rows == ["on", "preemptible", "pod"]
    assert "`max_workers` may be at most the cores / 8" in README


def test_every_file_that_is_mounted_is_in_the_repository():
    for name in (V8, V32, GPU, OWN):
        mounts = load(name)["file_mounts"].values()
        assert all((ROOT / path).exists() for path in mounts if not path.startswith("~")), name
        for script in re.findall(r"cluster/(\w+\.sh)", (CLUSTER / f"{name}.yaml").read_text()):
            assert (CLUSTER / script).exists(), script


def test_the_head_reaches_mlflow_only_through_its_own_machine():
    text = (CLUSTER / "mlflow.sh").read_text()
    assert re.findall(r"--host (\S+)", text) == ["127.0.0.1"]
    for path in FILES:
        for address in re.findall(r"MLFLOW_TRACKING_URI[^h]*(http[^\s\"}]+)", path.read_text()):
            assert address == "http://127.0.0.1:5000", path.name


def test_no_word_of_the_project_takes_a_mounted_bucket_for_shared_storage():
    """storage.sh, the file for GKE and the error of --storage say the same of it."""
    with pytest.raises(WrongRequest) as refused:
        writable_folder("gs://bucket/runs", "--storage")
    said = [(CLUSTER / "storage.sh").read_text(), (CLUSTER / "gke-storage.yaml").read_text()]
    for text in (str(refused.value), *said):
        words = " ".join(text.replace("\n#", " ").split())
        assert re.search(r"bucket mounted as a folder has (no locks|none)", words), words
        assert "NFS 4" in words


# -- scripts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_each_script_is_sound_bash(path):
    subprocess.run(["bash", "-n", path], check=True)
    if shellcheck := shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin"):
        done = subprocess.run([shellcheck, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_make_cluster_stop_ends_what_make_cluster_started_and_nothing_else(tmp_path):
    """The number of a process is given again to others: its start time is not."""
    port = "29999"
    folder = tmp_path / f"mambaout-cluster-{os.getuid()}-{port}"
    folder.mkdir()
    own, other = (subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2))
    try:
        since = Path(f"/proc/{own.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (folder / "h.pid").write_text(f"{own.pid} {since}\n")
        (folder / "w1.pid").write_text(f"{other.pid} 1\n")  # of a process long gone
        env = os.environ | {"TMPDIR": str(tmp_path), "MAMBAOUT_CLUSTER_PORT": port}
        threading.Thread(target=own.wait).start()  # as init would: a dead child is still a process
        command = ["bash", str(CLUSTER / "local.sh"), "stop"]
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        assert "stopped: 1 nodes" in done.stdout
        assert own.wait(10) != 0
        assert other.poll() is None
        assert not folder.exists()
    finally:
        for process in (own, other):
            process.kill()
            process.wait()


PINS = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2].strip()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
}


@pytest.mark.parametrize("kind", ["cpu", "gpu", "tpu", "gcp-head"])
def test_setup_installs_every_package_at_a_given_version(kind, tmp_path):
    log = setup(kind, tmp_path, {})
    installs = [line.split() for line in log.read_text().splitlines() if " install " in line]
    without_cuda = [words for words in installs if words[0] == "pip"]
    assert len(installs) == 3 + len(without_cuda)
    uv, tools, packages = (words for words in installs if words[0] != "pip")
    for words in (uv, tools):
        assert all("==" in word for word in words[words.index("install") + 1 :] if word[0] != "-")
    assert "--no-build-isolation" in packages  # nor a newest setuptools for the occasion
    assert packages[packages.index("--constraint") + 1] == str(ROOT / "constraints.txt")
    extra = {"tpu": "[tpu,dense]", "gcp-head": "[gcp,dense]"}.get(kind, "[dense]")
    assert packages[-2:] == ["--editable", f"{ROOT}{extra}"]

    asked = log.read_text()  # and a second time installs nothing
    setup(kind, tmp_path, {})
    assert log.read_text() == asked


def test_ray_reads_how_many_hosts_it_asks_for_at_once():
    code = (
        "from ray.autoscaler._private import constants as c; print(c.AUTOSCALER_MAX_LAUNCH_BATCH)"
    )
    env = os.environ | {"AUTOSCALER_MAX_LAUNCH_BATCH": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "1"


LISTED = """\
ray-mambaout-v3-8-worker-a1-tpu\tPREEMPTED
ray-mambaout-v3-8-worker-b2-tpu\tREADY
mambaout-slice\tTERMINATED
ray-other-worker-c3-tpu\tPREEMPTED
a-colleague\tPREEMPTED
"""


def gcloud(folder: Path, listed: str = LISTED) -> tuple[dict[str, str], Path]:
    """An environment with a stand-in for gcloud, and the file in which it notes its calls."""
    log = folder / "asked"
    (folder / "listed").write_text(listed)
    fake = folder / "gcloud"
    fake.write_text(
        f'#!/usr/bin/env bash\necho "$@" >>{log}\n'
        f'if [ "$4" = list ]; then cat {folder}/listed; fi\n'
    )
    fake.chmod(0o755)
    log.touch()
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}, log


def test_the_clean_up_names_what_it_would_delete_and_deletes_nothing(tmp_path):
    env, log = gcloud(tmp_path)
    command = ["bash", str(CLUSTER / "clean.sh"), "us-central1-a"]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[:3] == [
        "stays: ray-mambaout-v3-8-worker-b2-tpu (READY)",
        "would delete: ray-mambaout-v3-8-worker-a1-tpu",
        "would delete: mambaout-slice",
    ]
    assert "delete" not in log.read_text()


def test_the_clean_up_deletes_what_is_gone_and_its_own_if_it_is_told_to(tmp_path):
    env, log = gcloud(tmp_path)
    command = ["bash", str(CLUSTER / "clean.sh"), "us-central1-a", "--delete"]
    subprocess.run(command, env=env, check=True, capture_output=True)
    deleted = [line.split()[4] for line in log.read_text().splitlines() if " delete " in line]
    assert deleted == ["ray-mambaout-v3-8-worker-a1-tpu", "mambaout-slice"]
    env, log = gcloud(tmp_path, listed="")
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stdout == "nothing to delete in us-central1-a\n"


@pytest.mark.parametrize("words", [[], ["--delete"], ["us-central1-a", "--all"]])
def test_the_clean_up_refuses_what_it_does_not_know(words, tmp_path):
    env, log = gcloud(tmp_path)
    command = ["bash", str(CLUSTER / "clean.sh"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert log.read_text() == ""


def slice_script(folder: Path, *words: str, joined: int = 4) -> tuple[Any, list[str]]:
    """slice.sh with a stand-in for gcloud, on which so many hosts say that they have joined."""
    env, log = gcloud(folder)
    fake = folder / "gcloud"
    says = "JOINED\\n" * joined
    fake.write_text(f"{fake.read_text()}case $* in *'ray start'*) printf '{says}' ;; esac\n")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("token")
    command = ["bash", str(CLUSTER / "slice.sh"), *words]
    env |= {"HOME": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done, log.read_text().split("compute tpus tpu-vm ")[1:]


def test_a_slice_is_made_as_the_launcher_s_file_describes_it(tmp_path):
    done, asked = slice_script(
        tmp_path, "create", "mambaout-slice", "europe-west4-a", "my-project", "--spot"
    )
    assert done.returncode == 0
    (words,) = [call.split() for call in asked]
    node = load(V32)["available_node_types"]["tpu_v3_32"]["node_config"]
    assert words[:2] == ["create", "mambaout-slice"]
    assert f"--accelerator-type={node['acceleratorType']}" in words
    assert f"--version={node['runtimeVersion']}" in words
    assert f"--service-account={node['serviceAccount']['email']}" in words
    assert f"--scopes={node['serviceAccount']['scope'][0]}" in words
    assert "--spot" in words


def test_all_hosts_of_a_slice_are_set_up_before_ray_starts_on_them(tmp_path):
    done, asked = slice_script(tmp_path, "join", "mambaout-slice", "europe-west4-a", "10.0.0.2")
    assert done.returncode == 0, done.stderr
    assert all("--worker=all" in call for call in asked)
    assert all("ubuntu@mambaout-slice" in call for call in asked)
    steps = ("mambaout.tgz", "tar -C", "auth_token", "setup.sh tpu", "mount 10.0.0.2", "ray start")
    assert len(asked) == len(steps)
    assert all(step in call for step, call in zip(steps, asked, strict=True))
    start = " ".join(asked[-1].split())
    assert "--address=10.0.0.2:6379" in start
    assert "RAY_AUTH_MODE=token" in start
    assert f"{POD_TYPE}=v3-32,{SLICE_NAME}=mambaout-slice" in start


def test_ray_takes_the_labels_that_a_slice_is_started_with():
    from ray._private.label_utils import parse_node_labels_string

    (text,) = re.findall(r"--labels=(\S+)", (CLUSTER / "slice.sh").read_text())
    labels = parse_node_labels_string(text.replace("$name", "mambaout-slice"))
    assert labels == {POD_TYPE: "v3-32", SLICE_NAME: "mambaout-slice"}


def test_a_host_of_a_slice_that_has_not_joined_is_an_error(tmp_path):
    done, _ = slice_script(
        tmp_path, "join", "mambaout-slice", "europe-west4-a", "10.0.0.2", joined=3
    )
    assert done.returncode == 1
    assert "3 of 4 hosts have joined" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["create", "mambaout-slice", "europe-west4-a"],
        ["join", "mambaout-slice", "europe-west4-a"],
        ["remove", "mambaout-slice", "europe-west4-a"],
        ["delete", "a-colleague", "europe-west4-a"],
    ],
)
def test_a_wrong_command_for_a_slice_asks_google_for_nothing(words, tmp_path):
    done, asked = slice_script(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr
    assert asked == []


def test_the_time_that_ray_waits_for_a_tpu_is_the_one_that_the_page_names():
    pytest.importorskip("googleapiclient")
    from ray.autoscaler._private.gcp.node import MAX_POLLS_TPU, POLL_INTERVAL

    assert MAX_POLLS_TPU * POLL_INTERVAL == 8 * 60
    assert f"8 minutes for a TPU ({MAX_POLLS_TPU} looks, {POLL_INTERVAL} s apart)" in README


def test_setup_puts_another_libtpu_in_place_of_the_pinned_one_if_it_is_asked_to(tmp_path):
    for kind, wanted in (("tpu", True), ("cpu", False)):
        log = setup(kind, tmp_path / kind, {"MAMBAOUT_LIBTPU": "0.0.36"})
        installs = [line.split() for line in log.read_text().splitlines() if " install " in line]
        assert (installs[-1][-2:] == ["--no-deps", "libtpu==0.0.36"]) == wanted
        before = len(log.read_text())
        setup(kind, tmp_path / kind, {"MAMBAOUT_LIBTPU": "0.0.36"})
        assert len(log.read_text()) == before  # a second time installs nothing
        setup(kind, tmp_path / kind, {})
        assert len(log.read_text()) > before  # but without the variable the pinned one comes back


def setup(kind: str, folder: Path, env: dict[str, str]) -> Path:
    """Run setup.sh with a stand-in for Python, which writes down what it is asked to install."""
    folder.mkdir(exist_ok=True)
    log, fake = folder / "asked", folder / "python"
    fake.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$@" >>{log}\n'
        'if [ "$2" = venv ]; then\n'
        '    mkdir -p "${!#}/bin"; cp "$0" "${!#}/bin/python"; cp "$0" "${!#}/bin/uv"\n'
        "fi\n"
        # uv may fail: the index for torch's build without CUDA is another one than PyPI.
        '[ "$(basename "$0")" != uv ] || exit "${UV_ENDS_WITH:-0}"\n'
    )
    fake.chmod(0o755)
    given = {"MAMBAOUT_PYTHON": str(fake), "MAMBAOUT_VENV": str(folder / "venv")}
    command = ["bash", str(CLUSTER / "setup.sh"), kind]
    subprocess.run(command, env=os.environ | given | env, check=True, capture_output=True)
    return log


@pytest.mark.parametrize("kind", ["cpu", "tpu", "gcp-head"])
def test_a_host_without_a_gpu_gets_torch_without_cuda_before_anything_needs_torch(kind, tmp_path):
    log = setup(kind, tmp_path, {})
    installs = [line.split() for line in log.read_text().splitlines() if " install " in line]
    (number,) = [n for n, words in enumerate(installs) if words[0] == "pip"]
    assert number < len(installs) - 2  # before the packages, which then find their torch
    words = installs[number]
    assert words[words.index("--torch-backend") + 1] == "cpu"
    assert words[-2:] == [
        f"{name}=={PINS[canonicalize_name(name)]}" for name in ("torch", "torchvision")
    ]
    assert "://" not in (CLUSTER / "setup.sh").read_text()  # the index is one that uv knows


def test_a_host_with_a_gpu_gets_torch_with_cuda(tmp_path):
    assert "--torch-backend" not in setup("gpu", tmp_path, {}).read_text()


def test_without_the_index_of_torch_a_host_still_gets_its_packages(tmp_path):
    log = setup("tpu", tmp_path, {"UV_ENDS_WITH": "2"})
    assert "--no-build-isolation" in log.read_text()


def test_setup_refuses_a_kind_that_it_does_not_know():
    done = subprocess.run(["bash", CLUSTER / "setup.sh", "tpus"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_the_constraints_pin_all_that_hosts_install():
    """The closure of the requirements, as far as the packages are installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    texts += [text for extra in project["optional-dependencies"].values() for text in extra]
    missing, seen, queue = set(), set(), [Requirement(text) for text in texts]
    while queue:
        wanted = queue.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        if name not in PINS:
            missing.add(name)
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # the TPU's own: not on this machine
            continue
        for text in requires:
            found = Requirement(text)
            extras = wanted.extras or {""}
            if found.marker is None or any(found.marker.evaluate({"extra": e}) for e in extras):
                queue.append(found)
    assert not missing


# -- what a job ships ------------------------------------------------------------------------------


def test_a_job_ships_the_code_and_nothing_else(tmp_path):
    """Packed by Ray's own code, from a copy of this folder with all that lies about in one."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _zip_files

    copy, package = tmp_path / "copy", tmp_path / "package.zip"
    left = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".hypothesis", "*_cache", "runs")
    shutil.copytree(ROOT, copy, ignore=left)
    for name in (
        ".git/config",
        ".venv/bin/python",
        "runs/study/trials/a/last.ckpt",
        "runs/mlflow.db",
        "mlruns/0/meta.yaml",
        "mlflow.db",
        "imagenet/train.parquet",
        "train.tar",
        ".env",
        ".pytest_cache/a",
        ".ruff_cache/a",
        ".hypothesis/a",
        "mambaout/__pycache__/a.pyc",
        "build/lib/a.py",
        "mambaout.egg-info/PKG-INFO",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("x")
    env = load("job")
    assert env["working_dir"] == "."
    excludes = get_runtime_env_default_excludes() + env.get("excludes", [])
    _zip_files(str(copy), excludes, str(package), include_gitignore=True)

    names = set(zipfile.ZipFile(package).namelist())
    shipped = {f"{path.relative_to(ROOT)}" for path in ROOT.glob("mambaout/**/*.py")}
    shipped |= {f"{path.relative_to(ROOT)}" for path in ROOT.glob("sweeps/*.py")}
    assert shipped <= names
    assert "mambaout/study/law/published.csv" in names
    tops = {name.split("/")[0] for name in names}
    files = {"Makefile", "README.md", "LOG.md", "pyproject.toml", "constraints.txt"}
    assert tops <= {"mambaout", "sweeps", "cluster", ".gitignore", ".rayignore"} | files
    assert package.stat().st_size < 4 * 2**20  # Ray's cap is 100 MiB


def test_a_stopped_job_has_the_time_that_a_study_takes_to_save():
    assert int(load("job")["env_vars"][STOP_WAIT]) > least_wait_seconds()
