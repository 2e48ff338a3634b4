"""Subcommands of `mambaout`, a module for those that belong together.

Read: options.py (what several share), named.py (which file or study a name means), train.py, then
the others in any order. Each `add_NAME(commands)` declares one; what it runs imports what it
needs, so that `mambaout --help` and `mambaout list` import no torch.
"""
