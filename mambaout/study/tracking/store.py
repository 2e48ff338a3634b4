"""Check, before anything starts, whether MLflow can keep a study's runs at an address.

A sqlite file or a database is checked without mlflow, because its import takes seconds. A server is
checked with MLflow's own client, so every way to log in to MLflow works for the check too.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sqlite3
import tempfile
import time
from collections.abc import Collection
from contextlib import closing
from functools import cache
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote

from mambaout.study.store_uri import (
    TrackingError,
    default_tracking_uri,
    hidden,
    is_database,
    sqlite_path,
    sqlite_uri,
)
from mambaout.study.tracking.outage import first_line

__all__ = ["TrackingError", "check_tracking", "default_tracking_uri"]

ANSWER_SECONDS = 10  # the longest time for a database to answer
CREATION_SECONDS = 60  # the longest time for another process to make a sqlite file's tables
QUIET_SECONDS = 3  # after such a time without a write, nobody is making tables
MLFLOW_TABLES = {"experiments", "runs", "metrics", "params", "tags"}  # of every version
TABLES_SHOWN = 3
# Python's name of a database driver -> its name on PyPI.
DRIVERS = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "psycopg[binary]",
    "MySQLdb": "mysqlclient",
    "pymysql": "pymysql",
    "pyodbc": "pyodbc",
    "pymssql": "pymssql",
}
ELSEWHERE = "give another with --tracking-uri"


def check_tracking(uri: str) -> None:
    """Raise a TrackingError with the remedy if the store cannot be used. Creates nothing."""
    scheme = uri.partition(":")[0] if ":" in uri else ""
    if scheme.startswith("sqlite"):
        _check_sqlite_uri(uri)
    elif (user_info := uri.partition("?")[0].rpartition("@")[0].partition("://")[2]) and set(
        user_info
    ) & set("@/#"):
        # The address would end too early. The error would then show a part of the password as the
        # host.
        raise TrackingError(
            f"tracking uri {hidden(uri)}: in a user's name or password write %40 for @, %2F for / "
            "and %23 for #"
        )
    elif is_database(uri):
        _check_database(uri)
    elif uri.startswith("databricks") or scheme not in ("", "file"):
        from mambaout.study.tracking.mlflow_client import ask_server

        ask_server(uri)
    else:
        folder = Path(unquote(re.sub("^file:(//)?", "", uri)) or ".").absolute()
        raise TrackingError(
            f"tracking uri {uri!r}: MLflow no longer keeps runs in a plain folder; "
            f"give {default_tracking_uri(folder)}, or the http address of a server"
        )


# -- a sqlite file --------------------------------------------------------------------------------


def _check_sqlite_uri(uri: str) -> None:
    path = sqlite_path(uri)
    if "?" in uri:
        raise TrackingError(
            f"tracking uri {uri!r}: a sqlite file takes no options; write %3F for a ? in its path"
        )
    if path is None or uri.endswith(("///", ":memory:")):
        raise TrackingError(
            f"tracking uri {uri!r} names no file; give sqlite:///FOLDER/mlflow.db (four slashes "
            "before an absolute folder)"
        )
    as_written = Path(uri.partition(":///")[2]).absolute()
    if as_written != path and as_written.parent.exists() and not path.parent.exists():
        raise TrackingError(
            f"tracking uri {uri!r} means {path}, since % starts a code in an address; "
            f"for {as_written} give {sqlite_uri(as_written)}"
        )
    _check_sqlite(path)


def _check_sqlite(path: Path) -> None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # the file will be made
    except OSError as error:  # a name that is too long, a folder of another user
        raise TrackingError(
            f"tracking store {path} cannot be reached ({error.strerror}); choose another with "
            "--storage or --tracking-uri"
        ) from error
    if path.is_dir():
        raise TrackingError(
            f"tracking store {path} is a folder; name a file in it: {path}/mlflow.db"
        )
    for folder in (path.parent, path.parent / "mlartifacts"):
        _check_writable(path, folder)
    if not path.exists():
        return
    give_up = time.monotonic() + CREATION_SECONDS
    try:
        with path.open("r+b"):
            pass
        tables, revision = _schema(path)
        while revision != _revisions()[0] and _is_being_made(path) and time.monotonic() < give_up:
            time.sleep(0.2)
            tables, revision = _schema(path)
    except PermissionError as error:
        raise TrackingError(
            f"tracking store {path} is not writable; try chmod u+rw {shlex.quote(str(path))}"
        ) from error
    except OSError as error:
        raise TrackingError(
            f"tracking store {path} cannot be written ({error.strerror}); choose another with "
            "--storage or --tracking-uri"
        ) from error
    except sqlite3.OperationalError as error:  # locked, cut off
        raise TrackingError(
            f"tracking store {path} cannot be read ({error}); end what uses it, or {ELSEWHERE}"
        ) from error
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"tracking store {path} is not a sqlite file; move it away, or {ELSEWHERE}"
        ) from error
    _check_schema(f"tracking store {path}", sqlite_uri(path), tables, revision)


def _schema(path: Path) -> tuple[set[str], str | None]:
    """The tables of a sqlite file, and the revision in its alembic_version."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in names}
        if "alembic_version" not in tables:
            return tables, None
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        return tables, rows[0][0] if rows else None


def _is_being_made(path: Path) -> bool:
    """Whether another process may be making the tables now, one old schema after another."""
    newest = max(
        each.stat().st_mtime
        for each in (path, path.with_name(f"{path.name}-journal"))
        if each.exists()
    )
    return time.time() - newest < QUIET_SECONDS


def _check_writable(store: Path, folder: Path) -> None:
    holder = folder
    while not holder.exists():
        holder = holder.parent
    try:
        # To check permissions is not enough: root has them on a read-only file system too.
        with tempfile.TemporaryFile(dir=holder):
            pass
    except OSError as error:
        raise TrackingError(
            f"tracking store {store} cannot be written: {holder} is not a writable folder "
            f"({error.strerror}); choose another with --storage or --tracking-uri"
        ) from error


# -- the tables -----------------------------------------------------------------------------------


def _check_schema(what: str, uri: str, tables: Collection[str], revision: str | None) -> None:
    """`tables` are the tables of the database. `revision` is the content of its alembic_version."""
    own = {name for name in tables if not name.startswith(("alembic_", "sqlite_"))}
    if not own:
        return
    newest, known = _revisions()
    if not own >= MLFLOW_TABLES:
        some = ", ".join(sorted(own)[:TABLES_SHOWN]) + (", ..." if len(own) > TABLES_SHOWN else "")
        raise TrackingError(
            f"{what} is a database of something else than MLflow (tables {some}); {ELSEWHERE}"
        )
    if revision is None or (revision in known and revision != newest):
        raise TrackingError(
            f"{what} was made by an older MLflow; copy it, then run "
            f"`mlflow db upgrade {shlex.quote(hidden(uri))}`, or {ELSEWHERE}"
        )
    if revision != newest:
        raise TrackingError(
            f"{what} was made by a newer MLflow than the {version('mlflow')} installed here; "
            f"`pip install --upgrade mlflow`, or {ELSEWHERE}"
        )


@cache
def _revisions() -> tuple[str, frozenset[str]]:
    """The schema that the installed MLflow makes, and all schemas that it knows.

    They are read from its migration scripts as text, because loading the scripts would import
    mlflow.
    """
    package = importlib.util.find_spec("mlflow")
    assert package is not None
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.py")))
    named = {
        name: set(re.findall(rf"^{name}(?:: .*?)? = [\"'](\w+)[\"']", text, re.MULTILINE))
        for name in ("revision", "down_revision")
    }
    (newest,) = named["revision"] - named["down_revision"]
    return newest, frozenset(named["revision"])


# -- a database -----------------------------------------------------------------------------------


def _check_database(uri: str) -> None:
    """Try once with SQLAlchemy, which MLflow uses. MLflow itself would try for minutes."""
    import sqlalchemy.exc

    shown = hidden(uri)
    try:
        url = sqlalchemy.make_url(uri)
        limit = {} if url.get_backend_name() == "mssql" else {"connect_timeout": ANSWER_SECONDS}
        engine = sqlalchemy.create_engine(url, connect_args=limit)
    except ImportError as error:
        module = error.name or "its driver"
        raise TrackingError(
            f"tracking uri {shown}: the database driver {module} is not installed; "
            f"`pip install {shlex.quote(DRIVERS.get(module, module))}`"
        ) from error
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise TrackingError(
            f"tracking uri {shown} is no address of a database ({hidden(first_line(error))}); "
            "give it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE; in a password write %40 "
            "for @ and %2F for /"
        ) from error
    try:
        with engine.connect() as connection:
            tables = set(sqlalchemy.inspect(connection).get_table_names())
            revision = None
            if "alembic_version" in tables:
                query = sqlalchemy.text("SELECT version_num FROM alembic_version")
                revision = connection.execute(query).scalar()
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = hidden(first_line(getattr(error, "orig", None) or error))
        raise TrackingError(
            f"tracking uri {shown}: the database does not let us in ({reason}); start it, correct "
            "--tracking-uri, or leave it out to use a local sqlite file"
        ) from error
    finally:
        engine.dispose()
    _check_schema(f"tracking store {shown}", uri, tables, revision)
