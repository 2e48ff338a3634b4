"""What is refused before anything starts, since MLflow could not keep it; and what lets us in."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from study_files import scaling_study, write_study

from mambaout.launch.follow import Follower
from mambaout.launch.progress import Screen
from mambaout.study.search.memory import open_store
from mambaout.study.store_uri import hidden, sqlite_path, sqlite_uri
from mambaout.study.tracking.store import (
    TrackingError,
    _revisions,
    check_tracking,
    default_tracking_uri,
)
from mambaout.study.tracking.tracker import Tracker

ODD = "a b?c=d%20#e é'"
SECRET = "s3cret"


def refusal(uri: str) -> str:
    with pytest.raises(TrackingError) as refused:
        check_tracking(uri)
    text = str(refused.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# -- sqlite files ---------------------------------------------------------------------------------


@pytest.fixture
def store(empty_store, tmp_path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def test_the_installed_mlflow_makes_the_schema_that_the_check_wants(store):
    with closing(sqlite3.connect(store)) as connection:
        ((made,),) = connection.execute("SELECT version_num FROM alembic_version")
    assert made == _revisions()[0]
    check_tracking(sqlite_uri(store))


def test_an_older_schema_is_refused_with_the_command_that_upgrades_it(store):
    newest, known = _revisions()
    change(store, f"UPDATE alembic_version SET version_num = '{min(known - {newest})}'")
    said = refusal(sqlite_uri(store))
    assert "older MLflow" in said
    assert f"mlflow db upgrade sqlite:///{store}" in said


def test_a_store_that_another_study_is_making_is_waited_for(store):
    newest, known = _revisions()
    change(store, f"UPDATE alembic_version SET version_num = '{min(known - {newest})}'")
    finish = f"UPDATE alembic_version SET version_num = '{newest}'"
    maker = threading.Timer(1, change, (store, finish))
    maker.start()
    check_tracking(sqlite_uri(store))
    maker.join()


def test_a_newer_schema_is_refused(store):
    change(store, "UPDATE alembic_version SET version_num = 'fffffffffff0'")
    assert "newer MLflow" in refusal(sqlite_uri(store))


def test_a_sqlite_file_of_something_else_is_refused_and_not_touched(tmp_path):
    path = tmp_path / "photos.db"
    change(path, "CREATE TABLE photos (id INTEGER)")
    before = path.read_bytes()
    assert "something else than MLflow (tables photos)" in refusal(sqlite_uri(path))
    assert path.read_bytes() == before


def test_the_database_of_a_search_is_no_tracking_store(tmp_path):
    open_store(tmp_path / "optuna.db")
    assert "something else than MLflow" in refusal(sqlite_uri(tmp_path / "optuna.db"))


def test_a_file_that_is_cut_off_is_refused(store):
    store.write_bytes(store.read_bytes()[:5000])
    assert str(store) in refusal(sqlite_uri(store))


def test_a_store_whose_artifacts_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "mlartifacts").write_text("a file where a folder should be")
    assert "mlartifacts is not a writable folder" in refusal(default_tracking_uri(tmp_path))


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_store_in_memory_is_refused(uri):
    assert "names no file" in refusal(uri)


def test_a_question_mark_in_a_sqlite_address_is_refused_with_its_code():
    assert "write %3F" in refusal("sqlite:////tmp/why?/mlflow.db")


def test_a_path_pasted_into_an_address_is_told_from_its_code(tmp_path):
    (tmp_path / "a%20b").mkdir()
    said = refusal(f"sqlite:///{tmp_path}/a%20b/mlflow.db")
    assert f"give {sqlite_uri(tmp_path / 'a%20b' / 'mlflow.db')}" in said
    check_tracking(sqlite_uri(tmp_path / "a%20b" / "mlflow.db"))


# -- paths with characters that mean something in an address --------------------------------------


@pytest.mark.parametrize("name", ["plain", "a b", "50%", "why?", "a%20b", "#1", "é", "x@y:1", ODD])
def test_a_path_comes_back_from_its_address(tmp_path, name):
    path = tmp_path / name / "mlflow.db"
    assert sqlite_path(sqlite_uri(path)) == path


def test_everything_lies_in_the_storage_folder_whatever_its_name(tmp_path):
    storage = tmp_path / ODD
    folder = write_study(storage)
    uri = default_tracking_uri(storage)
    check_tracking(uri)
    tracker = Tracker(uri, "scale", "Does it scale?")
    tracker.describe(folder)
    check_tracking(uri)
    memory = open_store(folder.path / "optuna.db")
    optuna.create_study(storage=memory, study_name="x")
    assert [path.name for path in tmp_path.iterdir()] == [ODD]
    assert {path.name for path in storage.iterdir()} == {"mlflow.db", "mlartifacts", "scale"}
    assert (folder.path / "optuna.db").exists()
    client = MlflowClient(tracking_uri=uri)
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["study.json"]
    local = Path(client.download_artifacts(tracker.run_id, "study.json"))
    assert local.read_text() == (folder.path / "study.json").read_text()


# -- databases ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [
        ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
        ("mysql", "MySQLdb", "mysqlclient"),
        ("mysql+pymysql", "pymysql", "pymysql"),
        ("mssql+pymssql", "pymssql", "pymssql"),
    ],
)
def test_a_missing_driver_is_named_with_its_package(monkeypatch, scheme, module, package):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    said = refusal(f"{scheme}://ann:{SECRET}@127.0.0.1/mlflow")
    assert f"pip install {package}" in said


@pytest.mark.parametrize("scheme", ["postgresql", "http", "mysql"])
def test_a_password_that_would_end_the_address_early_is_refused_unseen(scheme):
    assert "%40 for @" in refusal(f"{scheme}://ann:x@y/{SECRET}@127.0.0.1:1/mlflow")


@pytest.fixture(scope="module")
def postgres(tmp_path_factory) -> Iterator[Callable[[str], str]]:
    """A PostgreSQL server of this module's own: the address of a database, by its name."""
    pytest.importorskip("psycopg", reason="wants psycopg, PostgreSQL's driver")
    places = [shutil.which("initdb"), *Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    programs = [Path(place).parent for place in places if place]
    if not programs:
        pytest.skip("wants PostgreSQL's programs: apt-get install postgresql")
    # The server refuses to be root's; a folder of pytest's is root's alone.
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    home = Path(subprocess.check_output([*as_user, "mktemp", "-d"], text=True, cwd="/").strip())

    def act(*words: str) -> None:
        command = [*as_user, str(programs[-1] / words[0]), "-D", str(home / "data"), *words[1:]]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    port = free_port()
    given = home / "given"
    subprocess.run([*as_user, "tee", str(given)], input=SECRET.encode(), check=True, cwd="/",
                   stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        act("initdb", "-U", "ann", f"--pwfile={given}", "-A", "scram-sha-256")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {home}"
        act("pg_ctl", "-o", options, "-l", str(home / "log"), "-w", "start")
        try:
            yield lambda name: f"postgresql://ann:{SECRET}@127.0.0.1:{port}/{name}"
        finally:
            act("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def database(postgres: Callable[[str], str], name: str, *statements: str) -> str:
    import sqlalchemy

    for where, texts in (("postgres", [f"CREATE DATABASE {name}"]), (name, statements)):
        engine = sqlalchemy.create_engine(postgres(where), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for text in texts:
                connection.execute(sqlalchemy.text(text))
        engine.dispose()
    return postgres(name)


def open_tracker(uri: str, storage: Path) -> subprocess.CompletedProcess[str]:
    """A process that opens a tracker on a study's folder: MLflow keeps connections to its end."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom mambaout.study.study import StudyFolder\n"
        "from mambaout.study.tracking.tracker import Tracker\n"
        "storage = Path(sys.argv[2])\n"
        "tracker = Tracker(sys.argv[1], 'scale', 'Does it?', storage / 'mlartifacts')\n"
        "tracker.describe(StudyFolder(storage, 'scale'))"
    )
    command = [sys.executable, "-c", code, uri, str(storage)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_postgres_database_that_is_empty_or_mlflows_is_taken(postgres, tmp_path):
    uri = database(postgres, "good")
    check_tracking(uri)
    write_study(tmp_path)
    opened = open_tracker(uri, tmp_path)
    assert opened.returncode == 0, opened.stderr
    assert (tmp_path / "mlartifacts").is_dir()
    check_tracking(uri)


def test_a_postgres_database_that_cannot_be_used_is_refused(postgres):
    assert "does not exist" in refusal(postgres("missing"))
    assert "tables horses" in refusal(database(postgres, "others", "CREATE TABLE horses (a int)"))
    wrong = postgres("postgres").replace(SECRET, "guess")
    said = refusal(wrong)
    assert "password authentication failed" in said
    assert "guess" not in said
    down = f"postgresql://ann:{SECRET}@127.0.0.1:{free_port()}/x"
    assert "does not let us in" in refusal(down)


def test_a_postgres_user_who_may_not_make_tables_is_told_so(postgres, tmp_path):
    uri = database(postgres, "closed", "CREATE ROLE bob LOGIN PASSWORD 'b0b'")
    uri = uri.replace(f"ann:{SECRET}", "bob:b0b")
    last = open_tracker(uri, tmp_path).stderr.strip().splitlines()[-1]
    assert "TrackingError" in last
    assert "permission denied" in last
    assert "b0b" not in last


# -- servers --------------------------------------------------------------------------------------


class Gate(BaseHTTPRequestHandler):
    """A server that answers as MLflow's does, to whoever has the key."""

    wants: str | None = None
    said: tuple[int, str] = (200, '{"experiments": []}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        granted = self.wants is None or self.headers.get("Authorization") == self.wants
        status, body = self.said if granted else (401, "You are not authenticated.")
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def gate(wants: str | None = None, tls: ssl.SSLContext | None = None, **said) -> Iterator[str]:
    handler = type("OwnGate", (Gate,), {"wants": wants, **said})
    server = HTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder without anybody's keys in it."""
    for name in list(os.environ):
        if name.startswith("MLFLOW_TRACKING_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


BASIC = "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()


def test_whatever_lets_mlflow_in_lets_the_check_in(home, monkeypatch):
    with gate(wants=BASIC) as where:
        assert "HTTP 401" in refusal(f"http://{where}")
        assert "MLFLOW_TRACKING_USERNAME" in refusal(f"http://{where}")
        check_tracking(f"http://ann:{SECRET}@{where}")
        assert "HTTP 401" in refusal(f"http://ann:{SECRET}x@{where}")

        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
            check_tracking(f"http://{where}")

        (home / ".mlflow").mkdir()
        text = f"[mlflow]\nmlflow_tracking_username = ann\nmlflow_tracking_password = {SECRET}\n"
        (home / ".mlflow" / "credentials").write_text(text)
        check_tracking(f"http://{where}")
        shutil.rmtree(home / ".mlflow")

        (home / ".netrc").write_text(f"machine 127.0.0.1 login ann password {SECRET}\n")
        (home / ".netrc").chmod(0o600)
        check_tracking(f"http://{where}")


def test_a_token_lets_the_check_in(home, monkeypatch):
    with gate(wants=f"Bearer {SECRET}") as where:
        assert "HTTP 401" in refusal(f"http://{where}")
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
        check_tracking(f"http://{where}")


def own_certificate(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "own.pem"
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, *plain))
    return path


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_a_certificate_of_ones_own_is_taken_as_mlflow_is_told(home, monkeypatch):
    path = own_certificate(home)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path)
    with gate(tls=tls) as where:
        said = refusal(f"https://{where}")
        assert "certificate" in said
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in said
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(path))
            check_tracking(f"https://{where}")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        check_tracking(f"https://{where}")


@pytest.mark.parametrize(
    "said", [(404, "<html>Not here</html>"), (200, "<html>Hello</html>"), (200, "[1]")]
)
def test_another_web_server_is_no_mlflow(home, said):
    with gate(said=said) as where:
        assert "not as an MLflow server does" in refusal(f"http://{where}")


def test_a_server_with_an_error_of_its_own_is_sent_to_its_log(home):
    with gate(said=(500, "")) as where:
        said = refusal(f"http://{where}")
    assert "too many 500 error responses" in said
    assert "log" in said


def test_databricks_is_asked_for_through_mlflow(home):
    """Without a workspace here: MLflow's own word of what is lacking comes back."""
    assert "credential" in refusal("databricks")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://ann:{SECRET}@host:5000", "http://***@host:5000"),
        (f"postgresql://ann:{SECRET}@h/db?sslmode=x", "postgresql://***@h/db?sslmode=x"),
        (
            f"postgresql://h/db?user=ann&password={SECRET}",
            "postgresql://h/db?user=ann&password=***",
        ),
        (f"--tracking-uri=http://{SECRET}@host", "--tracking-uri=http://***@host"),
        (f"cannot reach http://a:{SECRET}@h:1/x (no)", "cannot reach http://***@h:1/x (no)"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://host:5000/path", "http://host:5000/path"),
    ],
)
def test_what_is_shown_of_an_address_has_no_secret(text, shown):
    assert hidden(text) == shown


# -- a launch -------------------------------------------------------------------------------------


def test_a_launch_learns_of_a_store_that_takes_no_file_before_a_trial_begins(tmp_path):
    folder = write_study(tmp_path)
    (tmp_path / "mlartifacts").write_text("a file where a folder should be")
    follower = Follower(
        scaling_study(),
        folder,
        [],
        launch="one",
        slots=1,
        num_undecided=lambda: 0,
        tracking_uri=default_tracking_uri(tmp_path),
        tags={},
        screen=Screen(),
    )
    follower.start()
    with pytest.raises(TrackingError, match="cannot keep files in"):
        follower.wait_for_tracking()
