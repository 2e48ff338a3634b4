"""The progress bar of long work on images: drawn in place on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0  # between two lines where the output is no terminal
LINE = (
    "{desc}: {n_fmt} of {total_fmt}{unit} ({percentage:.0f} %), {rate_noinv_fmt}, "
    "{elapsed} so far, {remaining} left"
)


class _WholeLines:
    """What tqdm writes, without the carriage returns and blanks that redraw a line."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def write(self, text: str) -> None:
        if line := " ".join(text.split()):
            self.out.write(line + "\n")

    def flush(self) -> None:
        self.out.flush()


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """tqdm of these arguments. Where stderr is no terminal, as in the log of a job, it writes a
    line each `LINE_SECONDS` and one at the end; work that is shorter than that writes none."""
    if not sys.stderr.isatty():
        options |= {"file": _WholeLines(sys.stderr), "bar_format": LINE}
        # miniters: the clock is looked at each time, so that slow work has its lines too.
        options |= {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS, "miniters": 1}
    return tqdm(*args, **options)
