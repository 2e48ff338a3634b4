#!/usr/bin/env bash
# The cluster's MLflow server, beside the head and for the head alone: reach it through a tunnel.
#
# Run:    bash cluster/mlflow.sh                 in the background, unless one answers already
#         bash cluster/mlflow.sh --foreground    as a container's own process
# Writes: ~/mambaout-runs/mlflow.db, mlartifacts/ beside it, mlflow.log
#
# Another store comes by the environment, its password with it and in no file:
#         MLFLOW_BACKEND_STORE_URI      postgresql://... (needs psycopg2)
#         MLFLOW_ARTIFACTS_DESTINATION  gs://... (needs google-cloud-storage)
set -euo pipefail

runs=${MAMBAOUT_RUNS:-$HOME/mambaout-runs}
port=${MLFLOW_PORT:-5000}
venv=${MAMBAOUT_VENV:-$HOME/mambaout-venv}
# Read by `mlflow server` itself: on a command line every user of the host would see the password.
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$runs/mlflow.db}
export MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$runs/mlartifacts}
# Loopback: the server asks nobody for a password. Two workers take 0.7 GB and serve one driver.
server=("$venv/bin/mlflow" server --host 127.0.0.1 --port "$port" --workers 2)

answers() {
    "$venv/bin/python" - "http://127.0.0.1:$port/health" <<'PYTHON'
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=2)
except OSError:
    sys.exit(1)
PYTHON
}

mkdir -p "$runs"
if [ "${1:-}" = --foreground ]; then
    exec "${server[@]}"
fi
if answers; then
    echo "MLflow answers at http://127.0.0.1:$port"
    exit 0
fi
setsid nohup "${server[@]}" >>"$runs/mlflow.log" 2>&1 </dev/null &
echo $! >"$runs/mlflow.pid"
for _ in $(seq 90); do
    if answers; then
        echo "MLflow answers at http://127.0.0.1:$port (process $(cat "$runs/mlflow.pid"))"
        exit 0
    fi
    kill -0 "$(cat "$runs/mlflow.pid")" 2>/dev/null || break
    sleep 1
done
tail -n 20 "$runs/mlflow.log" >&2
echo "MLflow does not answer; its last words are above" >&2
exit 1
