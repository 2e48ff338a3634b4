"""How numbers are written for people: counts, rates, shares, times."""

from __future__ import annotations

import math

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def count_text(value: float) -> str:
    """1147984992 -> "1.15G"."""
    if not math.isfinite(value):
        return "-"
    rounded = float(f"{value:.3g}")  # 999.9e6 is 1G, and not 1000M
    unit, name = next((pair for pair in UNITS if abs(rounded) >= pair[0]), UNITS[-1])
    return f"{rounded / unit:.3g}{name}"


def rate_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if math.isfinite(value) else "-"


def percent_text(value: float) -> str:
    return f"{value:.2f} %" if math.isfinite(value) else "-"


def hours_text(hours: float) -> str:
    if not math.isfinite(hours):
        return "-"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"
