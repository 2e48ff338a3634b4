"""What the results mean: noise, fits and intervals. Pure values; home of scipy.

In:  a study's runs (noise.SeedNoise), sizes with the errors of their seeds (fit.Size).
Out: laws, exponents, plateaus, the gain per doubling of cost, predictions; each with its interval.
Read: noise.py, fit.py, power_law.py, shape.py, then the others.
"""
