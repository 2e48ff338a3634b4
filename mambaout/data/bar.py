"""The progress bar of long work on images: redrawn in place on a terminal, else lines of text."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0  # between two lines, if the output is not a terminal
LINE = (
    "{desc}: {n_fmt} of {total_fmt}{unit} ({percentage:.0f} %), {rate_noinv_fmt}, "
    "{elapsed} so far, {remaining} left"
)


class _WholeLines:
    """Passes on tqdm's output without the carriage returns and blanks that redraw a line."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def write(self, text: str) -> None:
        if line := " ".join(text.split()):
            self.out.write(line + "\n")

    def flush(self) -> None:
        self.out.flush()


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """tqdm with these arguments.

    If stderr is not a terminal, like in a job's log, it writes a line every `LINE_SECONDS` and one
    at the end. Work that is shorter than `LINE_SECONDS` writes none.
    """
    if not sys.stderr.isatty():
        options |= {"file": _WholeLines(sys.stderr), "bar_format": LINE}
        # miniters=1: tqdm checks the clock at every item, so that slow work also writes its lines.
        options |= {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS, "miniters": 1}
    return tqdm(*args, **options)
