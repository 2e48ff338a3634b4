"""The machine for which a study is priced: this one, or the named kind of TPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mambaout.launch.calibrate import device_of
from mambaout.launch.resources import Share, plan_nodes, share
from mambaout.study.price.plan import Plan, plan
from mambaout.study.price.rates import Rate, known_rates
from mambaout.study.study import Trial


@dataclass(frozen=True)
class PlannedMachine:
    """What one trial gets, how many run at a time, and how fast they are known to be."""

    part: Share
    concurrency: int
    storage: Path

    @property
    def device(self) -> str:
        return device_of(self.part)

    @cached_property
    def rates(self) -> Sequence[Rate]:
        return known_rates(self.storage, self.device, self.concurrency)

    def plan(self, trials: Sequence[Trial], num_train: int, num_classes: int, **more: Any) -> Plan:
        """The price of the trials here; `more` are the other arguments of price.plan.plan."""
        return plan(
            trials,
            num_train,
            num_classes,
            rates=self.rates,
            device=self.device,
            num_devices=self.part.num_devices,
            concurrency=self.concurrency,
            **more,
        )


def planned_machine(options: argparse.Namespace, storage: Path) -> PlannedMachine:
    nodes = plan_nodes(options.accelerator)
    part = share(options.accelerator, nodes)
    return PlannedMachine(part, options.max_concurrent or part.slots(nodes), storage)
