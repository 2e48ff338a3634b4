"""The stored description of a data set: the facts that are known before an image is read.

Several hundred shards have several hundred footers and label columns, and every trial of a study
needs them. The first process on a machine reads them and writes one file. Later processes list the
shards and read only this file. It is valid for shards with the same names, sizes and times (and
inodes, for local files). If a shard has been replaced, a new description is made.

Writes: CACHE/described/SET-STAMPS.npz
"""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mambaout.data.shards.encoded import ImageColumn, Shard
from mambaout.data.shards.files import Footer, Stamp
from mambaout.durable import write_whole

log = logging.getLogger(__name__)

FORMAT = 1  # raised by hand if described_set.py describes the same shards differently
# Some stores give times in whole seconds. A shard that is younger than this could still be replaced
# by another one with the same time.
YOUNG_SECONDS = 2.0


class Description(NamedTuple):
    """The facts about a data set, without its name and its location."""

    fingerprint: str
    class_names: tuple[str, ...]
    shards: dict[str, tuple[Shard, ...]]
    labels: dict[str, np.ndarray]
    lossy: str | None
    left_out: list[str]  # splits that were examined but are not used
    remarks: list[str]  # lines for the user who opens the data set


class Place:
    """The place in the cache for the description of these shards."""

    def __init__(
        self,
        cache: Path,
        name: str,
        location: str,
        columns: Sequence[str | None],
        stamps: Mapping[str, Stamp | None],
    ) -> None:
        self.location, self.stamps = location, stamps
        where = location if "://" in location else str(Path(location).absolute())
        self.set = sha256(repr((name, location, where, columns)).encode()).hexdigest()[:16]
        facts = sha256(repr((FORMAT, sorted(stamps.items()))).encode()).hexdigest()[:16]
        self.path = cache / "described" / f"{self.set}-{facts}.npz"

    def read(self) -> Description | None:
        """The description; None if it is missing or damaged."""
        try:
            with self.path.open("rb") as file, np.load(file) as arrays:
                return _unpacked(arrays, self.location, self.stamps)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s); describing the shards again", self.path, error)
            return None

    def write(self, found: Description) -> None:
        """Store the description and remove earlier ones. It is stored only if a later change of
        the shards can be detected. Processes that write at the same time write the same content."""
        stamps = [stamp for stamp in self.stamps.values() if stamp is not None]
        if len(stamps) < len(self.stamps) or time.time() - _newest(stamps) < YOUNG_SECONDS:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(
                self.path,
                lambda file: np.savez(file, allow_pickle=False, **_packed(found, self.location)),
            )
            for other in self.path.parent.glob(f"{self.set}-*.npz"):
                if other != self.path:
                    other.unlink(missing_ok=True)
        except OSError as error:  # not fatal: the next process reads the shards again
            log.warning("%s cannot be written: %s", self.path, error)


def _newest(stamps: Sequence[Stamp]) -> float:
    return max(stamp.time_ns for stamp in stamps) / 1e9


def _packed(found: Description, location: str) -> dict[str, np.ndarray]:
    every = [shard for shards in found.shards.values() for shard in shards]
    image = every[0].image
    footers = [b"" if shard.footer is None else shard.footer.tail for shard in every]
    header = {
        "fingerprint": found.fingerprint,
        "class_names": found.class_names,
        "lossy": found.lossy,
        "left_out": found.left_out,
        "remarks": found.remarks,
        "image": [image.name, image.is_struct],
        "splits": {split: len(shards) for split, shards in found.shards.items()},
        "names": [shard.location.removeprefix(location) for shard in every],
        "group_rows": [shard.group_rows for shard in every],
        "num_bytes": [shard.num_bytes for shard in every],
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "footers": np.frombuffer(b"".join(footers), np.uint8),
        "footer_ends": np.cumsum([0, *map(len, footers)], dtype=np.int64),
    }
    for split, labels in found.labels.items():
        smallest = np.min_scalar_type(int(labels.max(initial=0)))  # labels are never negative
        arrays[f"labels-{split}"] = labels.astype(smallest)
    return arrays


def _unpacked(
    arrays: Mapping[str, np.ndarray], location: str, stamps: Mapping[str, Stamp | None]
) -> Description:
    header: dict[str, Any] = json.loads(arrays["header"].tobytes())
    name, is_struct = header["image"]
    footers, ends = arrays["footers"].tobytes(), arrays["footer_ends"].tolist()
    every = []
    for relative, rows, num_bytes, (start, end) in zip(
        header["names"], header["group_rows"], header["num_bytes"], pairwise(ends), strict=True
    ):
        whole = location + relative
        stamp = stamps[whole]
        footer = Footer(stamp, footers[start:end]) if stamp is not None and end > start else None
        every.append(Shard(whole, tuple(rows), num_bytes, ImageColumn(name, is_struct), footer))
    shards, first = {}, 0
    for split, count in header["splits"].items():
        shards[split] = tuple(every[first : first + count])
        first += count
    return Description(
        fingerprint=header["fingerprint"],
        class_names=tuple(header["class_names"]),
        shards=shards,
        labels={split: arrays[f"labels-{split}"].astype(np.int64) for split in shards},
        lossy=header["lossy"],
        left_out=header["left_out"],
        remarks=header["remarks"],
    )
