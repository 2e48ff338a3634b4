"""A study on Ray Tune. Home of ray, and the only place that knows of a second machine.

In:  a sweep's function and the command line.
Out: trained trials in the study's folder, an exit status.
Read: sweep_options.py (the command line), cli.py (the checks), request.py, tune.py (a launch),
stopping.py and ending.py (how it ends), follow.py (what it shows), worker.py, task.py and trial.py
(the work of a worker), failures.py (which failures are retried), hosts.py (a slice), resources.py
(a trial's share). named.py (which file or study a name means), start_weights.py (--init). A study
of detectors or segmenters comes in by dense_cli.py and dense_sweeps.py; its worker is in
dense_trial.py. files/ has the rules for cluster files.
"""
