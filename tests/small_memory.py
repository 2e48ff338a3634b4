"""A device that runs out of memory, and the errors that real ones raise then."""

from __future__ import annotations

from mambaout.train.backend import Cpu

NO_MEMORY = (
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA driver error: device not ready",
    'INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":3301, please report',
)


class RoomFor(Cpu):
    """A CPU whose memory holds `fits` images at a time, as a GPU's would."""

    def __init__(self, fits: int, error: str) -> None:
        super().__init__()
        self.fits, self.error = fits, error

    def place(self, rows):
        if rows.ndim == 4 and len(rows) > self.fits:
            raise RuntimeError(self.error)
        return super().place(rows)
