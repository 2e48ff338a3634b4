"""The devices of a run behind one small class: placement, autocast, graphs, waiting, memory.

The step and the loop are the same code on every backend. A new runtime needs one more class here.
TorchTPU, the successor of torch_xla on chips newer than v3, could be the next.
"""

from __future__ import annotations

import logging
import os
import resource
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor

from mambaout.chips import CHIPS, find_chip
from mambaout.command_line import NOT_ON_XLA, TF32_ELSEWHERE
from mambaout.errors import WrongRequest
from mambaout.memory import USABLE, device_bytes, says_out_of_memory
from mambaout.train import compiler, cuda_precision, versions, xla_operations
from mambaout.train.cpu import cpu_name, keep_freed_memory
from mambaout.train.cuda_uploads import AT_ONCE, Uploads
from mambaout.train.xla_operations import Operation

BackendName = Literal["cpu", "cuda", "xla"]
ALLOCATOR_VARIABLE, OLDER_ALLOCATOR_VARIABLE = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
Network = TypeVar("Network", bound=torch.nn.Module)
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger(__name__)


class Backend(ABC):
    """The devices of one process; on a TPU slice, the process's share of the slice."""

    name: BackendName
    device: torch.device
    num_devices: int = 1  # devices that share a global batch, over all hosts
    num_hosts: int = 1  # processes, one a host
    host: int = 0  # the rank of this process
    # It compiles graphs. A shape or a plain number that changes in each step makes another graph.
    compiles: bool = False
    keeps_gradients: bool = False  # a step without gradients to add to would be another graph
    part: float = 1.0  # of each device; 0.5 if another run has the other half of a GPU
    batches_ahead: int = 0  # batches that are sent to the device before they are needed
    micro_batches_at_once: int = 0  # on the device with their pixels; 0: they need no copy

    @property
    @abstractmethod
    def device_name(self) -> str:
        """The hardware's own name, for records and the chip table."""

    @property
    def devices_held(self) -> float:
        """The devices of the run, for device-hours, money and speeds; 0.5 for half of a GPU."""
        return self.num_devices if self.part == 1 else self.num_devices * self.part

    @property
    def multiplies_bf16(self) -> bool:
        """Whether the devices have units that multiply matrices in bf16."""
        return False

    @abstractmethod
    def usable_bytes(self) -> float:
        """Bytes of memory that training may take on each device."""

    @abstractmethod
    def peak_memory_bytes(self) -> int | None:
        """The most bytes in use at once so far; None if the runtime does not tell."""

    def move(self, model: Network) -> Network:
        """Move all of `model` to each device, in place; returns it."""
        return model.to(self.device)

    def place(self, rows: Tensor) -> Tensor:
        """`rows` on the devices; each device gets an equal share of them.

        With several hosts, `rows` are those of this host. The call returns before a copy to an
        accelerator is complete.
        """
        return rows.to(self.device, non_blocking=True)

    def place_whole(self, tensor: Tensor) -> Tensor:
        """`tensor` on the devices; each device gets all of it."""
        return tensor.to(self.device, non_blocking=True)

    def in_turn(self, makers: Iterable[Callable[[], T]]) -> Iterator[T]:
        """What each of `makers` places on the devices. An item may be copied while the work on the
        one before it runs, which the caller must have started."""
        return (make() for make in makers)

    def autocast(self, precision: str) -> AbstractContextManager:
        """A context with matrix products in `precision`; weights and their updates stay fp32."""
        if precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def train_in(self, precision: str) -> None:
        """Prepare the devices for training in `precision`. WrongRequest if they cannot."""
        if precision == "tf32":
            raise WrongRequest(f"backend {self.name}: {TF32_ELSEWHERE}")

    def operations(self) -> dict[str, Operation]:
        """Those of xla_operations.py; only XLA has them."""
        raise NotImplementedError(f"{self.name} computes with torch's operations")

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function` as one compiled graph, if this backend compiles functions; else itself.

        It must be a function of a module, so that all calls share its graphs.
        """
        return function

    def cut_graph(self) -> None:  # noqa: B027 - eager backends have nothing to cut
        """End the current graph, run it, and begin the next one; only for backends that compile."""

    def compilations(self) -> int:
        """The number of graphs that this process has compiled."""
        return 0

    def highest(self, value: int) -> int:
        """The largest `value` over all hosts. With it all hosts take the same decision."""
        return value

    def wait(self) -> None:  # noqa: B027 - a CPU has always finished
        """Return when the device has finished all its work."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether `error` is an out-of-memory error, which a smaller micro-batch may avoid."""
        return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and says_out_of_memory(str(error))
        )

    def free_memory(self) -> None:  # noqa: B027 - only caching allocators hold any
        """Release cached memory after an allocation failed."""


class TorchBackend(Backend):
    """A device that torch itself drives: eager, or with torch.compile."""

    def _set_up_compiler(self, compiles: bool) -> None:
        """Compile from now on if it is asked for and works here; warns if it does not work."""
        reason = compiler.why_not(self.device.type) if compiles else None
        if reason is not None:
            log.warning("training without torch.compile, which is slower: %s", reason)
        self.compiles = compiles and reason is None

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        return compiler.compiled(function) if self.compiles else function

    def compilations(self) -> int:
        return compiler.num_graphs()


class Cpu(TorchBackend):
    name = "cpu"

    def __init__(self, *, compiles: bool = False) -> None:
        self.device = torch.device("cpu")
        self._set_up_compiler(compiles)

    @property
    def device_name(self) -> str:
        return cpu_name(torch.get_num_threads())

    def move(self, model: Network) -> Network:
        keep_freed_memory()
        return super().move(model)

    def usable_bytes(self) -> float:
        # On a CPU there is no out-of-memory error to catch: the kernel kills the process. So stay
        # well below the total, because the machine's other trials need their share too.
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min(total // 16, 2 * 1024**3)

    def peak_memory_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Cuda(TorchBackend):
    name = "cuda"
    micro_batches_at_once = AT_ONCE

    def __init__(self, *, compiles: bool = True, part: float = 1.0) -> None:
        if not torch.cuda.is_available():
            raise WrongRequest("backend 'cuda' needs an NVIDIA GPU, and torch sees none; try 'cpu'")
        _use_expandable_segments()
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.part = part
        torch.cuda.set_per_process_memory_fraction(part, self.device)
        cuda_precision.set_products(tf32=False)
        self._uploads = Uploads(self.device)
        self._set_up_compiler(compiles)
        torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    @property
    def multiplies_bf16(self) -> bool:
        return gpu_multiplies_bf16(torch.cuda.current_device())

    def place(self, rows: Tensor) -> Tensor:
        return self._uploads.place(rows)

    def place_whole(self, tensor: Tensor) -> Tensor:
        return self._uploads.place(tensor)

    def in_turn(self, makers: Iterable[Callable[[], T]]) -> Iterator[T]:
        return self._uploads.in_turn(makers)

    def train_in(self, precision: str) -> None:
        capability = torch.cuda.get_device_capability(self.device)
        fault = cuda_precision.why_not(precision, self.device_name, capability)
        if fault is not None:
            raise WrongRequest(fault)
        cuda_precision.set_products(tf32=precision == "tf32")

    def usable_bytes(self) -> float:
        free, total = torch.cuda.mem_get_info(self.device)
        return USABLE * min(free, self.part * total)

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def free_memory(self) -> None:
        torch.cuda.empty_cache()


def _use_expandable_segments() -> None:
    """Let the allocator join freed memory of any sizes, unless the user has set it up.

    Torch reads the variable when it allocates for the first time.
    """
    if not any(name in os.environ for name in (ALLOCATOR_VARIABLE, OLDER_ALLOCATOR_VARIABLE)):
        os.environ[ALLOCATOR_VARIABLE] = "expandable_segments:True"


def gpu_multiplies_bf16(index: int) -> bool:
    """Whether a GPU of this process has units for bf16; older ones emulate it, slowly."""
    return torch.cuda.get_device_capability(index) >= cuda_precision.LEAST_CAPABILITY


class Xla(Backend):
    """All XLA devices of PJRT_DEVICE, used as one: SPMD over a mesh with one axis.

    A batch is sharded over the mesh. Every device holds all parameters, and the compiler inserts
    the sum over devices. There is one process a host. On a slice all hosts run the same program,
    each with its own rows. PJRT_DEVICE=CPU gives CPU_NUM_DEVICES virtual devices; tests use them.

    Importing torch_xla changes the process (environment, logging, torch._dynamo's settings,
    torch.nn.utils.clip_grad_norm_). So it is imported only here, and only if this backend is
    chosen.
    """

    name = "xla"
    compiles = keeps_gradients = True
    batches_ahead = 1

    def __init__(self, cache: Path | None) -> None:
        self._xla, self._xm, self._xr, self._spmd = _torch_xla(cache)
        self._on_tpu = self._xr.device_type() == "TPU"
        self.device = self._xla.device()
        self.num_devices = self._xr.global_runtime_device_count()
        self.num_hosts = self._xr.process_count()
        self.host = self._xr.process_index()
        self._mesh = self._spmd.Mesh(range(self.num_devices), (self.num_devices,), ("data",))

    @property
    def device_name(self) -> str:
        if not self._on_tpu:
            return f"XLA on {cpu_name(torch.get_num_threads())}"
        from torch_xla._internal.tpu import get_tpu_type

        return f"TPU {get_tpu_type()}"

    @property
    def multiplies_bf16(self) -> bool:
        return self._on_tpu

    def usable_bytes(self) -> float:
        if not self._on_tpu:
            return Cpu().usable_bytes() / self.num_devices
        return device_bytes(find_chip(self.device_name) or CHIPS["TPU v3"])

    def peak_memory_bytes(self) -> int | None:
        # torch_xla does not tell it for the devices of a mesh.
        return None if self._on_tpu else Cpu().peak_memory_bytes()

    def move(self, model: Network) -> Network:
        # Also because torch_xla turns a layer norm into a batch norm over the flattened map. The
        # partitioner cannot split that: every device would get the whole batch.
        xla_operations.use_in(model, self.operations())
        return model.to(self.device)

    def operations(self) -> dict[str, Operation]:
        from torch_xla.core.xla_op_registry import register

        return xla_operations.registered(register)

    def place(self, rows: Tensor) -> Tensor:
        spec = ("data",) + (None,) * (rows.ndim - 1)
        sharding = self._spmd.ShardingSpec(self._mesh, spec, minibatch=self.num_hosts > 1)
        return self._xm.send_cpu_data_to_device(rows, self.device, sharding)[0]

    def place_whole(self, tensor: Tensor) -> Tensor:
        return self._xm.send_cpu_data_to_device(tensor, self.device)[0]

    def cut_graph(self) -> None:
        self._xla.sync()

    def compilations(self) -> int:
        from torch_xla.debug.metrics import counter_value

        return counter_value("UncachedCompile") or 0

    def highest(self, value: int) -> int:
        if self.num_hosts == 1:
            return value
        here = torch.full((self.num_devices // self.num_hosts,), value, dtype=torch.int32)
        return int(self.place(here).max())

    def wait(self) -> None:
        self._xm.wait_device_ops()


def _torch_xla(cache: Path | None) -> tuple[Any, Any, Any, Any]:
    """torch_xla, its xla_model, runtime and spmd, in SPMD mode and with the cache on."""
    versions.require(os.environ.get("PJRT_DEVICE"))  # torch_xla's own error would be less clear
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides a useless warning for each graph
    import torch_xla
    import torch_xla.backends
    import torch_xla.core.xla_model
    import torch_xla.distributed.spmd
    import torch_xla.runtime

    runtime = torch_xla.runtime
    # The CPU's executables cannot be read back: the cache would be written for nothing.
    if cache is not None and runtime.device_type() == "TPU" and not runtime.is_spmd():
        # torch_xla's own cache key does not hold its version, but versions lower a graph
        # differently. The hosts of a slice compile the same graph at the same moment; a host that
        # read a half-written file would compile it again. So each version and host has a folder.
        folder = cache / f"torch_xla-{version('torch_xla')}" / f"host-{runtime.host_index()}"
        folder.mkdir(parents=True, exist_ok=True)
        runtime.initialize_cache(str(folder))
    if not runtime.is_spmd():  # a process may train one run after another
        runtime.use_spmd()
        # By default a TPU multiplies fp32 matrices in bf16; "highest" makes it fp32. Autocast has
        # already cast the tensors that are meant to be in bf16.
        logging.getLogger("torch_xla.backends").setLevel(logging.ERROR)  # it warns of every call
        torch_xla.backends.set_mat_mul_precision("highest")
    return torch_xla, torch_xla.core.xla_model, runtime, torch_xla.distributed.spmd


def backend(
    name: str | None = None,
    *,
    cache: Path | None = None,
    compiles: bool | None = None,
    part: float = 1.0,
) -> Backend:
    """The backend called `name`; None: a GPU if there is one, else the CPU.

    `compiles` says whether torch.compile compiles the step; None: on a GPU only. XLA has a compiler
    of its own, so there a value is an error. `part` is the part of a GPU that this process has.

    `cache` is the folder of XLA's compiled graphs. It outlives the process, and is used if the
    runtime can read graphs back. Its key holds the graph's content, the devices, the versions and
    the host of a slice, so all trials of all studies may share it.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match name:
        case "cpu":
            return Cpu(compiles=bool(compiles))
        case "cuda":
            return Cuda(compiles=compiles is not False, part=part)
        case "xla":
            if compiles is not None:
                raise WrongRequest(NOT_ON_XLA)
            return Xla(cache)
    raise WrongRequest(f"unknown backend {name!r}; choose from {', '.join(get_args(BackendName))}")
