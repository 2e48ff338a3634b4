"""ImageNet-1k results that others have published, to compare a study's points with.

published.csv has one row for each model. All models were trained only on ImageNet-1k and evaluated
at 224 px, one run each. If timm has evaluated a model's weights again, its number is used, because
all of timm's numbers come from one evaluation and one counter of MACs (the source names the crop).
Otherwise the owner's number is used, and otherwise the MambaOut paper's table. Models whose owners
give no MACs are left out.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mambaout.study.law.fit import Size

VAL_IMAGES = 50_000  # of ImageNet-1k: a top-1 of 84 % is uncertain by 0.16 points
_FILE = Path(__file__).with_name("published.csv")


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One model as published."""

    model: str
    family: str
    mixer: str  # "Conv", "Attn", "Conv + SSM", ...
    params: float
    macs: float  # of one image of 224 px
    top1: float  # percent
    source: str
    num_blocks: float = math.nan  # known for MambaOut's own sizes
    width: float = math.nan  # of the first stage


@cache
def published() -> tuple[PublishedModel, ...]:
    """Every model of the table, by family and then by MACs."""
    with _FILE.open(newline="") as file:
        return tuple(
            PublishedModel(
                model=row["model"],
                family=row["family"],
                mixer=row["mixer"],
                params=float(row["params_m"]) * 1e6,
                macs=float(row["macs_g"]) * 1e9,
                top1=float(row["top1"]),
                source=row["source"],
                num_blocks=float(row["blocks"] or math.nan),
                width=float(row["width"] or math.nan),
            )
            for row in csv.DictReader(file)
        )


def ladder(family: str) -> list[Size]:
    """A family's sizes over MACs, for the fits. ValueError if there is no such family."""
    rows = [row for row in published() if row.family == family]
    if not rows:
        names = ", ".join(sorted({row.family for row in published()}))
        raise ValueError(f"no published model is of family {family!r}; there are {names}")
    return [
        Size(
            label=row.model,
            cost=row.macs,
            errors=(100 - row.top1,),
            depth=row.num_blocks,
            width=row.width,
        )
        for row in rows
    ]
