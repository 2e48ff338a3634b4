"""The backbone: MambaOut without its head, with a LayerNorm on the output of each stage.

    backbone = Backbone(replace(variant("tiny"), drop_path=0.2))
    print(load_backbone(backbone, read_weights("mambaout_tiny.safetensors")))
    maps = backbone(images)  # (B, 3, H, W) -> four maps, (B, dims[i], H / strides[i], ...)

The paper's author asks for these norms, and only with them do the published parameters come out.
`drop_path` of the config acts in training.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from mambaout.errors import WrongRequest
from mambaout.model.dense_checkpoint import NORMS
from mambaout.model.file_shape import shape_in, shape_text
from mambaout.model.mixers import nchw
from mambaout.model.network import NORM_EPS, Trunk, initialise
from mambaout.model.norm import LayerNorm
from mambaout.model.weights import Weights, load_trunk
from mambaout.variants import ModelConfig


class Backbone(Trunk):
    """The four stages' maps, each after a LayerNorm of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.norms = nn.ModuleList(LayerNorm(dim, eps=NORM_EPS) for dim in config.dims)
        self.apply(initialise)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image to one place of each map: 4, 8, 16, 32 with a stem of stride 4."""
        return tuple(self.config.stem_stride * 2**stage for stage in range(len(self.config.dims)))

    def forward(self, x: Tensor, drop_scales: Tensor | None = None) -> list[Tensor]:
        """Four maps (B, dims[i], H / strides[i], W / strides[i]) of images (B, 3, H, W).

        Any height and width will do; the sides of the maps are rounded up. The maps are in memory
        channels last. `drop_scales` is that of `Trunk.forward_pyramid`.
        """
        maps = self.forward_pyramid(x, drop_scales)
        return [nchw(norm(each)) for norm, each in zip(self.norms, maps, strict=True)]


def require_shape(backbone: Backbone, weights: Weights) -> None:
    """Raise WrongRequest if the weights of --init are of another depth or width; it names both."""
    ours, theirs = backbone.config, shape_in(weights.tensors)
    if theirs is not None and (ours.depths, ours.dims) != (theirs.depths, theirs.dims):
        raise WrongRequest(
            f"--init: {weights.path} does not fit the backbone, which is {shape_text(ours)}: it is "
            f"{shape_text(theirs)}. Without VARIANT and shape options the network is the weights' "
            "own"
        )


def load_backbone(backbone: Backbone, weights: Weights) -> str:
    """Load a file of `read_weights` into `backbone`, in place; returns a sentence about it.

    The file may be a classifier's, whose head is left out, or a backbone's. A classifier has no
    output norms: they stay as they are. Raises WrongRequest if anything else is missing, is too
    much or has another shape; then nothing is loaded.
    """
    tensors = dict(weights.tensors)
    has_norms = any(name.startswith(NORMS) for name in tensors)
    if not has_norms:
        tensors |= {n: t for n, t in backbone.state_dict().items() if n.startswith(NORMS)}
    num_left_out = load_trunk(backbone, replace(weights, tensors=tensors))
    head = f"{num_left_out} tensors of its head are left out" if num_left_out else "it has no head"
    norms = "" if has_norms else "; the norms on the four outputs are not in it and stay as set"
    return f"{weights.path}: {weights.text}; {head}{norms}"
