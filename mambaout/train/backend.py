"""Where a run computes: device, autocast, waiting, memory, behind one small class.

The step and the loop are the same code on every backend. A new runtime is one more class here:
XLA next, with SPMD over the devices of a TPU host; TorchTPU, its successor, after that.
"""

from __future__ import annotations

import os
import resource
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

from mambaout.train.cpu import cpu_name

BackendName = Literal["cpu", "cuda"]


class Backend(ABC):
    """One process's devices."""

    name: BackendName
    device: torch.device
    num_devices: int = 1  # that share a global batch

    @property
    @abstractmethod
    def device_name(self) -> str:
        """What the hardware calls itself, for records and the chip table."""

    @abstractmethod
    def activation_budget_bytes(self) -> int:
        """Memory that the activations of one micro-batch may take."""

    @abstractmethod
    def peak_memory_bytes(self) -> int:
        """Most memory in use so far."""

    def place(self, tensor: Tensor) -> Tensor:
        """`tensor` on the device; returns before a copy to an accelerator is over."""
        return tensor.to(self.device, non_blocking=True)

    def autocast(self, precision: str) -> AbstractContextManager:
        """Matrix products in `precision`; weights and their updates stay fp32."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def step_boundary(self) -> None:  # noqa: B027 - eager backends have nothing to cut
        """End of one optimizer step: where a lazy backend cuts its graph."""

    def wait(self) -> None:  # noqa: B027 - a CPU has always finished
        """Return when the device has done all it was given."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether `error` says that a smaller micro-batch would have fitted."""
        return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        )

    def free_memory(self) -> None:  # noqa: B027 - only caching allocators hold any
        """Give cached memory back after an allocation failed."""


class Cpu(Backend):
    name = "cpu"

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    @property
    def device_name(self) -> str:
        return cpu_name(torch.get_num_threads())

    def activation_budget_bytes(self) -> int:
        # A CPU has no error to catch: past the memory the kernel kills. Stay well inside, since
        # the other trials of the machine take their share of it too.
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min(total // 16, 2 * 1024**3)

    def peak_memory_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Cuda(Backend):
    name = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError("backend 'cuda' needs an NVIDIA GPU, and torch sees none; try 'cpu'")
        self.device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def activation_budget_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free * 0.6)

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def free_memory(self) -> None:
        torch.cuda.empty_cache()


def backend(name: str | None = None) -> Backend:
    """The backend called `name`; None: a GPU where there is one, else the CPU."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return Cpu()
    if name == "cuda":
        return Cuda()
    if name == "xla":
        raise ValueError("backend 'xla' is not built yet; choose cpu or cuda")
    raise ValueError(f"unknown backend {name!r}; choose from {', '.join(get_args(BackendName))}")
