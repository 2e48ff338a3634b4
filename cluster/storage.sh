#!/usr/bin/env bash
# The folder that all hosts of a cluster share: ~/mambaout-runs, served by the head over NFS 4.
#
# Run:    bash cluster/storage.sh serve          on the head
#         bash cluster/storage.sh mount HEAD     on every other host
#
# A study needs files and locks that every host sees. NFS 4 has both; a bucket mounted as a folder
# has no locks between hosts, and Filestore begins at 1 TiB. Where the head has a disk called
# mambaout-runs, the folder is on it and outlives the head.
set -euo pipefail

runs=$HOME/mambaout-runs
disk=/dev/disk/by-id/google-mambaout-runs
clients=${MAMBAOUT_NFS_CLIENTS:-10.128.0.0/9} # the subnets of GCP's default network

install() { # PACKAGE
    dpkg -s "$1" >/dev/null 2>&1 && return
    sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq "$1"
}

case ${1:-} in
    serve)
        mkdir -p "$runs"
        if [ -e "$disk" ] && ! mountpoint -q "$runs"; then
            # Only a disk without any file system is formatted.
            sudo blkid "$disk" >/dev/null || sudo mkfs.ext4 -q -m 0 "$disk"
            sudo mount -o discard "$disk" "$runs"
        fi
        sudo chown "$(id -u):$(id -g)" "$runs"
        install nfs-kernel-server
        # Whoever writes on a worker writes as the head's user.
        options="rw,sync,no_subtree_check,all_squash,anonuid=$(id -u),anongid=$(id -g)"
        sudo mkdir -p /etc/exports.d
        echo "$runs $clients($options)" | sudo tee /etc/exports.d/mambaout.exports >/dev/null
        sudo exportfs -ra
        echo "$runs is served to $clients"
        ;;
    mount)
        head=${2:?give the address of the head}
        install nfs-common
        mkdir -p "$runs"
        if mountpoint -q "$runs"; then
            [ "$(findmnt -n -o SOURCE "$runs")" = "$head:$runs" ] && exit 0
            sudo umount --lazy "$runs" # of an earlier head
        fi
        # hard: a head that restarts is waited for, and no write is lost. Trials look for each
        # other's files every second.
        sudo mount -t nfs4 -o hard,noatime,actimeo=1 "$head:$runs" "$runs"
        echo "$runs is the head's"
        ;;
    *)
        echo "usage: storage.sh serve | storage.sh mount HEAD" >&2
        exit 2
        ;;
esac
