"""How MLflow's page shows a study: its trials side by side, accuracy against cost.

MLflow keeps a shared view of an experiment as a tag, `mlflow.sharedViewState.NAME`, whose value is
the page's state; `?viewStateShareKey=NAME` in the address opens it. Nothing of this is in
MLflow's documentation: it was read from the page of version 3.17 and a test looks at it in a
browser. A page of another version that does not know it shows its own default columns.
"""

from __future__ import annotations

import json
import sys

from mambaout.study.store import is_server
from mambaout.train.metrics import (
    IMAGES_PER_SECOND,
    MACS,
    MINIVAL_TOP1,
    PARAMS,
    TOP1,
    TRAIN_DEVICE_HOURS,
)

VIEW = "trials"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"  # not a chat application

_COLUMNS = {  # in this order, width in px
    f"metrics.`{TOP1}`": 80,
    f"metrics.`{MINIVAL_TOP1}`": 110,
    f"metrics.`{MACS}`": 100,
    f"metrics.`{IMAGES_PER_SECOND}`": 150,
    f"metrics.`{PARAMS}`": 90,
    f"metrics.`{TRAIN_DEVICE_HOURS}`": 150,
    "params.`depths`": 80,
    "params.`dims`": 120,
    "params.`seed`": 60,
    "tags.`outcome`": 90,
}
_FIRST = {"attributes.`Run Name`": 150, "runDateAndNestInfo": 130}  # columns that always show

# MLflow starts seven more processes for jobs on chat traces, half a gigabyte that no study needs.
_QUIET = ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true")


def trials_view(trial_filter: str) -> str:
    """The state of the page that lists the runs of `trial_filter`, best top-1 first."""
    state = {
        "searchFilter": trial_filter,
        "orderByKey": f"metrics.`{TOP1}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(_COLUMNS),
        "columnOrder": [*_FIRST, *_COLUMNS, "duration"],
        "columnWidths": _FIRST | _COLUMNS,
    }
    return json.dumps(state)


def page_address(uri: str, port: int, experiment_id: str) -> str:
    """Where the trials of an experiment stand side by side."""
    base = uri.rstrip("/") if is_server(uri) else f"http://127.0.0.1:{port}"
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    return f"{base}/#/experiments/{experiment_id}/runs?{query}"


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """The command that serves MLflow's UI, to this machine alone, for a store that is a file."""
    if is_server(uri):
        raise ValueError(f"{uri} is a server already; open it in a browser")
    where = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    return ["env", *_QUIET, sys.executable, "-m", "mlflow", "ui", "--workers", "1", *where]
