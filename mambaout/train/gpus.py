"""Finds the GPUs of this machine, in a process of its own.

A process that asks for the GPUs takes memory on each of them until it ends. The driver of a study
lives as long as its trials, so it must not ask itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

UNKNOWN_GPU = "this machine's GPU"
SECONDS = 120.0  # torch's import takes most of the time, up to a minute on a busy machine


def gpus() -> dict[str, bool | None]:
    """The GPUs that torch sees here: {name: whether it has units for bf16}."""
    found = subprocess.run(
        [sys.executable, "-m", "mambaout.train.gpus"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return json.loads(found.stdout) if found.returncode == 0 else {UNKNOWN_GPU: None}


def _print_gpus() -> None:
    import torch

    from mambaout.train.backend import gpu_multiplies_bf16

    indices = range(torch.cuda.device_count())
    print(json.dumps({torch.cuda.get_device_name(i): gpu_multiplies_bf16(i) for i in indices}))


if __name__ == "__main__":
    _print_gpus()
