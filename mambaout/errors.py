"""The error that a user can fix.

A command prints only the message of a WrongRequest, without a traceback. Every other error is a bug
or a failure of the machine: it keeps its traceback, and the exit status is 1.
"""

from __future__ import annotations


class WrongRequest(ValueError):
    """A request that cannot be met; the message names the value, the bound and the remedy.

    It is a ValueError, for callers from Python. The package itself never catches ValueError to
    find a user's mistake, because a bug can raise one too, like a failed `zip(strict=True)`.
    """
