"""Finds and names images that cannot be decoded, before training on a folder or a tar.

One damaged image ends an evaluation, hours after the start; with few images it ends a training too.
A large set is not decoded beforehand, because that takes as long as packing it, and its training
continues with up to one damaged image in a thousand (loader.py). `mambaout pack` stores damaged
images as they are, and counts them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

from mambaout.data.bar import progress_bar
from mambaout.data.cores import usable_cores
from mambaout.data.images.decode import picture
from mambaout.data.packing.pack import Source
from mambaout.data.packing.storing import Sample
from mambaout.data.shards.encoded import EncodedImage
from mambaout.data.shards.files import DataError

MOST_CHECKED = 50_000  # images; one of 98 kB takes 0.9 ms of a core
MOST_NAMED = 5
LOOK_AHEAD = 256  # images that are read at a time


def refuse_damaged(source: Source) -> None:
    """Decode every image of a small source; DataError names those that cannot be decoded."""
    total = len(source.train) + len(source.val)
    if total > MOST_CHECKED:
        return
    damaged: list[str] = []
    with (
        ThreadPoolExecutor(usable_cores(), "check") as threads,
        progress_bar(total=total, desc=f"check {source.name}", unit=" images") as bar,
    ):
        samples = chain(source.train, source.val)
        while some := list(islice(samples, LOOK_AHEAD)):
            damaged += filter(None, threads.map(_damage, some))
            bar.update(len(some))
    if damaged:
        more = f" and {len(damaged) - MOST_NAMED} more" if len(damaged) > MOST_NAMED else ""
        raise DataError(
            f"{source.name}: {len(damaged)} of {total:,} images cannot be decoded: "
            f"{'; '.join(damaged[:MOST_NAMED])}{more}; remove or replace them"
        )


def _damage(sample: Sample) -> str | None:
    """The image's path and what is wrong with it; None if it can be decoded."""
    image = sample.read()
    if not isinstance(image, bytes):
        return None
    try:
        found = picture(EncodedImage(memoryview(image), None))
        found.crop((0, 0, *found.size))
    except MemoryError:  # the machine's fault, not the image's
        raise
    except Exception as error:  # Pillow's plug-ins raise many kinds of errors for damaged files
        return f"{sample.path} ({' '.join(str(error).split())[:80]})"
    return None
