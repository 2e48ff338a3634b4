"""The error that a user can mend.

A command shows a WrongRequest as its message, without a traceback. Every other error is a bug or a
failure of the machine: it keeps its traceback, and the exit status is 1.
"""

from __future__ import annotations


class WrongRequest(ValueError):
    """What was asked for cannot be done: the message names the value, the bound and the remedy.

    It is a ValueError for those who call the package from Python. Nothing in the package catches
    ValueError to tell a user's mistake: a `zip(strict=True)` that fails is one, too.
    """
