"""MLflow's own client, with less output and shorter waits, and a check of a server through it.

Every way to log in to MLflow works here too: a user and a password in the address, the
MLFLOW_TRACKING_* variables, ~/.mlflow/credentials, ~/.netrc, certificates, Databricks, plug-ins.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

# MLflow reports usage to its makers by default. This turns it off.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With a server, MLflow prints two lines for each run, in the middle of the study's table.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from requests.exceptions import (
    InvalidURL,
    MissingSchema,
    RequestException,
    RetryError,
    SSLError,
    Timeout,
)
from urllib3.exceptions import ResponseError

from mambaout.errors import WrongRequest
from mambaout.study.store_uri import TrackingError, hidden, is_server, sqlite_path, sqlite_uri
from mambaout.study.tracking.outage import first_line

LOCAL = "leave --tracking-uri out to use a local sqlite file"
CREDENTIALS = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN "
    "(or write ~/.mlflow/credentials)"
)


def open_client(uri: str) -> MlflowClient:
    # By default MLflow makes 7 retries of up to 120 s each. During that time, nobody would serve
    # the trials. A retried request to make a run also makes two runs. A value that the user has set
    # is kept.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # The first access to a sqlite store makes its tables and logs each step. MLflow also logs the
    # whole trace of an error that it raises anyway.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    path = sqlite_path(uri)
    if path is None:
        return MlflowClient(tracking_uri=uri)
    # Two studies that start at once in a new storage folder would both make the tables, and one
    # would fail. The first request makes them.
    with _alone_in(path.parent):
        client = MlflowClient(tracking_uri=sqlite_uri(path))
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lock `folder` itself, which leaves no file. The kernel frees the lock if the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks on folders; go on without a lock
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def ask_server(uri: str) -> None:
    """Raise a TrackingError with the remedy if no MLflow answers at `uri` or access is denied."""
    shown = hidden(uri)
    if is_server(uri):
        try:
            host, port = urlsplit(uri).hostname, urlsplit(uri).port
            if not host:
                raise WrongRequest("it names no host")
        except ValueError as error:
            raise TrackingError(
                f"tracking uri {shown!r} is no address ({hidden(str(error))}); give "
                f"http://HOST:PORT, or {LOCAL}"
            ) from error
        start = f"start one with `mlflow server --host {host} --port {port or 5000}`, "
    else:
        start = ""
    remedy = f"{start}correct --tracking-uri, or {LOCAL}"
    try:
        open_client(uri).search_experiments(max_results=1)
    except MlflowException as error:
        raise TrackingError(_why(error, shown, remedy)) from None
    except Exception as error:  # a plug-in or a cloud has its own errors
        raise TrackingError(
            f"tracking uri {shown}: MLflow cannot use it ({hidden(first_line(error))}); {remedy}"
        ) from None


def _why(error: MlflowException, shown: str, remedy: str) -> str:
    cause = next((e for e in _chain(error) if isinstance(e, RequestException)), None)
    if isinstance(cause, InvalidURL | MissingSchema):
        return f"tracking uri {shown!r} is no address; {remedy}"
    if isinstance(cause, SSLError):
        return (
            f"the certificate of {shown} is not trusted; name its authority's file in "
            "MLFLOW_TRACKING_SERVER_CERT_PATH, or set MLFLOW_TRACKING_INSECURE_TLS=true"
        )
    if isinstance(cause, Timeout):
        seconds = MLFLOW_HTTP_REQUEST_TIMEOUT.get()
        return f"no tracking server answers at {shown} within {seconds} s; {remedy}"
    if isinstance(cause, RetryError):  # it answered, each time with an error
        said = next((str(e) for e in _chain(cause) if isinstance(e, ResponseError)), "HTTP 5xx")
        return f"{shown} answers with an error ({said}); look into the log of that server"
    if cause is not None:
        reason = [e for e in _chain(cause) if isinstance(e, OSError) and e.strerror]
        why = f" ({reason[-1].strerror})" if reason else ""
        return f"no tracking server answers at {shown}{why}; {remedy}"
    status = error.get_http_status_code()
    if status in (401, 403):
        return f"{shown} refuses (HTTP {status}); {CREDENTIALS}, or {LOCAL}"
    if isinstance(error, UnsupportedModelRegistryStoreURIException):
        kind = shown.partition(":")[0]
        return (
            f"tracking uri {shown}: MLflow has no store of the kind {kind!r}; give "
            "sqlite:///FOLDER/mlflow.db, or the http address of a server"
        )
    said = hidden(first_line(error)).partition(". Response body")[0]
    if not is_server(shown):
        return f"tracking uri {shown}: MLflow cannot use it ({said}); {remedy}"
    return f"{shown} answers, but not as an MLflow server does ({said}); {remedy}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = [arg for arg in each.args if isinstance(arg, BaseException)]
        waiting += [each.__cause__, each.__context__, getattr(each, "reason", None), *inner]
        waiting = [e for e in waiting if isinstance(e, BaseException)]
