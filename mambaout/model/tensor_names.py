"""The names of tensors in a file: from the authors' and from wrapped models to ours, timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mambaout.errors import WrongRequest
from mambaout.model.torch_file import printable

# From the authors' names to ours, which are timm's. The first pattern that fits counts.
_FROM_AUTHORS = (
    (r"downsample_layers\.0\.(.+)", r"stem.\1"),
    (r"downsample_layers\.(\d+)\.(.+)", r"stages.\1.downsample.\2"),
    (r"stages\.(\d+)\.(\d+)\.(.+)", r"stages.\1.blocks.\2.\3"),
    (r"norm\.(.+)", r"head.norm.\1"),
    (r"head\.fc1\.(.+)", r"head.pre_logits.fc.\1"),
    (r"head\.norm\.(.+)", r"head.pre_logits.norm.\1"),
    (r"head\.fc2\.(.+)", r"head.fc.\1"),
)
# The prefixes that DataParallel and torch.compile put before every name, in either order.
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the names that the model had before it was wrapped."""
    found: dict[str, Tensor] = {}
    for wrapped, value in state.items():
        name = _WRAPPERS.sub("", wrapped)
        if name in found:
            raise WrongRequest(f"two tensors are called {printable(name)}, one with a prefix")
        found[name] = value
    return found


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the authors' names changed to ours. A state with our names stays as it is.

    A name that is neither's stays too, so that the caller can report it as unexpected.
    """
    # Both use `stages.` and `head.norm.`, with different meanings. Only the authors have this name.
    if not any(name.startswith("downsample_layers.") for name in state):
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = _our_name(name)
        if ours in renamed:
            raise WrongRequest(
                f"two tensors are called {printable(ours)}: the file mixes two naming schemes"
            )
        renamed[ours] = value
    return renamed


def _our_name(name: str) -> str:
    for theirs, ours in _FROM_AUTHORS:
        if match := re.fullmatch(theirs, name):
            return match.expand(ours)
    return name
