"""The bottlenecks of our loader: shares of the CPU time for making batches, in one process.

`python benchmarks/loader.py --profile exact|fast` calls it. It is a sampling profiler. The system
sends a signal for every millisecond of CPU time. Python handles it when the running C call returns,
in the frame that made the call. A sample counts for the innermost frame that has a part in the
table below. There is one exception: the resampling of `exact` for a geometric operation counts for
RandAugment. (`fast` has one resampling for crop, flip and these operations.)
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from loader_peers import BATCH, LOADERS

SAMPLE_SECONDS = 0.001
WARM_UP_BATCHES, CPU_SECONDS = 8, 12.0

# The end of a file's name, a function in it ("" for any), and the part for which its time counts.
PARTS = (
    ("mambaout/data/images/jpeg.py", "", "decode"),
    ("mambaout/data/images/decode.py", "", "decode"),
    ("mambaout/data/images/jpeg_crop.py", "", "decode"),
    ("PIL/ImageFile.py", "", "decode"),
    ("mambaout/data/images/resample.py", "", "resample"),
    ("PIL/Image.py", "resize", "resample"),
    ("mambaout/data/images/randaugment.py", "", "RandAugment"),
    ("timm/data/auto_augment.py", "", "RandAugment"),
    ("mambaout/data/shards/encoded.py", "", "read"),
    ("mambaout/data/shards/data_set.py", "", "read"),
    ("mambaout/data/shards/files.py", "", "read"),
    ("mambaout/data/shards/parquet.py", "", "read"),
)
GEOMETRY = (
    "mambaout/data/images/resample.py",
    "move",
    "RandAugment, geometry",
)  # around a resampling
REST = "rest"


def part(frame: FrameType | None) -> tuple[str, str]:
    """The part of the innermost frame that has one, and the location of the innermost frame."""
    inner = "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
    found = REST
    while frame is not None:
        if found == REST:
            found = next((name for *place, name in PARTS if _runs(frame, *place)), REST)
        if found == "resample" and _runs(frame, *GEOMETRY[:2]):
            found = GEOMETRY[2]
        frame = frame.f_back
    return found, inner


def _runs(frame: FrameType, ending: str, function: str) -> bool:
    code = frame.f_code
    return code.co_filename.endswith(ending) and function in ("", code.co_name)


def profile(folder: Path, pixels: str, cpu_seconds: float = CPU_SECONDS) -> str:
    """Markdown: the share of each part, and the functions that take most of it."""
    samples: Counter[tuple[str, str]] = Counter()

    def sample(_signal: int, frame: FrameType | None) -> None:
        samples[part(frame)] += 1

    batches = LOADERS[pixels](folder, "randaugment", 0)
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    before = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)
    started, images = time.process_time(), 0
    try:
        while (spent := time.process_time() - started) < cpu_seconds:
            next(batches)
            images += BATCH
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    batches.close()
    return shares(samples, f"{pixels}, full augmentation", spent / max(images, 1))


def shares(samples: Counter[tuple[str, str]], title: str, seconds_an_image: float) -> str:
    total = max(samples.total(), 1)
    lines = [
        f"{title}: {1000 * seconds_an_image:.2f} ms of CPU an image, {total} samples",
        "",
        "| part | share | ms an image | most of it in |",
        "|---|---|---|---|",
    ]
    parts: Counter[str] = Counter()
    for (name, _), count in samples.items():
        parts[name] += count
    for name, count in parts.most_common():
        inside = Counter({place: n for (own, place), n in samples.items() if own == name})
        top = ", ".join(f"{place} {100 * n / total:.0f} %" for place, n in inside.most_common(3))
        share = count / total
        lines.append(f"| {name} | {share:.0%} | {1000 * seconds_an_image * share:.3f} | {top} |")
    return "\n".join(lines)
