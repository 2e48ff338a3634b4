"""One training run on one worker group. This folder does not use Ray, MLflow or Optuna.

In:  a recipe, a data set, a seed, a backend.
Out: a run directory, a `Record` for every sink, an `Outcome`.
Read: loop.py, run_directory.py, stepper.py, step.py, optim.py, milestones.py, reporter.py,
meter.py; backend.py is the home of torch_xla.
"""
