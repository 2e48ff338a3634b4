"""How MLflow's page shows a study: its trials side by side, accuracy against cost.

MLflow keeps a shared view of an experiment as a tag, `mlflow.sharedViewState.NAME`, whose value is
the page's state; `?viewStateShareKey=NAME` in the address opens it. MLflow's documentation does not
describe this. It was read from the page of version 3.17, and a test checks it in a browser. If the
page of another version does not know the state, it shows its default columns.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from mambaout.errors import WrongRequest
from mambaout.study.store_uri import TrackingError, hidden, is_server, sqlite_path, sqlite_uri
from mambaout.study.tracking.mlflow_client import open_client
from mambaout.study.tracking.store import check_tracking
from mambaout.train.metrics import (
    DEVICE,
    IMAGES_PER_SECOND,
    MACS,
    PARAMS,
    TRAIN_DEVICE_HOURS,
)
from mambaout.train.tasks import CLASSIFY, TaskKind

LAUNCHED_TAG = "mambaout.launched"  # on the experiment: when the study was last launched
VIEW = "trials"
PREFIX = "mambaout/"  # of an experiment's name
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"  # not a chat application

TRIALS_QUERY = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
CHARTS_QUERY = f"{TRIALS_QUERY}&compareRunsMode=CHART"

_SCORE_WIDTH = 110  # px; the others are said beside their column, in this order
_COLUMNS = {
    f"metrics.`{MACS}`": 100,
    f"metrics.`{IMAGES_PER_SECOND}`": 150,
    f"tags.`{DEVICE}`": 150,  # the device of the speed; trials can come from other machines
    f"metrics.`{PARAMS}`": 90,
    f"metrics.`{TRAIN_DEVICE_HOURS}`": 150,
    "params.`depths`": 80,
    "params.`dims`": 120,
    "params.`seed`": 60,
    "tags.`outcome`": 90,
}
_FIRST = {"attributes.`Run Name`": 150, "runDateAndNestInfo": 130}  # columns that are always shown

# By default MLflow starts seven more processes for jobs on chat traces: half a gigabyte that no
# study needs.
_QUIET = ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true")


def trials_view(trial_filter: str, kind: TaskKind = CLASSIFY) -> str:
    """The state of the page that lists the runs of `trial_filter`, the highest score first."""
    scores = dict.fromkeys((kind.watched, *kind.final_metrics[:2]), _SCORE_WIDTH)
    columns = {f"metrics.`{name}`": width for name, width in scores.items()} | _COLUMNS
    state = {
        "searchFilter": trial_filter,
        "orderByKey": f"metrics.`{kind.watched}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": [*_FIRST, *columns, "duration"],
        "columnWidths": _FIRST | columns,
    }
    return json.dumps(state)


def experiment_name(study_name: str) -> str:
    return f"{PREFIX}{study_name}"


@dataclass(frozen=True, kw_only=True)
class StudyPages:
    """The addresses of a study's pages."""

    name: str
    trials: str  # side by side: accuracy, MACs, throughput
    charts: str  # learning curves


def study_pages(uri: str, port: int = 5000) -> list[StudyPages]:
    """The pages of every study in a store. The study launched last comes last.

    If the store is no server, `ui_command` serves it at `port`. A server's own address is in `uri`.
    TrackingError if there is no study.
    """
    check_tracking(uri)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise TrackingError(f"there is no tracking store {path}; run a study first")
    found = [
        experiment
        for experiment in open_client(uri).search_experiments(
            filter_string=f"name LIKE '{experiment_name('%')}'"
        )
        if LAUNCHED_TAG in experiment.tags
    ]
    if not found:
        raise TrackingError(f"there is no study in {hidden(uri)}; run one first")
    found.sort(key=lambda experiment: experiment.tags[LAUNCHED_TAG])
    base = hidden(uri).rstrip("/") if is_server(uri) else f"http://127.0.0.1:{port}"
    return [
        StudyPages(
            name=experiment.name.removeprefix(PREFIX),
            trials=f"{base}/#/experiments/{experiment.experiment_id}/runs?{TRIALS_QUERY}",
            charts=f"{base}/#/experiments/{experiment.experiment_id}/runs?{CHARTS_QUERY}",
        )
        for experiment in found
    ]


def compare_url(uri: str, port: int = 5000, study_name: str | None = None) -> str:
    """The page with a study's trials side by side. The default is the last study."""
    pages = {page.name: page for page in study_pages(uri, port)}
    name = study_name or list(pages)[-1]
    if name not in pages:
        raise TrackingError(f"there is no study {name!r} in {hidden(uri)}; run one first")
    return pages[name].trials


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """The command that serves MLflow's UI, only on this machine, for a store that is no server.

    The store's address is not in the command but in `ui_variables`. Everyone on a machine can read
    the running commands, and the address of a database contains a password.
    """
    if is_server(uri):
        raise WrongRequest(f"{hidden(uri)} is a server already; open it in a browser")
    where = ["--host", "127.0.0.1", "--port", str(port), "--uvicorn-opts", "--log-level=warning"]
    return ["env", *_QUIET, sys.executable, "-m", "mlflow", "ui", "--workers", "1", *where]


def ui_variables(uri: str) -> dict[str, str]:
    """The environment variables that `ui_command` needs."""
    path = sqlite_path(uri)
    return {"MLFLOW_BACKEND_STORE_URI": uri if path is None else sqlite_uri(path)}
