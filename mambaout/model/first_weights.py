"""The random weights that a training starts from, and how they follow the network's width.

    model = new_model(recipe, num_classes)     # drawn by torch's global generator

With `mup_base_dim`, weights and learning rates follow muP (arXiv 2203.03466, Table 3, for Adam).
Table 8 there is the same rule, with a factor in front of the output instead of a smaller rate.
`share` is mup_base_dim / dims[0]:

| parameters | fan-in | role | standard deviation at the start | learning rate |
|---|---|---|---|---|
| stem.conv1, depthwise kernels | fixed | INPUT | x 1 | x 1 |
| biases, norms | | INPUT | x 1 | x 1 |
| stem.conv2, downsample.conv, fc1, fc2, pre_logits.fc | grows | HIDDEN | x sqrt(share) | x share |
| head.fc | grows | OUTPUT | x share | x share |

So a network of width mup_base_dim starts and learns as it does without the rule. The factors of the
standard deviation are those for weight_init="trunc_normal", whose deviation is 0.02 at each width.
With "fan_in", the weights of each layer shrink with the root of its fan-in anyway. HIDDEN then has
the factor 1, and OUTPUT has sqrt(share).
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Enum

import torch
from torch import nn

from mambaout.mixer_layers import CONV_MIXER
from mambaout.model.network import MambaOut, build
from mambaout.recipe import Recipe


class Role(Enum):
    """How the sides of a parameter grow with the network's width."""

    INPUT = "its fan-in is fixed, or it is a vector"
    HIDDEN = "both sides grow"
    OUTPUT = "only its fan-in grows"


def role_of(name: str, parameter: torch.Tensor) -> Role:
    """The role of a parameter of `MambaOut`. Two-dimensional kernels of one input channel, which
    are depthwise, have a fixed fan-in."""
    if name == "head.fc.weight":
        return Role.OUTPUT
    if parameter.ndim < 2 or parameter.shape[1] == 1 or name == "stem.conv1.weight":
        return Role.INPUT
    return Role.HIDDEN


def width_share(recipe: Recipe) -> float:
    """The width that the rate was tuned on, as a share of the network's; 1 without mup_base_dim."""
    base = recipe.optim.mup_base_dim
    return 1.0 if base is None else base / recipe.model.dims[0]


def new_model(recipe: Recipe, num_classes: int) -> MambaOut:
    """The recipe's network with its first weights. Torch's global generator draws them.

    Whatever the mixer is, the parameters that the network with the convolution has too, in the same
    shape, start with the values that they have there. So less chance lies between two mixers.
    """
    before = torch.get_rng_state()
    model = _drawn(recipe, num_classes)
    if recipe.model.mixer != CONV_MIXER:
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        with_conv = replace(recipe, model=replace(recipe.model, mixer=CONV_MIXER))
        _copy_shared(_drawn(with_conv, num_classes), model)
        torch.set_rng_state(after)
    share = width_share(recipe)
    if share != 1:
        widthwise = recipe.optim.weight_init == "fan_in"
        hidden, output = (1.0, math.sqrt(share)) if widthwise else (math.sqrt(share), share)
        factors = {Role.INPUT: 1.0, Role.HIDDEN: hidden, Role.OUTPUT: output}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(factors[role_of(name, parameter)])
    return model


def _drawn(recipe: Recipe, num_classes: int) -> MambaOut:
    model = build(recipe.model, num_classes)
    if recipe.optim.weight_init == "fan_in":
        model.apply(_draw_by_fan_in)
    return model


@torch.no_grad()
def _copy_shared(source: MambaOut, model: MambaOut) -> None:
    """Copy the parameters that both networks have. A mixer that begins with the convolution names
    it `depthwise`."""
    values = source.state_dict()
    for name, parameter in model.named_parameters():
        value = values.get(name.replace(".conv.depthwise.", ".conv."))
        if value is not None and value.shape == parameter.shape:
            parameter.copy_(value)


def _draw_by_fan_in(module: nn.Module) -> None:
    """Draw the weights of a convolution or linear layer as torch does: uniform, up to
    1 / sqrt(fan-in). The bias stays zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        fan_in = module.weight[0].numel()
        nn.init.uniform_(module.weight, -(fan_in**-0.5), fan_in**-0.5)
