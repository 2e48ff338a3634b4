"""Which GPUs this machine has, asked in a process of its own.

To ask takes memory of every GPU for as long as the process lives that asked, and the driver of a
study lives as long as its trials.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

UNKNOWN_GPU = "this machine's GPU"
SECONDS = 120.0  # most of them torch's import; a machine that is busy takes a minute


def gpus() -> dict[str, bool | None]:
    """The GPUs that torch sees here, by name, each with whether it has units for bf16."""
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
