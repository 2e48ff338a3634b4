"""What a network costs and keeps, measured on its modules: what the closed forms must equal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mambaout import build
from mambaout.accounting import Cost
from mambaout.layers import ImageSize
from mambaout.model.gated_block import modules_alone
from mambaout.model.mixers import SelectiveScan
from mambaout.recompute import Stages
from mambaout.variants import ModelConfig


def measured(config: ModelConfig, image_size: ImageSize, num_classes: int) -> Cost:
    """Parameters, MACs and activations of the module, run on the meta device."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    outputs, scans = [], []
    with torch.device("meta"):
        model = build(config, num_classes).eval()
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(lambda _, __, out: outputs.append(out.numel()))
            if isinstance(module, SelectiveScan):
                module.register_forward_hook(lambda *call: scans.append(scan_work(*call)))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, height, width))
    params = sum(parameter.numel() for parameter in model.parameters())
    macs = counter.get_total_flops() // 2 + sum(macs for macs, _ in scans)
    return Cost(params, macs, sum(outputs) + sum(outputs for _, outputs in scans))


def scan_work(module: SelectiveScan, _: object, out: Tensor) -> tuple[int, int]:
    """MACs of a scan that torch does not count, and the outputs of its two linear layers."""
    ways, channels = module.directions, out.shape[-1]
    state = module.A_log.numel() // (ways * channels)
    each = out.numel() // channels  # positions
    outputs = len(module.x_proj) + ways * channels
    return each * channels * (9 * ways * state + 1), each * outputs


class MatrixProducts(TorchDispatchMode):
    """Notes the matrix products that torch computes: (rows, channels in, channels out)."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = args[-2:]
            self.shapes.append((prod(left.shape[:-1]), left.shape[-1], right.shape[-1]))
        elif name == "convolution":
            weight, groups = args[1], args[-1]
            if groups == 1:  # the others here are depthwise: no channels to sum over
                rows = prod(weight.shape[2:]) * prod(result.shape[2:])
                self.shapes.append((rows, weight.shape[1], weight.shape[0]))
        return result


def measured_products(
    config: ModelConfig, image_size: ImageSize, num_classes: int
) -> list[tuple[int, int, int]]:
    """The matrix products of one image's forward pass, each of the network's blocks by itself."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    with torch.device("meta"):
        model = build(config, num_classes).eval()
        with MatrixProducts() as noted, torch.no_grad():
            model(torch.empty(1, 3, height, width))
    return noted.shapes


def weighed(
    config: ModelConfig,
    image_size: int,
    num_classes: int,
    precision: str,
    fused: bool = False,
    recompute: Stages = (),
) -> float:
    """Bytes that autograd keeps for one more image of a training step, each storage once."""
    model = build(config, num_classes).train()
    model.set_recompute(recompute)

    def forward(num_images: int) -> None:
        images = torch.randn(num_images, 3, image_size, image_size)
        labels = torch.zeros(num_images, dtype=torch.int64)
        drops = torch.ones(num_images, config.num_blocks)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images, drops)
        F.cross_entropy(logits.float(), labels)

    return kept_for_one_more(forward, fused)


def weighed_maps(config: ModelConfig, size: tuple[int, int], fused: bool = False) -> float:
    """The same in fp32 of the stem and the stages, without the head and the loss."""
    model = build(replace(config, drop_path=0.0), num_classes=5).train()
    return kept_for_one_more(lambda num: model.forward_features(torch.randn(num, 3, *size)), fused)


def kept_for_one_more(forward: Callable[[int], object], fused: bool) -> float:
    """Bytes that autograd keeps of `forward(num_images)`, for each image more; `fused`: where
    model/gated_block.py computes the blocks."""

    def kept(num_images: int) -> int:
        found: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage
            return tensor

        blocks = nullcontext() if fused else modules_alone()
        with blocks, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward(num_images)
        return sum(storage.nbytes() for storage in found.values())

    return (kept(4) - kept(2)) / 2
