#!/usr/bin/env bash
# The TPUs that Google took away and that still stand in the project's list: name or delete them.
#
# Run:    bash cluster/clean.sh ZONE             names what it would delete, and deletes nothing
#         bash cluster/clean.sh ZONE --delete    deletes it
#
# It looks only at TPUs whose name begins with `ray-mambaout` (Ray's) or `mambaout` (slice.sh's), and
# deletes only those that are PREEMPTED or TERMINATED. TPUs that run are named, since they cost
# money, and never deleted. Ray's launcher leaves a preempted host in the list for ever.
set -euo pipefail

zone=${1:-}
option=${2:-}
if [ -z "$zone" ] || [ "${zone#-}" != "$zone" ] || { [ -n "$option" ] && [ "$option" != --delete ]; }; then
    echo "usage: clean.sh ZONE [--delete]" >&2
    exit 2
fi

gone=()
listed=$(gcloud compute tpus tpu-vm list --zone="$zone" --format='value(name.basename(),state)')
while read -r name state; do
    case $name in
        ray-mambaout* | mambaout*) ;;
        *) continue ;;
    esac
    case $state in
        PREEMPTED | TERMINATED) gone+=("$name") ;;
        *) echo "stays: $name ($state)" ;;
    esac
done <<<"$listed"

if [ ${#gone[@]} -eq 0 ]; then
    echo "nothing to delete in $zone"
elif [ "$option" = --delete ]; then
    for name in "${gone[@]}"; do
        echo "deletes: $name"
        gcloud compute tpus tpu-vm delete "$name" --zone="$zone" --quiet
    done
else
    printf 'would delete: %s\n' "${gone[@]}"
    echo "to delete them: bash cluster/clean.sh $zone --delete"
fi
