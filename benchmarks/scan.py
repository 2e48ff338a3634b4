"""The time and the memory of the selective scan's forms: forward and backward of one call.

Run:    python benchmarks/scan.py --json results/scan.json
Costs:  2 min of two cores
Prints: one line a length, number of threads and form: milliseconds, the median of --rounds rounds
        with the lowest and the highest, the same in CPU time of all threads, its ratio to C's time
        in the same round, and the peak memory of tensors; the rounds of the forms alternate

| form | what it is |
|---|---|
| C | mambaout/model/scan.c |
| odd-even | mambaout/model/odd_even.py, what is used without a compiler |
| loop | a position at a time in torch's operations, with torch's gradients; up to --loop-length |
| associative_scan | torch._higher_order_ops.associative_scan, with torch's gradients |

The inputs are 2 images, 64 channels and 16 states; steps are up to 0.1 and decays from -16 to -0.1.
The peak is the most that forward and backward hold at once, in units of the B * L * D * N floats
of all states, as benchmarks/recompute.py measures it. All forms must give the same output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

from mambaout.model import selective_scan as scans
from mambaout.model.odd_even import ScanInputs
from mambaout.train.cpu import cpu_name
from mambaout.train.facts import git_commit

IMAGES, CHANNELS, STATES = 2, 64, 16
C = "C"


def inputs_of(side: int, directions: int) -> ScanInputs:
    """Leaves for a map of `side` x `side`."""
    draws = torch.Generator().manual_seed(0)
    of_states = (directions, IMAGES, side**2, STATES)
    step = torch.rand(directions, IMAGES, side**2, CHANNELS, generator=draws)
    made = ScanInputs(
        x=torch.randn(IMAGES, side**2, CHANNELS, generator=draws),
        step=0.1 * step + 1e-4,
        decay=-0.1 - 15.9 * torch.rand(directions, CHANNELS, STATES, generator=draws),
        into=torch.randn(of_states, generator=draws),
        out_of=torch.randn(of_states, generator=draws),
    )
    return ScanInputs(*(each.requires_grad_() for each in made))


# -- the forms ------------------------------------------------------------------------------------


def by_c(inputs: ScanInputs, side: int) -> Tensor:
    return scans.selective_scan(*inputs, (side, side))


def by_odd_even(inputs: ScanInputs, side: int) -> Tensor:
    is_compiled, scans.is_compiled = scans.is_compiled, lambda: False
    try:
        return scans.selective_scan(*inputs, (side, side))
    finally:
        scans.is_compiled = is_compiled


def terms(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """The factors and the inputs of the recurrence (B, L, D, N), of one direction."""
    x, step, decay, into, _ = inputs
    return torch.exp(step[0, ..., None] * decay[0]), (step[0] * x)[..., None] * into[0, :, :, None]


def by_loop(inputs: ScanInputs, side: int) -> Tensor:
    factors, added = terms(inputs)
    state, outs = torch.zeros_like(added[:, 0]), []
    for t in range(side**2):
        state = factors[:, t] * state + added[:, t]
        outs.append((state * inputs.out_of[0, :, t, None]).sum(-1))
    return torch.stack(outs, 1)


def by_associative_scan(inputs: ScanInputs, side: int) -> Tensor:
    def joined(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    _, states = associative_scan(joined, terms(inputs), dim=1, combine_mode="generic")
    return (states * inputs.out_of[0, :, :, None]).sum(-1)


FORMS: dict[str, Callable[[ScanInputs, int], Tensor]] = {
    C: by_c,
    "odd-even": by_odd_even,
    "loop": by_loop,
    "associative_scan": by_associative_scan,
}


def forms_for(directions: int, side: int, loop_length: int) -> list[str]:
    """Torch's own forms know one direction; the loop's time grows with the square of the length."""
    return [
        name
        for name in FORMS
        if name in (C, "odd-even")
        or (directions == 1 and (name != "loop" or side**2 <= loop_length))
    ]


def check_same(names: list[str], inputs: ScanInputs, side: int) -> None:
    wanted = FORMS[C](inputs, side)
    for name in names:
        apart = ((FORMS[name](inputs, side) - wanted).abs().max() / wanted.abs().max()).item()
        assert apart < 2e-6, f"{name} differs by {apart:.1e}"


# -- measures -------------------------------------------------------------------------------------


def milliseconds(name: str, inputs: ScanInputs, side: int, grad: Tensor) -> tuple[float, float]:
    """Of one call, by the clock and in CPU time. On a busy machine the clock counts more."""
    began, began_cpu = time.perf_counter(), time.process_time()
    torch.autograd.grad(FORMS[name](inputs, side), inputs, grad)
    ended, ended_cpu = time.perf_counter(), time.process_time()
    return 1e3 * (ended - began), 1e3 * (ended_cpu - began_cpu)


def peak_floats(name: str, inputs: ScanInputs, side: int, grad: Tensor) -> float:
    """The most floats that one call holds at once, over those of all states."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        torch.autograd.grad(FORMS[name](inputs, side), inputs, grad)
    profiler: Any = profiled.profiler  # its memory events are behind no public name
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 4 / (inputs.step[..., 0].numel() * CHANNELS * STATES)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def measured(side: int, directions: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each form and number of threads."""
    inputs = inputs_of(side, directions)
    grad = torch.ones_like(inputs.x)
    names = forms_for(directions, side, options.loop_length)
    check_same(names, inputs, side)
    peaks = {name: peak_floats(name, inputs, side, grad) for name in names}
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for index in range(options.rounds + 1):
            for name in names:
                taken = milliseconds(name, inputs, side, grad)
                if index > 0:  # the first warms up
                    times[name].append(taken)
        rows += [
            {
                "length": side**2,
                "directions": directions,
                "threads": threads,
                "form": name,
                "milliseconds": spread([wall for wall, _ in times[name]]),
                "cpu_milliseconds": spread([cpu for _, cpu in times[name]]),
                "cpu_time_to_c": spread(
                    [a / b for (_, a), (_, b) in zip(times[name], times[C], strict=True)]
                ),
                "peak_of_states": peaks[name],
            }
            for name in names
        ]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--directions", type=int, nargs="*", default=[1, 4], choices=(1, 2, 4))
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--loop-length", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = cpu_name(max(options.threads))
    machine = {"device": device, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    rows: list[dict[str, Any]] = []
    for directions in options.directions:
        for side in options.sides:
            for row in measured(side, directions, options):
                rows.append(row)
                times, cpu, ratio = (
                    row[each] for each in ("milliseconds", "cpu_milliseconds", "cpu_time_to_c")
                )
                print(
                    f"L {row['length']:5} K {directions} {row['threads']} threads "
                    f"{row['form']:17} {times['median']:8.2f} ms ({times['lowest']:.2f} to "
                    f"{times['highest']:.2f}), CPU {cpu['median']:8.2f} ({cpu['lowest']:.2f} to "
                    f"{cpu['highest']:.2f}), {ratio['median']:6.1f} times C; "
                    f"peak {row['peak_of_states']:5.2f}",
                    flush=True,
                )
    if options.json:
        body = {
            "rows": rows,
            "machine": machine | {"torch": torch.__version__},
            "command": " ".join(["python benchmarks/scan.py", *sys.argv[1:]]),
            "commit": git_commit(),
            "rounds": options.rounds,
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
