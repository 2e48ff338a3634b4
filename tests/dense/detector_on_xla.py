"""What tests/dense/test_detector_on_xla.py has done on an XLA device, in a process of its own.

Run:    PJRT_DEVICE=CPU python tests/dense/detector_on_xla.py
Prints: one line of JSON
"""

from __future__ import annotations

import json
from typing import Any

import torch
from detectors import small_detector
from torch import Tensor

SIZES = ((64, 96), (96, 64))  # of the images, which every step of a size shares
STEPS, BATCH = 2, 2


def passes(device: torch.device, sync: Any) -> list[dict[str, list[float]]]:
    """STEPS steps of each size: sums of the pyramid's maps, of the scores and boxes of the anchors,
    and of the gradients. `sync` is called once the detector is on the device, and after each step.
    """
    detector = small_detector().train().to(device)
    torch.manual_seed(1)
    images = [torch.randn(STEPS, BATCH, 3, *size) for size in SIZES]
    sync()
    found = []
    for size in images:
        for pixels in size:
            detector.zero_grad(set_to_none=True)
            maps = list(detector.backbone(pixels.to(device)).values())
            scores, boxes = detector.rpn.head(maps)
            loss = torch.stack([each.square().mean() for each in (*scores, *boxes)]).sum()
            loss.backward()
            outputs: dict[str, list[Tensor]] = {
                "maps": maps,
                "scores": scores,
                "boxes": boxes,
                "gradients": [p.grad for p in detector.parameters() if p.grad is not None],
            }
            sums = {n: torch.stack([t.abs().sum() for t in ts]) for n, ts in outputs.items()}
            sync()
            found.append(sums)
    return [{name: values.tolist() for name, values in step.items()} for step in found]


def main() -> None:
    import torch_xla
    from torch_xla.debug import metrics

    compiled: list[int] = []

    def sync() -> None:
        torch_xla.sync(wait=True)
        compiled.append((metrics.metric_data("CompileTime") or (0,))[0])

    on_xla = passes(torch_xla.device(), sync)
    fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
    # After XLA's: the first backward pass of a process fixes the kinds of its devices.
    on_cpu = passes(torch.device("cpu"), lambda: None)
    said = {"cpu": on_cpu, "xla": on_xla, "compiled": compiled, "fallbacks": fallbacks}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
