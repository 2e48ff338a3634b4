"""The subcommands of `mambaout`. Related subcommands share a module.

Read: options.py (what several share), train.py, then the others in any order. Each
`add_NAME(commands)` declares one subcommand. A subcommand imports its libraries only when it runs,
so `mambaout --help` and `mambaout list` import no torch.
"""
