"""Where a storage keeps the weights that trials start from: one copy for each content.

    STORAGE/.weights/DIGEST.safetensors

A trial's recipe holds the digest. So a worker on any machine finds the weights in the storage, and
the file that the user named may go.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS_FOLDER = ".weights"


def kept_weights(storage: Path, digest: str) -> Path:
    """The copy of the weights with this digest."""
    return storage / WEIGHTS_FOLDER / f"{digest}.safetensors"
