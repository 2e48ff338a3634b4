"""The rules for a job's runtime environment: which files it sends and how it is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

STOP_SIGNAL, STOP_WAIT = "RAY_JOB_STOP_SIGNAL", "RAY_JOB_STOP_WAIT_TIME_S"
INSTALLERS = ("pip", "uv", "conda")
OWN_KEYS = {"working_dir", "py_modules", "env_vars", "excludes", *INSTALLERS}


def is_runtime_env(document: Mapping[str, Any]) -> bool:
    return bool(OWN_KEYS & set(document))


def least_wait_seconds() -> float:
    """The longest time for a study to save its trials and end after a stop."""
    from mambaout.launch.stopping import GRACE_SECONDS, LEAVE_SECONDS

    return GRACE_SECONDS + LEAVE_SECONDS


def check_runtime_env(env: Mapping[str, Any], where: str = "") -> list[str]:
    """The findings. Each names its field, with `where` before it."""
    return [f"{where}{finding}" for finding in _findings(env)]


def _findings(env: Mapping[str, Any]) -> Iterator[str]:
    from ray.runtime_env import RuntimeEnv

    for name in env:
        if name not in RuntimeEnv.known_fields:
            known = ", ".join(sorted(OWN_KEYS))
            yield f"{name}: Ray knows no such field of a runtime environment; it knows {known}"
    for name in INSTALLERS:
        if env.get(name):
            yield (
                f"{name}: {env[name]!r} would install torch anew on each host and for each job; "
                "leave it out, the hosts have their packages from cluster/setup.sh"
            )
    variables = env.get("env_vars") or {}
    if not isinstance(variables, Mapping):
        yield f'env_vars: {variables!r} is no mapping; write NAME: "value" lines'
        return
    for name, value in variables.items():
        if not isinstance(value, str):
            yield f'env_vars.{name}: {value!r} is no text, which Ray refuses; write "{value}"'
    signal, wait = variables.get(STOP_SIGNAL), variables.get(STOP_WAIT)
    if signal != "SIGINT":
        yield (
            f"env_vars.{STOP_SIGNAL}: {signal}; `ray job stop` would kill the study without "
            "letting it save; set SIGINT"
        )
    least = least_wait_seconds()
    seconds = int(str(wait)) if str(wait).isdecimal() else 0
    if seconds <= least:
        yield (
            f"env_vars.{STOP_WAIT}: {wait}; a study takes up to {least:.0f} s to save and leave, "
            'and is killed after this time; set "60"'
        )
