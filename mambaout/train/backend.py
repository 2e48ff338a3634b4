"""Where a run computes: devices, autocast, graphs, waiting, memory, behind one small class.

The step and the loop are the same code on every backend. A new runtime is one more class here:
TorchTPU, the successor of torch_xla on chips newer than v3, would be the next.
"""

from __future__ import annotations

import functools
import logging
import os
import resource
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from mambaout.chips import CHIPS, find_chip
from mambaout.errors import WrongRequest
from mambaout.memory import USABLE, device_bytes
from mambaout.rules import multiplies_bf16
from mambaout.train import versions
from mambaout.train.cpu import cpu_name, keep_freed_memory

BackendName = Literal["cpu", "cuda", "xla"]
Network = TypeVar("Network", bound=torch.nn.Module)


class Backend(ABC):
    """One process's devices; on a TPU slice, its share of the slice's."""

    name: BackendName
    device: torch.device
    num_devices: int = 1  # that share a global batch, over all hosts
    num_hosts: int = 1  # processes, one a host
    host: int = 0  # this one's rank
    compiles: bool = False  # traces what it is given into graphs, and compiles each new one
    batches_ahead: int = 0  # that are sent to the device before they are needed

    @property
    @abstractmethod
    def device_name(self) -> str:
        """What the hardware calls itself, for records and the chip table."""

    @property
    def multiplies_bf16(self) -> bool:
        """Whether the devices have units that multiply matrices in bf16."""
        return False

    @abstractmethod
    def usable_bytes(self) -> float:
        """Memory that training may take of each device."""

    @abstractmethod
    def peak_memory_bytes(self) -> int | None:
        """Most memory in use so far; None where the runtime does not tell."""

    def move(self, model: Network) -> Network:
        """`model` on the devices, whole on each; changes it in place."""
        return model.to(self.device)

    def place(self, rows: Tensor) -> Tensor:
        """`rows` on the devices, each of which gets an equal share of them; this host's rows,
        where there are more. Returns before a copy to an accelerator is over."""
        return rows.to(self.device, non_blocking=True)

    def place_whole(self, tensor: Tensor) -> Tensor:
        """`tensor` on the devices, all of it on each."""
        return tensor.to(self.device, non_blocking=True)

    def autocast(self, precision: str) -> AbstractContextManager:
        """Matrix products in `precision`; weights and their updates stay fp32."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def cut_graph(self) -> None:  # noqa: B027 - eager backends have nothing to cut
        """Where a backend that compiles ends one graph, starts it and begins the next."""

    def compilations(self) -> int:
        """Graphs that this process has compiled."""
        return 0

    def highest(self, value: int) -> int:
        """The largest `value` of any host: what all hosts must decide alike."""
        return value

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

    def move(self, model: Network) -> Network:
        keep_freed_memory()
        return super().move(model)

    def usable_bytes(self) -> float:
        # A CPU has no error to catch: past the memory the kernel kills. Stay well inside, since
        # the other trials of the machine take their share of it too.
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min(total // 16, 2 * 1024**3)

    def peak_memory_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Cuda(Backend):
    name = "cuda"
    batches_ahead = 1

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise WrongRequest("backend 'cuda' needs an NVIDIA GPU, and torch sees none; try 'cpu'")
        self.device = torch.device("cuda", torch.cuda.current_device())
        # By default convolutions of fp32 are TF32, with ten bits of mantissa, and other products
        # are not; fp32 means fp32.
        convolutions: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009 - not in its types
        convolutions.fp32_precision = "ieee"
        torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    @property
    def multiplies_bf16(self) -> bool:
        return gpu_multiplies_bf16(torch.cuda.current_device())

    def usable_bytes(self) -> float:
        free, total = torch.cuda.mem_get_info(self.device)
        part = torch.cuda.get_per_process_memory_fraction(self.device)  # of a GPU that is shared
        return USABLE * min(free, part * total)

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def free_memory(self) -> None:
        torch.cuda.empty_cache()


def gpu_multiplies_bf16(index: int) -> bool:
    """Whether a GPU of this process has units for bf16: by the chip table, else by what torch says
    of it."""
    known = multiplies_bf16(torch.cuda.get_device_name(index))
    if known is not None:
        return known
    with torch.cuda.device(index):
        return torch.cuda.is_bf16_supported(including_emulation=False)


# What XLA says when a program or its data does not fit.
_XLA_MEMORY_TEXTS = ("RESOURCE_EXHAUSTED", "Ran out of memory", "Out of memory")


class Xla(Backend):
    """All devices that PJRT_DEVICE has here, as one: SPMD over a mesh of one axis.

    A batch is sharded over the mesh, parameters lie whole on each device, and the compiler adds
    the sum over devices. One process a host; on a slice all hosts run the same program, each with
    its own rows. PJRT_DEVICE=CPU gives CPU_NUM_DEVICES virtual devices, which is how it is tested.

    Importing torch_xla changes the process (environment, logging, torch._dynamo's settings,
    torch.nn.utils.clip_grad_norm_), so that it is imported here and only when this is chosen.
    """

    name = "xla"
    compiles = True
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
        # torch_xla refuses to say it of the devices of a mesh.
        return None if self._on_tpu else Cpu().peak_memory_bytes()

    def move(self, model: Network) -> Network:
        # torch_xla makes a batch norm over the flattened map of a layer norm, which the
        # partitioner cannot split: every device would get the whole batch.
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                setattr(module, "forward", functools.partial(_layer_norm, module))  # noqa: B010
        return model.to(self.device)

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

    def is_out_of_memory(self, error: BaseException) -> bool:
        return super().is_out_of_memory(error) or (
            isinstance(error, RuntimeError) and any(t in str(error) for t in _XLA_MEMORY_TEXTS)
        )


def _layer_norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm` of the last dimension written out, in fp32 as CUDA's autocast has it."""
    centred = x.float() - x.float().mean(-1, keepdim=True)
    deviation = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + norm.eps)
    return centred * deviation * norm.weight + norm.bias


def _torch_xla(cache: Path | None) -> tuple[Any, Any, Any, Any]:
    """torch_xla, its xla_model, runtime and spmd, in SPMD mode and with the cache on."""
    versions.require(os.environ.get("PJRT_DEVICE"))  # before torch_xla says it less clearly
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # a warning for each graph, not for us
    import torch_xla
    import torch_xla.backends
    import torch_xla.core.xla_model
    import torch_xla.distributed.spmd
    import torch_xla.runtime

    runtime = torch_xla.runtime
    # The CPU's executables cannot be read back: the cache would be written for nothing.
    if cache is not None and runtime.device_type() == "TPU" and not runtime.is_spmd():
        # Its own key leaves out how another version lowers a graph. The hosts of a slice compile
        # the same at the same moment, and a file that is read half-written is compiled again.
        folder = cache / f"torch_xla-{version('torch_xla')}" / f"host-{runtime.host_index()}"
        folder.mkdir(parents=True, exist_ok=True)
        runtime.initialize_cache(str(folder))
    if not runtime.is_spmd():  # a process may train one run after another
        runtime.use_spmd()
        # A TPU multiplies fp32 matrices in bf16, unless it is told that fp32 is meant. What is to
        # be in bf16 has been cast to it by autocast.
        logging.getLogger("torch_xla.backends").setLevel(logging.ERROR)  # it warns of every call
        torch_xla.backends.set_mat_mul_precision("highest")
    return torch_xla, torch_xla.core.xla_model, runtime, torch_xla.distributed.spmd


def backend(name: str | None = None, *, cache: Path | None = None) -> Backend:
    """The backend called `name`; None: a GPU where there is one, else the CPU.

    `cache`: the folder of compiled graphs that outlives the process, where the runtime can read
    them back. It is keyed by what is in a graph, the devices, the versions and the host of a slice,
    so that all trials of all studies may share it.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match name:
        case "cpu":
            return Cpu()
        case "cuda":
            return Cuda()
        case "xla":
            return Xla(cache)
    raise WrongRequest(f"unknown backend {name!r}; choose from {', '.join(get_args(BackendName))}")
