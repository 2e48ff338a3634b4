#!/usr/bin/env bash
# Install what a host of a cluster needs, each package at the version that was tested.
#
# Run:    bash cluster/setup.sh cpu|gpu|tpu|gcp-head   (again after a change: it does what is
#         missing)
# Costs:  3 to 5 minutes and 7 GB on a new host with GPUs, at least 4 GB less on another one; under a
#         second where nothing has changed
# Writes: ~/mambaout-venv, or the folder in MAMBAOUT_VENV
#
# Environment: MAMBAOUT_LIBTPU=0.0.36 puts that libtpu in place of the pinned one on a TPU host, for
# a TPU that does not start with the pinned one (cluster/README.md has a list to try).
#
# Every file in cluster/ installs through this one. A host that differs from its head in the last
# digit of Python or Ray is refused by Ray, or worse, is not.
set -euo pipefail

UV=0.13.9          # brings the Python below; Ubuntu 22.04, which TPU hosts run, has 3.10
PYTHON=3.11.18
PIP=26.3

kind=${1:-}
case $kind in
    tpu) extra='[tpu,dense]' ;;
    gcp-head) extra='[gcp,dense]' ;; # with what Ray's autoscaler talks to GCP through
    cpu | gpu) extra='[dense]' ;;
    *)
        echo "usage: setup.sh cpu|gpu|tpu|gcp-head" >&2
        exit 2
        ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MAMBAOUT_VENV:-$HOME/mambaout-venv}
libtpu=${MAMBAOUT_LIBTPU:-}
wanted="$kind $libtpu $(cat "$root/pyproject.toml" "$root/constraints.txt" "${BASH_SOURCE[0]}" | sha256sum)"
if [ "$(cat "$venv/.mambaout" 2>/dev/null)" = "$wanted" ]; then
    echo "$venv is up to date"
    exit 0
fi

boot=$(mktemp -d)
trap 'rm -rf "$boot"' EXIT
if [ -n "${MAMBAOUT_PYTHON:-}" ]; then # in an image: the interpreter is there and is the image's
    "$MAMBAOUT_PYTHON" -m venv "$boot"
else
    missing=()
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    command -v cc >/dev/null || missing+=(gcc libc6-dev) # compiles mambaout/data/*.c
    if [ ${#missing[@]} -gt 0 ]; then
        # A host that has just started is upgrading itself: wait for its lock.
        sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
        sudo DEBIAN_FRONTEND=noninteractive \
            apt-get -o DPkg::Lock::Timeout=300 install -y -qq "${missing[@]}"
    fi
    python3 -m venv "$boot"
fi
"$boot/bin/python" -m pip install --quiet "uv==$UV"
if [ -n "${MAMBAOUT_PYTHON:-}" ]; then
    "$MAMBAOUT_PYTHON" -m venv --clear "$venv"
else
    "$boot/bin/uv" venv --quiet --clear --seed --python "$PYTHON" "$venv"
fi

# torch as PyPI has it brings 15 packages of CUDA, 4 GB. A host without a GPU gets the same version
# built for the CPU (2.9.0+cpu), from the index that uv knows for it.
if [ "$kind" != gpu ]; then
    mapfile -t torch < <(grep -E '^(torch|torchvision)==' "$root/constraints.txt")
    "$boot/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend cpu \
        --constraint "$root/constraints.txt" "${torch[@]}" ||
        echo "torch's build for the CPU is not to be had: taking PyPI's, with CUDA" >&2
fi

# setuptools builds the package itself, in place of a newest one fetched for the occasion.
setuptools=$(grep '^setuptools==' "$root/constraints.txt")
"$venv/bin/python" -m pip install --quiet "pip==$PIP" "$setuptools"
"$venv/bin/python" -m pip install --quiet --no-build-isolation \
    --constraint "$root/constraints.txt" --editable "$root$extra"
if [ "$kind" = tpu ] && [ -n "$libtpu" ]; then
    "$venv/bin/python" -m pip install --quiet --no-deps "libtpu==$libtpu"
fi
"$venv/bin/python" - "$root/constraints.txt" <<'PYTHON'
import re, sys
from importlib.metadata import distributions

plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
pinned = {plain(line.split("==")[0]) for line in open(sys.argv[1]) if "==" in line}
found = {plain(each.metadata["Name"]) for each in distributions()}
if loose := sorted(found - pinned - {"pip", "mambaout"}):
    print("not pinned, add to constraints.txt:", *loose, file=sys.stderr)
PYTHON
echo "$wanted" >"$venv/.mambaout"
echo "$venv is ready: . $venv/bin/activate"
