"""AdamW with the recipe's weight decay, and the learning rate of any step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from mambaout.model.first_weights import Role, role_of, width_share
from mambaout.recipe import Recipe
from mambaout.train.backend import Backend

# At their first call these methods of torch's optimizers import torch._dynamo, only to be excluded
# from tracing. Nothing traces them here.
for _name in ("add_param_group", "zero_grad", "state_dict"):
    _plain = getattr(getattr(torch.optim.Optimizer, _name), "__wrapped__", None)
    if _plain is not None:  # another torch may decorate them in another way
        setattr(_plain, "__dynamo_disable", _plain)

# If the rate is a tensor, torch's update divides by it, so it must not be 0. This rate moves no
# weight either.
LEAST_RATE = 1e-12


def optimizer(
    model: nn.Module, recipe: Recipe, backend: Backend, saved: dict[str, Any] | None = None
) -> torch.optim.AdamW:
    """AdamW over `model`, which must be on its device; `saved` is the state dict to resume from.

    With `mup_base_dim`, matrices whose fan-in grows with the width have a smaller rate. Only
    matrices and kernels have weight decay. Biases, norms and other one-dimensional parameters
    do not decay, as in DeiT and timm.

    All state exists from the start, so that the first step has the same graph as the others. If the
    backend compiles, rates and counts are tensors: a plain 0 or 1 would be part of the graph.
    """
    decayed, kept, slower = [], [], []
    optim = recipe.optim
    for name, parameter in model.named_parameters():
        if optim.mup_base_dim is not None and role_of(name, parameter) is not Role.INPUT:
            slower.append(parameter)
        else:
            (decayed if parameter.ndim > 1 else kept).append(parameter)
    groups = [
        {"params": decayed, "decays": True, "share": 1.0},
        {"params": kept, "decays": False, "share": 1.0},
    ]
    if optim.mup_base_dim is not None:
        groups.append({"params": slower, "decays": True, "share": width_share(recipe)})
    return adamw_over(
        groups,
        lr=optim.peak_lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.adam_eps,
        backend=backend,
        saved=saved,
    )


def adamw_over(
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    backend: Backend,
    saved: dict[str, Any] | None,
) -> torch.optim.AdamW:
    """The optimizer that `take_step` needs. Each group has `params`, says whether it `decays`, and
    has the `share` of the learning rate that it moves by."""
    found = torch.optim.AdamW(
        groups,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=0.0,  # `take_step` applies the decay
    )
    step = None
    parameters = [parameter for group in groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        if saved is not None:
            state = _moments(backend, **saved["state"][index])
        else:
            zeros = (torch.zeros(parameter.shape) for _ in range(2))
            state = _moments(backend, torch.zeros(()), *zeros)
        if backend.keeps_gradients:  # one count for all parameters
            step = state["step"] = state["step"] if step is None else step
        found.state[parameter] = state
    fresh_gradients(found, backend)
    return found


def _moments(
    backend: Backend, step: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor
) -> dict[str, Tensor]:
    """AdamW's state of a parameter, on the device where AdamW keeps it. The tensors may come from a
    checkpoint of any backend."""
    return {
        "step": backend.place_whole(step.reshape(1 if backend.compiles else ())),
        "exp_avg": backend.place_whole(exp_avg),
        "exp_avg_sq": backend.place_whole(exp_avg_sq),
    }


def fresh_gradients(optimizer: torch.optim.Optimizer, backend: Backend) -> None:
    """Clear the gradients. If the backend keeps them, they become zeros to add to."""
    optimizer.zero_grad(set_to_none=True)
    if backend.keeps_gradients:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = backend.place_whole(torch.zeros(parameter.shape))


@torch.no_grad()
def take_step(
    optimizer: torch.optim.Optimizer, lr: float, weight_decay: float, backend: Backend
) -> None:
    """Take one AdamW update at the learning rate `lr`, and clear the gradients.

    It changes the weights in place.
    """
    kept: Any = 1 - lr * weight_decay  # a group with a share of the rate decays with all of it
    rates: dict[float, Any] = {g["share"]: lr * g["share"] for g in optimizer.param_groups}
    if backend.compiles:
        for share, rate in rates.items():
            rates[share] = backend.place_whole(torch.tensor([max(rate, LEAST_RATE)]))
    if backend.keeps_gradients:
        _xla_step(optimizer, kept, rates, backend)
        return
    groups = [_group(optimizer, group, rates[group["share"]]) for group in optimizer.param_groups]
    if backend.compiles:
        backend.compiled(_update)(groups, backend.place_whole(torch.tensor([kept])))
    else:
        _update(groups, kept, fused=True)  # one pass over memory: a third of the time on a CPU
    optimizer.zero_grad(set_to_none=True)


def _xla_step(
    optimizer: torch.optim.Optimizer, kept: float, rates: dict[float, Tensor], backend: Backend
) -> None:
    """One operation a group. `optimizer.step()` would record 20 for each parameter.

    The gradients become 0. They are not removed: without gradients to add to, the next step would
    be another graph.
    """
    groups = [group for group in optimizer.param_groups if group["params"]]
    step = optimizer.state[groups[0]["params"][0]]["step"]  # all parameters share it
    step.add_(1)
    (beta1, beta2), epsilon = groups[0]["betas"], groups[0]["eps"]
    # A tensor: other numbers are no other graph.
    numbers = torch.tensor([kept, beta1, beta2, 1 - beta1, 1 - beta2, epsilon])  # ADAMW_NUMBERS
    numbers = backend.place_whole(numbers)
    for group in groups:
        parameters = group["params"]
        states = [optimizer.state[parameter] for parameter in parameters]
        old = [
            *parameters,
            *(state["exp_avg"] for state in states),
            *(state["exp_avg_sq"] for state in states),
            *(parameter.grad for parameter in parameters),
        ]
        new = backend.operations()["adamw"](
            *(numbers, rates[group["share"]], step, *old), decays=group["decays"]
        )
        for tensor, value in zip(old, new, strict=True):
            tensor.copy_(value)


class _AdamGroup(NamedTuple):
    """What AdamW needs of a parameter group."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    decayed: list[Tensor]  # the parameters that decay, also those without a gradient
    rate: Any  # float, or float32 (1,)
    beta1: float
    beta2: float
    epsilon: float


def _group(optimizer: torch.optim.Optimizer, group: dict[str, Any], rate: Any) -> _AdamGroup:
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    states = [optimizer.state[parameter] for parameter in parameters]
    beta1, beta2 = group["betas"]
    return _AdamGroup(
        parameters,
        [parameter.grad for parameter in parameters],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [state["step"] for state in states],
        group["params"] if group["decays"] else [],
        rate,
        beta1,
        beta2,
        group["eps"],
    )


def _update(groups: list[_AdamGroup], kept: Any, fused: bool = False) -> None:
    """What `optimizer.step()` does, after the decay. The first call of `optimizer.step` would
    import torch._dynamo, which takes 0.8 s in each process."""
    for group in groups:
        for parameter in group.decayed:
            parameter.mul_(kept)
        adamw(
            group.parameters,
            group.gradients,
            group.averages,
            group.squares,
            [],
            group.steps,
            # In one graph for all parameters torch.compile fuses what it is given as lists.
            foreach=True if torch.compiler.is_compiling() else None,
            fused=fused or None,
            capturable=not fused,
            amsgrad=False,
            beta1=group.beta1,
            beta2=group.beta2,
            lr=group.rate,
            weight_decay=0.0,
            eps=group.epsilon,
            maximize=False,
        )


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of optimizer step `step`, counted from 0.

    Warm-up runs inside the cosine, like timm's `warmup_prefix=False`: the cosine covers all
    `epochs`, and the linear warm-up replaces its first part. With lr_steps="epoch" this gives the
    released code's rates: 1e-6 for the whole first epoch, 3.80e-3 in epoch 19, 3.956e-3 in epoch
    20, 1e-5 in the cool-down.

    With a late decay the rate stays at its peak after the warm-up. Over the last `lr_decay_share`
    of the epochs it falls as 1 - sqrt(t), where t goes from 0 to 1: the form "1-sqrt" of Hägele et
    al. (arXiv 2405.18392).
    """
    schedule, peak = recipe.schedule, recipe.optim.peak_lr
    epoch = step // steps_per_epoch if schedule.lr_steps == "epoch" else step / steps_per_epoch
    if epoch < schedule.warmup_epochs:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * epoch / schedule.warmup_epochs
    if epoch >= schedule.epochs:
        return schedule.final_lr
    if (decay_step := schedule.decay_step(steps_per_epoch)) is not None:
        moves_at = step - step % steps_per_epoch if schedule.lr_steps == "epoch" else step
        past = max(0, moves_at - decay_step) / (schedule.epochs * steps_per_epoch - decay_step)
        return peak - (peak - schedule.final_lr) * math.sqrt(past)
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / schedule.epochs))
    return schedule.final_lr + (peak - schedule.final_lr) * cosine
