"""What the results mean: noise, fits and intervals. Pure values; home of scipy.

In:  a study's runs (noise.SeedNoise), sizes with the errors of their seeds (fit.Size).
Out: laws, exponents, plateaus, width against depth, differences within a seed (paired.py),
predictions; each with its interval. Before a study: its power (planned.py, power.py).
Read: seeds.py, noise.py, fit.py, power_law.py, shape.py, then the others.
"""
