"""Makes a shard's rows from images: the file as it is, re-cut without loss, or re-encoded.

Worker processes do the work, one for each core. They read requests from a pipe and end when it
closes. So a script that packs does not need `if __name__ == "__main__"`, and leaves no process
behind if it is killed. In the packing process one thread waits for each worker, and the order of
the rows never depends on the number of workers.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from mambaout.data.cores import usable_cores
from mambaout.data.images.jpeg import NO_JPEGTRAN, has_jpegtran, image_size, recut
from mambaout.data.shards.files import DataError

SHORT_SIDES = (16, 4096)  # px, both included
QUALITIES = (1, 100)  # Pillow's, both included

LOOK_AHEAD = 2  # images in work for each core; no more are in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class LossyEncoding:
    """The settings to encode every image again. An image that cannot be decoded stays as it is."""

    short_side: int | None = None  # px; larger images are reduced to it by Pillow's bicubic
    quality: int = 90  # of a JPEG, with 4:2:0 chroma

    def __post_init__(self) -> None:
        for name, value, (least, most) in (
            ("short side", self.short_side, SHORT_SIDES),
            ("quality", self.quality, QUALITIES),
        ):
            if value is not None and not least <= value <= most:
                raise DataError(f"{name} {value} is outside {least} to {most}")

    def __str__(self) -> str:
        side = "" if self.short_side is None else f"short side {self.short_side}, "
        return f"{side}quality {self.quality}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image of a source, read when it is asked for."""

    path: str | None  # identifies the sample if all paths of the source differ
    label: int
    read: Callable[[], bytes | np.ndarray]  # an image file, or uint8 pixels (H, W) or (H, W, 3)


class StoredImage(NamedTuple):
    """The bytes that are stored for an image file."""

    encoded: bytes
    segments: bytes | None = None  # of a file that was re-cut
    reencoded: bytes | None = None  # the re-encoded file, before it was re-cut
    kept_for: str | None = None  # the kind of file, if it could not be re-cut or re-encoded


class ShardRow(NamedTuple):
    """A sample as a row of a shard."""

    sample: Sample
    stored: StoredImage
    content: bytes  # the bytes that define the row's identity
    num_bytes: int  # of the file as it was read; of an array of pixels, as it is stored


def stored(encoded: bytes, lossy: LossyEncoding | None) -> StoredImage:
    """The file, re-encoded if `lossy` is given, and re-cut if that changes no pixel."""
    reencoded = None
    if lossy is not None:
        reencoded = _reencoded(encoded, lossy)
        if reencoded is None:
            return StoredImage(encoded, kept_for=f"{_form(encoded)} that cannot be decoded")
    elif image_size(encoded) is None:
        return StoredImage(encoded, kept_for=_form(encoded))
    done = recut(reencoded or encoded)
    if done is None:
        kept_for = None if reencoded else "JPEG that jpegtran cannot re-cut without a change"
        return StoredImage(reencoded or encoded, None, reencoded, kept_for)
    return StoredImage(*done, reencoded)


def _form(encoded: bytes) -> str:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.format or "image"
    except Exception:  # Pillow's plug-ins raise many kinds for damaged files
        return "file"


def _reencoded(encoded: bytes, lossy: LossyEncoding) -> bytes | None:
    target = io.BytesIO()
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(encoded)) as opened:
            # Pillow advises RGBA here; timm's loader, and so every published number, goes to RGB.
            warnings.filterwarnings("ignore", "Palette images with Transparency")
            image = opened.convert("L" if opened.mode in ("L", "1") else "RGB")
        short = min(image.size)
        if lossy.short_side is not None and short > lossy.short_side:
            width, height = (round(side * lossy.short_side / short) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        image.save(target, "jpeg", quality=lossy.quality)
    except Exception:  # Pillow's plug-ins raise many kinds for damaged files
        return None
    return target.getvalue()


# -- processes ------------------------------------------------------------------------------------


class _Worker(NamedTuple):
    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    answers: IO[bytes]


class RowMaker:
    """Makes rows from samples, on all cores. It is a context manager; its exit ends the workers."""

    def __init__(self, *, as_is: bool = False, lossy: LossyEncoding | None = None) -> None:
        self.as_is, self.lossy = as_is, lossy
        self.num_cores = usable_cores()
        self._threads = ThreadPoolExecutor(self.num_cores, "storing")
        self._own = threading.local()
        self._workers: list[_Worker] = []

    def __enter__(self) -> RowMaker:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # a thread that waits for its answer then continues at once
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:  # including workers that were started since
            worker.process.kill()
            worker.process.wait()
            worker.answers.close()
            with contextlib.suppress(OSError):  # half a request may be left in the pipe
                worker.requests.close()

    def rows(self, samples: Iterable[Sample]) -> Iterator[ShardRow]:
        """The rows of the samples, in the same order. Errors from reading a sample are not
        caught."""
        waiting: deque[Future[ShardRow]] = deque()
        for sample in samples:
            waiting.append(self._threads.submit(self._row, sample))
            if len(waiting) >= LOOK_AHEAD * self.num_cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _row(self, sample: Sample) -> ShardRow:
        image = sample.read()
        if isinstance(image, np.ndarray):
            encoded = _png(image)
            done = StoredImage(encoded) if self.lossy is None else self._asked(encoded, sample)
            return ShardRow(sample, done, done.reencoded or image.tobytes(), len(done.encoded))
        if self.as_is:
            return ShardRow(sample, StoredImage(image), image, len(image))
        if self.lossy is None and image_size(image) is None:
            return ShardRow(sample, stored(image, None), image, len(image))
        done = self._asked(image, sample)
        return ShardRow(sample, done, done.reencoded or image, len(image))

    def _asked(self, encoded: bytes, sample: Sample) -> StoredImage:
        """The answer of this thread's own worker process for the file."""
        worker = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = self._started()
        try:
            pickle.dump((encoded, self.lossy), worker.requests, pickle.HIGHEST_PROTOCOL)
            worker.requests.flush()
            return pickle.load(worker.answers)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            status = worker.process.wait()
            raise DataError(
                f"the process that was to store {sample.path} ended with status {status}; if the "
                "system ended it, there is less memory than that image needs"
            ) from error

    def _started(self) -> _Worker:
        if not has_jpegtran():
            raise DataError(NO_JPEGTRAN)
        own = {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            # There is one process for each core, so more threads in each would only compete.
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", "from mambaout.data.packing.storing import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | own,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        worker = _Worker(process, process.stdin, process.stdout)
        self._workers.append(worker)
        return worker


def serve() -> None:
    """Answer the requests on standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            encoded, lossy = pickle.load(requests)
            pickle.dump(stored(encoded, lossy), answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            os._exit(0)  # the packing process is gone; a normal exit would flush and raise again


def _png(pixels: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "png")
    return target.getvalue()
