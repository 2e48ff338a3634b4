"""Values that a search may try next: first the sampler's, then the rest of the space."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mambaout.study.search.space import Values, points

if TYPE_CHECKING:
    from mambaout.study.search.memory import Memory

# After so many suggestions that were tried already, the sampler is not asked any more. Random
# points follow. After so many of these, a space that cannot be listed counts as exhausted.
SAMPLER_TRIES, RANDOM_TRIES = 12, 200


def candidates(memory: Memory, index: int) -> Iterator[Values]:
    """For recipe number `index`. Some may have been tried; after all the space is exhausted."""
    for attempt in range(SAMPLER_TRIES):
        yield memory.suggest(index, attempt)
    listed = points(memory.search)
    if listed is None:
        for attempt in range(RANDOM_TRIES):
            yield memory.suggest(index, SAMPLER_TRIES + attempt, at_random=True)
    else:
        left = list(listed)
        random.Random(f"{memory.search.sampler_seed} {memory.search.label} {index}").shuffle(left)
        yield from left
