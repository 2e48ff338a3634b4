"""Reads files that torch.save wrote, without running any code in them.

torch.load(weights_only=True) reads tensors and plain values, and refuses every other class. A list
here allows the two that timm's and the authors' train.py write beside the weights: an
argparse.Namespace with the script's options, and numpy's numbers, for metrics. Both only hold
values; reading them runs no code.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mambaout.errors import WrongRequest

_NUMPY_NUMBER = np.float64(0).__reduce__()[0]  # taken from numpy: its module has changed
_SAFE: list[Any] = [
    argparse.Namespace,
    (_NUMPY_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMPY_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
]


def read_torch(path: Path) -> Any:
    """The content of the file at `path`, with tensors on the CPU.

    Raises ValueError, with one line that names the file, for a damaged file and for one that holds
    more than tensors, plain values and the list above.
    """
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise WrongRequest(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle can raise any kind of error
        found = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if found:
            raise WrongRequest(
                f"{path} is not read: it holds {printable(found[1])}, which could run code; "
                "a file of weights holds tensors and plain values alone"
            ) from error
        raise WrongRequest(
            f"{path} is no whole file of torch.save, or holds more than tensors and plain values, "
            "which is not read because it could run code"
        ) from error


def printable(text: str, most: int = 120) -> str:
    """`text` from a file, made safe to print on one line of a terminal."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[:most]}..."
