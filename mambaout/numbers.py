"""How numbers are written for people: counts, rates, shares, times, bytes."""

from __future__ import annotations

import math

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def count_text(value: float) -> str:
    """1147984992 -> "1.15G"."""
    if not math.isfinite(value):
        return "-"
    rounded = float(f"{value:.3g}")  # rounded first, so that 999.9e6 is 1G and not 1000M
    unit, name = next((pair for pair in UNITS if abs(rounded) >= pair[0]), UNITS[-1])
    return f"{rounded / unit:.3g}{name}"


def bytes_text(size: float) -> str:
    """Bytes on a disk: 1010000000 -> "1.01 GB"."""
    count = count_text(size)
    return f"{count[:-1]} {count[-1]}B" if count[-1].isalpha() else f"{count} B"


def rate_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if math.isfinite(value) else "-"


def percent_text(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f} %" if math.isfinite(value) else "-"


def hours_text(hours: float) -> str:
    """2.5 -> "2.5 h", 0.5 -> "30.0 min", 0.01 -> "36 s"."""
    if not math.isfinite(hours):
        return "-"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


def clock_text(seconds: float) -> str:
    """75 -> "1:15", 7230 -> "2:00:30"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """1 -> "1 trial", 2000 -> "2,000 trials"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
