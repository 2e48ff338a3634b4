"""What tests/dense/test_upernet.py has done on an XLA device, in a process of its own.

Run:    PJRT_DEVICE=CPU python tests/dense/upernet_on_xla.py
Prints: one line of JSON
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from detectors import SMALL, scene, small_detector
from torch import Tensor

from mambaout.dense.upernet import ChannelDropout, UperNet, upernet

STEPS, BATCH, SIDE = 3, 2, 32


def losses(device: torch.device, sync: Any) -> list[float]:
    """The losses of STEPS steps of gradient descent; `sync` is called once the
    model is on the device, and after each step."""
    torch.manual_seed(0)
    model: UperNet = upernet(SMALL, 4, channels=8).train()
    for module in model.modules():
        if isinstance(module, ChannelDropout):
            module.p = 0.0  # the devices' generators differ
    images = torch.randn(STEPS, BATCH, 3, SIDE, SIDE)
    labels = torch.randint(4, (STEPS, BATCH, SIDE, SIDE))
    model.to(device)
    sync()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: list[Tensor] = []
    for pixels, classes in zip(images, labels, strict=True):
        pixels, classes = pixels.to(device), classes.to(device)
        logits, auxiliary = model(pixels)
        loss = F.cross_entropy(logits, classes) + 0.4 * F.cross_entropy(auxiliary, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
        sync()
    return [value.item() for value in found]


def main() -> None:
    import torch_xla
    from torch_xla.debug import metrics

    compiled: list[int] = []

    def sync() -> None:
        torch_xla.sync(wait=True)
        compiled.append((metrics.metric_data("CompileTime") or (0,))[0])

    on_xla = losses(torch_xla.device(), sync)
    try:
        image, target = scene([[4, 4, 30, 36]], (64, 64))
        small_detector().train()([image.to(torch_xla.device())], [target])
        said = ""
    except ValueError as error:
        said = str(error)
    # After XLA's: the first backward pass of a process fixes the kinds of its devices.
    on_cpu = losses(torch.device("cpu"), lambda: None)
    fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
    print(
        json.dumps(
            {
                "cpu": on_cpu,
                "xla": on_xla,
                "compiled": compiled,
                "fallbacks": fallbacks,
                "detector": said,
            }
        )
    )


if __name__ == "__main__":
    main()
