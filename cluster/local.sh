#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, for trying: what `make cluster` starts.
#
# Run:    bash cluster/local.sh start      a head without trials, and two workers with a core each
#         bash cluster/local.sh stop       stops what it started, and no other Ray
# Costs:  half a minute to start; about 1.5 GB of memory while it runs
#
# Environment: MAMBAOUT_WORKERS=2, MAMBAOUT_WORKER_CPUS=1, and MAMBAOUT_CLUSTER_PORT=20379, the
# first of its ports. The dashboard listens on the loopback address; Ray's other ports, which listen
# on all, take no word from anyone without the token in ~/.ray/auth_token.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=$root/.venv/bin
workers=${MAMBAOUT_WORKERS:-2}
cpus=${MAMBAOUT_WORKER_CPUS:-1}
port=${MAMBAOUT_CLUSTER_PORT:-20379}
dashboard=$((port + 1))
# A short path: the names of sockets, which Ray puts below it, end at 107 characters.
folder=${TMPDIR:-/tmp}/mambaout-cluster-$(id -u)-$port

# A Ray that the user runs besides must be neither joined nor told anything.
unset RAY_ADDRESS RAY_TMPDIR
export RAY_AUTH_MODE=token
# The driver of a job finds its python on the path of the head.
export PATH=$bin:$PATH

# A process that it started is one with the same number and the same start time.
started() { # PID
    [ -r "/proc/$1/stat" ] && sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20
}

launch() { # NAME, then the words of `ray start`
    local name=$1
    shift
    # A group of its own, so that stopping it takes all that it starts; a folder of its own, since
    # each node unpacks a job's code there anew, also where a driver is at work.
    mkdir -p "$folder/$name"
    setsid "$bin/ray" start --block --disable-usage-stats --temp-dir="$folder/$name" \
        --object-store-memory=150000000 "$@" >"$folder/$name.log" 2>&1 </dev/null &
    echo "$! $(started $!)" >"$folder/$name.pid"
}

stop() {
    local stopped=0 file pid since
    for file in "$folder"/*.pid; do
        [ -e "$file" ] || continue
        read -r pid since <"$file"
        if [ "$(started "$pid")" = "$since" ]; then
            kill -TERM -- "-$pid" 2>/dev/null || true
            for _ in $(seq 50); do
                kill -0 -- "-$pid" 2>/dev/null || break
                sleep 0.1
            done
            kill -KILL -- "-$pid" 2>/dev/null || true
            stopped=$((stopped + 1))
        fi
    done
    rm -rf "$folder"
    echo "stopped: $stopped nodes of the cluster at 127.0.0.1:$port"
}

answers() {
    "$bin/python" - "http://127.0.0.1:$dashboard" "$1" <<'PYTHON'
import json, pathlib, sys, urllib.request
token = (pathlib.Path.home() / ".ray" / "auth_token").read_text().strip()
request = urllib.request.Request(
    f"{sys.argv[1]}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"}
)
try:
    found = json.load(urllib.request.urlopen(request, timeout=5))["data"]["summary"]
except (OSError, KeyError, ValueError):
    sys.exit(1)
alive = [node for node in found if node.get("raylet", {}).get("state") == "ALIVE"]
sys.exit(len(alive) < int(sys.argv[2]))
PYTHON
}

wait_for_nodes() { # NUMBER
    for _ in $(seq 120); do
        answers "$1" && return
        for file in "$folder"/*.pid; do
            read -r pid since <"$file"
            [ "$(started "$pid")" = "$since" ] || break 2
        done
        sleep 0.5
    done
    tail -n 20 "$folder"/*.log >&2
    echo "the cluster did not come up; its last words are above" >&2
    stop >&2
    exit 1
}

start() {
    if [ -e "$folder/h.pid" ]; then
        echo "there is one already: make cluster-stop, or another MAMBAOUT_CLUSTER_PORT" >&2
        exit 1
    fi
    mkdir -p "$folder"
    "$bin/ray" get-auth-token --generate >/dev/null 2>&1
    launch h --head --num-cpus=0 --num-gpus=0 --port="$port" \
        --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" \
        --ray-client-server-port=$((port + 2)) --dashboard-agent-listen-port=$((port + 3)) \
        --min-worker-port=0 --max-worker-port=0
    wait_for_nodes 1
    for number in $(seq "$workers"); do # one after the other: starting takes both cores
        launch "w$number" --address="127.0.0.1:$port" --num-cpus="$cpus" --num-gpus=0 \
            --dashboard-agent-listen-port=$((port + 3 + number)) \
            --min-worker-port=0 --max-worker-port=0
        wait_for_nodes $((number + 1))
    done
    cat <<TEXT
A head without trials and $workers workers with $cpus core each, on this machine.

submit  . .venv/bin/activate; export RAY_AUTH_MODE=token RAY_ADDRESS=http://127.0.0.1:$dashboard
        ray job submit --runtime-env cluster/job.yaml -- python sweeps/scale.py --smoke
join    RAY_AUTH_MODE=token python sweeps/scale.py --smoke --address 127.0.0.1:$port
look    http://127.0.0.1:$dashboard   (it asks for the token: ray get-auth-token)
stop    make cluster-stop
TEXT
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    *)
        echo "usage: local.sh start|stop" >&2
        exit 2
        ;;
esac
