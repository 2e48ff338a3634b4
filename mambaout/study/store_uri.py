"""Parse a tracking URI without mlflow: a file, a database or a server, and the secrets in it.

The addresses follow SQLAlchemy's rules, because MLflow passes them to it: `?` starts the options,
and `%` escapes are decoded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mambaout.errors import WrongRequest

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # in which MLflow can keep runs
_SQLITE = re.compile(r"sqlite(\+pysqlite)?:///(?P<path>.*)", re.DOTALL)
_USER_INFO = re.compile(r"(?<=://)[^/\s?#][^\s]*@|(?<=://)[^\s/@]*@")
_SECRET_OPTIONS = re.compile(
    r"((?:[?&]|\b)(?:password|passwd|pwd|token|secret|sslpassword|odbc_connect)=)[^&\s]+", re.I
)


class TrackingError(WrongRequest):
    """MLflow cannot store the study's runs. The message says why and what to do."""


def default_tracking_uri(storage: Path | str) -> str:
    """A sqlite file in the storage folder; its artifacts go to `mlartifacts` beside it."""
    return sqlite_uri(Path(storage).expanduser().resolve() / "mlflow.db")


def chosen_uri(given: str | None, storage: Path | str) -> str:
    """What --tracking-uri says, else MLFLOW_TRACKING_URI, else the default of the storage."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(storage)


def sqlite_uri(path: Path) -> str:
    """The address of a sqlite file, whatever characters its path has."""
    text = str(path)
    if "%" not in text and "?" not in text:
        return f"sqlite:///{text}"
    # MLflow makes the parent folder of a `sqlite:///` address before it decodes the address. That
    # would leave an empty folder with the encoded name. MLflow makes no folder if the address names
    # the driver.
    return "sqlite+pysqlite:///" + text.replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The file behind a sqlite address, as SQLAlchemy reads it; None for any other store."""
    found = _SQLITE.fullmatch(uri)
    if found is None:
        return None
    if "%" not in uri and "?" not in uri:
        return Path(found["path"]).absolute()
    from sqlalchemy import make_url

    return Path(make_url(uri).database or "").absolute()


def is_server(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0] in DATABASES


def hidden(text: str) -> str:
    """The text without the user names, passwords and tokens of the addresses in it."""
    return _SECRET_OPTIONS.sub(r"\1***", _USER_INFO.sub("***@", text))
