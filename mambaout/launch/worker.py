"""A worker's set-up: its share of the machine, the data, the devices.

Trials (trial.py) and calibrations (calibrate.py) begin in the same way, so a calibration measures
the conditions of the trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mambaout.data.shards.column_options import GivenColumns
from mambaout.errors import WrongRequest
from mambaout.launch.request import Request
from mambaout.launch.resources import Share
from mambaout.launch.tpu import check_devices, prepare
from mambaout.recompute import Stages

if TYPE_CHECKING:
    from mambaout.data.shards.data_set import DataSet
    from mambaout.train.backend import Backend

CACHE_FOLDER = ".xla-cache"  # in the storage: XLA's compiled programs, shared by all workers


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """The settings of every worker of a launch about machine and data; plain values for Ray."""

    storage: str
    data: str  # the argument of open_data
    backend: str
    cpus: int  # of each host
    num_workers: int
    columns: GivenColumns = field(default_factory=GivenColumns)  # also passed to open_data
    stage: str | None = None  # folder on each machine to which the shards are copied
    recompute: Stages = ()
    compiles: bool | None = None  # with torch.compile; None: on a GPU
    micro_batch: int | None = None  # images in memory at once; only of a detector or a segmenter
    gpus: float = 0
    chips: int = 0  # of a TPU, of each host
    num_hosts: int = 1
    env: Mapping[str, str] = field(default_factory=dict)  # see Share.env

    @classmethod
    def of(cls, request: Request, part: Share, **more: Any) -> Self:
        """The settings for workers of `request` on `part`. `more` are fields of a subclass."""
        return cls(
            storage=str(request.storage),
            data=request.data,
            columns=request.columns,
            stage=request.stage,
            recompute=request.recompute,
            compiles=request.compiles,
            micro_batch=request.micro_batch,
            backend=part.backend,
            cpus=part.cpus,
            num_workers=part.num_workers,
            gpus=part.gpus,
            chips=part.chips,
            num_hosts=part.num_hosts,
            env=part.env,
            **more,
        )

    def prepare(self) -> None:
        """Set the environment for torch_xla. Call it before torch_xla is imported."""
        if self.chips:
            prepare(self.chips, self.env)

    def open(self, fingerprint: str) -> tuple[DataSet, Backend]:
        """Open the study's data and the devices."""
        from mambaout.data.packing.sources import open_data
        from mambaout.data.packing.stage import stage

        data = open_data(self.data, **self.columns)
        if data.fingerprint != fingerprint:
            raise WrongRequest(
                f"{self.data} here is {data.fingerprint}, and the study began with {fingerprint}: "
                "the images differ between machines, or have changed since"
            )
        if self.stage:
            data = stage(data, Path(self.stage), progress=False)
        return data, self.devices()

    def devices(self) -> Backend:
        """The devices of this worker's share; torch is limited to the share."""
        import torch

        from mambaout.train.backend import backend

        torch.set_num_threads(self.cpus)
        cache = Path(self.storage) / CACHE_FOLDER
        devices = backend(
            self.backend, cache=cache, compiles=self.compiles, part=min(1.0, self.gpus or 1.0)
        )
        if self.chips:
            check_devices(self.chips, self.num_hosts, devices)
        return devices
