"""Find the faults of a cluster file before it costs money: `mambaout doctor --cluster FILE`.

| file | checked by |
|---|---|
| Ray's launcher: `provider`, `available_node_types` | Ray's validator, then launcher_file.py |
| KubeRay: `RayCluster`, `RayJob` | KubeRay's definitions, if at hand, then kuberay_file.py |
| SkyPilot: `resources` with `setup` and `run` | sky_file.py |
| a job's runtime environment: `env_vars` | Ray's names of fields, then job_file.py |

The rules find faults that the schemas allow: three chips of a host, a misspelled TPU, a dashboard
that is open to the network, a head that trains. A finding is a sentence with field, value and
remedy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mambaout.launch.files.job_file import check_runtime_env, is_runtime_env
from mambaout.launch.files.kuberay_file import KINDS, check_resource, definition
from mambaout.launch.files.launcher_file import check_launcher, google_packages
from mambaout.launch.files.sky_file import check_sky, is_sky

SCHEMAS_VARIABLE = "MAMBAOUT_SCHEMAS"  # a folder with KubeRay's ray.io_rayclusters.yaml etc.

LAUNCHER_KEYS = {"cluster_name", "provider", "available_node_types", "head_node_type"}


def check(path: Path, schemas: Path | None = None, quota_cores: int | None = None) -> list[str]:
    """The findings, in the order of the file; empty if there are none.

    `schemas` is the folder with KubeRay's resource definitions; None: $MAMBAOUT_SCHEMAS. Without
    this folder, a Kubernetes file is checked only by the project's rules, and `not_checked` says
    so. `quota_cores`: the TPU cores of the quota that a launcher's file may use; None: any number.
    """
    text, documents, problems = _read(path)
    if problems:
        return problems
    found = list(_secret_texts(text))
    for document in documents:
        found += _check_document(document, schemas or _schemas(), quota_cores)
        found += _secrets(document, ())
    return list(dict.fromkeys(found))


def not_checked(path: Path, schemas: Path | None = None) -> list[str]:
    """What `check` could not check on this machine, and what it would need."""
    _, documents, problems = _read(path)
    missing = []
    for document in documents if not problems else []:
        kind = str(document.get("kind")) if isinstance(document, dict) else None
        if kind in KINDS and definition(kind, schemas or _schemas()) is None:
            missing.append(
                f"KubeRay's definition of a {kind} is not at hand, so misspelled fields pass; put "
                f"KubeRay's {KINDS[kind]} into a folder and name it in {SCHEMAS_VARIABLE}"
            )
        if isinstance(document, dict) and is_sky(document):
            missing.append(
                "SkyPilot's own view of the file needs SkyPilot: sky launch --dryrun FILE"
            )
        provider = document.get("provider") if isinstance(document, dict) else None
        if isinstance(provider, dict) and provider.get("type") == "gcp" and not google_packages():
            missing.append(
                "Ray's own view of a GCP node needs google-api-python-client, as `ray up` does: "
                "pip install '.[gcp]'"
            )
    return list(dict.fromkeys(missing))


def _schemas() -> Path | None:
    given = os.environ.get(SCHEMAS_VARIABLE)
    return Path(given) if given else None


# -- reading ---------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Makes a key that is given twice an error. YAML itself silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} is given twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> tuple[str, list[Any], list[str]]:
    try:
        text = path.read_text()
        documents = [found for found in yaml.load_all(text, _Loader) if found is not None]
    except (OSError, UnicodeDecodeError) as error:
        return "", [], [f"{path} cannot be read: {error}; give the path of a YAML file"]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        problem = getattr(error, "problem", None) or "not YAML"
        return "", [], [f"{where}: {problem}; correct the YAML, nothing else was looked at"]
    if not documents:
        return text, [], [f"{path} is empty; the files in cluster/ are ones to start from"]
    return text, documents, []


def _check_document(document: Any, schemas: Path | None, quota_cores: int | None) -> list[str]:
    if not isinstance(document, dict):
        return [f"the file holds {type(document).__name__}, not fields with values; see cluster/"]
    if str(document.get("kind")) in KINDS:
        return check_resource(document, schemas)
    if "apiVersion" in document and "kind" in document:
        return []  # Kubernetes' own kinds, such as a claim or an account
    if LAUNCHER_KEYS & set(document):
        return check_launcher(document, quota_cores)
    if is_sky(document):
        return check_sky(document, quota_cores)
    if is_runtime_env(document):
        return check_runtime_env(document)
    return [
        f"fields {', '.join(map(str, list(document)[:5]))}: neither a launcher's file (provider, "
        "available_node_types) nor a RayCluster, a RayJob (kind), a SkyPilot task (resources, run) "
        "or a runtime environment (env_vars, working_dir); start from a file in cluster/"
    ]


# -- secrets ---------------------------------------------------------------------------------------

_TEXTS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a Google API key": r"\bAIza[0-9A-Za-z_-]{30,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[opsu]_[0-9A-Za-z]{30,}|github_pat_\w{30,})",
    "a Hugging Face token": r"\bhf_[0-9A-Za-z]{30,}",
    "a Google OAuth token": r"\bya29\.[0-9A-Za-z_-]{20,}",
    "a password in an address": r"\b[a-z][a-z0-9+]*://[^\s:/@$]+:[^\s:/@$]+@",
}
_NAME = r"(?:passw(?:or)?d|secret|token|api_?key|access_?key|credentials?)"
_SECRET_NAME = re.compile(rf"(?:^|_){_NAME}s?$", re.I)
_ASSIGNED = re.compile(rf"\b(\w*{_NAME})=([\"']?)([^\s\"'$]+)", re.I)
_REMEDY = (
    "take it out and revoke it; give it by the environment, by a Kubernetes secret "
    "(valueFrom), or better by workload identity, which has no secret"
)


def _secret_texts(text: str) -> Iterator[str]:
    """Texts that look like secrets, also in comments. Findings do not repeat the value."""
    for number, line in enumerate(text.splitlines(), 1):
        for what, pattern in _TEXTS.items():
            if re.search(pattern, line):
                yield f"line {number} holds {what}; {_REMEDY}"


def _secrets(value: Any, where: tuple[str, ...]) -> Iterator[str]:
    """Fields, variables and assignments that are named like a secret and hold a plain value."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _secrets(item, (*where, str(index)))
    elif isinstance(value, dict):
        name, given = value.get("name"), value.get("value")
        if _is_secret(name, given):
            yield f"{'.'.join(where)}: variable {name} has its value in the file; {_REMEDY}"
        for key, item in value.items():
            if _is_secret(key, item) or (key == "gcp_credentials" and item):
                yield f"{'.'.join((*where, str(key)))} has its value in the file; {_REMEDY}"
            yield from _secrets(item, (*where, str(key)))
    elif isinstance(value, str):
        for name, _, _ in _ASSIGNED.findall(value):
            yield f"{'.'.join(where)} sets {name} to a value in the file; {_REMEDY}"


def _is_secret(name: Any, value: Any) -> bool:
    if not (isinstance(name, str) and isinstance(value, str) and value):
        return False
    # A path or a variable tells where a secret is, not its value.
    return bool(_SECRET_NAME.search(name)) and not value.startswith(("$", "/", "~"))
