"""The matrix products of a Gated CNN block on a CPU: C in fp32, torch's in bfloat16.

products.c reaches the peak of an AVX2 or AVX-512 processor for any width. MKL, which torch takes in
fp32, reaches 15 to 90 % of it on an AMD processor, and less for few channels than for many.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambaout.model.norm import FLAGS
from mambaout.native import LONG, POINTER, CFile, function

PRODUCTS = CFile(Path(__file__).with_name("products.c"), FLAGS)


class _ProductCall(ctypes.Structure):
    _fields_ = [
        *((name, LONG) for name in ("rows", "columns", "inner", "threads", "add")),
        *((name, POINTER) for name in ("left", "right", "out")),
    ]


class _ProductFunctions(NamedTuple):
    """The functions of products.c; `panel` is the number of columns of a panel."""

    packed: Any
    turned: Any
    product: Any
    outer: Any
    panel: int


@functools.cache
def _functions() -> _ProductFunctions | None:
    packed = function(PRODUCTS, "packed", [POINTER, POINTER, LONG, LONG, LONG])
    turned = function(PRODUCTS, "turned", [POINTER, POINTER, LONG, LONG])
    product = function(PRODUCTS, "product", [ctypes.POINTER(_ProductCall)])
    outer = function(PRODUCTS, "outer", [ctypes.POINTER(_ProductCall)])
    panel = function(PRODUCTS, "panel", [], LONG)
    if panel is None:
        return None
    return _ProductFunctions(packed, turned, product, outer, panel())


class Products:
    """Products in fp32. Matrices lie in memory row by row; sums do not depend on the threads."""

    dtype = torch.float32

    @staticmethod
    def are_compiled() -> bool:
        """Whether the C code can be used here; compiles it if needed."""
        return _functions() is not None

    def __init__(self) -> None:
        found = _functions()
        assert found is not None, "`can_take` has said that the C is there"
        self._c, self._threads = found, torch.get_num_threads()

    def factor(self, weight: Tensor, *, turned: bool) -> Tensor:
        """`weight` (inner, columns), or (columns, inner) if `turned`, as `multiply` reads it."""
        weight = weight.contiguous()
        columns, inner = weight.shape if turned else weight.shape[::-1]
        panels = -(-columns // self._c.panel)
        packed = weight.new_empty(panels, inner, self._c.panel)
        self._c.packed(weight.data_ptr(), packed.data_ptr(), inner, columns, turned)
        return packed

    def multiply(self, left: Tensor, factor: Tensor, out: Tensor, *, add: bool = False) -> None:
        """out (rows, columns) = left (rows, inner) x factor; with `add` the product is added."""
        self._call(self._c.product, left, factor, out, add)

    def add_outer(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """out (inner, columns) += left^T (inner, rows) x right (rows, columns)."""
        self._call(self._c.outer, left, right, out, True)

    def turned(self, matrix: Tensor) -> Tensor:
        """The transpose of `matrix`, row by row in memory."""
        to = matrix.new_empty(matrix.shape[::-1])
        self._c.turned(matrix.data_ptr(), to.data_ptr(), *matrix.shape)
        return to

    def _call(self, work: Any, left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
        rows, inner = left.shape
        call = _ProductCall(rows, out.shape[1], inner, self._threads, add)
        call.left, call.right, call.out = left.data_ptr(), right.data_ptr(), out.data_ptr()
        work(call)


class LowProducts:
    """The same in bfloat16, by torch; only `add_outer` has an fp32 result."""

    dtype = torch.bfloat16

    def factor(self, weight: Tensor, *, turned: bool) -> Tensor:
        weight = weight.to(torch.bfloat16)
        return weight.t() if turned else weight

    def multiply(self, left: Tensor, factor: Tensor, out: Tensor, *, add: bool = False) -> None:
        if add:
            out.addmm_(left, factor)
        else:
            torch.mm(left, factor, out=out)

    def add_outer(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        out += left.t() @ right

    def turned(self, matrix: Tensor) -> Tensor:
        return matrix.t().contiguous()
