"""Which trials answer a question, what they cost, what they say. Free of torch.

In:  a sweep's `Study` (study.py), and the run directories that mambaout.train writes.
Out: the next trial, a price, MLflow's runs, a report.
Read: study.py, axes.py and start.py (the values), then the rooms: search, law, price, tracking,
report. origin.py says who asked for a trial, speeds.py whose speed a number is.
"""
