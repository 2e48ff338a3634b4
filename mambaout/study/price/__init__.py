"""What a study will cost, before it starts.

In:  recipes, and the speeds that were measured (rates.py).
Out: a plan: device-hours, wall time, disk, money, and what the study will be able to tell.
Read: rates.py, trial_price.py, plan.py, foresight.py, paired_foresight.py.
"""
