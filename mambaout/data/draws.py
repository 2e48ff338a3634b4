"""Random numbers as a pure function of their purpose and keys.

A draw names its purpose and its keys (seed, epoch, sample id, ...). So it does not matter which
worker, micro-batch, device or resumed run asks for it, nor in which order. The mixing function is
splitmix64's finaliser (Steele, Lea, Flood 2014) over the keys. It is written out here, so the
numbers are the same for every version of numpy.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def hash64(data: bytes | memoryview) -> int:
    """A hash of `data` with 64 well mixed bits, the same on every machine."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def draw(purpose: str, *keys: int) -> int:
    """One uniform integer of 64 bits, a function of `purpose` and `keys`."""
    state = hash64(purpose.encode())
    for key in keys:
        state = _mixed((state + key * _GOLDEN + 1) & _MASK)
    return state


def draws(purpose: str, *keys: int, each: np.ndarray) -> np.ndarray:
    """A uniform uint64 for every element of the integer array `each`, which is the last key."""
    state = np.uint64(draw(purpose, *keys))
    last = np.asarray(each).astype(np.uint64, copy=False)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2**64
        return _mixed_array(state + last * np.uint64(_GOLDEN) + np.uint64(1))


def uniforms(purpose: str, *keys: int, each: np.ndarray) -> np.ndarray:
    """Like `draws`, but a float64 in [0, 1) for every element of `each`."""
    return (draws(purpose, *keys, each=each) >> np.uint64(11)) * 2.0**-53


def _mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mixed_array(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
