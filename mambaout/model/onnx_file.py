"""Writes a network as ONNX, for any number and size of images, and checks it with onnxruntime.

    print(save_onnx(model, Path("tiny.onnx"), {"model": ...}))

The file's input is `images`, (batch, 3, height, width), normalised floats. Its output is `logits`,
or `map_1` to `map_4` of a network without a head. Needs the packages of the extra `dense`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambaout.durable import replacing
from mambaout.errors import WrongRequest
from mambaout.model.mixers import SelectiveScan, nchw
from mambaout.model.network import MambaOut, Trunk

ONNX = ".onnx"
OPSET = 18  # LayerNormalization is in it since 17
TOLERANCE = 1e-4  # of an output, relative to the largest or to 1, whichever is larger
TRACED = (2, 3, 64, 96)  # the shape of the images with which the network is traced
CHECKED = ((1, 3, 64, 64), (3, 3, 97, 70))  # other numbers and sizes


class OnnxMaps(nn.Module):
    """A network's four maps, as (B, C, H, W)."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(nchw(each) for each in self.trunk.forward_pyramid(images))


def onnx_code(path: Path, has_head: bool) -> str:
    """Python lines that compute with the file in onnxruntime."""
    outputs = "logits," if has_head else "map_1, map_2, map_3, map_4"
    return "\n".join(
        [
            "import onnxruntime",
            "",
            f"session = onnxruntime.InferenceSession({str(path)!r})",
            f'# {outputs} = session.run(None, {{"images": images}})',
            "# images: float32 (B, 3, H, W), normalised",
        ]
    )


def save_onnx(model: Trunk, path: Path, facts: Mapping[str, str]) -> str:
    """Write `model` to `path`, whole or not at all, with `facts` as its metadata.

    Returns a sentence on how far onnxruntime's outputs are from ours. Raises WrongRequest if they
    differ by more than rounding, if the packages are missing, or if `path` cannot be written.
    """
    if any(isinstance(module, SelectiveScan) for module in model.modules()):
        raise WrongRequest(
            f"{path}: an ONNX file takes images of any size, and a scan's order depends on the "
            "size, so a network with an SSM cannot be exported; `mambaout evaluate` and --init "
            "read its run"
        )
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise WrongRequest(
            f"{path}: ONNX needs packages that are not here ({error}); in the project's folder, "
            "pip install -c constraints.txt -e '.[dense]'"
        ) from error
    traced: nn.Module = model if isinstance(model, MambaOut) else OnnxMaps(model)
    traced.eval()
    outputs = ["logits"] if traced is model else [f"map_{i}" for i in (1, 2, 3, 4)]
    axes: dict[str, dict[int, str]] = {"images": {0: "batch", 2: "height", 3: "width"}}
    for name in outputs:
        axes[name] = {0: "batch"}
        if traced is not model:
            axes[name] |= {2: f"{name}_height", 3: f"{name}_width"}
    try:
        with replacing(path) as aside:
            with warnings.catch_warnings(), torch.no_grad():
                # The other exporter needs another package, and this one says that it is older.
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    traced,
                    (torch.zeros(TRACED),),
                    str(aside),
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=["images"],
                    output_names=outputs,
                    dynamic_axes=axes,
                )
            proto = onnx.load(str(aside))
            onnx.helper.set_model_props(proto, dict(facts))
            onnx.checker.check_model(proto)
            onnx.save(proto, str(aside))
            session = onnxruntime.InferenceSession(str(aside), providers=["CPUExecutionProvider"])
            apart, largest = _apart(traced, session)
    except OSError as error:
        raise WrongRequest(f"{path} cannot be written: {error}") from error
    shapes = " and ".join(f"{shape[0]} of {shape[2]}x{shape[3]} px" for shape in CHECKED)
    return (
        f"checked: onnxruntime {onnxruntime.__version__} computes {' '.join(outputs)} that differ "
        f"from ours by at most {apart:.1g} of {largest:.2g} (random images, {shapes})"
    )


def _apart(model: nn.Module, session: Any) -> tuple[float, float]:
    """The largest difference of an output, and the largest output."""
    ours, theirs = [], []
    for shape in CHECKED:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            images = torch.randn(shape)
            outputs = model(images)
        ours += [outputs] if isinstance(outputs, Tensor) else outputs
        theirs += map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    # torch's maximum of numbers with a nan is nan; Python's need not be.
    largest = float(torch.stack([each.abs().max() for each in ours]).max())
    pairs = zip(ours, theirs, strict=True)
    apart = float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())
    if not math.isfinite(largest):
        raise WrongRequest("the weights give outputs that are not finite")
    if not apart <= TOLERANCE * max(1.0, largest):
        raise WrongRequest(
            f"onnxruntime computes something else with these weights: its outputs differ by up to "
            f"{apart:.2g}, where the largest is {largest:.2g}"
        )
    return apart, largest
