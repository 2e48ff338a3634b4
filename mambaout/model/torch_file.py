"""Files that torch.save wrote, read so that nothing in them can run.

torch.load(weights_only=True) reads tensors and plain values, and refuses every other class. What
timm's and the authors' train.py write beside the weights is on a list: the script's options, an
argparse.Namespace, and numpy's numbers, which a metric can be. Neither does anything when it is
read but hold its values.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mambaout.errors import WrongRequest

_NUMPY_NUMBER = np.float64(0).__reduce__()[0]  # numpy's function, whose module has moved
_SAFE: list[Any] = [
    argparse.Namespace,
    (_NUMPY_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMPY_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
]


def read_torch(path: Path) -> Any:
    """What the file at `path` holds, on the CPU.

    A damaged file, or one that holds more than tensors, plain values and the list above, is a
    ValueError of one line that names the file.
    """
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise WrongRequest(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle can stumble over any of its instructions
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
    """`text` out of a file, fit for one line of a terminal."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[:most]}..."
