"""Subcommands of `mambaout`, a module for those that belong together.

Read: options.py (what several share), named.py (which file a name means), then evaluate.py,
export.py, list.py, account.py. Each `add_NAME(commands)` declares one; what it runs imports what
it needs, so that `mambaout --help` and `mambaout list` import no torch.
"""
