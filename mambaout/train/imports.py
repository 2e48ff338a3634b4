"""Imports what a training needs, with Python's garbage collector off.

    import_training()  # before the first `from mambaout.train.loop import train` of a process

The import makes a million objects that stay for ever. The collector visits them again and again
while they are made, which is an eighth of torch's import. Later each full collection would visit
them too: 0.1 s, once a trial. So they are set aside, and it never visits them again.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module

MODULES = ("mambaout.train.backend", "mambaout.train.loop")


def import_training() -> None:
    """Import torch and the modules that train. Only the first call of a process does something."""
    if all(name in sys.modules for name in MODULES):
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        for name in MODULES:
            import_module(name)
        gc.freeze()
    finally:
        if was_on:
            gc.enable()
