#!/usr/bin/env bash
# A v3-32 slice made by gcloud, whose four hosts join the Ray of a head that is up: the sure way.
#
# Run:    bash cluster/slice.sh create NAME ZONE PROJECT [--spot]    make the slice, however long it takes
#         bash cluster/slice.sh join NAME ZONE HEAD_ADDRESS          set up all four hosts, start Ray on them
#         bash cluster/slice.sh delete NAME ZONE
# Costs:  32 USD/h from create to delete, idle or not (10.6 as spot); setting up takes about 5 minutes
# Needs:  the head of gcp-tpu-v3-8.yaml or another file here, in the same zone, and its inner address
#
# `ray up` waits 8 minutes for a TPU. If a slice takes longer, Ray deletes it and makes another one, in a
# circle, and what fails on one of its hosts is not told. Here gcloud waits, and every host must say that
# it has joined. `join` may be run again at any time, also after a spot slice was made anew.
set -euo pipefail

hosts=4
usage() {
    echo "usage: slice.sh create NAME ZONE PROJECT [--spot] | join NAME ZONE HEAD_ADDRESS | delete NAME ZONE" >&2
    exit 2
}
[ $# -ge 3 ] || usage
name=$2
zone=$3
case $name in
    mambaout*) ;;
    *)
        echo "the name $name must begin with mambaout: clean.sh finds what is ours by that" >&2
        exit 2
        ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The user of the cluster's files: results are in the same folder on all hosts.
on_all() { # COMMAND
    gcloud compute tpus tpu-vm ssh "ubuntu@$name" --zone="$zone" --worker=all --command="$1"
}
to_all() { # FILE PATH
    gcloud compute tpus tpu-vm scp "$1" "ubuntu@$name:$2" --zone="$zone" --worker=all
}

case $1 in
    create)
        project=${4:-}
        [ -n "$project" ] || usage
        spot=()
        [ "${5:-}" != --spot ] || spot=(--spot)
        gcloud compute tpus tpu-vm create "$name" --zone="$zone" --project="$project" \
            --accelerator-type=v3-32 --version=tpu-ubuntu2204-base "${spot[@]}" \
            --service-account="ray-autoscaler-sa-v1@$project.iam.gserviceaccount.com" \
            --scopes=https://www.googleapis.com/auth/cloud-platform
        ;;
    join)
        head=${4:-}
        [ -n "$head" ] || usage
        packed=$(mktemp -d)
        trap 'rm -rf "$packed"' EXIT
        tar -C "$root" --exclude=__pycache__ -czf "$packed/mambaout.tgz" \
            pyproject.toml constraints.txt README.md mambaout cluster
        to_all "$packed/mambaout.tgz" mambaout.tgz
        on_all "mkdir -p mambaout .ray && tar -C mambaout -xzf mambaout.tgz"
        to_all "$HOME/.ray/auth_token" .ray/auth_token
        on_all "chmod 600 .ray/auth_token && bash mambaout/cluster/setup.sh tpu"
        on_all "bash mambaout/cluster/storage.sh mount $head"
        # The labels are what trials look for; each host's number in the slice Ray reads there.
        said=$(on_all ". mambaout-venv/bin/activate && ray stop >/dev/null 2>&1; ulimit -n 65536;
            export RAY_AUTH_MODE=token; ray start --address=$head:6379 --object-manager-port=8076 \
            --labels=ray.io/tpu-pod-type=v3-32,ray.io/tpu-slice-name=$name --disable-usage-stats \
            && echo JOINED")
        echo "$said"
        joined=$(grep -c JOINED <<<"$said" || true)
        if [ "$joined" -ne "$hosts" ]; then
            echo "$joined of $hosts hosts have joined; look at the lines above, then join again" >&2
            exit 1
        fi
        echo "$name has joined $head; \`ray status\` there must show 16 TPU more"
        ;;
    delete)
        gcloud compute tpus tpu-vm delete "$name" --zone="$zone"
        ;;
    *) usage ;;
esac
