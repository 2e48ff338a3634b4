"""Where MLflow keeps a study's runs: the default place, and whether a place can be used.

Free of mlflow, whose import takes seconds: a wrong address is answered at once.
"""

from __future__ import annotations

import json
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

ANSWER_SECONDS = 5.0  # that a server may take
OTHER_STORES = (
    "sqlite",
    "postgresql",
    "mysql",
    "mssql",
    "databricks",
)  # MLflow's own; not looked at
_ENDPOINT = "/api/2.0/mlflow/experiments/search?max_results=1"
_CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME")
_SQLITE_HEAD = b"SQLite format 3\0"


def default_tracking_uri(storage: Path | str) -> str:
    """A sqlite file in the storage folder; its artifacts go to `mlartifacts` beside it."""
    return f"sqlite:///{Path(storage).expanduser().resolve() / 'mlflow.db'}"


def sqlite_path(uri: str) -> Path | None:
    """The file behind a sqlite:/// URI, or None for any other store."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def check_tracking(uri: str) -> None:
    """Raise a ValueError with the remedy where the store cannot be used; creates nothing.

    A server must answer within seconds; a sqlite file, or the folder that is to hold it, must be
    writable.
    """
    scheme = urlsplit(uri).scheme
    if (path := sqlite_path(uri)) is not None:
        _check_sqlite(path)
    elif is_server(uri):
        _check_server(uri)
    elif scheme in ("", "file"):
        folder = Path(uri.removeprefix("file://") or ".").absolute()
        raise ValueError(
            f"tracking uri {uri!r}: MLflow no longer keeps runs in a plain folder; "
            f"give sqlite:///{folder}/mlflow.db, or the http address of a server"
        )
    elif scheme.split("+")[0] not in OTHER_STORES:
        raise ValueError(
            f"tracking uri {uri!r}: MLflow has no store of the kind {scheme!r}; "
            "give sqlite:///FOLDER/mlflow.db, or the http address of a server"
        )


def _check_sqlite(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"tracking store {path} is a folder; name a file in it: {path}/mlflow.db")
    holder = path.parent
    while not holder.exists():
        holder = holder.parent
    try:
        # Asking for permissions is not enough: root has them on a read-only file system too.
        with tempfile.TemporaryFile(dir=holder):
            pass
    except OSError as error:
        raise ValueError(
            f"tracking store {path} cannot be written: {holder} is not a writable folder "
            f"({error.strerror}); choose another with --storage or --tracking-uri"
        ) from error
    if not path.exists():
        return
    if not os.access(path, os.R_OK | os.W_OK):
        raise ValueError(f"tracking store {path} is not writable; try chmod u+rw {path}")
    with path.open("rb") as file:
        if file.read(len(_SQLITE_HEAD)) not in (b"", _SQLITE_HEAD):
            raise ValueError(
                f"tracking store {path} is not a sqlite file; move it away, or give another "
                "with --tracking-uri"
            )


def _check_server(uri: str) -> None:
    try:
        host, port = urlsplit(uri).hostname, urlsplit(uri).port or 5000
    except ValueError as error:
        raise ValueError(f"tracking uri {uri!r} is no address: {error}") from error
    remedy = (
        f"start one with `mlflow server --host {host} --port {port}`, correct --tracking-uri, "
        "or leave it out to use a local sqlite file"
    )
    no_mlflow = f"{uri} answers, but not as an MLflow server does"
    try:
        with urllib.request.urlopen(uri.rstrip("/") + _ENDPOINT, timeout=ANSWER_SECONDS) as answer:
            if "experiments" not in json.load(answer):
                raise ValueError(f"{no_mlflow}; {remedy}")
    except urllib.error.HTTPError as error:
        with error:
            if error.code not in (401, 403):
                raise ValueError(f"{no_mlflow} (HTTP {error.code}); {remedy}") from error
            if not any(name in os.environ for name in _CREDENTIALS):
                raise ValueError(
                    f"{uri} refuses (HTTP {error.code}); set {' or '.join(_CREDENTIALS)}, "
                    "or leave --tracking-uri out to use a local sqlite file"
                ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{no_mlflow}; {remedy}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"no tracking server answers at {uri} ({reason}); {remedy}") from error
