"""The two passes of the selective scan in C. selective_scan.py has its formula."""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambaout.model.norm import FLAGS
from mambaout.model.odd_even import ScanInputs
from mambaout.native import LONG, NUMBER, POINTER, CFile, function
from mambaout.sequence_layers import STATE_EVERY

SCAN = CFile(
    Path(__file__).with_name("scan.c"),
    (*FLAGS, "-fno-math-errno", "-DLOW=0", f"-DPIECE={STATE_EVERY}"),
)


def c_files() -> tuple[CFile, ...]:
    """The C files of the selective scan."""
    return (SCAN,)


class _ScanCall(ctypes.Structure):
    """The argument of scan.c, with the names of its `struct scan`: addresses, or 0 for none."""

    _fields_ = [
        *((name, LONG) for name in ("images", "height", "width", "ways", "channels", "states")),
        *((name, LONG) for name in ("parts", "threads")),
        *((name, POINTER) for name in ("x", "step", "decay", "into", "out_of", "kept", "out")),
        *((name, POINTER) for name in ("out_grad", "x_grad", "step_grad", "decay_grad")),
        *((name, POINTER) for name in ("into_grad", "out_of_grad")),
    ]


class _ScanFunctions(NamedTuple):
    scan: Any
    parts: Any


@functools.cache
def _functions() -> _ScanFunctions | None:
    scan = function(SCAN, "scan", [ctypes.POINTER(_ScanCall)], NUMBER)
    parts = function(SCAN, "parts", [LONG, LONG], LONG)
    return None if scan is None or parts is None else _ScanFunctions(scan, parts)


def is_compiled() -> bool:
    """Whether the C code can be used here; compiles it if needed."""
    return _functions() is not None


# What torch.compiler.assume_constant_result does. That imports torch._dynamo, which takes 1.6 s.
setattr(is_compiled, "_dynamo_marked_constant", True)  # noqa: B010 - not in its type


def kept_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """The shape of the states before each piece of positions."""
    directions, channels, states = inputs.decay.shape
    images, length, _ = inputs.x.shape
    return (directions, images, -(-length // STATE_EVERY), states, channels)


def scan(inputs: ScanInputs, size: tuple[int, int], keep: bool) -> tuple[Tensor, Tensor]:
    """The sum over directions (B, L, D), and the states that `gradients` needs if `keep`."""
    inputs = _readable(inputs)
    x, out = inputs.x, torch.empty_like(inputs.x)
    kept = x.new_empty(kept_shape(inputs) if keep else 0)
    call = _call(inputs, size)
    call.kept, call.out = kept.data_ptr() if keep else None, out.data_ptr()
    _run(call)
    return out, kept


def gradients(
    out_grad: Tensor, inputs: ScanInputs, kept: Tensor, size: tuple[int, int]
) -> ScanInputs:
    """The gradients of the inputs."""
    inputs, out_grad = _readable(inputs), out_grad.resolve_neg().contiguous()
    x, step, decay, into, _ = inputs
    x_grad, step_grad = torch.empty_like(x), torch.empty_like(step)
    decay_grad = decay.new_empty(len(x), *decay.shape)
    call = _call(inputs, size)
    into_grad, out_of_grad = (into.new_empty(call.parts, *into.shape) for _ in range(2))
    call.kept, call.out_grad = kept.data_ptr(), out_grad.data_ptr()
    call.x_grad, call.step_grad = x_grad.data_ptr(), step_grad.data_ptr()
    call.decay_grad = decay_grad.data_ptr()
    call.into_grad, call.out_of_grad = into_grad.data_ptr(), out_of_grad.data_ptr()
    _run(call)
    decay_grad = decay_grad.sum(0).transpose(1, 2).contiguous()
    return ScanInputs(x_grad, step_grad, decay_grad, _total(into_grad), _total(out_of_grad))


def _total(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _readable(inputs: ScanInputs) -> ScanInputs:
    """The inputs as C reads them: dense, decay (K, N, D) and for powers of 2."""
    decay = (inputs.decay * math.log2(math.e)).transpose(1, 2)
    return ScanInputs(*(each.contiguous() for each in inputs._replace(decay=decay)))


def _call(inputs: ScanInputs, size: tuple[int, int]) -> _ScanCall:
    directions, states, channels = inputs.decay.shape
    images = len(inputs.x)
    parts = _required().parts(images, channels)
    numbers = (images, *size, directions, channels, states, parts, torch.get_num_threads())
    return _ScanCall(*numbers, *(each.data_ptr() for each in inputs))


def _required() -> _ScanFunctions:
    found = _functions()
    assert found is not None, "`is_compiled` has said that the C is there"
    return found


def _run(call: _ScanCall) -> None:
    if _required().scan(call) < 0:
        raise MemoryError("no memory for the states of a piece of the selective scan")
