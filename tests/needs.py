"""What a test may want of the machine that not every machine has."""

from __future__ import annotations

import shutil

import pytest
import torch

from mambaout import native
from mambaout.train import compiler

# Not `native.why_not()`: a C file that does not compile has to fail, not to be skipped.
needs_c = pytest.mark.skipif(
    not native._processor_flags() >= native.NEEDS or shutil.which("cc") is None,
    reason="wants x86-64 with AVX2, and a C compiler",
)

needs_cxx = pytest.mark.skipif(
    (lacking := compiler.missing("cpu")) is not None, reason=f"torch.compile: {lacking}"
)

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="wants an NVIDIA GPU that torch sees"
)
