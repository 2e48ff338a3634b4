"""torch.compile for the step: whether it works here, where its cache is, how many graphs it made.

torch._dynamo and torch._inductor take seconds to import, and read the environment when they do. So
they are imported only here, and only if a backend compiles.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from mambaout.cache import CACHE_VARIABLE, default_cache

P = ParamSpec("P")
R = TypeVar("R")

FOLDER_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
PROCESSES_VARIABLE = "TORCHINDUCTOR_COMPILE_THREADS"
LEAST_CAPABILITY = (7, 0)  # of a GPU: Triton generates no code for older ones
# By default, torch refuses a function's ninth graph. A worker trains one network after another.
MOST_GRAPHS = 10_000


def cache_folder() -> Path:
    """The folder of compiled graphs, which all trials on this machine share.

    It is never on storage that machines share: a CPU's code is for that machine's processor.
    """
    return default_cache() / "inductor" / f"torch-{torch.__version__}"


@functools.cache
def why_not(device_type: str) -> str | None:
    """Why torch.compile does not work here for "cpu" or "cuda", and the remedy; None if it works.

    It compiles a function of one operation, which takes a few seconds at the first time.
    """
    lacking = missing(device_type)
    if lacking is not None:
        return lacking
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(FOLDER_VARIABLE, str(folder))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        return f"its cache cannot be written ({error}); set {CACHE_VARIABLE} to a folder that can"
    # Not more processes than a trial's cores. One means that nothing is started for it.
    os.environ.setdefault(PROCESSES_VARIABLE, str(torch.get_num_threads()))
    try:
        configure()
        x = torch.ones(8, device=device_type)
        compiled(_twice)(x)
    except Exception as error:  # a broken compiler can raise any kind of error
        return f"it failed on `2 * x` ({_first_line(error)}); mend it, or give --no-compile"
    return None


def _twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def missing(device_type: str) -> str | None:
    """What torch.compile needs and is not there, and the remedy."""
    if device_type == "cuda":
        if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
            found = ".".join(map(str, torch.cuda.get_device_capability()))
            return (
                f"the GPU's compute capability is {found}, and Triton needs 7.0; give --no-compile"
            )
        if find_spec("triton") is None:
            return "the package triton is missing; install torch's wheel for CUDA on Linux"
        if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang"))):
            return "Triton needs a C compiler; apt install gcc libc6-dev"
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        return "there is no C++ compiler, `g++`; apt install g++"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's C headers are missing; apt install python3-dev"
    return None


def configure() -> None:
    """Set torch.compile's limit, and silence what it says of TF32."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = config.accumulated_recompile_limit = MOST_GRAPHS
    # fp32 means fp32 here, and not TF32: see backend.Cuda.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function` as one compiled graph. Other shapes and other plain numbers are other graphs.

    A part that cannot be compiled is an error: it would break the graph and cost its gain unseen.
    """
    return _compiled(function)


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, fullgraph=True, dynamic=False)


def num_graphs() -> int:
    """The number of graphs that this process has compiled or read from the cache."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
