"""What numbers mean: noise, fits, intervals. Pure values; home of scipy.

In:  sizes with the errors of their seeds (fit.Size).
Out: laws, exponents, plateaus, what a doubling bought, predictions; each with its interval.
Read: fit.py, power_law.py, shape.py, then the others.
"""
