"""Which trials answer a question, what they cost and what they show. Imports no torch.

In:  a sweep's `Study` (study.py), and the run directories that mambaout.train writes.
Out: the next trial, a price, MLflow's runs, a report.
Read: study.py, axes.py, start.py and dense_start.py (the values), then the folders: search, law,
price, tracking, report. origin.py says which part of a study asked for a trial. branches.py lets a
long training go on from a shorter one. speeds.py says which device a speed belongs to.
pairing.py says what is compared within a seed; mixer_rows.py and matched.py make such recipes.
"""
