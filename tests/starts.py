"""What a sweep's function is given, for data that need not be there."""

from __future__ import annotations

from typing import Any

from mambaout.rules import DataFacts
from mambaout.study.start import Start


def start_of(num_train: int, image_side: int, *, num_classes: int = 10, **more: Any) -> Start:
    """The start of a study on `num_train` training images of `image_side` px."""
    facts = DataFacts(num_train=num_train, num_classes=num_classes, image_side=image_side)
    return Start(facts=facts, **more)
